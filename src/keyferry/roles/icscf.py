# SPDX-License-Identifier: Apache-2.0
"""I-CSCF: find the S-CSCF of a user (TS 24.229 §5.3.1, §5.3.2, Release 17)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyferry.errors import CxError, LocalFailure, TransportError
from keyferry.ports import Clock, Counter, CxClient, Log, Resolver, SipClient, SipPeer
from keyferry.protocol.digest import is_digest, parse_credentials
from keyferry.protocol.identity import Impi, Impu, parse_impi, parse_impu
from keyferry.protocol.ims.registration import deregisters, impi_of
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.sip.headers import build_warning, parse_name_addr
from keyferry.protocol.sip.message import Request, Response, check_request, make_response, refuse_method
from keyferry.protocol.sip.proxy import forwarded, own_route, routed
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.cx_status import status_of

ANSWER_WITHIN: Final = 28.0
"""Seconds that the HSS and S-CSCFs may take together: less than the P-CSCF waits for us, so that its UE is told who was silent."""
AT_ONCE: Final = 1.0
"""Seconds: an HSS that takes less leaves an S-CSCF as long as SIP waits, which is the node's timer F and costs none here."""
DOWN: Final = 30.0
"""Seconds that a silent S-CSCF is asked last: its users do not wait for it each."""
MAX_TRIED: Final = 8
"""S-CSCFs that one REGISTER is tried at."""
NOT_SERVED = {5001: 404, 5003: 480}
"""USER_UNKNOWN, IDENTITY_NOT_REGISTERED, of a user whom somebody asks for (TS 24.229 §5.3.2.1)."""


class _Asker(NamedTuple):
    """What every UAR of one REGISTER says."""

    cx: CxClient
    impi: Impi
    impu: Impu
    visited_network: str

    async def ask(self, kind: AuthorizationType) -> UserAuthorization:
        return await self.cx.user_authorization(self.impi, self.impu, self.visited_network, kind)


