# SPDX-License-Identifier: Apache-2.0
"""The protection policy `ipsec` of one S-CSCF: charon's socket, a policy for each application server, and what happens when SAs come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keyferry.config import Scscf, split_address
from keyferry.config.ipsec import ReceivingSide, child_of, identity_of
from keyferry.config.reading import address_of
from keyferry.errors import KeyferryError, ProtectionUnmet, PushRefused
from keyferry.ports import Counter, Log, Resolver, SipHandler, SipPeer
from keyferry.ports.correlation import correlate
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims.charging import correlation_of
from keyferry.protocol.repeats import WINDOW, Repeats
from keyferry.protocol.security_association import Wanted
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.transports.ipsec import IpsecPolicy, IpsecSource
from keyferry.transports.sa_view import SaView
from keyferry.transports.sip_tcp import source_of
from keyferry.transports.vici import Vici
from keyferry.wiring.services import Services

PAUSE: Final = 0.1
"""Seconds between looks at least: at the other end of an SA anybody can make it come and go hundreds of times a second."""


@dataclass(slots=True)
class IpsecWatch:
    """Look at every policy when something happens to an SA; say what changed, and let go what waited for one."""

    view: SaView
    policies: Mapping[str, IpsecPolicy]  # by ServerName
    resolver: Resolver
    log: Log
    counter: Counter
    release: Callable[[str], None] = lambda _server_name: None  # takes the ServerName of an AS that may be sent to again
    abandon: Callable[[str, str], None] = lambda _host, _problem: None  # takes the host to which the way is gone, and why
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _problems: dict[str, str] = field(default_factory=dict)  # by ServerName; "" met
    _changed: set[str] = field(default_factory=set)  # ServerNames to look at, each once, however much happens
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect to charon, look once, and begin to watch."""
        self.view.watch(self._happened)
        await self.view.start()
        self._changed.clear()
        await self._look(list(self.policies))
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.view.aclose()

    def toward(self, peer: SipPeer) -> Awaitable[None] | None:
        """Let what is no push, and tells who is registered, go to these servers as pushes do; a check for `SipClient.send`."""
        for server_name, policy in self.policies.items():
            with contextlib.suppress(KeyferryError):
                if address_of(self._hop(server_name).host) == address_of(peer.host):
                    return policy(peer)
        return None

    def _happened(self, children: Collection[str] | None) -> None:
        """Take what happened to CHILD_SAs of these names, or to charon; of others' nothing is heard here."""
        self._changed.update(name for name, policy in self.policies.items() if children is None or policy.wanted.child in children)
        self._news.set()

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            changed = list(self._changed)
            self._changed.clear()
            try:
                await self._look(changed)
            except Exception as problem:  # the shell's last line: one failure must not leave what is owed unsent for ever, in silence
                self._changed.update(changed)
                self.log.warning("ipsec-watch-failed", problem=type(problem).__name__)
            await self.sleep(PAUSE)

    async def _look(self, server_names: Collection[str]) -> None:
        policies = {name: self.policies[name] for name in server_names}
        problems = await asyncio.gather(*(self._problem(*each) for each in policies.items()))  # together they share questions
        for (server_name, policy), problem in zip(policies.items(), problems, strict=True):
            if self._problems.get(server_name) != problem:
                self._problems[server_name] = problem
                self._tell(server_name, policy, problem)
            if not problem:
                self.release(server_name)

    async def _problem(self, server_name: str, policy: IpsecPolicy) -> str:
        """Return why no push could go there, over UDP or over TCP; "" where one could."""
        try:
            hop = self._hop(server_name)
            try:
                await policy(hop)
            except ProtectionUnmet:
                await policy(hop._replace(transport="TCP"))
        except ProtectionUnmet as problem:
            return problem.problem
        except KeyferryError as problem:
            return str(problem)
        return ""

    def _hop(self, server_name: str) -> SipPeer:
        """Return where pushes go, as the node that sends them writes it."""
        hop = self.resolver.resolve(parse_sip_uri(server_name))
        return hop._replace(host=hop.host.strip("[]"))

    def _tell(self, server_name: str, policy: IpsecPolicy, problem: str) -> None:
        self.counter.count("ipsec_policy", "unmet" if problem else "met")
        if problem:
            self._give_up(server_name)
            self.log.warning("ipsec-unmet", server=server_name, child=policy.wanted.child, problem=problem)
        else:
            self.log.info("ipsec-met", server=server_name, child=policy.wanted.child, identity=policy.wanted.identity)

    def _give_up(self, server_name: str) -> None:
        """Break connections through an SA that is gone: TCP tries again ever more rarely, also long after there is another SA."""
        with contextlib.suppress(KeyferryError):
            self.abandon(self._hop(server_name).host, "the security association that it went through is gone")


