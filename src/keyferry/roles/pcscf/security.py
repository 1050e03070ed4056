# SPDX-License-Identifier: Apache-2.0
"""The P-CSCF's side of the security agreement (RFC 3329; TS 24.229 §5.2.2, TS 33.203 §7, Release 17)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple

from keyferry.errors import EspRejected, ParseError, RemoteProtocolError
from keyferry.ports import Counter, GmProtection, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import is_digest, parse_credentials
from keyferry.protocol.esp import ENCRYPTION, INTEGRITY, KEY_OCTETS, expand_keys
from keyferry.protocol.ims.gm_association import AssociationSet, Endpoint, State
from keyferry.protocol.ims.security_agreement import (
    MAX_Q,
    SECURITY_AGREEMENT_REQUIRED,
    Agreement,
    Mechanism,
    build_mechanisms,
    check_same,
    choose,
    ipsec_3gpp,
    parse_mechanisms,
)
from keyferry.protocol.sip.message import Request, Response
from keyferry.roles.pcscf.bindings import Device

EXTENSION_REQUIRED: Final = 421
SEC_AGREE: Final = "sec-agree"
PROTECTED: Final = "ESP"
"""The transport of a peer whose message came through a tunnel."""
TLS: Final = "TLS"
"""Of a peer that reads our certificate: nobody else reads along, so no other protection is asked of it (RFC 3261 §26.3.1)."""


class SecurityRefused(RemoteProtocolError):
    """Report a REGISTER that does not come as the agreement wants; `headers` tell the UE what would."""

    def __init__(self, problem: str, status: int, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(problem, status)
        self.headers = headers


class Agreed(NamedTuple):
    """What a set was made of, and what SM7 must say again."""

    device: Device
    client: tuple[Mechanism, ...]
    server: tuple[Mechanism, ...]
    keys: Secret  # CK || IK, as received


class Offer(NamedTuple):
    """An agreement that waits for keys: the UE's list, ours, and what both chose."""

    user: str
    device: Device
    attempt: str  # Call-ID
    address: str  # of the UE, inside the tunnel
    client: tuple[Mechanism, ...]
    server: tuple[Mechanism, ...]
    chosen: Agreement


class Protection(NamedTuple):
    """How a REGISTER came, and what it offers for the next challenge."""

    association: AssociationSet | None = None
    offer: Offer | None = None


UNPROTECTED: Final = Protection()


