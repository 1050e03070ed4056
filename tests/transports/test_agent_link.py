# SPDX-License-Identifier: Apache-2.0
"""Connections to a key agent's socket; what they carry is in test_agent_socket.py."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading

import pytest

from keyferry.errors import DigestRejected, StoreError
from keyferry.transports import agent_link
from keyferry.transports.agent_link import AgentLink, BlockingLink, checked
from keyferry.transports.agent_wire import build_frame
from transports.agentkit import WIKI, FakeSource, listening, record, short_folder

LOOKUP = {"op": "lookup", "as": WIKI, "key": record().key_id}


async def test_answers_come_in_any_order_and_go_to_whoever_asked() -> None:
    release = asyncio.Event()

    class Slow(FakeSource):
        async def lookup(self, identifier: str, as_id: object) -> None:
            self.asked.append(identifier)
            if identifier == "slow":
                await release.wait()

    async with listening(Slow()) as running:
        link = await AgentLink.connect(running.path, 2.0, lambda _: None, lambda _: None)
        slow = asyncio.ensure_future(link.ask({**LOOKUP, "key": "slow"}))
        fast = await link.ask({**LOOKUP, "key": "fast"})
        assert fast["record"] is None
        assert not slow.done()
        release.set()
        assert (await slow)["id"] != fast["id"]
        link.end("was left")


async def test_requests_that_wait_are_bounded_and_one_that_was_given_up_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_link, "MAX_WAITING", 1)
    release = asyncio.Event()

    class Slow(FakeSource):
        async def lookup(self, identifier: str, as_id: object) -> None:
            await release.wait()

    async with listening(Slow()) as running:
        link = await AgentLink.connect(running.path, 2.0, lambda _: None, lambda _: None)
        first = asyncio.ensure_future(link.ask(LOOKUP))
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="under way already"):
            await link.ask(LOOKUP)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        release.set()
        assert (await link.ask(LOOKUP))["record"] is None
        link.end("was left")


async def test_who_waits_when_the_agent_ends_is_told_at_once() -> None:
    lost: list[AgentLink] = []

    class Slow(FakeSource):
        async def lookup(self, identifier: str, as_id: object) -> None:
            await asyncio.Event().wait()

    async with listening(Slow()) as running:
        link = await AgentLink.connect(running.path, 60.0, lambda _: None, lost.append)
        waiting = asyncio.ensure_future(link.ask(LOOKUP))
        await asyncio.sleep(0)
        await running.server.aclose()
        with pytest.raises(StoreError, match="is away"):
            await waiting
        assert lost == [link]
        with pytest.raises(StoreError, match="it ended"):
            await link.ask(LOOKUP)


def test_an_answer_says_what_went_wrong() -> None:
    with short_folder() as folder:
        assert checked(folder, {"record": None}) == {"record": None}
        for error, stale in (("stale", True), ("gone", False)):
            with pytest.raises(DigestRejected) as problem:
                checked(folder, {"error": error, "text": "why"})
            assert problem.value.stale is stale
        with pytest.raises(StoreError, match="busy"):
            checked(folder, {"error": "busy"})


async def test_threads_take_turns_at_one_connection() -> None:
    async with listening() as running:
        running.source.add(record())
        link = BlockingLink(running.path, 5.0)
        answers = await asyncio.gather(*[asyncio.to_thread(link.ask, LOOKUP) for _ in range(20)])
        assert all(answer["record"] for answer in answers)
        assert len(running.server.clients) == 1
        link.close()


def test_a_process_that_was_forked_opens_a_connection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of two processes on one connection would be mixed up."""
    opened: list[int] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            opened.append(1)
            with connection:
                for _ in range(2):
                    asked = json.loads(connection.recv(4096)[4:])
                    connection.sendall(build_frame({"id": asked["id"]}))

    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "a.sock"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        link = BlockingLink(folder / "a.sock", 5.0)
        link.ask(LOOKUP)
        process = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: process + 1)
        link.ask(LOOKUP)
        link.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert opened == [1, 1]


def test_a_callback_does_not_stand_still_for_longer_than_it_may() -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "a.sock"))
        listener.listen()
        with pytest.raises(StoreError, match=r"(?i)time"):
            BlockingLink(folder / "a.sock", 0.05).ask(LOOKUP)


async def test_an_answer_that_came_too_late_is_none_to_the_next_question() -> None:
    """Whatever broke off a question: its answer may hold another user's key."""
    async with listening() as running:
        running.source.add(record(), record("bob"))
        link = BlockingLink(running.path, 5.0)
        await asyncio.to_thread(link.ask, LOOKUP)
        assert link._socket is not None
        # A question that nobody waits for any more, as after an interrupt.
        link._socket.sendall(build_frame({"id": 99, **LOOKUP, "key": record("bob").key_id}))
        for _ in range(2):
            answer = await asyncio.to_thread(link.ask, LOOKUP)
            assert answer["record"][0] == record().key_id
        link.close()
