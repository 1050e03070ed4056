# SPDX-License-Identifier: Apache-2.0
"""What comes at once with an answer of a key agent: word that the key has ended, or the end of the connection."""

from __future__ import annotations

import asyncio
import base64

import pytest

from keyferry.errors import StoreError
from keyferry.ports import KeyRecord
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.door_nonce import parse_nonce
from keyferry.transports.agent_socket import ATTEMPTS, AgentKeys
from keyferry.transports.agent_wire import Fields, build_frame
from transports.agentkit import MAIL, WIKI, FakeSource, answered, connected, listening, record, scripted

ALICE = record()
CHANGED = build_frame({"changed": [ALICE.key_id]})


class Script:
    """An agent that has alice's key until it was asked for it so many times."""

    def __init__(self, lives: int = 1) -> None:
        self.lives = lives
        self.asked = 0

    def __call__(self, fields: Fields) -> bytes:
        if fields["op"] != "lookup":
            return answered(fields, None)
        self.asked += 1
        return self.lookup(fields, ALICE if self.asked <= self.lives else None)

    def lookup(self, fields: Fields, held: KeyRecord | None) -> bytes:
        return answered(fields, held) + (CHANGED if held else b"")


async def test_a_key_that_ends_in_the_same_read_as_its_answer_is_not_used_and_not_kept() -> None:
    """The worker's coroutine goes on after both were read: it would keep a revoked key for as long as the connection lives."""
    agent = Script()
    async with scripted(agent) as path:
        keys = AgentKeys(path)
        assert [await keys.lookup(ALICE.key_id, WIKI) for _ in range(2)] == [None, None]
        assert agent.asked == 3
        assert not keys._cache
        assert not keys._questions
        await keys.aclose()


async def test_all_who_ask_at_once_hear_of_it() -> None:
    agent = Script(lives=5)
    async with scripted(agent) as path:
        keys = AgentKeys(path)
        assert await asyncio.gather(*[keys.lookup(ALICE.key_id, WIKI) for _ in range(5)]) == [None] * 5
        assert not keys._cache
        await keys.aclose()


async def test_word_before_the_answer_counts_as_well() -> None:
    """The agent may have read the record before it changed."""

    class Before(Script):
        def lookup(self, fields: Fields, held: KeyRecord | None) -> bytes:
            return (CHANGED if held else b"") + answered(fields, held, keep=False)

    async with scripted(Before()) as path:
        keys = AgentKeys(path)
        assert await keys.lookup(ALICE.key_id, WIKI) is None
        await keys.aclose()


async def test_word_of_another_key_ends_nothing() -> None:
    class Others(Script):
        def lookup(self, fields: Fields, held: KeyRecord | None) -> bytes:
            return answered(fields, held) + build_frame({"changed": [record("bob").key_id]})

    agent = Others()
    async with scripted(agent) as path:
        keys = AgentKeys(path)
        assert [await keys.lookup(ALICE.key_id, WIKI) for _ in range(3)] == [ALICE] * 3
        assert agent.asked == 1
        await keys.aclose()


async def test_a_key_that_changes_all_the_time_is_no_endless_question() -> None:
    agent = Script(lives=1000)
    async with scripted(agent) as path:
        keys = AgentKeys(path)
        with pytest.raises(StoreError, match="changes faster"):
            await keys.lookup(ALICE.key_id, WIKI)
        assert agent.asked == ATTEMPTS
        assert not keys._questions
        await keys.aclose()


@pytest.mark.parametrize("end", [b"\xff\xff\xff\xff", None])
async def test_an_answer_of_a_connection_that_ended_with_it_is_asked_for_again(end: bytes | None) -> None:
    """Nobody says over that one whether the key changes, and the agent that comes next may not have it."""
    ending: list[Fields] = []

    class Ending(Script):
        def lookup(self, fields: Fields, held: KeyRecord | None) -> bytes:
            if held:
                ending.append(fields)
            return answered(fields, held) + ((end or b"") if held else b"")

    agent = Ending()
    async with scripted(agent) as path:
        keys = AgentKeys(path)
        if end is None:  # the socket's end, heard in the same turn as the answer
            link = await keys._connected()
            received = link.data_received

            def data_received(data: bytes) -> None:
                received(data)
                if ending:
                    link.connection_lost(None)

            link.data_received = data_received  # type: ignore[method-assign]
        one = asyncio.ensure_future(keys.lookup(ALICE.key_id, WIKI))
        assert await one is None
        assert agent.asked == 2
        assert not keys._cache
        await keys.aclose()