@dataclass(slots=True)
class SecurityAgreement:
    """Agree with UEs; hold what each set was made of."""

    gm: GmProtection
    counter: Counter
    required: bool
    _agreed: dict[int, Agreed] = field(default_factory=dict)  # by spi_ps

    def __post_init__(self) -> None:
        self.gm.watch(self._dropped)

    def of_request(self, request: Request, peer: SipPeer, device: Device | None) -> Protection:
        """Check a REGISTER (TS 24.229 §5.2.2.1, §5.2.2.2). Raises SecurityRefused, ParseError."""
        if peer.transport != PROTECTED:
            return self._unprotected(request, peer, device)
        try:
            association = self.gm.of_peer(peer)
        except EspRejected as problem:
            raise SecurityRefused("the set of security associations has ended", 403) from problem
        if association.ended:
            # Not 403, which would keep the UE away: TS 24.229 §5.1.1.4.1 wants an initial registration after this.
            self.counter.count("gm_agreement", "ended")
            raise SecurityRefused("the registration over these security associations has ended", 504)
        self._check_protected(request, association, device)
        offer = self._offer(request, str(association.ue.address), device) if request.all("Security-Client") else None
        return Protection(association, offer)

    def of_peer(self, peer: SipPeer) -> Device:
        """Return whose security associations a request other than REGISTER came over (§5.2.6.1). Raises SecurityRefused."""
        try:
            association = self.gm.of_peer(peer)
        except EspRejected as problem:
            raise SecurityRefused("the set of security associations has ended", 403) from problem
        agreed = self._agreed.get(association.spi_ps)
        if agreed is None or association.state is State.TEMPORARY or association.ended:
            raise SecurityRefused("nobody is registered over these security associations", 403)
        return agreed.device

    def hop(self, user: str) -> SipPeer | None:
        """Return where a request for the user of a set goes; None where there is none that the UE has, too."""
        association = self.gm.sending(user)
        return None if association is None else self.gm.hop(association)

    def ended(self, user: str) -> None:
        """Take the end of a registration that came from the network (§5.2.5.2)."""
        self.gm.ended(user)

    def challenged(self, offer: Offer, keys: Secret | None) -> tuple[str, str]:
        """Set up SAs as a 401 passes; return its Security-Server. Raises RemoteProtocolError."""
        if keys is None:
            raise RemoteProtocolError("a challenge without ck and ik cannot protect Gm", 500)
        client, server = offer.chosen
        ck, ik = Secret(keys.reveal()[:KEY_OCTETS]), Secret(keys.reveal()[KEY_OCTETS:])
        association = self.gm.begin(
            offer.user, _endpoint(offer.address, client), _endpoint(str(self.gm.address), server),
            expand_keys(ck, ik, alg=server.alg, ealg=server.ealg), offer.attempt,
        )  # fmt: skip
        self._agreed[association.spi_ps] = Agreed(offer.device, offer.client, offer.server, keys)
        return "Security-Server", build_mechanisms(offer.server)

    def confirmed(self, association: AssociationSet, registration: int) -> Secret | None:
        """Take a 2xx over a set, which grants so many seconds, 0 for a de-registration; return the Gm keys of the set."""
        agreed = self._agreed.get(association.spi_ps)
        if association.state is State.DELETED or agreed is None:
            self.counter.count("gm_agreement", "set-gone")  # another challenge ended it, or its time was over
            return None
        old = association.state is State.OLD  # its REGISTER was on its way as a newer set was taken into use
        if registration:
            self.gm.confirmed(association, registration)
        else:
            self.gm.ended(association.user)
        return None if old else agreed.keys

    def failed(self, association: AssociationSet) -> None:
        """Take a refusal over a set: it ends if it is temporary (TS 33.203 §7.3.1)."""
        if association.state is State.TEMPORARY:
            self.gm.failed(association)

    def _unprotected(self, request: Request, peer: SipPeer, device: Device | None) -> Protection:
        if not request.all("Security-Client"):
            if SEC_AGREE in required_tags(request):
                raise self._refusal("sec-agree without a Security-Client", SECURITY_AGREEMENT_REQUIRED)
            if self.required and peer.transport != TLS:
                raise self._refusal("no Security-Client", EXTENSION_REQUIRED, ("Require", SEC_AGREE))
            return UNPROTECTED
        if _answers(request):
            # Who agreed on protection and answers in clear has a middleman, or skips it.
            raise self._refusal("an answer outside the security associations", 403)
        return Protection(None, self._offer(request, peer.host, device))

    def _offer(self, request: Request, address: str, device: Device | None) -> Offer:
        client = parse_mechanisms(request.all("Security-Client"))
        if device is None or not device.impi:
            raise ParseError("REGISTER", "security agreement needs Authorization and a Contact")
        server = self._own_list({spi for mechanism in client for spi in (mechanism.spi_c, mechanism.spi_s)})
        try:
            chosen = choose(client, server)
        except RemoteProtocolError as problem:
            raise self._refusal(problem.problem, problem.status) from problem
        # The address is in it: a stranger who names another's IMPI has sets of its own, and ends none of the other's.
        return Offer(f"{device.impi} {device.reg} {address}", device, request.get("Call-ID") or "", address, client, server, chosen)

    def _check_protected(self, request: Request, association: AssociationSet, device: Device | None) -> None:
        agreed = self._agreed.get(association.spi_ps)
        if agreed is None or device is None or not device.stands_for(agreed.device):
            # TS 24.229 §5.2.2.2: under the SAs of one private identity nobody registers another.
            self.counter.count("gm_agreement", "identity")
            raise SecurityRefused("the REGISTER is not of the user of its security associations", 403)
        temporary = association.state is State.TEMPORARY
        try:
            check_same(request.all("Security-Verify"), agreed.server)
            if temporary:
                check_same(request.all("Security-Client"), agreed.client)
        except RemoteProtocolError as problem:  # unreadable or different: somebody changed a list before protection began
            if temporary:
                self.gm.failed(association)
            raise self._refusal(problem.problem, SECURITY_AGREEMENT_REQUIRED) from problem

    def _refusal(self, problem: str, status: int, *headers: tuple[str, str]) -> SecurityRefused:
        """RFC 3329 §2.3.1: the refusal lists what this server has."""
        self.counter.count("gm_agreement", str(status))
        return SecurityRefused(problem, status, (*headers, ("Security-Server", build_mechanisms(self._own_list(())))))

    def _own_list(self, avoid: Collection[int]) -> tuple[Mechanism, ...]:
        spi_c, spi_s = self.gm.allocate(avoid)
        port_c, port_s = self.gm.ports
        suites = [(alg, ealg) for ealg in ENCRYPTION for alg in INTEGRITY]
        return tuple(
            ipsec_3gpp(alg=alg, ealg=ealg, spi_c=spi_c, spi_s=spi_s, port_c=port_c, port_s=port_s, q=MAX_Q - 100 * place)
            for place, (alg, ealg) in enumerate(suites)
        )

    def _dropped(self, association: AssociationSet) -> None:
        self._agreed.pop(association.spi_ps, None)


def without_agreement(request: Request) -> Request:
    """Take out what is between UE and P-CSCF alone (TS 24.229 §5.2.2.1)."""
    request = request.without("Security-Client").without("Security-Verify").without("Security-Server")
    for name in ("Require", "Proxy-Require"):
        tags = [tag for tag in tags_of(request, name) if tag.lower() != SEC_AGREE]
        request = request.replacing(name, ", ".join(tags)) if tags else request.without(name)
    return request


def without_server_list(response: Response) -> Response:
    """Take out a Security-Server of somebody behind us: ours alone counts."""
    return response.without("Security-Server")


def required_tags(request: Request) -> set[str]:
    """Return the option tags that the UE demands, lower case."""
    return {tag.lower() for name in ("Require", "Proxy-Require") for tag in tags_of(request, name)}


def tags_of(request: Request, name: str) -> list[str]:
    """Return the option tags of one header field."""
    return [tag.strip() for value in request.all(name) for tag in value.split(",") if tag.strip()]


def _answers(request: Request) -> bool:
    """Tell whether there is an answer that could be right: not SM1, and not the word that MAC or SQN was wrong."""
    given = [parse_credentials(text) for text in request.all("Authorization") if is_digest(text)]
    return any(each.response and each.auts is None for each in given)


def _endpoint(address: str, mechanism: Mechanism) -> Endpoint:
    return Endpoint(ip_address(address), mechanism.spi_c, mechanism.spi_s, mechanism.port_c, mechanism.port_s)
