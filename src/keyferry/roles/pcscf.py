# SPDX-License-Identifier: Apache-2.0
"""P-CSCF: the UE's first hop, keeper of the Gm keys (TS 24.229 §5.2.2, Release 17; TS 33.203 §6.1)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.errors import ParseError, TransportError
from keyferry.ports import Clock, Counter, Log, RandomSource, Resolver, SipClient, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import build_challenge, build_credentials, parse_challenge, parse_credentials, with_parameter
from keyferry.protocol.identity import Reg, reg_of
from keyferry.protocol.sip.headers import parse_expires, parse_name_addr_list, parse_via_list
from keyferry.protocol.sip.message import Request, Response, check_request, make_response
from keyferry.protocol.sip.proxy import forwarded
from keyferry.protocol.sip.uri import parse_sip_uri

MAX_DEVICES = 200_000  # Gm key pairs held; the oldest goes first
UNTRUSTED = ("Path", "P-Visited-Network-ID", "P-Charging-Vector", "P-Charging-Function-Addresses", "P-Asserted-Identity", "Service-Route")
"""What only the network may write (RFC 3455, RFC 7315, RFC 3325): from a UE it is taken out."""
CHALLENGE_HEADERS = ("WWW-Authenticate", "Proxy-Authenticate")


class GmKeys(NamedTuple):
    """CK || IK as received from the S-CSCF, for one device."""

    keys: Secret  # 32 octets
    confirmed: bool  # a 2xx followed


@dataclass(slots=True)
class Pcscf:
    """Forward REGISTERs, mark them as (un)protected, keep ck and ik and let neither through."""

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
    gm_keys: OrderedDict[Reg, GmKeys] = field(default_factory=OrderedDict)

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer a REGISTER with what the home network answers."""
        del peer
        check_request(request)
        if request.method != "REGISTER":
            return make_response(request, 405, headers=(("Allow", "REGISTER"),))
        if len([via for text in request.all("Via") for via in parse_via_list(text)]) > 1:
            # A UE is the first hop. What it wrote below its own Via would pass for an address that we saw.
            return make_response(request, 400)
        if _asks_security_agreement(request):
            # RFC 3329 §2.3.1: a server that does not do security agreement says so; the UE then goes on without, or gives up.
            return make_response(request, 420, headers=(("Unsupported", "sec-agree"),))
        onward = self._onward(request)
        device = _device(request)
        try:
            response = await self.sip.send(onward, self.resolver.resolve(parse_sip_uri(self.icscf)))
        except TransportError as problem:
            self.log.warning("home-network-unreachable", problem=problem.problem)
            return make_response(request, 504)
        return self._towards_ue(request, response, device)

    def fingerprint(self, contact: str) -> str | None:
        """Return the fingerprint of the Gm keys held for a Contact value, for comparison with the UE's."""
        held = self.gm_keys.get(_device_of(contact))
        return held.keys.fingerprint() if held else None

    def _onward(self, request: Request) -> Request:
        onward = forwarded(request)
        for name in UNTRUSTED:
            onward = onward.without(name)
        authorization = request.all("Authorization")
        if authorization:
            marked = (build_credentials(with_parameter(parse_credentials(text), "integrity-protected", "no")) for text in authorization)
            onward = onward.replacing("Authorization", *marked)
        icid = self.random.octets(16).hex()
        return onward.with_headers(
            (
                *onward.without("Require").headers,
                ("Require", _with_token(request.all("Require"), "path")),
                ("Path", f"<{self.uri};lr>"),
                ("P-Visited-Network-ID", f'"{self.visited_network}"'),
                ("P-Charging-Vector", f'icid-value="{icid}"'),
            )
        )

    def _towards_ue(self, request: Request, response: Response, device: Reg | None) -> Response:
        response = response.without("P-Charging-Vector").without("P-Charging-Function-Addresses")
        if response.status == 401:
            try:
                return self._without_keys(response, device)
            except ParseError as problem:
                # What cannot be read cannot be searched for keys, so it does not pass (TS 33.203 §6.1: SM6 holds RAND and AUTN only).
                self.counter.count("pcscf_challenge_unreadable")
                self.log.warning("challenge-unreadable", problem=problem.problem)
                return make_response(request, 500)
        for name in CHALLENGE_HEADERS:
            response = response.without(name)
        if 200 <= response.status < 300 and device is not None:
            self._after_success(request, response, device)
        return response

    def _without_keys(self, response: Response, device: Reg | None) -> Response:
        for name in CHALLENGE_HEADERS:
            values = response.all(name)
            if values:
                response = response.replacing(name, *(self._take_keys(text, device) for text in values))
        return response

    def _take_keys(self, text: str, device: Reg | None) -> str:
        challenge = parse_challenge(text)
        keys = {name.lower(): value for name, value in challenge.parameters if name.lower() in {"ck", "ik"}}
        if device is not None and keys.keys() == {"ck", "ik"}:
            try:
                pair = Secret(bytes.fromhex(keys["ck"]) + bytes.fromhex(keys["ik"]))
            except ValueError:
                raise ParseError("WWW-Authenticate", "ck or ik is not hexadecimal") from None
            if len(pair) != 32:
                raise ParseError("WWW-Authenticate", "ck and ik are not 16 octets each")
            self._keep(device, GmKeys(pair, confirmed=False))
        rest = tuple((name, value) for name, value in challenge.parameters if name.lower() not in {"ck", "ik"})
        return build_challenge(challenge.with_parameters(rest))

    def _keep(self, device: Reg, keys: GmKeys) -> None:
        self.gm_keys[device] = keys
        self.gm_keys.move_to_end(device)
        if len(self.gm_keys) > self.max_devices:
            self.gm_keys.popitem(last=False)

    def _after_success(self, request: Request, response: Response, device: Reg) -> None:
        if _expires(request) == 0:
            self.gm_keys.pop(device, None)
        elif device in self.gm_keys:
            self._keep(device, GmKeys(self.gm_keys[device].keys, confirmed=True))
        self.log.info("registered" if _expires(request) else "deregistered", to=response.get("To"))


def _asks_security_agreement(request: Request) -> bool:
    tags = ",".join((*request.all("Require"), *request.all("Proxy-Require")))
    return "sec-agree" in {tag.strip().lower() for tag in tags.split(",")}


def _with_token(values: list[str], token: str) -> str:
    tokens = [tag.strip() for value in values for tag in value.split(",") if tag.strip()]
    return ", ".join(tokens if token in tokens else [*tokens, token])


def _device(request: Request) -> Reg | None:
    contact = request.get("Contact")
    return _device_of(contact) if contact and contact != "*" else None


def _device_of(contact: str) -> Reg:
    address = parse_name_addr_list(contact)[0]
    return reg_of(address.parameter("+sip.instance") or address.uri)


def _expires(request: Request) -> int | None:
    contact = request.get("Contact")
    own = parse_name_addr_list(contact)[0].parameter("expires") if contact and contact != "*" else None
    text = own or request.get("Expires")
    return parse_expires(text) if text else None
