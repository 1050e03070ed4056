# SPDX-License-Identifier: Apache-2.0
"""A door whose key agent hangs: everybody is told so in time, and the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import Answer, Client, Echo, FakeClock, call, record
from keyferry.asgi import SimLogin
from keyferry.errors import StoreError
from keyferry.protocol.digest import Challenge
from keyferry.transports.agent_link import AgentLink, BlockingLink, Rest
from keyferry.transports.agent_socket import AgentKeys
from steady import steady
from transports.agentkit import WIKI, FakeSource, connected, listening, make_server, short_folder

ALICE = record(as_id=WIKI)
LIMIT = 0.5
"""Seconds that a question may take here."""
STILL = 0.05
"""Seconds that the loop may stand still for one."""
BUSY = 0.4
"""Seconds that this machine may be busy with something else."""


@contextlib.contextmanager
def hanging() -> Iterator[Path]:
    """Yield the socket of a process that was stopped: the kernel takes connections and questions, and nobody answers."""
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "agent.sock"))
        listener.listen(1024)
        yield folder / "agent.sock"


class Heart:
    """Says how long the event loop stood still at most."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def beat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now


@contextlib.asynccontextmanager
async def beating() -> AsyncIterator[Heart]:
    heart = Heart()
    task = asyncio.ensure_future(heart.beat())
    try:
        yield heart
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def door(keys: AgentKeys, **settings: Any) -> SimLogin:
    app: Any = Echo()
    return SimLogin(app, as_id=WIKI, keys=keys, **settings)


def login() -> tuple[str, str]:
    return Client(ALICE).answer(Challenge(f"IMS-AS-key@{WIKI}", "A" * 40, "SHA-256", ("auth",)))


@steady(0.1)
async def test_fifty_requests_at_once_wait_for_one_attempt_and_the_loop_for_none() -> None:
    """Half of them with credentials, half without: nobody queues behind anybody."""
    with hanging() as path:
        keys = AgentKeys(path, limit=LIMIT, limit_now=STILL, rest=60.0)
        login_ = door(keys)
        async with beating() as heart:
            began = time.monotonic()
            answers = await asyncio.gather(*[call(login_, host=WIKI, headers=[login()] if number % 2 else []) for number in range(50)])
            took = time.monotonic() - began
            assert {(answer.status, answer.get("retry-after")) for answer in answers} == {(503, "1")}
            assert took < LIMIT + BUSY
            began = time.monotonic()
            for number in range(50):  # and those that come afterwards wait for nothing
                answer: Answer = await call(login_, host=WIKI, headers=[login()] if number % 2 else [])
                assert (answer.status, answer.get("retry-after")) == (503, "1")
            assert time.monotonic() - began < BUSY
        assert heart.longest < STILL + BUSY
        await keys.aclose()


@steady(0.1)
async def test_callbacks_stand_still_once() -> None:
    """OpenSSL's cannot wait: the first one finds out, and until the agent is known to answer no other one tries."""
    clock = FakeClock()
    with hanging() as path:
        keys = AgentKeys(path, limit=LIMIT, limit_now=STILL, clock=clock)
        stood: list[float] = []
        for _ in range(20):
            began = time.monotonic()
            with pytest.raises(StoreError):
                keys.lookup_now(ALICE.key_id, WIKI)
            stood.append(time.monotonic() - began)
            clock.time += 0.3  # the pause is over several times
        assert stood[0] >= STILL
        assert sum(stood[1:]) < BUSY
        with pytest.raises(StoreError, match="hangs"):
            keys.ledger(WIKI).issue()
        with pytest.raises(StoreError, match="hangs"):
            keys.user_id_key(WIKI)
        await keys.aclose()


@steady(0.02)
async def test_after_the_pause_it_is_asked_again_and_all_is_as_before() -> None:
    """The callbacks' turn comes when a task, which they set off, has got an answer; who may wait waits for the pause or that."""
    clock = FakeClock()
    with short_folder() as folder:
        path = folder / "agent.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            keys = AgentKeys(path, limit=0.05, limit_now=0.02, clock=clock)
            with pytest.raises(StoreError, match="did not answer within"):
                await keys.lookup(ALICE.key_id, WIKI)
        path.unlink()
        source = FakeSource()
        source.add(ALICE)
        server, _ = make_server(source)
        await server.listen(path)
        with pytest.raises(StoreError, match="hangs"):
            await keys.lookup(ALICE.key_id, WIKI)
        with pytest.raises(StoreError, match="hangs"):
            keys.lookup_now(ALICE.key_id, WIKI)
        with pytest.raises(StoreError, match="hangs"):
            await keys.lookup(ALICE.key_id, WIKI)  # joins nobody in the pause
        assert keys._looking is not None
        await keys._looking
        assert await asyncio.to_thread(keys.lookup_now, ALICE.key_id, WIKI) == ALICE
        assert await keys.lookup(ALICE.key_id, WIKI) == ALICE
        await keys.aclose()
        await server.aclose()


