# SPDX-License-Identifier: Apache-2.0
"""P-CSCF: the UE's first hop, keeper of the Gm keys (TS 24.229 §5.2.2, §5.2.5, Release 17; TS 33.203 §6.1)."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from keyferry.errors import ParseError, RemoteProtocolError, TransportError
from keyferry.ports import Clock, Counter, Log, RandomSource, Resolver, SipClient, SipPeer
from keyferry.ports.correlation import correlate
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    Credentials,
    build_challenge,
    build_credentials,
    is_digest,
    parse_challenge,
    parse_credentials,
    with_parameter,
)
from keyferry.protocol.esp import KEY_OCTETS
from keyferry.protocol.identity import Reg, reg_of
from keyferry.protocol.ims.charging import Icid, build_charging_vector
from keyferry.protocol.ims.gm_association import REG_AWAIT_AUTH
from keyferry.protocol.ims.reginfo import ContactEvent
from keyferry.protocol.sip.headers import build_warning, parse_expires, parse_name_addr_list, parse_via_list
from keyferry.protocol.sip.message import Request, Response, check_request, make_response, refuse_method, unsupported_tags
from keyferry.protocol.sip.proxy import forwarded
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.pcscf.bindings import EVERY_DEVICE, Binding, Bindings, Device, associated, contact_of, service_route
from keyferry.roles.pcscf.charging import Icids
from keyferry.roles.pcscf.dialogs import CHARGING, UNTRUSTED, Dialogs
from keyferry.roles.pcscf.security import (
    PROTECTED,
    SEC_AGREE,
    UNPROTECTED,
    Protection,
    SecurityAgreement,
    SecurityRefused,
    required_tags,
    tags_of,
    without_agreement,
    without_server_list,
)

ANSWER_WITHIN = 30.0  # seconds that the home network may take: less than a UE waits (RFC 3261 timer F), more than the I-CSCF does
MAX_DEVICES = 200_000  # Gm key pairs held; the oldest goes first
TOKEN_OCTETS = 12
"""Of the user in our Record-Route: it is not to be guessed."""
CHALLENGE_HEADERS = ("WWW-Authenticate", "Proxy-Authenticate")


class Offered(NamedTuple):
    """Gm keys of a challenge, and until when somebody may answer it."""

    keys: Secret
    until: float  # monotonic seconds


@dataclass(slots=True)
class Pcscf:
    """Forward REGISTERs, mark them as (un)protected, keep ck and ik and let neither through; protect Gm with them."""

    sip: SipClient
    resolver: Resolver
    uri: str  # our SIP URI, for Path
    icscf: str  # SIP URI of the home network's entry point
    visited_network: str
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    max_devices: int = MAX_DEVICES
    warnings: bool = False  # a 504 names who did not answer: a UE reads it
    security: SecurityAgreement | None = None  # None: Gm is not protected
    gm_keys: OrderedDict[Device, Secret] = field(default_factory=OrderedDict)
    """CK || IK as received from the S-CSCF: of the challenge whose answer got a 2xx."""
    _offered: OrderedDict[tuple[Device, str], Offered] = field(default_factory=OrderedDict)
    """Those of challenges without security agreement that wait for it, by nonce: anybody can cause a challenge in another's name."""
    registered: Callable[[Binding], None] | None = None
    """Called with every device as it registers or re-registers; must not wait."""
    bindings: Bindings = field(init=False)
    dialogs: Dialogs = field(init=False)
    icids: Icids = field(init=False)

    def __post_init__(self) -> None:
        self.bindings = Bindings(self.max_devices)
        self.icids = Icids(self.clock, self.random)
        self.dialogs = Dialogs(
            self.sip, self.resolver, parse_sip_uri(self.uri).host, self.clock, self.random, self.log, self.counter, self.bindings,
            lambda: self.security,
        )  # fmt: skip

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer a request of a UE with what the home network answers, and the other way round."""
        check_request(request)
        try:
            if request.method == "REGISTER":
                return await self._register(request, peer)
            if request.method == "SUBSCRIBE":
                return await self.dialogs.subscribe(request, peer)
        except SecurityRefused as refusal:
            return make_response(request, refusal.status, headers=refusal.headers)
        if request.method == "NOTIFY":
            return await self.dialogs.notify(request, peer)
        return refuse_method(request, "REGISTER", "SUBSCRIBE", "NOTIFY")

    def ended(self, binding: Binding, event: ContactEvent) -> None:
        """Forget a device as it was registered, with its keys and security associations: the network says so (§5.2.5.2)."""
        if binding.ended or binding not in self.bindings.of_resource(binding.resource):
            return  # or it has registered anew since
        self._end(binding)
        self.counter.count("pcscf_ended", event)
        self.log.info("registration-ended", impi=binding.device.impi, contact=binding.contact, because=event)

    def _end(self, binding: Binding) -> None:
        self.bindings.end(binding.device, self.clock.now())
        self.gm_keys.pop(binding.device, None)
        if self.security is not None and binding.user:
            self.security.ended(binding.user)

    async def sweep(self) -> int:
        """Forget devices whose time is over, and their keys; return how many."""
        over = self.bindings.over(self.clock.now())
        for binding in over:
            self.gm_keys.pop(binding.device, None)
        return len(over)

    async def _register(self, request: Request, peer: SipPeer) -> Response:
        if len([via for text in request.all("Via") for via in parse_via_list(text)]) > 1:
            # A UE is the first hop. What it wrote below its own Via would pass for an address that we saw.
            return make_response(request, 400)
        unknown = unsupported_tags(request, "Proxy-Require", ("path", SEC_AGREE))
        if unknown:
            return make_response(request, 420, headers=(("Unsupported", ", ".join(unknown)),))
        device = _device(request)
        protection = self._protection(request, peer, device)
        icid = self.icids.of(device, [each.nonce for each in _credentials(request)])
        correlate(icid.registration)
        onward = self._onward(request, icid, protected=protection.association is not None)
        response = await self._ask_home(request, onward)
        answer = self._towards_ue(request, response, device, protection)
        if answer.status == 401:
            self.icids.challenged(device, [parse_challenge(text).nonce for name in CHALLENGE_HEADERS for text in answer.all(name)], icid)
        if device is not None and 200 <= answer.status < 300:
            self._bind(request, peer, answer, device, protection)
        return answer

    def fingerprint(self, impi: str, contact: str) -> str | None:
        """Return the fingerprint of the Gm keys held for a device, for comparison with the UE's."""
        held = self.gm_keys.get(Device(impi, _reg_of(contact)))
        return held.fingerprint() if held else None

    def _protection(self, request: Request, peer: SipPeer, device: Device | None) -> Protection:
        if self.security is not None:
            return self.security.of_request(request, peer, device)
        if peer.transport == PROTECTED or SEC_AGREE in required_tags(request):
            # RFC 3329 §2.3.1: a server that does not do security agreement says so; the UE then goes on without, or gives up.
            raise SecurityRefused("no security agreement", 420, (("Unsupported", SEC_AGREE),))
        return UNPROTECTED

    async def _ask_home(self, request: Request, onward: Request) -> Response:
        try:
            return await self.sip.send(onward, self.resolver.resolve(parse_sip_uri(self.icscf)))
        except TransportError as problem:
            self.log.warning("home-network-unreachable", server=self.icscf, problem=problem.problem)
            if not self.warnings:
                return make_response(request, 504)
            warning = build_warning(parse_sip_uri(self.uri).host, f"I-CSCF {self.icscf.removeprefix('sip:')}: {problem.problem}")
            return make_response(request, 504, headers=(("Warning", warning),))

    def _onward(self, request: Request, icid: Icid, *, protected: bool) -> Request:
        onward = without_agreement(forwarded(request))
        for name in (*UNTRUSTED, "Route"):  # a REGISTER goes to the entry point that we know, whatever the UE preloaded
            onward = onward.without(name)
        word = "yes" if protected else "no"
        marked = [build_credentials(with_parameter(each, "integrity-protected", word)) for each in _credentials(request)]
        # Of another scheme there is nothing to mark: it stays here, and the home network challenges (RFC 4475 §3.3.7).
        onward = onward.replacing("Authorization", *marked) if marked else onward.without("Authorization")
        return onward.with_headers(
            (
                *onward.without("Require").headers,
                ("Require", _with_token(tags_of(onward, "Require"), "path")),
                ("Path", f"<{self.uri};lr>"),
                ("P-Visited-Network-ID", f'"{self.visited_network}"'),
                ("P-Charging-Vector", build_charging_vector(icid)),
            )
        )

    def _towards_ue(self, request: Request, response: Response, device: Device | None, protection: Protection) -> Response:
        for name in CHARGING:
            response = response.without(name)
        response = without_server_list(response)
        if response.status == 401:
            try:
                return self._challenge(response, device, protection)
            except RemoteProtocolError as problem:
                # What cannot be read cannot be searched for keys, so it does not pass (TS 33.203 §6.1: SM6 holds RAND and AUTN only).
                self.counter.count("pcscf_challenge_unreadable")
                self.log.warning("challenge-unreadable", problem=problem.problem)
                self._failed(protection)
                return make_response(request, 503 if problem.status == 503 else 500)
        for name in CHALLENGE_HEADERS:
            response = response.without(name)
        if 200 <= response.status < 300:
            if device is not None:
                self._after_success(request, response, device, protection)
        else:
            self._failed(protection)
        return response

    def _failed(self, protection: Protection) -> None:
        if self.security is not None and protection.association is not None:
            self.security.failed(protection.association)

    def _challenge(self, response: Response, device: Device | None, protection: Protection) -> Response:
        """Take the keys out; with them protect Gm, if the UE asked for it."""
        found: list[tuple[str, Secret]] = []
        for name in CHALLENGE_HEADERS:
            values = response.all(name)
            if values:
                response = response.replacing(name, *(_without_keys(text, found) for text in values))
        if self.security is not None and protection.offer is not None:
            return response.with_headers(
                (*response.headers, self.security.challenged(protection.offer, found[0][1] if len(found) == 1 else None))
            )
        if device is not None:
            now = self.clock.monotonic()
            for nonce, keys in found:
                _keep(self._offered, (device, nonce), Offered(keys, now + REG_AWAIT_AUTH), self.max_devices)
            while self._offered and next(iter(self._offered.values())).until <= now:  # nobody can answer these any more
                self._offered.popitem(last=False)
        return response

    def _bind(self, request: Request, peer: SipPeer, response: Response, device: Device, protection: Protection) -> None:
        """Remember what later requests of the device, and for it, need (§5.2.2.1: Service-Route, P-Associated-URI)."""
        granted = _lifetime(response, request, device)
        if not granted:
            for binding in self.bindings.of_impi(device.impi):
                if device.stands_for(binding.device) and not binding.ended:
                    self._end(binding)
            return
        before, now = self.bindings.drop(device), self.clock.now()
        binding = Binding(
            device=device, token=before.token if before is not None else self.random.octets(TOKEN_OCTETS).hex(),
            contact=contact_of(request), source=peer, user=protection.association.user if protection.association is not None else "",
            impus=associated(response), service_route=service_route(response), expires_at=now + granted,
            since=now,
        )  # fmt: skip
        self.bindings.put(binding)
        if self.registered is not None:
            self.registered(binding)

    def _after_success(self, request: Request, response: Response, device: Device, protection: Protection) -> None:
        granted = _lifetime(response, request, device)
        keys: Secret | None = None
        if self.security is not None and protection.association is not None:
            keys = self.security.confirmed(protection.association, granted)
        for each in _credentials(request):
            offered = self._offered.pop((device, each.nonce), None)
            keys = keys or (offered.keys if offered is not None else None)
        if not granted:
            self.gm_keys.pop(device, None)
        elif keys is not None:
            _keep(self.gm_keys, device, keys, self.max_devices)
        self.log.info("registered" if granted else "deregistered", to=response.get("To"))


