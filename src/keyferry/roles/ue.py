# SPDX-License-Identifier: Apache-2.0
"""UE with a software ISIM (TS 24.229 §5.1.1, Release 17; TS 33.203 §6.1; DESIGN §4, §5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from keyferry.errors import KeyferryError, MacFailure, ParseError, RegistrationFailed, RemoteProtocolError, SyncFailure
from keyferry.ports import Clock, GmProtection, Log, RandomSource, SipClient, SipPeer, UeState
from keyferry.protocol.aka import Usim
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    Challenge,
    Credentials,
    build_credentials,
    encode_base64,
    hash_a1,
    parse_aka_nonce,
    parse_challenge,
    respond,
)
from keyferry.protocol.esp import ENCRYPTION, INTEGRITY, expand_keys
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.activation import Activation, AkaRun, AmfBit, ProofBy, activate
from keyferry.protocol.ims.autn_trial import explain_sqn
from keyferry.protocol.ims.gm_association import AssociationSet, Endpoint
from keyferry.protocol.ims.keys import AccessKeys
from keyferry.protocol.ims.marker import RELEASE_TAG, Marker, parse_marker
from keyferry.protocol.ims.registration import AKA_ALGORITHM
from keyferry.protocol.ims.security_agreement import (
    Mechanism,
    build_mechanisms,
    choose,
    ipsec_3gpp,
    parse_mechanisms,
)
from keyferry.protocol.ims.verdicts import Analysis, Reason, because
from keyferry.protocol.sip.headers import parse_expires, parse_name_addr_list, parse_warning
from keyferry.protocol.sip.message import Request, Response

MAX_INVALID_CHALLENGES = 2  # in a row, then the UE gives up (TS 24.229 §5.1.1.5.3)
MAX_ROUNDS = 6  # REGISTERs in one procedure: a server that challenges for ever is left
BEGUN = "a registration was begun and not finished"
"""Why there are no keys between a challenge and its 2xx, or after a kill in between."""


@dataclass(frozen=True, slots=True)
class UeProfile:
    """What the ISIM and the operator's settings say."""

    impi: Impi
    impu: Impu
    home_domain: str  # also the realm that may activate AS keys
    release: int | None = 6  # what to state; None is a Release 5 UE
    expires: int = 600_000  # seconds to ask for
    require_keys: bool = False  # refuse to be registered without AS keys
    rspauth: ProofBy = "scscf"  # "as": keys of an S-CSCF that promises no rspauth, too; each AS has to prove them (DESIGN §10)
    amf_bit: AmfBit = "ignored"  # "required": AUTN's AMF must say that the HSS meant the vector for AS keys (DESIGN §4)


