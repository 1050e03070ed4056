# SPDX-License-Identifier: Apache-2.0
"""A judge that knows every card and says after each step whether S1 to S4 (DESIGN §5) hold in a home network of `roles.home`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.lab.attacks.closure import View, World, closure
from keyferry.lab.attacks.middle import HostilePcscf
from keyferry.ports import PeerCheck, Registration, SipPeer
from keyferry.protocol.aka import AkaAlgorithm
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    hash_a1,
    parse_aka_nonce,
    parse_authentication_info,
    parse_challenge,
    parse_credentials,
    respond,
)
from keyferry.protocol.identity import AsId, Impi, KeyId
from keyferry.protocol.ims.keypush import SealedPush, open_push, parse_service_info
from keyferry.protocol.ims.keys import access_keys, application_master_key, as_key, key_id
from keyferry.protocol.ims.marker import parse_marker
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.message import Message, Request, Response
from roles.home import NICKS, REALM, SIP_OF, Device, Home, transport_key
from roles.network import Client, FakeClock

ANSWER_TIME = 32.0  # seconds, DESIGN §5 step 5; not the constant that is tested
LEAST_RES = 8  # octets
AS_OF = {nick: as_id for as_id, nick in NICKS.items()}
TAIL = 8  # messages of the P-CSCF that go into a closure: one registration on Gm and Mw


class Run(NamedTuple):
    """One vector that went out in a 401 of the S-CSCF."""

    user: Impi
    nonce: str
    rand: bytes
    masked: bool  # its 401 carried CK', IK'
    res: Secret
    ck: Secret
    ik: Secret
    pair: tuple[bytes, bytes]  # CK', IK'
    k_m: Secret


class Exchange(NamedTuple):
    """A REGISTER as a UE sent it, and the answer as the UE got it; seconds."""

    request: Request
    response: Response
    sent: float
    came: float


@dataclass(slots=True)
class Tap:
    """Stand at a UE's own end of Gm (the SipClient port)."""

    client: Client
    clock: FakeClock
    exchanges: list[Exchange] = field(default_factory=list)

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        sent = self.clock.monotonic()
        response = await self.client.send(request, hop, check=check)
        self.exchanges = [*self.exchanges[-7:], Exchange(request, response, sent, self.clock.monotonic())]
        return response


