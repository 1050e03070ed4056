# SPDX-License-Identifier: Apache-2.0
"""The key agent's socket towards workers, right and wrong ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyferry.transports import agent_server
from keyferry.transports.agent_wire import MAX_REQUEST, build_frame
from keyferry.transports.unix_socket import Admission
from transports.agentkit import BROKEN, MAIL, WIKI, FakeSource, Running, listening, record

HELLO = {"id": 0, "op": "hello", "versions": [1], "cache": True}


class Raw:
    """A client that may send anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, running: Running) -> Raw:
        return cls(*await asyncio.open_unix_connection(running.path))

    async def ask(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.writer.write(build_frame(fields))
        return await self.next()

    async def next(self) -> dict[str, Any]:
        length = int.from_bytes(await self.reader.readexactly(4), "big")
        told: dict[str, Any] = json.loads(await self.reader.readexactly(length))
        return told

    async def ended(self) -> bool:
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def test_who_says_no_hello_in_time_is_ended() -> None:
    async with listening(hello_limit=0.02) as running:
        client = await Raw.to(running)
        assert await client.ended()
        assert running.quiet.counts == ["agent_refused silent"]
        assert not running.server.clients
        await client.close()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"id": 1, "op": "lookup", "as": WIKI, "key": "k"}, "hello"),
        ({**HELLO, "versions": [2, 3]}, "version"),
        ({**HELLO, "versions": 1}, "version"),
    ],
)
async def test_an_old_or_careless_client_is_told_what_is_wrong(fields: dict[str, Any], error: str) -> None:
    async with listening() as running:
        client = await Raw.to(running)
        told = await client.ask(fields)
        assert (told["error"], told["id"]) == (error, fields["id"])
        await client.close()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"op": "steal", "as": WIKI}, "unknown"),
        ({"op": ["lookup"], "as": WIKI}, "unknown"),
        ({"op": "lookup", "key": "k"}, "as"),
        ({"op": "lookup", "as": "other.home1.net", "key": "k"}, "as"),
        ({"op": "lookup", "as": [WIKI], "key": "k"}, "as"),
        ({"op": "lookup", "as": WIKI, "key": "k" * 301}, "malformed"),
        ({"op": "lookup", "as": WIKI, "key": 5}, "malformed"),
        ({"op": "claim", "as": WIKI, "key": "k", "nonce": "n", "count": -1}, "malformed"),
        ({"op": "claim", "as": WIKI, "key": "k", "nonce": "n", "count": 2**32}, "malformed"),
        ({"op": "claim", "as": WIKI, "key": "k", "nonce": "n", "count": "1"}, "malformed"),
        ({"op": "claim", "as": WIKI, "key": "k", "nonce": None, "count": 1}, "malformed"),
        ({"op": "claim", "as": WIKI, "key": "k", "nonce": "n", "count": 1}, "gone"),
        ({"op": "first", "as": WIKI, "key": "k"}, "gone"),
        ({"op": "first", "as": WIKI, "key": record().key_id}, "stale"),
    ],
)
async def test_a_request_that_means_nothing_is_refused_and_the_next_is_answered(fields: dict[str, Any], error: str) -> None:
    async with listening() as running:
        running.source.add(record())
        client = await Raw.to(running)
        assert (await client.ask(HELLO))["version"] == 1
        assert (await client.ask({"id": 1, **fields}))["error"] == error
        assert (await client.ask({"id": 2, "op": "lookup", "as": WIKI, "key": record().key_id}))["record"] is not None
        await client.close()


@pytest.mark.parametrize("octets", [b"\xff" * 8, b"\0\0\0\2[]", (MAX_REQUEST + 1).to_bytes(4, "big"), build_frame({"op": "hello"})])
async def test_after_what_is_no_request_the_connection_ends(octets: bytes) -> None:
    async with listening() as running:
        client = await Raw.to(running)
        client.writer.write(octets)
        assert (await client.next())["error"] == "malformed"
        assert await client.ended()
        await client.close()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([WIKI, MAIL, "hello", "claim", "lookup"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
REQUESTS = st.dictionaries(st.sampled_from(["id", "op", "as", "key", "nonce", "count", "whose", "versions", "cache"]), VALUES, max_size=9)
STREAMS = st.lists(st.one_of(REQUESTS.map(build_frame), st.just(build_frame(HELLO)), st.binary(max_size=50)), max_size=8).map(b"".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STREAMS)
def test_any_octets_are_answered_or_ended_and_the_agent_goes_on(stream: bytes) -> None:
    """No crash, nothing logged as a bug of ours, and the next client is served."""

    async def run() -> None:
        async with listening() as running:
            running.source.add(record())
            client = await Raw.to(running)
            client.writer.write(stream)
            client.writer.write_eof()
            async with asyncio.timeout(60):
                assert await client.ended() or True
            await client.close()
            good = await Raw.to(running)
            await good.ask(HELLO)
            assert (await good.ask({"id": 2, "op": "lookup", "as": WIKI, "key": record().key_id}))["record"] is not None
            await good.close()
            assert "agent_failed internal-error" not in running.quiet.counts

    asyncio.run(run())


async def test_a_user_sees_the_as_ids_that_are_listed_for_it_and_no_nonce_key_of_another() -> None:
    async with listening(admission=Admission(users={os.getuid(): [MAIL]})) as running:
        running.source.add(record(), record("alice", MAIL))
        client = await Raw.to(running)
        assert (await client.ask(HELLO))["as"] == [MAIL]
        for fields in ({"op": "lookup", "key": record().key_id}, {"op": "nonces"}, {"op": "used", "key": record().key_id}):
            assert (await client.ask({"id": 1, "as": WIKI, **fields}))["error"] == "as"
        assert (await client.ask({"id": 2, "op": "lookup", "as": MAIL, "key": record("alice", MAIL).key_id}))["record"] is not None
        assert running.source.used_keys == []
        await client.close()


async def test_a_user_who_may_see_nothing_is_not_let_in() -> None:
    async with listening(admission=Admission(users={os.getuid(): []})) as running:
        client = await Raw.to(running)
        assert await client.ended()
        assert running.quiet.counts == ["agent_refused user"]
        await client.close()


async def test_connections_of_one_user_are_bounded_and_a_place_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_server, "MAX_CLIENTS_PER_USER", 2)
    async with listening() as running:
        clients = [await Raw.to(running) for _ in range(2)]
        for one in clients:
            await one.ask(HELLO)
        late = await Raw.to(running)
        assert await late.ended()
        assert running.quiet.counts == ["agent_refused full"]
        await clients[0].close()
        while len(running.server.clients) > 1:
            await asyncio.sleep(0)
        again = await Raw.to(running)
        assert (await again.ask(HELLO))["version"] == 1
        for one in (late, clients[1], again):
            await one.close()


async def test_requests_of_one_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_server, "MAX_UNDER_WAY", 1)
    gate = asyncio.Event()

    class Slow(FakeSource):
        async def lookup(self, identifier: str, as_id: Any) -> Any:
            await gate.wait()
            return await super().lookup(identifier, as_id)

    async with listening(Slow()) as running:
        client = await Raw.to(running)
        await client.ask(HELLO)
        client.writer.write(build_frame({"id": 1, "op": "lookup", "as": WIKI, "key": "k"}))
        assert (await client.ask({"id": 2, "op": "lookup", "as": WIKI, "key": "k"}))["error"] == "busy"
        gate.set()
        assert await client.next() == {"id": 1, "record": None, "keep": False}
        await client.close()


