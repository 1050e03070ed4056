# SPDX-License-Identifier: Apache-2.0
"""P-CSCF: SUBSCRIBE and NOTIFY between registered UEs and their S-CSCF (TS 24.229 §5.2.6.3, §5.2.6.4, Release 17; RFC 3325, RFC 3608)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from keyferry.errors import RemoteProtocolError, TransportError
from keyferry.ports import Clock, Counter, Log, RandomSource, Resolver, SipClient, SipHandler, SipPeer
from keyferry.protocol.sip.headers import parse_name_addr, parse_name_addr_list
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.sip.proxy import forwarded, next_hop, own_route, routed, routes
from keyferry.protocol.sip.uri import SipUri, parse_sip_uri
from keyferry.roles.pcscf.bindings import Binding, Bindings, contact_of
from keyferry.roles.pcscf.security import PROTECTED, SecurityAgreement, without_agreement

DEFAULT_PORT = 5060  # RFC 3261 §19.1.2
UNTRUSTED = (
    "Path", "P-Associated-URI", "P-Visited-Network-ID", "P-Charging-Vector", "P-Charging-Function-Addresses", "P-Asserted-Identity",
    "Service-Route",
)  # fmt: skip
"""What only the network may write (RFC 3455, RFC 7315, RFC 3325): from a UE it is taken out."""
CHARGING = ("P-Charging-Vector", "P-Charging-Function-Addresses")
"""What a UE does not see (RFC 7315 §4.5, §4.6)."""


@dataclass(slots=True)
class Dialogs:
    """Carry requests of subscriptions, both ways; whose they are is told by Gm on one side and by a token on the other."""

    sip: SipClient
    resolver: Resolver
    host: str  # our host name, for Record-Route
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    bindings: Bindings
    security: Callable[[], SecurityAgreement | None]
    notified: SipHandler | None = None  # takes NOTIFYs of our own subscriptions
    _here: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._here = frozenset({self.host})

    async def subscribe(self, request: Request, peer: SipPeer) -> Response:
        """Carry a UE's SUBSCRIBE to its S-CSCF, with an identity that this network vouches for (§5.2.6.3.3, §5.2.6.3.5)."""
        binding = self._sender(request, peer)
        if binding is None or binding.ended:
            return self._refused(request, "not-registered", 403)
        onward = without_agreement(forwarded(request))
        identity = _identity(onward, binding)
        for name in (*UNTRUSTED, "P-Preferred-Identity", "Record-Route"):
            onward = onward.without(name)
        onward, _ = own_route(onward, self._here)
        if parse_name_addr(request.get("To") or "").parameter("tag") is None:
            onward = routed(onward, binding.service_route)  # RFC 3608 §6.3: whatever the UE preloaded
        if not {_place(next_hop(onward)), *_places(routes(onward))} <= _servers(binding):
            # In a dialog it is the UE that names the target; this network's other nodes are none of its business.
            return self._refused(request, "not-its-s-cscf", 403)
        onward = onward.with_headers(
            (
                ("Record-Route", f"<sip:{binding.token}@{self.host};lr>"),
                *onward.headers,
                ("P-Asserted-Identity", f"<{identity}>"),
                ("P-Charging-Vector", f'icid-value="{self.random.octets(16).hex()}"'),
            )
        )
        response = await self._send(request, onward, lambda: self.resolver.resolve(next_hop(onward)))
        return _without_charging(response)

    async def notify(self, request: Request, peer: SipPeer) -> Response:
        """Carry a NOTIFY to the UE that our Record-Route names, or take it: it is of our own subscription."""
        onward, own = own_route(forwarded(request), self._here)
        if own is None or own.user is None:
            if self.notified is None:
                return self._refused(request, "no-dialog", 481)
            return await self.notified(request, peer)
        binding = self.bindings.of_token(own.user, self.clock.now())
        if binding is None:
            return self._refused(request, "no-dialog", 481)  # the notifier then ends the subscription
        for name in (*CHARGING, "P-Asserted-Identity"):
            onward = onward.without(name)
        return await self._send(request, onward, lambda: self._towards(binding))

    def _sender(self, request: Request, peer: SipPeer) -> Binding | None:
        """Tell who sent a request (§5.2.6.1): by its security associations, else by the address that registered."""
        security, now = self.security(), self.clock.now()
        if peer.transport == PROTECTED:
            return None if security is None else self.bindings.get(security.of_peer(peer), now)
        binding = self.bindings.of_sender(contact_of(request), peer.host, now)
        if binding is None or binding.user:
            return None  # who has security associations uses them
        # A UE's next TCP connection has another port; without one, another port is another UE. Under TLS the connection is the UE.
        free = peer.transport == "TCP" and binding.source.transport != "TLS"
        return binding if free or binding.source[:3] == peer[:3] else None

    def _towards(self, binding: Binding) -> SipPeer:
        security = self.security()
        if not binding.user or security is None:
            # Over TLS by the connection that the UE opened alone (RFC 5626 §5.3), over TCP to the port where it listens; on its own
            # host, whatever its Contact says: that may name a node of this network.
            port = parse_sip_uri(binding.contact).port or DEFAULT_PORT
            return binding.source._replace(port=port) if binding.source.transport == "TCP" else binding.source
        hop = security.hop(binding.user)
        if hop is None:
            raise TransportError(binding.contact, "has no security associations left")
        return hop

    async def _send(self, request: Request, onward: Request, hop: Callable[[], SipPeer]) -> Response:
        try:
            return await self.sip.send(onward, hop())
        except TransportError as problem:
            self.log.warning("request-not-delivered", method=request.method, problem=problem.problem)
            return make_response(request, 504)

    def _refused(self, request: Request, reason: str, status: int) -> Response:
        self.counter.count("pcscf_requests_refused", reason)
        self.log.warning("request-refused", method=request.method, reason=reason)
        return make_response(request, status)


def _identity(request: Request, binding: Binding) -> str:
    """Return the public identity to assert: the registered one that the UE prefers, else its default (§5.2.6.3.1)."""
    preferred = [address.uri for row in request.all("P-Preferred-Identity") for address in parse_name_addr_list(row)]
    if not binding.impus:
        raise RemoteProtocolError("the registration named no public identity", 403)
    return next((uri for uri in preferred if uri in binding.impus), binding.impus[0])


def _servers(binding: Binding) -> set[tuple[str, int]]:
    return _places(binding.service_route)


def _places(route: Iterable[str]) -> set[tuple[str, int]]:
    return {_place(parse_sip_uri(parse_name_addr(each).uri)) for each in route}


def _place(uri: SipUri) -> tuple[str, int]:
    """Return host and port: at another port of the same machine there may be another function."""
    return uri.host, uri.port or DEFAULT_PORT


def _without_charging(response: Response) -> Response:
    for name in CHARGING:
        response = response.without(name)
    return response