@dataclass(slots=True)
class UeSecurity:
    """The UE's side of the security agreement (RFC 3329; TS 24.229 §5.1.1.2, §5.1.1.5; TS 33.203 §7).

    A UE that has it registers through ESP or not at all. The sets live as long as this object: who opens the UE anew
    registers from the beginning, without one.
    """

    gm: GmProtection
    user: str
    _offer: tuple[Mechanism, ...] = ()
    _temporary: AssociationSet | None = None  # of the challenge that is being answered
    _server: dict[int, tuple[str, ...]] = field(default_factory=dict)  # Security-Server as received, by spi_us

    def __post_init__(self) -> None:
        self.gm.watch(lambda association: self._forget(association.spi_us))

    def begin(self) -> None:
        """Make a new offer: every combination, under SPIs of its own."""
        self.refused()
        (spi_c, spi_s), (port_c, port_s) = self.gm.allocate(), self.gm.ports
        self._offer = tuple(
            ipsec_3gpp(alg=alg, ealg=ealg, spi_c=spi_c, spi_s=spi_s, port_c=port_c, port_s=port_s)
            for alg in INTEGRITY
            for ealg in ENCRYPTION
        )

    def prepared(self, request: Request, unprotected: SipPeer) -> tuple[Request, SipPeer]:
        """Return a REGISTER with the agreement's header fields, and where it goes: through a tunnel if there is one."""
        headers = [("Require", "sec-agree"), ("Proxy-Require", "sec-agree"), ("Security-Client", build_mechanisms(self._offer))]
        association = self._association
        if association is None:
            return request.with_headers((*request.headers, *headers)), unprotected
        headers += [("Security-Verify", value) for value in self._server[association.spi_us]]
        return request.with_headers((*request.headers, *headers)), self.gm.hop(association)

    def outgoing(self, request: Request) -> tuple[Request, SipPeer]:
        """Return a request other than REGISTER with what the agreement wants in it, and the tunnel it goes through (RFC 3329 §2.4).

        Raises RegistrationFailed where there is none.
        """
        association = self._definitive
        if association is None or association.spi_us not in self._server:
            raise RegistrationFailed("the security associations with the P-CSCF have ended")
        verify = [("Security-Verify", value) for value in self._server[association.spi_us]]
        headers = (*request.headers, ("Require", "sec-agree"), ("Proxy-Require", "sec-agree"), *verify)
        return request.with_headers(headers), self.gm.hop(association)

    def released(self) -> None:
        """Take the end of the registration by the network (TS 24.229 §5.1.1.7)."""
        self.refused()
        self.gm.ended(self.user)

    def challenged(self, response: Response, pair: AccessKeys) -> None:
        """Set up the SAs of a challenge that was found right. Raises RegistrationFailed."""
        self.refused()
        fields = tuple(response.all("Security-Server"))
        try:
            agreed = choose(self._offer, parse_mechanisms(fields))
        except RemoteProtocolError as problem:
            raise RegistrationFailed(f"the network does not agree on the protection of Gm: {problem.problem}", 401) from problem
        client, server = agreed
        remote = self.gm.remote or self.gm.address
        self._temporary = self.gm.begin(
            self.user,
            Endpoint(self.gm.address, client.spi_c, client.spi_s, client.port_c, client.port_s),
            Endpoint(remote, server.spi_c, server.spi_s, server.port_c, server.port_s),
            expand_keys(pair.ck, pair.ik, alg=server.alg, ealg=server.ealg),
        )
        self._server[client.spi_s] = fields

    def refused(self) -> None:
        """Drop the temporary set, if there is one; those before it stay."""
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            if temporary.spi_us in self._server:
                self.gm.failed(temporary)

    def accepted(self, granted: int) -> None:
        """Take the 2xx, which grants so many seconds, 0 for a de-registration. Raises RegistrationFailed if nothing protected it."""
        association = self._association
        if association is None:
            raise RegistrationFailed("the network answered without protection of Gm, which this UE requires")
        self._temporary = None
        if granted:
            self.gm.confirmed(association, granted)
        else:
            self.gm.ended(self.user)

    @property
    def _association(self) -> AssociationSet | None:
        return self._temporary or self._definitive

    @property
    def _definitive(self) -> AssociationSet | None:
        found = self.gm.sending(self.user)
        return None if found is None or found.ended else found  # an initial registration begins in clear (§5.1.1.2)

    def _forget(self, spi: int) -> None:
        self._server.pop(spi, None)