def ipsec_watch(services: Services, settings: Scscf) -> IpsecWatch | None:
    """Return the policies of one S-CSCF, not started; None where no application server wants `ipsec`. Raises ConfigError."""
    host, port = split_address(settings.listen, "scscf.listen")
    view = SaView(Vici(Path(services.config.ipsec.vici)), services.clock)
    policies = {
        server.sip_uri: IpsecPolicy(view, Wanted(child_of(server), identity_of(server)), host, port)
        for server in services.config.application_servers
        if str(server.protection) == "ipsec"
    }
    return IpsecWatch(view, policies, services.resolver, services.log, services.metrics) if policies else None


async def ipsec_source(services: Services, settings: ReceivingSide) -> IpsecSource:
    """Return what says who sends to an application server; it is connected to charon. Raises ConfigError."""
    listen = settings.listen_sip or ""
    host, port = split_address(listen, "listen_sip")
    view = SaView(Vici(Path(services.config.ipsec.vici)), services.clock)
    services.exit.push_async_callback(view.aclose)
    await view.start()
    source = IpsecSource(view, child_of(settings), host, port)
    try:
        await source.named()
    except ProtectionUnmet as problem:
        services.log.warning("ipsec-unmet", listen=listen, problem=problem.problem)
    return source


def protected(services: Services, source: IpsecSource | None, handler: SipHandler) -> SipHandler:
    """Let nothing come to a handler that no security association covers; it hears whose it is (DESIGN §6, "who may push").

    The answer is 480: an S-CSCF whose association is being set up again asks again, which it would not after a 403. To a NOTIFY it is 503,
    as 480 would end the subscription (RFC 6665 §4.2.2).
    """
    if source is None:
        return handler
    repeats = Repeats()

    def tell_counts(*, final: bool = False) -> None:
        for each in repeats.over(services.clock.monotonic(), final=final):
            services.log.warning("request-unprotected-again", peer=each.kind[0], count=each.number)

    async def tell() -> None:
        tell_counts()

    services.exit.callback(tell_counts, final=True)
    services.every(WINDOW, tell)

    async def handle(request: Request, peer: SipPeer) -> Response:
        try:
            named = await source.authenticated(peer)
        except ProtectionUnmet as problem:
            refusal = PushRefused("unprotected", 480)
            services.metrics.count("as_pushes_refused", refusal.reason)
            if repeats.take((source_of(peer.host),), ("others",), services.clock.now(), services.clock.monotonic()):
                services.log.warning("request-unprotected", method=request.method, peer=str(peer), problem=problem.problem)
            return make_response(request, 503 if request.method == "NOTIFY" else refusal.status)
        correlate(correlation_of(request.get("P-Charging-Vector")))
        return await handler(request, named)

    return handle


def policies_by_as_id(services: Services, watch: IpsecWatch | None) -> dict[AsId, IpsecPolicy]:
    """Return the policy of each AS_ID that has one."""
    if watch is None:
        return {}
    servers = services.config.application_servers
    return {parse_as_id(server.as_id): watch.policies[server.sip_uri] for server in servers if server.sip_uri in watch.policies}
