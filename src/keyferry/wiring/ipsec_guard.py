# SPDX-License-Identifier: Apache-2.0
"""Whether the drop rules stand behind the policy `ipsec` while a process serves: looked at from time to time, and when SAs come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from keyferry.config import Config
from keyferry.config.reading import address_of
from keyferry.errors import ConfigError, ProtectionUnmet
from keyferry.ports import Counter, Log
from keyferry.transports.ipsec import IpsecSource
from keyferry.transports.sa_view import SaView
from keyferry.wiring.ipsec_files import pairs_of
from keyferry.wiring.ipsec_rules import Pair, Rules, Side, rules_found
from keyferry.wiring.services import Services

EVERY: Final = 60.0
"""Seconds between looks: whoever flushes the rules tells nobody."""
PAUSE: Final = 5.0
"""Seconds between two at least, whatever happens to SAs: nft is another process."""

Pairs = Callable[[], Awaitable[Sequence[Pair]]]


@dataclass(slots=True)
class RulesWatch:
    """Say once when the rules are missing, and when they are back; and once if nobody can tell."""

    pairs: Pairs
    side: Side
    log: Log
    counter: Counter
    show: Callable[[float], None]  # takes 1 while they are there, 0 while they are not
    find: Callable[[Sequence[Pair], Side], Rules] = rules_found
    every: float = EVERY
    pause: float = PAUSE
    _told: Rules | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look, and go on looking."""
        self._news.set()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def happened(self, _children: Collection[str] | None = None) -> None:
        """Look again soon: something happened to an SA."""
        self._news.set()

    async def look(self) -> None:
        """Look once."""
        pairs = await self.pairs()
        if not pairs:
            return
        found = await asyncio.to_thread(self.find, pairs, self.side)
        if found == self._told:
            return
        self._told = found
        self.counter.count("ipsec_rules", "unread" if not found.read else "missing" if found.problem else "loaded")
        if found.read:
            self.show(0 if found.problem else 1)
        if not found.read:
            self.log.warning("ipsec-rules-unread", problem=found.problem, remedy="run `keyferry ipsec check` as root, at every start")
        elif found.problem:
            remedy = "load what `keyferry ipsec write` made: nft -f isc.nft; without it packets may go out in clear when charon ends"
            self.log.warning("ipsec-rules-missing", problem=found.problem, remedy=remedy)
        else:
            self.log.info("ipsec-rules-loaded", pairs=len(pairs))

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.every):
                    await self._news.wait()
            self._news.clear()
            try:
                await self.look()
            except Exception as problem:  # the shell's last line: one failure must not end the looking for ever, in silence
                self.log.warning("ipsec-rules-watch-failed", problem=type(problem).__name__)
            await asyncio.sleep(self.pause)


def watch_rules(services: Services, view: SaView, pairs: Pairs, side: Side, name: str) -> None:
    """Begin to watch the rules of some pairs, until the process ends."""
    metrics = services.metrics
    watch = RulesWatch(pairs, side, services.log, metrics, lambda value: metrics.set("ipsec_rules_loaded", value, name))
    view.watch(watch.happened)
    services.exit.push_async_callback(watch.aclose)
    watch.start()


def pairs_of_scscf(config: Config, name: str) -> Pairs:
    """Return the pairs of one S-CSCF."""

    async def pairs() -> Sequence[Pair]:
        return [pair for pair in _configured(config) if pair.scscf == name]

    return pairs


def pairs_of_server(config: Config, source: IpsecSource) -> Pairs:
    """Return the pairs of one application server: those of the configuration, and those that it has security associations with."""
    own = str(address_of(source.local))

    async def pairs() -> Sequence[Pair]:
        found = {pair.scscf_address: pair for pair in _configured(config) if pair.server_address == own}
        with suppress(ProtectionUnmet):
            await source.named()
        for address in source.hosts():
            found.setdefault(address, Pair(source.child, "", address, 0, "", own, source.local_port))
        return list(found.values())

    return pairs


def _configured(config: Config) -> list[Pair]:
    try:
        return pairs_of(config)
    except ConfigError:  # an agent's configuration has none; one that cannot be resolved is told of where pushes fail
        return []
