# SPDX-License-Identifier: Apache-2.0
"""What a worker sees of a key agent: records, claims, nonces, and an agent that goes away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyferry.errors import ConfigError, DigestRejected, StoreError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.door_nonce import parse_nonce
from keyferry.protocol.identity import Impu
from keyferry.protocol.ims.keys import UA_DIGEST, digest_realm, ua_key
from keyferry.transports.agent_socket import DEFAULT, AgentKeys, socket_path
from keyferry.transports.clock import SystemClock
from transports.agentkit import BROKEN, MAIL, NONCE_KEY, WIKI, FakeSource, Running, connected, listening, make_server, record, short_folder

KEY_OF_WIKI = Secret(NONCE_KEY.reveal() + WIKI.encode())


async def test_a_record_is_asked_for_once_and_forgotten_when_the_agent_says_so() -> None:
    """De-registration ends access at the next request."""
    alice = record()
    async with listening() as running, connected(running) as keys:
        running.source.add(alice)
        assert [await keys.lookup(alice.key_id, WIKI) for _ in range(3)] == [alice] * 3
        assert running.source.asked == [alice.key_id]
        running.source.records.clear()
        running.server.changed([alice.key_id, "other"])
        await keys.used(alice)  # what the agent said before its answer is heard before it
        assert await keys.lookup(alice.key_id, WIKI) is None


async def test_a_key_is_of_its_own_server_alone() -> None:
    """One AS_ID, one key, cached or not."""
    alice = record()
    async with listening() as running, connected(running) as keys:
        running.source.add(alice)
        assert await keys.lookup(alice.key_id, MAIL) is None
        assert await keys.lookup(alice.key_id, WIKI) == alice
        assert await keys.lookup(alice.key_id, MAIL) is None


async def test_a_record_that_ends_by_itself_is_asked_for_again() -> None:
    """It may have been extended meanwhile."""
    short = record()._replace(not_after=SystemClock().now() - 1)
    async with listening() as running, connected(running) as keys:
        running.source.add(short)
        await keys.lookup(short.key_id, WIKI)
        await keys.lookup(short.key_id, WIKI)
        assert running.source.asked == [short.key_id] * 2


async def test_records_kept_are_bounded_and_the_oldest_goes() -> None:
    names = [record(f"user{number}") for number in range(4)]
    async with listening() as running, connected(running, max_cached=3) as keys:
        running.source.add(*names)
        for one in (*names, names[0], names[3]):
            await keys.lookup(one.key_id, WIKI)
        assert running.source.asked == [one.key_id for one in (*names, names[0])]


async def test_a_count_is_taken_once_by_whichever_worker_comes_first() -> None:
    alice = record()
    async with listening() as running, connected(running) as one, connected(running) as two:
        running.source.add(alice)
        results = await asyncio.gather(*[worker.ledger(WIKI).claim("nonce", alice, 1) for worker in (one, two)], return_exceptions=True)
        assert [type(result) for result in results].count(bool) == 1
        refused = next(result for result in results if isinstance(result, DigestRejected))
        assert refused.stale
        taken = await asyncio.gather(*[worker.ledger(WIKI).claim_first(alice) for worker in (one, two)])
        assert sorted(taken) == [False, True]


async def test_a_key_that_has_gone_is_not_claimed_and_not_remembered() -> None:
    """The worker has the record still; the agent decides."""
    alice = record()
    async with listening() as running, connected(running) as keys:
        running.source.add(alice)
        await keys.lookup(alice.key_id, WIKI)
        running.source.records.clear()
        for claim in (keys.ledger(WIKI).claim("nonce", alice, 1), keys.ledger(WIKI).claim_first(alice)):
            with pytest.raises(DigestRejected) as problem:
                await claim
            assert not problem.value.stale
        assert await keys.lookup(alice.key_id, WIKI) is None
        assert not running.source.claimed
        assert not running.source.first


async def test_a_claim_for_identities_that_have_changed_is_stale_and_the_next_lookup_has_the_new_ones() -> None:
    """A barred identity must not be told to the application once more."""
    alice = record()
    async with listening() as running, connected(running) as keys:
        running.source.add(alice)
        await keys.lookup(alice.key_id, WIKI)
        changed = alice._replace(impus=(Impu("tel:+15551234"),))
        running.source.add(changed)
        with pytest.raises(DigestRejected) as problem:
            await keys.ledger(WIKI).claim("nonce", alice, 1)
        assert problem.value.stale
        assert await keys.lookup(alice.key_id, WIKI) == changed
        assert await keys.ledger(WIKI).claim("nonce", changed, 1) is False


async def test_nonces_are_issued_here_under_the_agents_key_and_by_its_clock() -> None:
    class Ahead(SystemClock):
        def monotonic(self) -> float:
            return super().monotonic() + 1e6

    async with listening() as running:
        running.source.add(record())
        keys = AgentKeys(running.path, clock=Ahead())
        running.source.old = True
        ledger = keys.ledger(WIKI)
        assert keys.ledger(WIKI) is ledger
        assert await ledger.claim("nonce", record(), 1) is True
        before = SystemClock().monotonic()
        nonces = {ledger.issue() for _ in range(100)}
        assert len(nonces) == 100
        for nonce in nonces:
            assert before - 1 <= parse_nonce(KEY_OF_WIKI, WIKI.encode(), nonce) / 1e6 <= SystemClock().monotonic()
            with pytest.raises(DigestRejected):
                parse_nonce(KEY_OF_WIKI, MAIL.encode(), nonce)
        await keys.aclose()


async def test_what_is_offered_and_derived_is_what_pushed_keys_are() -> None:
    alice = record()
    keys = AgentKeys("/nowhere/agent.sock")
    assert keys.offer(WIKI).realm == digest_realm(WIKI)
    assert not keys.offer(WIKI).handsets
    assert keys.protocol_key(alice, UA_DIGEST) == ua_key(alice.k_as, UA_DIGEST)


async def test_all_workers_make_user_ids_with_one_key() -> None:
    async with listening() as running, connected(running) as keys:
        assert await asyncio.to_thread(keys.user_id_key, WIKI) == Secret(WIKI.encode() * 3)
        running.server.served = {WIKI: running.server.served[WIKI]._replace(user_id_key=None)}
        assert await asyncio.to_thread(keys.user_id_key, WIKI) is None


async def test_what_no_agent_can_hold_is_not_asked_for() -> None:
    keys = AgentKeys("/nowhere/agent.sock")
    assert await keys.lookup("x" * 301, WIKI) is None
    assert keys.lookup_now("x" * 301, WIKI) is None


async def test_without_an_agent_the_store_does_not_answer_and_that_is_said_plainly() -> None:
    with short_folder() as folder:
        keys = AgentKeys(folder / "agent.sock")
        for attempt in (keys.lookup("id", WIKI), keys.used(record()), keys.ledger(WIKI).claim("n", record(), 1)):
            with pytest.raises(StoreError, match="Start it with `keyferry agent`"):
                await attempt
        for now in (lambda: keys.lookup_now("id", WIKI), keys.ledger(WIKI).issue):
            with pytest.raises(StoreError, match="no key agent answers here"):
                now()


async def test_an_agent_that_restarts_is_connected_again_and_nothing_old_is_believed() -> None:
    """The record of an agent that is gone, and its nonce key, mean nothing."""
    alice = record()
    source = FakeSource()
    with short_folder() as folder:
        path = folder / "agent.sock"
        keys = AgentKeys(path)
        for round_ in range(2):
            server, _quiet = make_server(source)
            source.records = {alice.key_id: alice} if round_ == 0 else {}
            await server.listen(path)
            assert await keys.lookup(alice.key_id, WIKI) == (alice if round_ == 0 else None)
            await server.aclose()
            while keys._link is not None:  # the end of the connection is heard in the loop's next turns
                await asyncio.sleep(0)
            with pytest.raises(StoreError):
                await keys.lookup(alice.key_id, WIKI)
            with pytest.raises(StoreError):
                await keys.ledger(WIKI).claim("nonce", alice, round_)
        assert not source.claimed
        await keys.aclose()


async def test_an_answer_that_does_not_come_ends_the_connection() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with short_folder() as folder:
        server = await asyncio.start_unix_server(swallow, folder / "agent.sock")
        keys = AgentKeys(folder / "agent.sock", limit=0.05)
        with pytest.raises(StoreError, match="did not answer within"):
            await keys.lookup("id", WIKI)
        await keys.aclose()
        server.close()


@pytest.mark.parametrize("answer", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\2{}", b'\0\0\0\x0c{"id":"one"}'])
async def test_an_agent_that_talks_nonsense_is_left(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    with short_folder() as folder:
        server = await asyncio.start_unix_server(talk, folder / "agent.sock")
        keys = AgentKeys(folder / "agent.sock", limit=0.2, limit_now=0.2)
        with pytest.raises(StoreError):
            await keys.lookup("id", WIKI)
        await keys.aclose()
        server.close()


async def test_a_socket_where_everybody_may_put_one_is_not_used() -> None:
    """Whoever is the agent says who the user is."""
    async with listening() as running, connected(running) as keys:
        running.path.parent.chmod(0o777)
        for attempt in (keys.lookup("id", WIKI),):
            with pytest.raises(StoreError, match="other users may put a socket"):
                await attempt
        with pytest.raises(StoreError, match="other users may put a socket"):
            await asyncio.to_thread(keys.lookup_now, "id", WIKI)


async def test_a_record_of_another_key_is_no_answer() -> None:
    """A key under the wrong name would be another user's login."""
    async with listening() as running, connected(running) as keys:
        running.source.records["asked"] = record("bob")
        with pytest.raises(StoreError, match="another key"):
            await keys.lookup("asked", WIKI)
        with pytest.raises(StoreError, match="another key"):
            await asyncio.to_thread(keys.lookup_now, "asked", WIKI)


