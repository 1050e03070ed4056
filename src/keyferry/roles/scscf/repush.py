# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: everything again for an AS that lost its keys (*ours*, DESIGN §6: "an AS that restarted empty gets everything again")."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from keyferry.errors import KeyferryError, ParseError
from keyferry.ports import (
    AsStore,
    Clock,
    Counter,
    Log,
    PendingPush,
    RandomSource,
    Registration,
    RegistrationStore,
    Resolver,
    SipClient,
    SipPeer,
)
from keyferry.ports.correlation import correlate
from keyferry.protocol.identity import AsId, Impi, Reg
from keyferry.protocol.ims.key_store_id import HEADER, build_store_query, parse_store_header
from keyferry.protocol.sip.message import Response
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.scscf.as_notifier import AsNotifier, AsTarget

Owed: TypeAlias = tuple[PendingPush, AsTarget, Registration]

PAGE = 100
"""Registrations read, owed and delivered before the next are looked at: as many pushes are under way at most."""
PAGE_WAIT = 5.0
"""Seconds that a page waits for an AS that answers others; what is not delivered then is retried by itself."""
QUERY_WAIT = 1.5
"""Seconds for the answer to a question; the next one is a new transaction, so that its retransmissions do not become rare."""
AGAIN_FIRST = 1.0
"""Seconds from the begin of one round to the next for the same AS; doubled up to AGAIN_MOST while new stores keep coming."""
AGAIN_MOST = 600.0


@dataclass(frozen=True, slots=True)
class RepushPolicy:
    """How eagerly an AS is looked after."""

    probe: float = 2.0  # seconds between questions to an idle AS; 0: never
    rate: int = 500  # registrations a second and AS


class OweAgain(Protocol):
    """Store that an AS is owed the keys of one device once more."""

    async def __call__(self, impi: Impi, reg: Reg, server_name: str, as_id: AsId, *, unless_pushed: bool = False) -> Owed | None:
        """Return what to deliver; None where there is nothing for this AS, or `unless_pushed` and it was sent before."""


@dataclass(slots=True)
class _Server:
    """One AS_ID at one AS."""

    server_name: str
    as_id: AsId
    seen: str = ""  # the newest name of its key store
    kept: AsStore | None = None  # as the store has it
    pushed: int = 0  # of the round under way, or of the last one
    again: float = AGAIN_FIRST  # seconds
    began_at: float | None = None  # monotonic seconds
    task: asyncio.Task[None] | None = None

    @property
    def is_done(self) -> bool:
        """Tell whether the store that was seen last has everything, or none was seen yet."""
        return self.kept is None if not self.seen else self.kept is not None and (self.kept.store_id, self.kept.place) == (self.seen, None)


