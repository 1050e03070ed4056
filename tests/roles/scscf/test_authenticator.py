# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.2; TS 33.203 §6.1; DESIGN §4, §5 steps 1 to 4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyferry.errors import CxError, SyncFailure
from keyferry.ports import Resync
from keyferry.protocol.aka import AkaAlgorithm, AuthVector, Usim, algorithm_of, generate_vector, sqn_of, verify_auts
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Challenge, Credentials, encode_base64, hash_a1, parse_aka_nonce, parse_challenge, respond, rspauth_of
from keyferry.protocol.identity import Impi, Impu, Reg
from keyferry.protocol.ims.keys import access_keys, application_master_key
from keyferry.protocol.ims.marker import Marker, build_marker
from keyferry.protocol.ims.registration import RegisterView
from keyferry.protocol.ims.selection import UserAuthorization
from keyferry.roles.scscf.authenticator import Authenticator, AuthPolicy, Challenged, Proven, Refused
from keyferry.roles.scscf.diagnosis import Diagnosis
from roles.home import REALM, SCSCF, subscriber
from roles.network import FakeClock, RecordingCounter, RecordingLog

CARD = algorithm_of("milenage", subscriber("alice").k, subscriber("alice").opc)
ALICE, BOB = Impi("alice@home1.net"), Impi("bob@home1.net")
EMPTY = Credentials(ALICE, REALM, "", "sip:home1.net", "")
SM1 = RegisterView(
    ALICE, Impu("sip:alice@home1.net"), EMPTY, "<sip:a@192.0.2.1>", "sip:a@192.0.2.1", Reg("r" * 12), 6, 600, False, "c", 1, (),
    "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKu",
)  # fmt: skip


