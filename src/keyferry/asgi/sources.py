# SPDX-License-Identifier: Apache-2.0
"""What SimLogin(keys=…) may be: a source of keys, several, or the address of a key agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from keyferry.asgi.ledger import FirstUses, LocalLedger
from keyferry.errors import ConfigError

if TYPE_CHECKING:
    from keyferry.ports import Clock, KeySource, RandomSource, UseLedger
    from keyferry.protocol.identity import AsId

    Keys: TypeAlias = KeySource | str | Sequence[KeySource | str] | None


@runtime_checkable
class SharesUses(Protocol):
    """A source that also decides, for all workers, what was used: a key agent."""

    def ledger(self, as_id: AsId) -> UseLedger:
        """Return the ledger of an AS."""


def sources_of(keys: Keys, clock: Clock, random: RandomSource) -> tuple[KeySource, ...]:
    """Return the sources in the order of their offers; without `keys` the key agent that the environment names.

    Raises ConfigError.
    """
    several = list(keys) if isinstance(keys, Sequence) and not isinstance(keys, str) else [keys]
    sources = tuple(_agent(one, clock, random) if one is None or isinstance(one, str) else one for one in several)
    for source in sources:
        if not all(hasattr(source, name) for name in ("offer", "lookup", "protocol_key", "used")):
            remedy = 'Give "unix:/run/keyferry/agent.sock", a KeySource, or several'
            raise ConfigError("SimLogin keys", f"a {type(source).__name__} is no source of keys", remedy)
    return sources


def ledger_of(sources: Sequence[KeySource], as_id: AsId, *, clock: Clock, random: RandomSource, lifetime: float, keys: int) -> UseLedger:
    """Return who decides what was used: the one source if it shares that among workers, else this process by itself.

    Several sources have no ledger in common, as none knows the keys of the others.
    """
    if len(sources) == 1 and isinstance(sources[0], SharesUses):
        return sources[0].ledger(as_id)
    first = next((source for source in sources if isinstance(source, FirstUses)), None)
    return LocalLedger(scope=as_id, clock=clock, random=random, lifetime=lifetime, keys=keys, first=first)


def _agent(address: str | None, clock: Clock, random: RandomSource) -> KeySource:
    from keyferry.transports.agent_socket import AgentKeys, socket_path  # only who has an agent needs asyncio's streams

    return AgentKeys(socket_path(address), clock=clock, random=random)