Key = TypeVar("Key")
Kept = TypeVar("Kept")


def _keep(held: OrderedDict[Key, Kept], key: Key, keys: Kept, limit: int) -> None:
    held[key] = keys
    held.move_to_end(key)
    if len(held) > limit:
        held.popitem(last=False)


def _without_keys(text: str, found: list[tuple[str, Secret]]) -> str:
    """Return a challenge without ck and ik; note them in `found`, with the nonce, if both are there."""
    challenge = parse_challenge(text)
    keys = {name.lower(): value for name, value in challenge.parameters if name.lower() in {"ck", "ik"}}
    if keys.keys() == {"ck", "ik"}:
        try:
            pair = Secret(bytes.fromhex(keys["ck"]) + bytes.fromhex(keys["ik"]))
        except ValueError:
            raise ParseError("WWW-Authenticate", "ck or ik is not hexadecimal") from None
        if len(bytes.fromhex(keys["ck"])) != KEY_OCTETS or len(pair) != 2 * KEY_OCTETS:
            raise ParseError("WWW-Authenticate", "ck and ik are not 16 octets each")
        found.append((challenge.nonce, pair))
    rest = tuple((name, value) for name, value in challenge.parameters if name.lower() not in {"ck", "ik"})
    return build_challenge(challenge.with_parameters(rest))