async def test_a_store_that_fails_is_a_store_error_here_too() -> None:
    async with listening() as running, connected(running) as keys:
        running.source.problem = BROKEN
        with pytest.raises(StoreError, match="does not answer"):
            await keys.lookup("id", WIKI)
        assert running.quiet.counts == ["agent_failed store"]


async def _now(running: Running, keys: AgentKeys) -> object:
    return await asyncio.to_thread(keys.lookup_now, record().key_id, WIKI)


async def test_a_callback_asks_without_the_loop_and_survives_a_restart() -> None:
    """OpenSSL's PSK callback cannot wait; nothing that it gets is kept, as nobody says when that ends."""
    alice = record()
    source = FakeSource()
    source.add(alice)
    with short_folder() as folder:
        path = folder / "agent.sock"
        keys = AgentKeys(path)
        for _ in range(2):
            server, _ = make_server(source)
            await server.listen(path)
            running = Running(path, server, source, _)
            assert await _now(running, keys) == alice
            source.records.clear()
            assert await _now(running, keys) is None
            source.add(alice)
            nonce = await asyncio.to_thread(keys.ledger(WIKI).issue)
            assert parse_nonce(KEY_OF_WIKI, WIKI.encode(), nonce) > 0
            await server.aclose()
        with pytest.raises(StoreError):
            await asyncio.to_thread(keys.lookup_now, alice.key_id, WIKI)
        await keys.aclose()


def test_the_address_comes_from_the_environment_or_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYFERRY_AGENT", raising=False)
    assert socket_path() == Path(DEFAULT.partition(":")[2])
    monkeypatch.setenv("KEYFERRY_AGENT", "unix:/tmp/a.sock")
    assert socket_path() == Path("/tmp/a.sock")
    assert socket_path("unix:b.sock") == Path("b.sock")
    for wrong in ("/tmp/a.sock", "unix:", "tcp:1"):
        with pytest.raises(ConfigError, match="no address of a key agent"):
            socket_path(wrong)