@dataclass(slots=True)
class Judge:
    """Read everything that was sent, look at every store."""

    home: Home
    middle: HostilePcscf
    cards: dict[Impi, AkaAlgorithm]  # as the cards compute: a RES may be short
    whole: Mapping[Impi, tuple[bytes, ...]]  # K, OPc
    tally: Counter[str]
    runs: dict[bytes, Run] = field(default_factory=dict)  # by RAND
    proofs: set[str] = field(default_factory=set)  # rspauth that the S-CSCF gave
    secrets: dict[bytes, str] = field(default_factory=dict)  # what nobody but UE, S-CSCF and one AS may have: CK, IK, K_M, K_AS
    names: dict[AsId, dict[KeyId, Run]] = field(default_factory=lambda: {as_id: {} for as_id in NICKS})
    blocks: list[tuple[AsId, str, Request]] = field(default_factory=list)  # every sealed push
    dead: dict[AsId, set[KeyId]] = field(default_factory=lambda: {as_id: set() for as_id in NICKS})
    _alive: dict[AsId, dict[KeyId, float]] = field(default_factory=lambda: {as_id: {} for as_id in NICKS})  # until when
    _seqs: dict[object, int] = field(default_factory=dict)
    _pcscf: View = field(default_factory=lambda: View("P-CSCF"))
    _tail: list[Message] = field(default_factory=list)
    _looked_at: dict[str, object] = field(default_factory=dict)  # device → state

    def look(self, devices: list[Device], taps: dict[str, Tap]) -> None:
        """Check all that holds at any time."""
        for sent in self.home.network.seen:
            if sent.sender == "S":
                self._from_s_cscf(sent.receiver, sent.message)
        self.home.network.seen.clear()
        self._s1()
        for device in devices:
            self._s2(device, taps[device.name])
        self._s3_s4()
        for as_id in NICKS:
            self._keys_at(as_id)

    # ---- what the S-CSCF said

    def _from_s_cscf(self, receiver: str, message: Message) -> None:
        if isinstance(message, Request):
            if receiver in AS_OF:
                self._pushed(message)
            return
        if message.status == 401:
            self._challenged(message)
        for info in message.all("Authentication-Info"):
            self.proofs.add(parse_authentication_info(info).rspauth or "")

    def _challenged(self, response: Response) -> None:
        """S1: one vector, one 401; its marker and its keys go together."""
        challenge = parse_challenge(response.get("WWW-Authenticate") or "")
        nonce = parse_aka_nonce(challenge.nonce)
        user = next(impi for impi in self.cards if f"sip:{impi}" in (response.get("To") or ""))
        made = self.cards[user].f2345(nonce.rand)
        pair = access_keys(made.ck, made.ik, nonce.rand, user)
        masked_pair = (pair.ck.reveal(), pair.ik.reveal())
        sent = tuple(bytes.fromhex(challenge.parameter(name) or "") for name in ("ck", "ik"))
        assert sent in {masked_pair, (made.ck.reveal(), made.ik.reveal())}, "S1: a 401 with other keys"
        assert nonce.rand not in self.runs, "S1: one vector in two challenges"
        masked = sent == masked_pair
        marker = parse_marker(nonce.server_data)
        assert (marker is not None and marker.complete) is masked, "the marker says something else than the keys"
        assert not masked or len(made.res) >= LEAST_RES, "S1: masked in spite of a short RES"
        k_m = application_master_key(made.ck, made.ik, nonce.rand, user)
        run = Run(user, challenge.nonce, nonce.rand, masked, made.res, made.ck, made.ik, masked_pair, k_m)
        self.runs[nonce.rand] = run
        self.tally["masked challenges" if masked else "raw challenges"] += 1
        for as_id in NICKS:
            k_as = as_key(k_m, as_id)
            self.names[as_id][key_id(k_as, REALM)] = run
            if masked:
                self.secrets[k_as.reveal()] = f"K_AS of {as_id}"
        if masked:
            self.secrets |= {made.ck.reveal(): "CK", made.ik.reveal(): "IK", k_m.reveal(): "K_M"}

    def _pushed(self, request: Request) -> None:
        """S1, and who may receive: only K_AS of this AS, of a masked vector of this user, whose card answered."""
        info = parse_third_party_register(request).service_info if request.body else None
        block = parse_service_info(info) if info else None
        assert block is None or isinstance(block, SealedPush), "a push in clear"
        if block is None:
            return
        assert request.uri == SIP_OF[block.as_id], "a push to another AS"
        push = open_push(block, transport_key(block.as_id))
        self.blocks.append((block.as_id, info or "", request))
        for key in push.keys:
            run = self.names[block.as_id].get(key.key_id)
            assert run is not None, "S1: a key of no vector"
            assert run.masked, "S1: a key of a raw vector was pushed"
            assert run.user == push.impi, "a key under another user's name"
            assert key.k_as == as_key(run.k_m, block.as_id), "S4: another AS's key was pushed"
            self.tally["keys pushed"] += 1

    # ---- the invariants

    def _s1(self) -> None:
        """K_M exists only for masked vectors, in registrations and in challenges."""
        devices = [each for held in self.home.registrations._registrations.values() for each in held.values()]
        for registration in devices:
            assert registration.k_m is None or self.secrets.get(registration.k_m.reveal()) == "K_M", (
                "S1: K_M of a raw vector in a registration"
            )
        for pending in self.home.scscf.authenticator.challenges._held:
            run = self.runs[parse_aka_nonce(pending.nonce).rand]
            assert (pending.k_m is not None) is run.masked, "S1: K_M of a raw vector in a challenge"

    def _s2(self, device: Device, tap: Tap) -> None:
        """DESIGN §5 step 5, from what passed at the UE's own end of Gm."""
        state = device.state
        if state is None or state is self._looked_at.get(device.name):
            return
        self._looked_at[device.name] = state
        if state.k_m is None:
            return
        final = tap.exchanges[-1]
        answer = parse_credentials(final.request.get("Authorization") or "")
        nonce = parse_aka_nonce(answer.nonce)
        run = self.runs.get(nonce.rand)
        assert run is not None, "S2: keys of a vector that the S-CSCF never sent"
        assert run.masked, "S2: keys of a raw vector"
        assert (run.user, run.nonce, run.k_m) == (device.impi, answer.nonce, state.k_m), "S2: another K_M"
        marker = parse_marker(nonce.server_data)
        assert marker is not None and marker.complete, "S2: without the marker's promise"
        assert device.ue.profile.release is not None and "+g.keyferry.release" in (final.request.get("Contact") or ""), "S2: no release"
        offers = [parse_challenge(text) for each in tap.exchanges for text in each.response.all("WWW-Authenticate")]
        offered = next(each for each in reversed(offers) if each.nonce == answer.nonce)
        assert "auth" in offered.qop and answer.qop == "auth" and offered.realm == REALM, "S2: no qop, or another realm"
        assert len(run.res) >= LEAST_RES, "S2: a short RES"
        assert state.gm_keys == Secret(b"".join(run.pair)), "S2: raw keys on Gm"
        assert final.response.status == 200 and final.came - final.sent <= ANSWER_TIME, "S2: too late"
        infos = final.response.all("Authentication-Info")
        assert len(infos) == 1, "S2: not one Authentication-Info"
        proof = parse_authentication_info(infos[0]).rspauth
        ha1 = hash_a1("AKAv1-MD5", answer.username, answer.realm, run.res)
        right = respond("AKAv1-MD5", ha1, method="", uri=answer.uri, nonce=answer.nonce, qop="auth", nc=answer.nc, cnonce=answer.cnonce)
        assert proof == right and proof in self.proofs, "S2: without the S-CSCF's proof"
        self.tally["keys activated"] += 1

    def _s3_s4(self) -> None:
        """What the P-CSCF saw holds neither CK, IK of a masked vector nor K_M nor any K_AS, in whatever coding."""
        for message in self.middle.seen:
            self._pcscf.add_message(message)
        self._tail = [*self._tail, *(each for each in self.middle.seen if each.get("Authorization") or each.get("WWW-Authenticate"))][
            -TAIL:
        ]
        self.middle.seen.clear()
        for octets in self._pcscf.octets & self.secrets.keys():
            raise AssertionError(f"S3, S4: {self.secrets[octets]} was in a message")
        for held in self.home.pcscf.gm_keys.values():
            assert held.reveal()[:16] not in self.secrets and held.reveal()[16:] not in self.secrets, "S3: CK or IK at the P-CSCF"

    def _keys_at(self, as_id: AsId) -> None:
        """A set's seq never falls, and a key that ended before its time never comes back (DESIGN §6)."""
        keys, now = self.home.servers[as_id].keys, self.home.clock.now()
        alive: dict[KeyId, float] = {}
        for place, held in keys._sets.items():
            assert held.seq >= self._seqs.get(place, 0), "an older push took the place of a newer one"
            self._seqs[place] = held.seq
            for key in held.keys:
                run = self.names[as_id][key.key_id]
                assert run.masked and run.user == held.impi and key.k_as == as_key(run.k_m, as_id), "a key that nobody pushed"
                if key.superseded_until is None or key.superseded_until > now:
                    alive[key.key_id] = key.not_after
        assert not self.dead[as_id] & alive.keys(), "a key that had ended is alive again"
        ended = {name for name, until in self._alive[as_id].items() if name not in alive and until > now}
        self.dead[as_id] |= ended
        self._alive[as_id] = alive

    def comes_back(self, registration: Registration, as_ids: Collection[AsId]) -> None:
        """Let the key of a registration live again at application servers that a new profile names."""
        if registration.k_m is not None:
            for as_id in as_ids:
                self.dead[as_id].discard(key_id(as_key(registration.k_m, as_id), REALM))

    def profile_holds(self, registrations: Sequence[Registration], as_ids: Collection[AsId]) -> None:
        """Check that where nothing is owed an AS has a registration's key if, and only if, the user's profile names it."""
        now = self.home.clock.now()
        for registration in registrations:
            if registration.k_m is None or registration.expires_at <= now:
                continue
            for as_id in NICKS:
                name = key_id(as_key(registration.k_m, as_id), REALM)
                there = self.home.servers[as_id].keys.lookup_now(name, as_id, now) is not None
                assert there is (as_id in as_ids), f"the profile does not hold at {as_id}"
                self.tally["profiles looked at"] += 1

    # ---- S4, the closure

    def closure(self) -> None:
        """S4 whole, for one user and AS: what P-CSCF, other AS, other UE and the wires can compute together.

        The closure grows with the view, so what is not in that of all together is in none of a single party. The P-CSCF's part is
        the tail of what it saw, as the closure tries every two values as CK and IK.
        """
        pcscf = View("P-CSCF")
        for message in self._tail:
            pcscf.add_message(message)
        for held in self.home.pcscf.gm_keys.values():
            pcscf.add(held.reveal())
        last = [run for run in self.runs.values() if run.masked and run.rand in pcscf.rands]
        if not last:
            return
        victim, as_id = last[-1].user, list(NICKS)[self.tally["closures"] % len(NICKS)]
        other, second = next(each for each in self.cards if each != victim), next(each for each in NICKS if each != as_id)
        foreign = {as_key(run.k_m, as_id).reveal() for run in self.runs.values() if run.masked and run.user == victim}
        view = pcscf | self._as_view(second) | self._ue_view(other) | self._observer()
        known = closure(view, World(tuple(self.cards), tuple(NICKS), (REALM,)), keys_only=True)
        assert not foreign & known, f"S4: a key of {victim} for {as_id} can be computed"
        self.tally["closures"] += 1

    def _as_view(self, as_id: AsId) -> View:
        view = View("AS")
        view.add(transport_key(as_id).reveal())
        for held in self.home.servers[as_id].keys._sets.values():
            for key in held.keys[:1]:
                view.octets |= {key.k_as.reveal(), key.key_id.encode()}
        return view

    def _ue_view(self, impi: Impi) -> View:
        view = View("UE")
        for octets in self.whole[impi]:
            view.add(octets)
        for run in [run for run in self.runs.values() if run.user == impi][-1:]:
            view.octets |= {run.ck.reveal(), run.ik.reveal(), run.k_m.reveal()}
            view.rands.add(run.rand)
        return view

    def _observer(self) -> View:
        view = View("observer")
        for _, info, _ in self.blocks[-2:]:
            block = parse_service_info(info)
            assert isinstance(block, SealedPush)
            view.octets.add(block.blob)
        return view