async def test_a_change_during_a_lookup_makes_its_answer_one_that_is_not_kept() -> None:
    """Else the worker would keep what was true a moment ago for ever."""
    alice = record()
    gate = asyncio.Event()

    class Slow(FakeSource):
        async def lookup(self, identifier: str, as_id: Any) -> Any:
            found = await super().lookup(identifier, as_id)
            await gate.wait()
            return found

    async with listening(Slow()) as running:
        running.source.add(alice)
        client = await Raw.to(running)
        await client.ask(HELLO)
        client.writer.write(build_frame({"id": 1, "op": "lookup", "as": WIKI, "key": alice.key_id}))
        while not running.source.asked:
            await asyncio.sleep(0)
        running.server.changed([alice.key_id])
        gate.set()
        assert await client.next() == {"changed": [alice.key_id]}
        assert (await client.next())["keep"] is False
        await client.close()


async def test_who_asks_for_a_key_under_another_name_ends_nobodys_word_of_its_changes() -> None:
    """Else whoever knows the name of a key keeps it alive in a worker of several applications."""
    alice = record()
    async with listening() as running:
        running.source.add(alice)
        client = await Raw.to(running)
        await client.ask(HELLO)
        await client.ask({"id": 1, "op": "lookup", "as": WIKI, "key": alice.key_id})
        assert (await client.ask({"id": 2, "op": "lookup", "as": MAIL, "key": alice.key_id}))["record"] is None
        running.server.changed([alice.key_id])
        assert await client.next() == {"changed": [alice.key_id]}
        await client.close()


async def test_word_of_changes_goes_to_those_who_have_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what no longer fits into the list is said to have changed."""
    monkeypatch.setattr(agent_server, "MAX_TRACKED", 1)
    async with listening() as running:
        running.source.add(record(), record("bob"))
        one, two = await Raw.to(running), await Raw.to(running)
        for client, cache in ((one, True), (two, False)):
            await client.ask({**HELLO, "cache": cache})
            assert (await client.ask({"id": 1, "op": "lookup", "as": WIKI, "key": record().key_id}))["keep"] is cache
        one.writer.write(build_frame({"id": 2, "op": "lookup", "as": WIKI, "key": record("bob").key_id}))
        assert await one.next() == {"changed": [record().key_id]}
        assert (await one.next())["keep"] is True
        running.server.changed([record().key_id, record("bob").key_id])
        assert await one.next() == {"changed": [record("bob").key_id]}
        assert (await two.ask({"id": 3, "op": "used", "as": WIKI, "key": "k"})) == {"id": 3}
        for client in (one, two):
            await client.close()


async def test_a_client_that_does_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_server, "MAX_UNREAD", 100_000)
    async with listening() as running:
        running.source.add(record())
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(running.path))
            while not running.server.clients:
                await asyncio.sleep(0)
            request = build_frame({"id": 1, "op": "lookup", "as": WIKI, "key": record().key_id}) * 100
            await asyncio.get_running_loop().sock_sendall(client, build_frame(HELLO))
            try:
                while running.server.clients:
                    await asyncio.get_running_loop().sock_sendall(client, request)
            except ConnectionError:
                pass
            while running.server.clients:
                await asyncio.sleep(0)
        assert "agent_refused unread" in running.quiet.counts


async def test_a_bug_or_a_broken_store_costs_one_request_and_tells_no_details() -> None:
    async with listening() as running:
        client = await Raw.to(running)
        await client.ask(HELLO)
        for problem, error in ((BROKEN, "store"), (RuntimeError("secret"), "internal")):
            running.source.problem = problem
            told = await client.ask({"id": 1, "op": "lookup", "as": WIKI, "key": "k"})
            assert told["error"] == error
            assert "secret" not in str(told)
        running.source.problem = None
        assert (await client.ask({"id": 1, "op": "lookup", "as": WIKI, "key": "k"}))["record"] is None
        await client.close()
