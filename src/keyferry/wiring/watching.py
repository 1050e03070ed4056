# SPDX-License-Identifier: Apache-2.0
"""What a P-CSCF and an AS do with the reg event package (TS 24.229 §5.2.3, §5.2.5.2, §5.7.1.1, Release 17)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from typing import Final

from keyferry.errors import KeyferryError, RemoteProtocolError
from keyferry.ports import Log, Resolver, SipPeer
from keyferry.protocol.identity import Impu
from keyferry.protocol.ims.reginfo import ContactEvent
from keyferry.protocol.ims.third_party import ThirdPartyRegister
from keyferry.protocol.sip.message import Request, Response
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.appserver import KeyAgent
from keyferry.roles.pcscf.bindings import LAST_WORDS, Binding
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.reg_event_subscriber import MAX_SUBSCRIPTIONS, RegEventSubscriber, RegNews

SWEEP: Final = 1.0
"""Seconds between looks for subscriptions that want to be refreshed."""
NOT_REGISTERED: Final = frozenset({404, 480})
"""Answers to a SUBSCRIBE that say that nobody is registered (TS 24.229 §5.3.2.1, §5.4.2.1.1)."""


@dataclass(slots=True)
class Tasks:
    """Work that nobody waits for, ended with its owner."""

    log: Log
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do it."""
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except KeyferryError as problem:
            self.log.warning("not-subscribed", problem=str(problem))


@dataclass(slots=True)
class PcscfWatch:
    """Watch every user who registers through a P-CSCF; end bindings and security associations that the network has ended."""

    pcscf: Pcscf
    subscriber: RegEventSubscriber
    resolver: Resolver
    icscf: str  # SIP URI
    tasks: Tasks
    _routes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # resource → Service-Route: who serves the user
    _doubted: dict[str, list[tuple[Binding, ContactEvent | None]]] = field(default_factory=dict)  # resource → what an old NOTIFY may mean

    def registered(self, binding: Binding) -> None:
        """Subscribe at the first registration of a user (§5.2.3), and where another S-CSCF serves it now."""
        resource = binding.resource
        if not resource or (self.subscriber.watches(resource) and self._routes.get(resource) == binding.service_route):
            return
        self._routes.pop(resource, None)
        self._routes[resource] = binding.service_route
        if len(self._routes) > MAX_SUBSCRIPTIONS:
            del self._routes[next(iter(self._routes))]
        self.tasks.spawn(self._subscribe(resource))

    def heard(self, news: RegNews) -> None:
        """Take a NOTIFY: what is terminated has ended here, too; of this user alone, whatever contacts it names."""
        active = {contact.uri for aor in news.info.registrations for contact in aor.contacts}
        events = {change.contact.uri: change.contact.event for change in news.changes if change.contact.state == "terminated"}
        asked = [binding for binding, _ in self._doubted.get(news.resource, ())]
        self._settle(news.resource, active)
        doubted = []
        for binding in self.pcscf.bindings.of_resource(news.resource):
            gone = binding.contact in events and binding.contact not in active
            recent = self.pcscf.clock.now() - binding.since < LAST_WORDS
            # An end of the subscription alone does not say that nobody is registered, so the S-CSCF is asked about each.
            if not binding.ended and (recent if gone else news.ended is not None and binding not in asked):
                doubted.append((binding, events[binding.contact] if gone else None))
            elif gone:
                self.pcscf.ended(binding, events[binding.contact])
        if doubted:
            # The NOTIFY may be a retransmission from before these registered: the S-CSCF is asked what holds now.
            self._doubted[news.resource] = doubted
            self.subscriber.abandon(news.resource)
            self.tasks.spawn(self._look_again(news.resource))

    def _settle(self, resource: str, active: Collection[str]) -> None:
        """End what was doubted and is not active."""
        for binding, event in self._doubted.pop(resource, ()):
            if binding.contact not in active:
                self.pcscf.ended(binding, event or "expired")

    async def _look_again(self, resource: str) -> None:
        """Ask the S-CSCF; where it does not answer, what the NOTIFY named is taken to have ended."""
        try:
            await self._subscribe(resource)
        except KeyferryError:
            self._settle(resource, {binding.contact for binding, event in self._doubted.get(resource, ()) if event is None})
            raise

    async def _subscribe(self, resource: str) -> None:
        """Ask the S-CSCF; where it says that nobody is registered, every device that was before the question has ended (§5.2.5.2)."""
        hop = self.resolver.resolve(parse_sip_uri(self.icscf))
        self.subscriber.abandon(resource)
        before = self.pcscf.bindings.of_resource(resource)
        try:
            await self.subscriber.subscribe(resource, hop, (f"<{self.icscf};lr>",))
        except RemoteProtocolError as problem:
            if problem.status in NOT_REGISTERED:
                self._settle(resource, ())
                for binding in before:
                    self.pcscf.ended(binding, "expired")  # unless it has registered anew since
            raise


@dataclass(slots=True)
class AsWatch:
    """Watch every user whom an S-CSCF registers with an AS; erase the keys of those whose registration has ended."""

    agent: KeyAgent
    subscriber: RegEventSubscriber
    resolver: Resolver
    tasks: Tasks
    _scscf: dict[str, str] = field(default_factory=dict)  # resource → SIP URI of its S-CSCF, while it is watched
    _seen: dict[str, int] = field(default_factory=dict)  # resource → number of its last third-party REGISTER
    _count: int = 0  # of third-party REGISTERs

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer a request of an S-CSCF."""
        if request.method == "NOTIFY":
            return await self.subscriber.handle_notify(request, peer)
        return await self.agent.handle(request, peer)

    def registered(self, register: ThirdPartyRegister) -> None:
        """Subscribe at the first third-party REGISTER of a user, and at one from another S-CSCF (§5.7.1.1)."""
        resource = register.impu
        if register.expires == 0 or not resource.startswith("sip:"):
            return
        self._count += 1
        self._seen[resource] = self._count
        if not self.subscriber.watches(resource) or self._scscf.get(resource) != register.scscf:
            self._scscf.pop(resource, None)
            self._scscf[resource] = register.scscf
            if len(self._scscf) > MAX_SUBSCRIPTIONS:
                self._forget(next(iter(self._scscf)))
            self.tasks.spawn(self._subscribe(resource))

    def heard(self, news: RegNews) -> None:
        """Take a NOTIFY; where it ends the subscription, look whether the user is still registered."""
        if news.ended is not None:
            self.tasks.spawn(self._look_again(news.resource))

    async def _subscribe(self, resource: str) -> None:
        scscf = self._scscf.get(resource)
        if scscf is None:
            return  # forgotten meanwhile: there are too many
        hop = self.resolver.resolve(parse_sip_uri(scscf))
        self.subscriber.abandon(resource)
        await self.subscriber.subscribe(resource, hop, (f"<{scscf};lr>",))

    async def _look_again(self, resource: str) -> None:
        """Ask the S-CSCF: a NOTIFY may be late, and the user registered anew since."""
        asked, scscf = self._count, self._scscf.get(resource)
        if scscf is None:
            return
        try:
            await self._subscribe(resource)
        except RemoteProtocolError as problem:
            if problem.status not in NOT_REGISTERED:
                raise
        else:
            return
        if self._seen.get(resource, 0) <= asked:
            self._forget(resource)
            await self.agent.ended(scscf, Impu(resource))

    def _forget(self, resource: str) -> None:
        self._scscf.pop(resource, None)
        self._seen.pop(resource, None)