def _with_token(values: list[str], token: str) -> str:
    return ", ".join(values if token in values else [*values, token])


def _device(request: Request) -> Device | None:
    contact, credentials = request.get("Contact"), _credentials(request)
    if not contact:
        return None
    return Device(credentials[0].username if credentials else "", EVERY_DEVICE if contact == "*" else _reg_of(contact))


def _credentials(request: Request) -> list[Credentials]:
    return [parse_credentials(text) for text in request.all("Authorization") if is_digest(text)]


def _reg_of(contact: str) -> Reg:
    address = parse_name_addr_list(contact)[0]
    return reg_of(address.parameter("+sip.instance") or address.uri)


def _lifetime(response: Response, request: Request, device: Device) -> int:
    """Return the seconds that a 2xx grants a device, 0 for a de-registration."""
    return 0 if device.reg == EVERY_DEVICE or _expires(request) == 0 else _granted(response, request, device)


def _granted(response: Response, request: Request, device: Device) -> int:
    """Return the seconds that the 2xx grants this device (RFC 3261 §10.3 step 8), or else what it asked for; at least 1."""
    text = response.get("Expires")
    with contextlib.suppress(ParseError):  # the registration stands, whatever we can read of it
        for value in response.all("Contact"):
            for address in parse_name_addr_list(value):
                if reg_of(address.parameter("+sip.instance") or address.uri) == device.reg:
                    text = address.parameter("expires") or text
        return max(parse_expires(text) if text else _expires(request) or 0, 1)
    return max(_expires(request) or 0, 1)


def _expires(request: Request) -> int | None:
    contact = request.get("Contact")
    own = parse_name_addr_list(contact)[0].parameter("expires") if contact and contact != "*" else None
    text = own or request.get("Expires")
    return parse_expires(text) if text else None