class Cx:
    """The HSS side: one vector after another, RES of a given length; AUTS must verify."""

    def __init__(self, res_octets: int = 8) -> None:
        self.vectors: list[AuthVector] = []
        self.seq = 0
        self.res_octets = res_octets
        self.servers: list[str] = []

    async def user_authorization(self, impi: Impi, impu: Impu, visited_network: str, kind: object = None) -> UserAuthorization:
        raise NotImplementedError

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: object) -> bytes:
        raise NotImplementedError

    async def location_info(self, impu: Impu) -> str:
        raise NotImplementedError

    async def multimedia_auth(
        self, impi: Impi, impu: Impu, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        del masked
        if impi == BOB:
            raise CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")
        if resync is not None:
            try:
                self.seq = verify_auts(CARD, resync.rand, resync.auts) >> 5
            except Exception as problem:
                raise CxError(5012, "DIAMETER_UNABLE_TO_COMPLY") from problem
        self.seq += 1
        self.servers.append(server_name)
        made = generate_vector(CARD, bytes((self.seq % 256,)) * 16, sqn_of(self.seq, self.seq % 32), b"\x80\x00")
        self.vectors.append(replace(made, xres=Secret((made.xres.reveal() * 2)[: self.res_octets])))
        return self.vectors[-1]


class Bench:
    """An authenticator and what it told the P-CSCF."""

    def __init__(self, res_octets: int = 8, **policy: Any) -> None:
        self.cx, self.clock, self.log, self.counter = Cx(res_octets), FakeClock(), RecordingLog(), RecordingCounter()
        diagnosis = Diagnosis(self.clock, self.log, self.counter)
        self.auth = Authenticator(self.cx, self.clock, AuthPolicy(REALM, SCSCF, **policy), self.log, self.counter, diagnosis)

    async def challenge(self, view: RegisterView = SM1) -> Challenge:
        outcome = await self.auth.authenticate(view)
        assert isinstance(outcome, Challenged)
        return parse_challenge(outcome.www_authenticate)

    async def ask(self, credentials: Credentials, **changes: Any) -> Proven | Challenged | Refused:
        return await self.auth.authenticate(SM1._replace(credentials=credentials, cseq=2, **changes))

    async def refusal(self, credentials: Credentials) -> str:
        outcome = await self.ask(credentials)
        assert isinstance(outcome, Refused)
        assert self.log.warnings == ["authentication-failed"]
        assert self.counter["scscf_authentication_failed"] == 1
        return outcome.reason

    @property
    def vector(self) -> AuthVector:
        return self.cx.vectors[-1]


def answer(challenge: Challenge, vector: AuthVector, **changes: Any) -> Credentials:
    """Return the right answer, with changes that are signed too."""
    qop = "auth" if "auth" in challenge.qop else None
    right = Credentials(
        ALICE, challenge.realm, challenge.nonce, "sip:home1.net", "", "AKAv1-MD5", "c" * 32 if qop else None, qop=qop,
        nc="00000001" if qop else None,
    )  # fmt: skip
    given = replace(right, **changes)
    ha1 = hash_a1("AKAv1-MD5", given.username, given.realm, vector.xres)
    response = respond(
        "AKAv1-MD5", ha1, method="REGISTER", uri=given.uri, nonce=given.nonce, qop=given.qop, nc=given.nc, cnonce=given.cnonce
    )
    return replace(given, response=response)


def gm_keys(challenge: Challenge) -> tuple[str | None, str | None]:
    return challenge.parameter("ck"), challenge.parameter("ik")


def raw(vector: AuthVector) -> tuple[str, str]:
    return vector.ck.reveal().hex(), vector.ik.reveal().hex()


def masked(vector: AuthVector) -> tuple[str, str]:
    pair = access_keys(vector.ck, vector.ik, vector.rand, ALICE)
    return pair.ck.reveal().hex(), pair.ik.reveal().hex()


def marker_of(challenge: Challenge) -> bytes:
    return parse_aka_nonce(challenge.nonce).server_data


def flags(on: bool) -> bytes:
    return build_marker(Marker(6, access_keys=on, as_keys=on, rspauth=on))


class TestChallenges:
    """§5.4.1.2.1; DESIGN §5 steps 1 and 2."""

    @pytest.mark.parametrize("credentials", [None, EMPTY])
    async def test_every_register_without_an_answer_is_challenged(self, credentials: Credentials | None) -> None:
        """§5.4.1.2.2: integrity-protected is not read, so nothing is taken on trust."""
        bench = Bench()
        challenge = await bench.challenge(SM1._replace(credentials=credentials))
        assert (challenge.realm, challenge.algorithm) == (REALM, "AKAv1-MD5")
        nonce = parse_aka_nonce(challenge.nonce)
        assert (nonce.rand, nonce.autn) == (bench.vector.rand, bench.vector.autn)
        assert bench.cx.servers == [SCSCF]

    @pytest.mark.parametrize("claim", ["yes", "tls-yes", "auth-done"])
    async def test_a_claim_of_protection_changes_nothing(self, claim: str) -> None:
        bench = Bench()
        await bench.challenge(SM1._replace(credentials=replace(EMPTY, parameters=(("integrity-protected", claim),))))

    @pytest.mark.parametrize(
        ("stated", "policy", "octets", "keys", "marker", "qop"),
        [
            (6, {}, 8, masked, flags(True), ("auth",)),
            (None, {}, 8, raw, flags(False), ()),
            (None, {"release_info": "capable"}, 8, raw, b"", ()),
            (6, {"release_info": "capable"}, 8, masked, flags(True), ("auth",)),
            (6, {"release": 5}, 8, raw, b"", ()),
            (None, {"release": 5}, 8, raw, b"", ()),
            (6, {"mask": False}, 8, raw, flags(False), ()),
            (6, {}, 4, raw, flags(False), ()),
            (6, {"marker_octets": 64}, 8, masked, flags(True) + bytes(60), ("auth",)),
        ],
        ids=["6/6", "5/6", "5/6 capable", "6/6 capable", "6/5", "5/5", "policy off", "short RES", "long marker"],
    )
    async def test_what_the_401_holds(
        self, stated: int | None, policy: dict[str, Any], octets: int, keys: Any, marker: bytes, qop: tuple[str, ...]
    ) -> None:
        """The matrix of DESIGN §5: masked and marked as one, and K_M only where it is masked (S1)."""
        bench = Bench(octets, **policy)
        challenge = await bench.challenge(SM1._replace(release=stated))
        assert gm_keys(challenge) == keys(bench.vector)
        assert marker_of(challenge) == marker
        assert challenge.qop == qop
        proven = await bench.ask(answer(challenge, bench.vector), release=stated)
        assert isinstance(proven, Proven)
        expected = application_master_key(bench.vector.ck, bench.vector.ik, bench.vector.rand, ALICE) if keys is masked else None
        assert (proven.k_m, proven.masked) == (expected, keys is masked)

    async def test_what_waits_for_the_answer_holds_no_ck_and_no_ik(self) -> None:
        """Invariant S3: they are gone with the 401."""
        bench = Bench()
        await bench.challenge()
        (pending,) = bench.auth.challenges._held
        held = b"".join(value.reveal() for name in pending._fields if isinstance(value := getattr(pending, name), Secret))
        assert bench.vector.ck.reveal() not in held
        assert bench.vector.ik.reveal() not in held

    async def test_each_401_has_its_own_vector(self) -> None:
        bench = Bench()
        first, second = await bench.challenge(), await bench.challenge()
        assert first.nonce != second.nonce
        assert bench.counter["scscf_challenges", "masked"] == 2

    async def test_an_error_of_the_hss_goes_up(self) -> None:
        with pytest.raises(CxError):
            await Bench().challenge(SM1._replace(impi=BOB))


class TestAnswers:
    """§5.4.1.2.2, §5.4.1.2.3; DESIGN §5 step 4."""

    async def test_a_right_answer_is_proven_and_earns_rspauth(self) -> None:
        """SM1 > 401 > SM7 > proven."""
        bench = Bench()
        given = answer(await bench.challenge(), bench.vector)
        proven = await bench.ask(given)
        ha1 = hash_a1("AKAv1-MD5", ALICE, REALM, bench.vector.xres)
        assert isinstance(proven, Proven)
        assert (proven.rspauth, proven.qop) == (rspauth_of(ha1, given, algorithm="AKAv1-MD5"), "auth")
        assert bench.counter["scscf_authenticated", "masked"] == 1

    async def test_a_raw_answer_without_qop_earns_none(self) -> None:
        bench = Bench(release=5)
        assert await bench.ask(answer(await bench.challenge(), bench.vector)) == Proven(None, False, None, None)

    async def test_a_challenge_is_answered_once(self) -> None:
        bench = Bench()
        given = answer(await bench.challenge(), bench.vector)
        assert isinstance(await bench.ask(given), Proven)
        assert isinstance(await bench.ask(given), Challenged)
        assert bench.counter["scscf_challenge_unknown"] == 1

    async def test_a_wrong_answer_uses_it_up_too(self) -> None:
        bench = Bench()
        challenge = await bench.challenge()
        right = answer(challenge, bench.vector)
        assert "response is wrong" in await bench.refusal(replace(right, response="0" * 32))
        assert isinstance(await bench.ask(right), Challenged)

    async def test_an_empty_response_says_that_the_mac_was_wrong(self) -> None:
        """§5.4.1.2.3."""
        bench = Bench()
        assert "MAC" in await bench.refusal(replace(answer(await bench.challenge(), bench.vector), response=""))

    @pytest.mark.parametrize(
        "changes",
        [
            {"qop": None, "nc": None, "cnonce": None}, {"nc": "00000002"}, {"cnonce": "c" * 15}, {"qop": "auth-int"}, {"algorithm": "MD5"},
            {"algorithm": None}, {"realm": "visited1.net"},
        ],
        ids=str,
    )  # fmt: skip
    async def test_a_masked_answer_must_be_as_asked(self, changes: dict[str, Any]) -> None:
        bench = Bench()
        challenge = await bench.challenge()
        await bench.refusal(answer(challenge, bench.vector, **changes))

    async def test_an_unknown_nonce_is_challenged_anew(self) -> None:
        """After a restart the UE did nothing wrong."""
        bench = Bench()
        assert isinstance(await bench.ask(answer(replace(await bench.challenge(), nonce="dW5rbm93bg=="), bench.vector)), Challenged)
        assert bench.counter["scscf_challenge_unknown"] == 1

    async def test_a_changed_marker_is_an_unknown_nonce(self) -> None:
        """DESIGN §5 step 4: octet for octet."""
        bench = Bench()
        challenge = await bench.challenge()
        nonce = parse_aka_nonce(challenge.nonce)
        stripped = encode_base64(nonce.rand + nonce.autn)
        assert isinstance(await bench.ask(answer(replace(challenge, nonce=stripped), bench.vector)), Challenged)

    async def test_a_nonce_of_another_impi_proves_nothing(self) -> None:
        bench = Bench()
        given = answer(await bench.challenge(), bench.vector)
        other = Impi("carol@home1.net")
        outcome = await bench.ask(replace(given, username=other), impi=other)
        assert isinstance(outcome, Challenged)
        assert bench.counter["scscf_challenge_unknown"] == 1

    async def test_reg_await_auth_ends_the_wait(self) -> None:
        """§5.4.1.2.1: 4 minutes."""
        bench = Bench()
        given = answer(await bench.challenge(), bench.vector)
        bench.clock.time += 240.5
        assert isinstance(await bench.ask(given), Challenged)

    async def test_a_capability_lost_on_the_way_raises_an_alarm_and_gives_no_key(self) -> None:
        """DESIGN §5 step 4: the tag was removed in SM1, and SM7 states a release."""
        bench = Bench()
        challenge = await bench.challenge(SM1._replace(release=None))
        proven = await bench.ask(answer(challenge, bench.vector), release=6)
        assert isinstance(proven, Proven)
        assert proven.k_m is None
        assert bench.counter["scscf_capability_lost"] == 1
        assert bench.log.warnings == ["release-stated-after-raw-challenge"]

    @pytest.mark.parametrize("policy", [{"release": 5}, {"mask": False}])
    async def test_a_network_that_never_masks_has_lost_nothing(self, policy: dict[str, Any]) -> None:
        bench = Bench(**policy)
        await bench.ask(answer(await bench.challenge(), bench.vector))
        assert bench.log.warnings == []

    async def test_an_answer_that_states_no_release_keeps_what_the_challenge_decided(self) -> None:
        """Mask is decided once per AV (DESIGN §5 step 1)."""
        bench = Bench()
        proven = await bench.ask(answer(await bench.challenge(), bench.vector), release=None)
        assert isinstance(proven, Proven)
        assert proven.masked


class TestResynchronisation:
    """§5.4.1.2.3; TS 33.102 §6.3.5."""

    def auts(self, challenge: Challenge, seq: int = 500, card: AkaAlgorithm = CARD) -> Credentials:
        nonce = parse_aka_nonce(challenge.nonce)
        with pytest.raises(SyncFailure) as caught:
            Usim(card, (seq,) * 32).authenticate(nonce.rand, nonce.autn)
        return Credentials(ALICE, REALM, challenge.nonce, "sip:home1.net", "", "AKAv1-MD5", auts=encode_base64(caught.value.auts))

    async def test_auts_moves_sqn_and_brings_a_new_challenge(self) -> None:
        """SM1 > 401 > auts > 401 > SM7 > proven."""
        bench = Bench()
        outcome = await bench.ask(self.auts(await bench.challenge()))
        assert isinstance(outcome, Challenged)
        again = parse_challenge(outcome.www_authenticate)
        nonce = parse_aka_nonce(again.nonce)
        res = Usim(CARD, (500,) * 32).authenticate(nonce.rand, nonce.autn).res
        assert isinstance(await bench.ask(answer(again, replace(bench.vector, xres=res))), Proven)

    async def test_a_second_one_in_a_row_is_refused(self) -> None:
        bench = Bench()
        outcome = await bench.ask(self.auts(await bench.challenge()))
        assert isinstance(outcome, Challenged)
        assert "two synchronisation failures" in await bench.refusal(self.auts(parse_challenge(outcome.www_authenticate), seq=900))

    async def test_the_next_registration_may_synchronise_again(self) -> None:
        bench = Bench()
        await bench.ask(self.auts(await bench.challenge()))
        assert isinstance(await bench.ask(self.auts(await bench.challenge(), seq=900)), Challenged)

    async def test_auts_for_an_unknown_nonce_is_challenged_anew_and_moves_nothing(self) -> None:
        bench = Bench()
        late = self.auts(await bench.challenge())
        await bench.ask(late)
        seq = bench.cx.seq
        assert isinstance(await bench.ask(late), Challenged)
        assert bench.cx.seq == seq + 1

    @pytest.mark.parametrize("auts", ["", "AAAA", "not base64", encode_base64(bytes(13)), encode_base64(bytes(15))])
    async def test_auts_of_another_form_is_refused(self, auts: str) -> None:
        bench = Bench()
        challenge = await bench.challenge()
        assert "14 octets" in await bench.refusal(replace(self.auts(challenge), auts=auts))

    async def test_auts_that_does_not_verify_is_refused(self) -> None:
        bench = Bench()
        challenge = await bench.challenge()
        assert "DIAMETER_UNABLE_TO_COMPLY" in await bench.refusal(replace(self.auts(challenge), auts=encode_base64(bytes(14))))
        assert bench.cx.seq == 1