@dataclass(slots=True)
class Ue:
    """Register and de-register one IMPU of one ISIM from one contact address."""

    profile: UeProfile
    usim: Usim
    sip: SipClient
    pcscf: SipPeer
    contact_uri: str
    instance: str  # urn:uuid:… of this device
    clock: Clock
    random: RandomSource
    log: Log
    keep: Callable[[UeState], Awaitable[None]] | None = None
    """Store what must survive a kill between a challenge and its answer: an AUTN is never accepted twice."""
    security: UeSecurity | None = None  # None: Gm is not protected
    explain: Callable[[bytes, bytes], Analysis] | None = None
    """Say what is wrong with RAND and AUTN whose MAC is; None for a card that keeps its keys to itself."""
    _doubt: Analysis | None = None  # what was wrong with the last challenge
    _every: bool = False  # this procedure is for every device of the subscriber

    async def register(self, state: UeState | None = None) -> UeState:
        """Register or re-register (§5.1.1.2, §5.1.1.4); return the state to keep.

        Raises RegistrationFailed, TransportError.
        """
        self._every = False
        return await self._procedure(self._begin(state), self.profile.expires)

    async def deregister(self, state: UeState, *, every: bool = False) -> UeState:
        """De-register (§5.1.1.6); with `every`, all devices of the subscriber (RFC 3261 §10.2.2).

        The keys go as the procedure begins: whatever the network answers, they are not used again.
        """
        self._every = every
        begun = replace(self._begin(state), k_m=None, no_keys_because="de-registered")
        return await self._procedure(begun, 0)

    def is_of(self, state: UeState) -> bool:
        """Tell whether a state is that of a registration of ours, not of another process's contact."""
        return state.contact == self._contact()

    def _begin(self, state: UeState | None) -> UeState:
        if state is not None:
            self.usim.take_over(state.seq_ms)  # another process may have used the card since this object was made
            return replace(state, seq_ms=self.usim.seq_ms)
        return UeState(
            impi=self.profile.impi, seq_ms=self.usim.seq_ms, call_id=f"{self.random.octets(12).hex()}", cseq=0, contact=self._contact(),
            impu=self.profile.impu, realm=self.profile.home_domain, expires_at=0.0, release_marker=b"", masked=False, rspauth=False,
            k_m=None, gm_keys=None, no_keys_because="not registered", associated=(), service_route=(), pinned=(),
        )  # fmt: skip

    async def _procedure(self, state: UeState, expires: int) -> UeState:
        self._doubt = None
        try:
            return await self._rounds(state, expires)
        except KeyferryError as problem:
            if self.security is not None:
                self.security.refused()
            if isinstance(problem, ParseError):
                raise RegistrationFailed(f"the network's answer cannot be read: {problem}") from problem
            if isinstance(problem, RegistrationFailed):
                self._explain_failure(problem)
            raise

    def _explain_failure(self, problem: RegistrationFailed) -> None:
        analysis = self._doubt or (because(Reason.REFUSED) if problem.status == 403 else None)
        if analysis is not None:
            problem.reasons, problem.why, problem.remedy = analysis.reasons, analysis.text, analysis.remedy

    def _doubtful(self, event: str, analysis: Analysis) -> None:
        """Remember what is wrong with a challenge, and say so at once: the network may get over it."""
        self._doubt = analysis
        self.log.warning(
            event, impi=self.profile.impi, reasons=",".join(analysis.reasons), because=analysis.text, remedy=analysis.remedy
        )  # fmt: skip

    async def _rounds(self, state: UeState, expires: int) -> UeState:
        """Send REGISTERs until a final answer; each challenge yields a new AKA run and each run its own keys."""
        first = Credentials(username=self.profile.impi, realm=self.profile.home_domain, nonce="", uri=self._request_uri(), response="")
        credentials = first
        run: AkaRun | None = None
        invalid = 0
        self._begin_agreement()
        for _ in range(MAX_ROUNDS):
            state = replace(state, cseq=state.cseq + 1, contact=state.contact if self._every else self._contact())
            await self._kept(state)  # a CSeq is used once, whatever becomes of the answer (RFC 3261 §10.2)
            sent_at = self.clock.monotonic()
            response, protected = await self._send(self._request(state, credentials, expires))
            if response.status == 423 and expires and response.get("Min-Expires"):
                # RFC 3261 §10.2.8. From the beginning: an answer is sent once, and the time for its 2xx runs from then (S2).
                expires = max(expires + 1, parse_expires(response.get("Min-Expires") or ""))
                credentials, run = first, None
                self._begin_agreement()
                continue
            if response.status != 401:
                elapsed = self.clock.monotonic() - sent_at
                if run is None and protected and expires and response.status == 200:
                    done = self._refreshed(state, response)
                else:
                    done = self._final(state, response, run, credentials, expires, elapsed)
                self._agreement_lasts(done)
                return done
            challenge = self._challenge(response)
            run, credentials = self._answer(challenge)
            self._agree(response, run)
            state = replace(state, seq_ms=self.usim.seq_ms, k_m=None, no_keys_because=BEGUN)  # and so for every write from here on
            await self._kept(state)
            invalid = 0 if run else invalid + 1
            if invalid > MAX_INVALID_CHALLENGES:
                raise RegistrationFailed("the network's challenges are not valid for this ISIM: compare K, OPc and SQN", 401)
        raise RegistrationFailed("the network challenges again and again", 401)

    async def _kept(self, state: UeState) -> None:
        if self.keep is not None:
            await self.keep(state)

    def _begin_agreement(self) -> None:
        if self.security is not None:
            self.security.begin()

    def _agree(self, response: Response, run: AkaRun | None) -> None:
        if self.security is None:
            return
        if run is None:  # TS 24.229 §5.1.1.5.3: without keys of this challenge, the word that it is wrong goes the way SM1 went
            self.security.refused()
        else:
            self.security.challenged(response, run.gm_keys())

    async def _send(self, request: Request) -> tuple[Response, bool]:
        """Send one REGISTER; tell whether it went, and its answer came, through ESP."""
        hop = self.pcscf
        if self.security is not None:
            request, hop = self.security.prepared(request, hop)
        return await self.sip.send(request, hop), hop.transport == "ESP"

    def _challenge(self, response: Response) -> Challenge:
        for text in response.all("WWW-Authenticate"):
            try:
                challenge = parse_challenge(text)
            except ParseError:
                continue  # another scheme, or one that nobody can answer
            if challenge.algorithm.lower() == AKA_ALGORITHM.lower():
                return challenge
        raise RegistrationFailed(f"the network offers no {AKA_ALGORITHM} challenge", 401)

    def _answer(self, challenge: Challenge) -> tuple[AkaRun | None, Credentials]:
        """Run AKA (RFC 3310 §3.3): an answer, or the word that the MAC or the SQN is wrong."""
        try:
            nonce = parse_aka_nonce(challenge.nonce)
        except ParseError as problem:
            raise RegistrationFailed(f"the network's challenge cannot be read: {problem}", 401) from problem
        try:
            aka = self.usim.authenticate(nonce.rand, nonce.autn)
        except MacFailure:
            self._doubtful("autn-mac-wrong", self.explain(nonce.rand, nonce.autn) if self.explain else because(Reason.MAC))
            return None, self._credentials(challenge)  # §5.1.1.5.3: no auts, an empty response
        except SyncFailure as problem:
            distance = explain_sqn(problem.sqn_ms, problem.sqn_he, seq_ms_of_ind=problem.seq_ms_of_ind)
            self._doubtful("autn-sqn-not-fresh", distance)
            auts = encode_base64(problem.auts)
            return None, self._signed(challenge, self._credentials(challenge), Secret(b""), auts)
        self._doubt = None
        run = AkaRun(
            impi=self.profile.impi, challenge=challenge, rand=nonce.rand, marker=parse_marker(nonce.server_data),
            stated_release=None if self._every else self.profile.release, res=aka.res, ck=aka.ck, ik=aka.ik, amf=aka.amf,
        )  # fmt: skip
        return run, self._signed(challenge, self._credentials(challenge), aka.res, None)

    def _credentials(self, challenge: Challenge) -> Credentials:
        qop = "auth" if "auth" in challenge.qop else None
        return Credentials(
            username=self.profile.impi, realm=challenge.realm, nonce=challenge.nonce, uri=self._request_uri(), response="",
            algorithm=AKA_ALGORITHM, qop=qop, nc="00000001" if qop else None, cnonce=self.random.octets(16).hex() if qop else None,
            opaque=challenge.opaque,
        )  # fmt: skip

    def _signed(self, challenge: Challenge, unsigned: Credentials, password: Secret, auts: str | None) -> Credentials:
        ha1 = hash_a1(AKA_ALGORITHM, self.profile.impi, challenge.realm, password)
        response = respond(
            AKA_ALGORITHM, ha1, method="REGISTER", uri=unsigned.uri, nonce=challenge.nonce, qop=unsigned.qop, nc=unsigned.nc,
            cnonce=unsigned.cnonce,
        )  # fmt: skip
        return replace(unsigned, response=response, auts=auts)

    def _final(self, state: UeState, response: Response, run: AkaRun | None, answer: Credentials, expires: int, elapsed: float) -> UeState:
        if not 200 <= response.status < 300:
            raise RegistrationFailed(f"the network answered {response.status} {response.reason}{_warned(response)}", response.status)
        if run is None:
            # Nobody proved anything: a 2xx without a challenge never yields keys (S2).
            outcome = Activation(None, "the network did not authenticate", rspauth=False)
            gm_keys, marker = state.gm_keys, None
        else:
            info = response.all("Authentication-Info")
            outcome = activate(run, answer, home_realm=self.profile.home_domain, authentication_info=info, elapsed=elapsed,
                amf_bit=self.profile.amf_bit, rspauth=self.profile.rspauth,
            )  # fmt: skip
            pair = run.gm_keys()
            gm_keys, marker = Secret(pair.ck.reveal() + pair.ik.reveal()), run.marker
        granted = _granted(response, self.contact_uri) if expires else 0
        if expires and not granted:
            # RFC 3261 §10.2.4: the 2xx lists what is registered. Somebody on the way made a de-registration of it.
            raise RegistrationFailed("the network answered 200, but not with a registration of this UE", response.status)
        done = replace(
            state, expires_at=self.clock.now() + granted if granted else 0.0, realm=answer.realm,
            release_marker=parse_aka_nonce(answer.nonce).server_data if run else b"", masked=run.masked if run else False,
            rspauth=outcome.rspauth, k_m=outcome.k_m if granted else None, gm_keys=gm_keys if granted else None,
            no_keys_because=outcome.refused_because if granted else "de-registered",
            associated=_associated(response), service_route=tuple(response.all("Service-Route")),
        )  # fmt: skip
        return self._pin(done, marker)

    def _agreement_lasts(self, state: UeState) -> None:
        if self.security is not None:
            self.security.accepted(max(int(state.expires_at - self.clock.now()), 1) if state.expires_at else 0)

    def _refreshed(self, state: UeState, response: Response) -> UeState:
        """Take a 200 to a protected re-REGISTER that was not challenged: same keys, new lifetime (DESIGN §5 step 6)."""
        granted = _granted(response, self.contact_uri)
        if not granted:
            raise RegistrationFailed("the network answered 200, but not with a registration of this UE", response.status)
        return replace(state, expires_at=self.clock.now() + granted, associated=_associated(response))

    def _pin(self, state: UeState, marker: Marker | None) -> UeState:
        """Remember a home network that proved flags 7, and say so when it no longer does (DESIGN §4)."""
        if state.k_m is not None and not state.rspauth and state.realm in state.pinned:
            state = replace(state, k_m=None, no_keys_because="the S-CSCF no longer promises rspauth")
        if state.k_m is not None:
            new = state.rspauth and marker is not None and marker.complete and state.realm not in state.pinned
            return replace(state, pinned=(*state.pinned, state.realm)) if new else state
        if state.expires_at and state.realm in state.pinned and self.profile.release is not None:
            self.log.warning("downgraded", realm=state.realm, marker=marker is not None)
            state = replace(state, no_keys_because=f"downgraded: {state.no_keys_because}")
        if state.expires_at and self.profile.require_keys:
            raise RegistrationFailed(f"registered, but without AS keys, which this UE requires: {state.no_keys_because}")
        return state

    def _request_uri(self) -> str:
        return f"sip:{self.profile.home_domain}"

    def _contact(self) -> str:
        stated = f';{RELEASE_TAG}="{self.profile.release}"' if self.profile.release is not None else ""
        return f'<{self.contact_uri}>;+sip.instance="<{self.instance}>"{stated}'

    def _request(self, state: UeState, credentials: Credentials, expires: int) -> Request:
        """§5.1.1.2.1: Authorization is there from the first REGISTER on."""
        impu = self.profile.impu
        return Request(
            "REGISTER",
            self._request_uri(),
            (
                ("Max-Forwards", "70"),
                ("From", f"<{impu}>;tag={self.random.octets(6).hex()}"),
                ("To", f"<{impu}>"),
                ("Call-ID", state.call_id),
                ("CSeq", f"{state.cseq} REGISTER"),
                ("Contact", "*" if self._every else state.contact),
                ("Expires", str(expires)),
                ("Authorization", build_credentials(credentials)),
                ("Supported", "path"),
            ),
        )


def _granted(response: Response, contact_uri: str) -> int:
    """Return the seconds granted to our own contact, 0 if it is not registered (RFC 3261 §10.2.4)."""
    for value in response.all("Contact"):
        for address in parse_name_addr_list(value):
            if address.uri == contact_uri:
                return parse_expires(address.parameter("expires") or response.get("Expires") or "0")
    return 0


def _warned(response: Response) -> str:
    """Return who of the network says why, and what (RFC 3261 §20.43), "" where nobody does."""
    try:
        return "".join(f" ({agent}: {text})" for agent, text in map(parse_warning, response.all("Warning")[:1]))
    except ParseError:
        return ""


def _associated(response: Response) -> tuple[str, ...]:
    return tuple(address.uri for value in response.all("P-Associated-URI") for address in parse_name_addr_list(value))
