# SPDX-License-Identifier: Apache-2.0
"""What keys= may be."""

from __future__ import annotations

from typing import Any

import pytest

from asgi.doorkit import AS_ID, FakeClock, FakeKeys, FakeRandom, call, make_door, record
from keyferry.asgi.ledger import LocalLedger
from keyferry.asgi.sources import ledger_of, sources_of
from keyferry.errors import ConfigError
from keyferry.transports.agent_socket import AgentKeys, AgentLedger

CLOCK, RANDOM = FakeClock(), FakeRandom()


class Sharing(FakeKeys):
    """A source with a ledger of its own, as a key agent has."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = LocalLedger(scope="shared", clock=CLOCK, random=RANDOM, lifetime=60.0)

    def ledger(self, as_id: str) -> LocalLedger:
        assert as_id == AS_ID
        return self.shared


def ledger(*sources: Any) -> Any:
    return ledger_of(sources, AS_ID, clock=CLOCK, random=RANDOM, lifetime=60.0, keys=10)


def test_a_source_or_several() -> None:
    one, two = FakeKeys(), FakeKeys()
    assert sources_of(one, CLOCK, RANDOM) == (one,)
    assert sources_of((one, two), CLOCK, RANDOM) == (one, two)
    assert sources_of([one], CLOCK, RANDOM) == (one,)


@pytest.mark.parametrize("keys", [5, {"a": 1}, [object()], b"unix:/x"])
def test_anything_else_is_refused(keys: Any) -> None:
    with pytest.raises(ConfigError, match="no source of keys"):
        sources_of(keys, CLOCK, RANDOM)


def test_one_source_that_shares_its_ledger_decides_for_all_workers() -> None:
    source = Sharing()
    assert ledger(source) is source.shared
    assert ledger(source, FakeKeys()) is not source.shared  # it would not know the keys of the other


async def test_else_each_process_decides_for_itself_and_the_store_about_first_nonces() -> None:
    keys = FakeKeys(record())
    assert await ledger(keys).claim_first(record())
    assert not await ledger(keys).claim_first(record())


def test_the_address_of_a_key_agent_or_of_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing connects yet."""
    (given,) = sources_of("unix:/run/x.sock", CLOCK, RANDOM)
    assert isinstance(given, AgentKeys)
    assert str(given.path) == "/run/x.sock"
    monkeypatch.delenv("KEYFERRY_AGENT", raising=False)
    (usual,) = sources_of(None, CLOCK, RANDOM)
    monkeypatch.setenv("KEYFERRY_AGENT", "unix:/run/y.sock")
    (named,) = sources_of(None, CLOCK, RANDOM)
    assert isinstance(usual, AgentKeys)
    assert isinstance(named, AgentKeys)
    assert (str(usual.path), str(named.path)) == ("/run/keyferry/agent.sock", "/run/y.sock")
    assert isinstance(ledger(given), AgentLedger)
    with pytest.raises(ConfigError, match="no address"):
        sources_of("tcp:localhost", CLOCK, RANDOM)


async def test_clock_and_chance_of_the_machine_are_the_default() -> None:
    door = make_door(record(), clock=None, random=None)
    assert (await call(door.door)).challenge().nonce != (await call(door.door)).challenge().nonce