@dataclass(slots=True)
class Repusher:
    """Learn which key store every AS has, and push every live registration's keys again to a new one, at a bounded rate.

    How far it came is in the store, so that the next S-CSCF goes on there; what it owes is, too, and is delivered like any other push.
    """

    sip: SipClient
    resolver: Resolver
    registrations: RegistrationStore
    notifier: AsNotifier
    owe_again: OweAgain  # of the registrar
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    policy: RepushPolicy = field(default_factory=RepushPolicy)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _servers: dict[tuple[str, AsId], _Server] = field(default_factory=dict)
    _raw: dict[tuple[str, AsId], tuple[str, ...]] = field(default_factory=dict)  # the header field as it came last
    _heard_at: dict[str, float] = field(default_factory=dict)  # by ServerName: monotonic seconds
    _probes: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Go on with what was under way, and begin to ask. Raises StoreError."""
        kept = {(each.server_name, each.as_id): each for each in await self.registrations.as_stores()}
        for server_name, as_ids in self.notifier.policy.as_ids.items():
            for as_id in as_ids:
                server = _Server(server_name, as_id, kept=kept.get((server_name, as_id)))
                self._servers[server_name, as_id] = server
                if server.kept is not None:
                    server.seen = server.kept.store_id
                    self._follow(server)
            if self.policy.probe:
                self._probes.append(asyncio.get_running_loop().create_task(self._watch(server_name)))

    async def aclose(self) -> None:
        """Stop; the store knows where to go on."""
        tasks = self._probes + [server.task for server in self._servers.values() if server.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def under_way(self) -> dict[str, int]:
        """Return how many registrations were pushed again so far, by AS_ID, where a round is under way: for /health."""
        return {server.as_id: server.pushed for server in self._servers.values() if server.task is not None and server.pushed}

    def heard(self, server_name: str, as_ids: Sequence[AsId], response: Response) -> None:
        """Take the 200 of an AS to a push or to a question that went where keys of these AS_IDs may go."""
        values = tuple(response.all(HEADER))
        if not values:
            return
        self._heard_at[server_name] = self.clock.monotonic()
        if all(self._raw.get((server_name, as_id)) == values for as_id in as_ids):
            return
        self._raw.update({(server_name, as_id): values for as_id in as_ids})
        try:
            found = parse_store_header(values)
        except ParseError:
            self.counter.count("scscf_repush", "unreadable")
            return
        for as_id in as_ids:
            server, store_id = self._servers.get((server_name, as_id)), found.get(as_id)
            if server is not None and store_id is not None and server.seen != store_id:
                server.seen = store_id
                self._follow(server)

    # ---- asking

    async def _watch(self, server_name: str) -> None:
        while True:
            heard_at = self._heard_at.get(server_name)
            if heard_at is None or self.clock.monotonic() - heard_at >= self.policy.probe:
                await self._ask(server_name)
            await self.sleep(self.policy.probe)

    async def _ask(self, server_name: str) -> None:
        policy = self.notifier.policy
        as_ids = policy.as_ids[server_name]

        def check(peer: SipPeer) -> Awaitable[None] | None:
            pending = [policy.check_of(as_id)(peer) for as_id in as_ids]
            slow = [each for each in pending if each is not None]
            return _all(slow) if slow else None

        call_id = f"{self.random.octets(12).hex()}@{policy.scscf_name}"
        request = build_store_query(
            server_name=server_name, scscf_uri=policy.scscf_uri, call_id=call_id, from_tag=self.random.octets(6).hex()
        )
        try:
            async with asyncio.timeout(QUERY_WAIT):
                hop = self.resolver.resolve(parse_sip_uri(server_name))
                response = await self.sip.send(request, hop, check=check)
        except (KeyferryError, TimeoutError):
            return  # its pushes find out, and say so
        if response.status != 503:
            self.notifier.gate(server_name).try_now()
        if 200 <= response.status < 300:
            self.heard(server_name, as_ids, response)

    # ---- pushing

    def _follow(self, server: _Server) -> None:
        if server.task is None and not server.is_done:
            server.task = asyncio.get_running_loop().create_task(self._fill(server))

    async def _fill(self, server: _Server) -> None:
        correlate("")  # it began in the middle of one registration, and is about all of them
        try:
            while not server.is_done:
                await self._pause(server)
                try:
                    await self._round(server, server.seen)
                except KeyferryError as problem:
                    self.log.warning("repush-failed", server=server.server_name, as_id=server.as_id, problem=str(problem))
        finally:
            server.task = None

    async def _pause(self, server: _Server) -> None:
        """Keep rounds apart: an AS that names a new store with every answer costs a page of pushes in ever longer time."""
        now = self.clock.monotonic()
        since = None if server.began_at is None else now - server.began_at
        if since is None or since >= AGAIN_MOST:
            server.again = AGAIN_FIRST
        elif since < server.again:
            await self.sleep(server.again - since)
        server.began_at = self.clock.monotonic()
        if since is not None:
            server.again = min(2 * server.again, AGAIN_MOST)

    async def _round(self, server: _Server, store_id: str) -> None:
        place = server.kept.place or 0 if server.kept is not None and server.kept.store_id == store_id else 0
        is_new = server.kept is None  # an AS that we did not know has lost nothing; it may be missing what was before it
        server.pushed = 0
        self._note(server, "begun", place=place)
        await self._keep(server, store_id, place)
        while page := await self.registrations.walk(place, PAGE):
            began = self.clock.monotonic()
            owed = await asyncio.gather(*(self._owe(server, impi, reg, is_new) for _, impi, reg in page))
            place = page[-1][0]
            await self._keep(server, store_id, place)
            server.pushed += await self._deliver(server, [each for each in owed if each is not None])
            if server.seen != store_id:
                self._note(server, "abandoned", place=place)
                return
            await self.sleep(max(0.0, len(page) / self.policy.rate - (self.clock.monotonic() - began)))
        await self._keep(server, store_id, None)
        self._note(server, "ended", place=place)

    async def _owe(self, server: _Server, impi: Impi, reg: Reg, is_new: bool) -> Owed | None:
        try:
            return await self.owe_again(impi, reg, server.server_name, server.as_id, unless_pushed=is_new)
        except KeyferryError as problem:  # a row that does not open, a profile that nobody can read: the others have theirs
            self.counter.count("scscf_repush", "skipped")
            self.log.warning("repush-skipped", impi=impi, reg=reg, as_id=server.as_id, problem=str(problem))
            return None

    async def _deliver(self, server: _Server, owed: Sequence[Owed]) -> int:
        """Deliver a page; while the AS is down, wait: the rest of the walk would only be owed, too."""
        tasks = {self.notifier.start(push, target, registration) for push, target, registration in owed}
        for _ in owed:
            self.counter.count("scscf_repush", "pushed")
        left = {task for task in tasks if not task.done()}
        while left:
            _, left = await asyncio.wait(left, timeout=PAGE_WAIT)
            if self.notifier.gate(server.server_name).is_open:
                break
        return len(owed)

    async def _keep(self, server: _Server, store_id: str, place: int | None) -> None:
        server.kept = AsStore(server.server_name, server.as_id, store_id, place)
        await self.registrations.keep_as_store(server.kept)

    def _note(self, server: _Server, what: Literal["begun", "abandoned", "ended"], *, place: int) -> None:
        self.counter.count("scscf_repush", what)
        self.log.info(f"repush-{what}", server=server.server_name, as_id=server.as_id, pushed=server.pushed, place=place)


async def _all(pending: Sequence[Awaitable[None]]) -> None:
    """Wait for what several policies say. Raises what one of them raises."""
    await asyncio.gather(*pending)