async def test_when_the_pause_is_over_whoever_may_wait_asks_again() -> None:
    clock = FakeClock()
    with hanging() as path:
        keys = AgentKeys(path, limit=0.05, clock=clock)
        for says in ("did not answer within", "hangs", "hangs"):
            with pytest.raises(StoreError, match=says):
                await keys.lookup(ALICE.key_id, WIKI)
        clock.time += 1.1
        with pytest.raises(StoreError, match="did not answer within"):
            await keys.lookup(ALICE.key_id, WIKI)
        await keys.aclose()


async def test_an_agent_that_was_but_slow_is_asked_by_callbacks_again_as_soon_as_it_answers() -> None:
    async with listening() as running, connected(running, limit_now=0.01) as keys:
        running.source.add(ALICE)
        await keys.lookup("x", WIKI)
        with pytest.raises(StoreError, match=r"(?i)time"):
            keys.lookup_now(ALICE.key_id, WIKI)  # which stands still with the loop that the agent runs in, here
        assert keys._looking is not None
        await keys._looking
        assert not keys._rest.silent
        assert await keys.lookup(ALICE.key_id, WIKI) == ALICE


@steady(0.05)
async def test_a_record_of_an_event_loop_that_has_ended_is_not_believed() -> None:
    """Nobody hears there that it has changed."""
    async with listening() as running:
        running.source.add(ALICE)
        keys, loop = AgentKeys(running.path), asyncio.new_event_loop()
        assert await asyncio.to_thread(loop.run_until_complete, keys.lookup(ALICE.key_id, WIKI)) == ALICE
        left = keys._link
        assert left is not None
        running.source.records.clear()
        assert await asyncio.to_thread(keys.lookup_now, ALICE.key_id, WIKI) is None
        assert await keys.lookup(ALICE.key_id, WIKI) is None

        async def finish() -> None:
            left.end("was left")
            await asyncio.sleep(0)

        await asyncio.to_thread(loop.run_until_complete, finish())
        loop.close()
        await keys.aclose()


async def test_who_was_refused_at_once_may_come_back_at_once() -> None:
    """Only waiting is costly: an agent that is not there is missed for no longer than that."""
    with short_folder() as folder:
        keys = AgentKeys(folder / "agent.sock", clock=FakeClock())
        with pytest.raises(StoreError, match="no key agent answers here"):
            await keys.lookup(ALICE.key_id, WIKI)
        source = FakeSource()
        source.add(ALICE)
        server, _ = make_server(source)
        await server.listen(folder / "agent.sock")
        assert await keys.lookup(ALICE.key_id, WIKI) == ALICE
        await keys.aclose()
        await server.aclose()


@steady(0.1)
async def test_an_agent_that_begins_to_hang_is_left_after_one_time_out() -> None:
    """Its connection is there, and answers nothing any more."""

    class Stopped(FakeSource):
        async def lookup(self, identifier: str, as_id: object) -> None:
            await asyncio.Event().wait()

    async with listening(Stopped()) as running, connected(running, limit=LIMIT, limit_now=STILL, rest=60.0) as keys:
        began = time.monotonic()
        answers = await asyncio.gather(*[call(door(keys), host=WIKI, headers=[login()]) for _ in range(50)])
        assert {answer.status for answer in answers} == {503}
        assert time.monotonic() - began < LIMIT + BUSY
        with pytest.raises(StoreError, match="hangs"):
            keys.lookup_now(ALICE.key_id, WIKI)


@steady(0.05)
async def test_a_challenge_is_made_without_standing_still() -> None:
    """The nonce key comes over the connection of those who may wait: also for the challenge that an application's own 401 gets."""
    async with listening() as running, connected(running, limit_now=-1.0) as keys:
        assert (await call(door(keys), host=WIKI)).status == 401
        assert not keys._rest.silent
        open_ = door(keys, open=("/",), required=())
        open_.app = _refusing
        assert (await call(open_, host=WIKI)).all("www-authenticate")
        running.source.add(ALICE)
        await keys.lookup(ALICE.key_id, WIKI)
        assert keys.user_id_key(WIKI) is not None  # came with it


async def _refusing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_an_answer_that_came_while_the_loop_was_busy_is_no_late_one() -> None:
    """The application stood still, not the agent."""
    async with listening() as running:
        rest = Rest(running.path)
        link = await AgentLink.connect(running.path, 60.0, lambda _: None, lambda _: None, rest)
        received = link.data_received

        def data_received(data: bytes) -> None:
            received(data)
            link._limit = 0.0
            link._look()  # in the same turn, before whoever asked goes on

        link.data_received = data_received  # type: ignore[method-assign]
        assert (await link.ask({"op": "lookup", "as": WIKI, "key": "x"}))["record"] is None
        assert link.is_open
        assert not rest.silent
        link.end("was left")


@steady(0.1)
def test_threads_that_wait_for_their_turn_do_not_each_wait_for_the_agent() -> None:
    with hanging() as path:
        link = BlockingLink(path, 0.05)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(StoreError):
                link.ask({"op": "nonces", "as": WIKI})
        assert time.monotonic() - began < BUSY
        with pytest.raises(StoreError, match="hangs"):
            link.ask({"op": "nonces", "as": WIKI})