@dataclass(frozen=True, slots=True)
class Icscf:
    """Route a REGISTER to the S-CSCF that the HSS has assigned, or to the configured one for a new user; a SUBSCRIBE to a user's."""

    cx: CxClient
    sip: SipClient
    resolver: Resolver
    default_scscf: str  # SIP URI
    log: Log
    clock: Clock
    counter: Counter
    name: str = ""  # our host name: what Route may name us by
    refused: Callable[[Impi, CxError, int], None] | None = None  # takes whom the HSS does not let in, and the status: the book of failures
    patience: float | None = None  # seconds that an S-CSCF may be silent while there are others; None: as long as SIP waits
    warnings: bool = False  # a 504 names who did not answer: a UE reads it
    _down: dict[str, float] = field(default_factory=dict)  # SIP URI → until when a silent S-CSCF is the last choice, monotonic seconds

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer with what the S-CSCF answers; methods that would need terminating services are not carried."""
        del peer
        check_request(request)
        if request.method == "REGISTER":
            return await self._register(request)
        if request.method == "SUBSCRIBE":
            return await self._subscribe(request)
        return refuse_method(request, "REGISTER", "SUBSCRIBE")

    async def _register(self, request: Request) -> Response:
        """§5.3.1.2, §5.3.1.3."""
        impu = parse_impu(parse_name_addr(request.get("To") or "").uri)
        authorization = next((text for text in request.all("Authorization") if is_digest(text)), None)
        impi: Impi = parse_impi(parse_credentials(authorization).username) if authorization else impi_of(impu)
        kind = AuthorizationType.DE_REGISTRATION if deregisters(request) else AuthorizationType.REGISTRATION
        protected = authorization is not None and parse_credentials(authorization).parameter("integrity-protected") == "yes"
        asker = _Asker(self.cx, impi, impu, request.get("P-Visited-Network-ID") or "")
        until = self.clock.monotonic() + ANSWER_WITHIN
        try:
            if protected or kind is AuthorizationType.DE_REGISTRATION:  # another S-CSCF knows nothing of what is to be renewed or ended
                target = (await asker.ask(kind)).server_name or self.default_scscf
                answer = await self._sent(request, impi, target, self._patience(until))
                return answer if isinstance(answer, Response) else self._not_served(request, {target: answer})
            return await self._initial(request, asker, until)
        except LocalFailure as problem:  # ours: no S-CSCF was silent, and another would not hear of it either
            self.log.warning("s-cscf-unreachable", impi=impi, server=problem.peer, problem=problem.problem)
            return self._not_served(request, {problem.peer: problem.problem})
        except CxError as problem:
            if self.refused is not None:
                self.refused(impi, problem, status_of(problem))
            else:
                self.log.warning("register-refused", impi=impi, impu=impu, cx=problem.name)
            return make_response(request, status_of(problem))

    async def _initial(self, request: Request, asker: _Asker, until: float) -> Response:
        """Send to the S-CSCF assigned; where it is silent or sends us away, to the next one that the HSS names (§5.3.1.3)."""
        found = await asker.ask(AuthorizationType.REGISTRATION)
        if found.server_name is not None and self._is_down(found.server_name):
            found = await asker.ask(AuthorizationType.REGISTRATION_AND_CAPABILITIES)
        tried: dict[str, str] = {}
        while True:
            offered = [found.server_name] if found.server_name is not None else self._in_order(found.candidates)
            target = next((server for server in offered if server not in tried), None)
            patience = self._patience(until, self.patience)
            if target is None or len(tried) >= MAX_TRIED or patience == 0:
                self.log.warning("no-s-cscf-left", impi=asker.impi, asked=_told(tried))
                return self._not_served(request, tried)
            answer = await self._sent(request, asker.impi, target, patience)
            if isinstance(answer, Response) and answer.status != 480 and not 300 <= answer.status < 400:
                self._down.pop(target, None)
                return answer
            silent = not isinstance(answer, Response)
            tried[target] = str(answer) if silent else "sends us away"
            self.counter.count("icscf_moved_on", "silent" if silent else "sent-away")
            # one that was given less time may be well
            if not silent or patience is None or patience >= min(self.patience or ANSWER_WITHIN, ANSWER_WITHIN - AT_ONCE):
                self._down[target] = self.clock.monotonic() + DOWN
            found = await asker.ask(AuthorizationType.REGISTRATION_AND_CAPABILITIES)

    def _patience(self, until: float, most: float | None = None) -> float | None:
        """Return the seconds that an S-CSCF may take; None: as long as SIP waits."""
        left = max(0.0, until - self.clock.monotonic())
        if most is not None:
            return min(most, left)
        return None if left > ANSWER_WITHIN - AT_ONCE else left

    async def _sent(self, request: Request, impi: Impi, target: str, patience: float | None) -> Response | str:
        """Return the answer of an S-CSCF, or why there is none. Raises LocalFailure where it was not asked."""
        onward = forwarded(request, uri=target)
        try:
            answer = self.sip.send(onward, self.resolver.resolve(parse_sip_uri(target)))
            return await (answer if patience is None else asyncio.wait_for(answer, patience))
        except LocalFailure:
            raise
        except TransportError as problem:
            why = problem.problem
        except TimeoutError:
            why = f"no answer in {patience:.3g} s"
        self.log.warning("s-cscf-unreachable", impi=impi, server=target, problem=why)
        return why

    def _not_served(self, request: Request, tried: Mapping[str, str]) -> Response:
        """Answer that no S-CSCF took a request (§5.3.1.3)."""
        if not self.warnings:
            return make_response(request, 504)
        return make_response(request, 504, headers=(("Warning", build_warning(self.name or "icscf", f"S-CSCF {_told(tried)}")),))

    def _in_order(self, candidates: Sequence[str]) -> list[str]:
        """Return whom to ask, those that were silent lately after the others."""
        return sorted(candidates or (self.default_scscf,), key=self._is_down)

    def _is_down(self, server: str) -> bool:
        return self._down.get(server, 0.0) > self.clock.monotonic()

    async def _subscribe(self, request: Request) -> Response:
        """§5.3.2.1: a request for a user goes to the user's S-CSCF; we are no part of the dialog."""
        onward, _ = own_route(forwarded(request), {self.name})
        impu = parse_impu(onward.uri)
        try:
            target = await self.cx.location_info(impu)
        except CxError as problem:
            self.log.warning("subscribe-refused", impu=impu, cx=problem.name)
            known = NOT_SERVED.get(problem.code) if problem.experimental else None
            return make_response(request, known or status_of(problem))
        onward = routed(onward, (f"<{target};lr>",))
        try:
            return await self.sip.send(onward, self.resolver.resolve(parse_sip_uri(target)))
        except TransportError as problem:
            self.log.warning("s-cscf-unreachable", impu=impu, server=target, problem=problem.problem)
            return self._not_served(request, {target: problem.problem})


def _told(tried: Mapping[str, str]) -> str:
    """Write which S-CSCFs were asked, and what came of it."""
    asked = ", ".join(f"{target.removeprefix('sip:')}: {problem}" for target, problem in tried.items())
    return asked or "not asked: the HSS took all the time"