async def test_an_answer_of_an_older_connection_is_not_kept_under_a_new_one() -> None:
    """Somebody else connects again between the answer and whoever waits for it."""
    agent = Script()
    agent.lookup = lambda fields, held: answered(fields, held) + (b"\xff\xff\xff\xff" if held else b"")  # type: ignore[method-assign]
    async with scripted(agent) as path:
        keys = AgentKeys(path)
        await keys._connected()
        asks = [asyncio.ensure_future(keys.lookup(name, WIKI)) for name in (ALICE.key_id, "bob", "carol")]
        assert (await asyncio.gather(*asks, return_exceptions=True))[0] is None
        assert not keys._cache
        await keys.aclose()


async def test_a_nonce_key_of_an_agent_that_went_with_it_is_not_kept() -> None:
    """All nonces issued under it would be stale at the agent that comes next."""
    given: list[bytes] = []

    def reply(fields: Fields) -> bytes:
        given.append(bytes([len(given)]) * 32)
        key = base64.b64encode(given[-1]).decode()
        return build_frame({"id": fields["id"], "nonce_key": key, "scope": "s", "now": 1.0}) + (b"\xff" * 4 if len(given) == 1 else b"")

    async with scripted(reply) as path:
        keys = AgentKeys(path)
        await keys.ledger(WIKI).ready()
        assert len(given) == 2
        assert parse_nonce(Secret(given[1]), b"s", keys.ledger(WIKI).issue()) >= 0
        await keys.aclose()


async def test_a_key_that_is_not_there_is_asked_for_again() -> None:
    """It may be on its way."""
    async with listening() as running, connected(running) as keys:
        assert await keys.lookup(ALICE.key_id, WIKI) is None
        assert await asyncio.to_thread(keys.lookup_now, ALICE.key_id, WIKI) is None
        running.source.add(ALICE)
        assert await asyncio.to_thread(keys.lookup_now, ALICE.key_id, WIKI) == ALICE
        assert await keys.lookup(ALICE.key_id, WIKI) == ALICE


async def test_whoever_gives_up_leaves_no_question() -> None:
    async with scripted(lambda fields: answered(fields, None) if fields["op"] != "lookup" else b"") as path:
        keys = AgentKeys(path)
        asks = asyncio.ensure_future(keys.lookup(ALICE.key_id, WIKI))
        while not keys._questions:
            await asyncio.sleep(0)
        asks.cancel()
        await asyncio.gather(asks, return_exceptions=True)
        assert not keys._questions
        await keys.aclose()


class Held(FakeSource):
    """A source that lets each question read at once, and answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[asyncio.Event] = []

    async def lookup(self, identifier: str, as_id: object) -> KeyRecord | None:
        found = await super().lookup(identifier, as_id)  # type: ignore[arg-type]
        self.gates.append(asyncio.Event())
        await self.gates[-1].wait()
        return found

    async def asked_times(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.gates) < count:
                await asyncio.sleep(0)


async def test_at_the_agent_a_question_for_another_name_takes_nobodys_word_away_while_both_are_under_way() -> None:
    """The one that finds nothing may end last."""
    async with listening(Held()) as running, connected(running) as keys:
        source = running.source
        assert isinstance(source, Held)
        source.add(ALICE)
        mail = asyncio.ensure_future(keys.lookup(ALICE.key_id, MAIL))
        await source.asked_times(1)
        wiki = asyncio.ensure_future(keys.lookup(ALICE.key_id, WIKI))
        await source.asked_times(2)
        source.gates[1].set()
        assert await wiki == ALICE
        source.gates[0].set()
        assert await mail is None
        source.records.clear()
        running.server.changed([ALICE.key_id])
        await keys.ledger(WIKI).ready()  # what the agent said before its answer is heard before it
        again = asyncio.ensure_future(keys.lookup(ALICE.key_id, WIKI))
        await source.asked_times(3)
        source.gates[2].set()
        assert await again is None


async def test_at_the_agent_a_record_read_before_a_change_is_not_said_to_be_kept_because_somebody_asked_again() -> None:
    async with listening(Held()) as running, connected(running) as keys:
        source = running.source
        assert isinstance(source, Held)
        source.add(ALICE)
        first = asyncio.ensure_future((await keys._connected()).ask({"op": "lookup", "as": WIKI, "key": ALICE.key_id}))
        await source.asked_times(1)
        source.records.clear()
        running.server.changed([ALICE.key_id])
        second = asyncio.ensure_future((await keys._connected()).ask({"op": "lookup", "as": WIKI, "key": ALICE.key_id}))
        await source.asked_times(2)
        for gate in source.gates:
            gate.set()
        assert (await first)["keep"] is False
        assert (await second)["record"] is None


async def test_at_the_agent_unknown_names_leave_nothing_behind() -> None:
    async with listening() as running, connected(running) as keys:
        running.source.add(ALICE)
        for name in ("x", "y", ALICE.key_id):
            await keys.lookup(name, WIKI)
        (client,) = running.server.clients
        assert list(client._tracked) == [ALICE.key_id]
