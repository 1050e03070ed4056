# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.1.1; TS 33.102 §6.3.3; DESIGN §4, §5 steps 3 and 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from keyferry.errors import RegistrationFailed, TransportError
from keyferry.ports import SipPeer, UeState
from keyferry.protocol.aka import AuthVector, Usim, algorithm_of, generate_vector, sqn_of, verify_auts
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    AuthenticationInfo,
    Challenge,
    Credentials,
    aka_nonce,
    build_authentication_info,
    build_challenge,
    check_response,
    decode_base64,
    hash_a1,
    parse_credentials,
    rspauth_of,
)
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.keys import access_keys, application_master_key
from keyferry.protocol.ims.marker import Marker, build_marker
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.ue import MAX_ROUNDS, Ue, UeProfile
from roles.home import REALM, subscriber
from roles.network import FakeClock, Network, RecordingLog, SeededRandom

ALICE = subscriber("alice")
CARD = algorithm_of("milenage", ALICE.k, ALICE.opc)
FULL = Marker(6, access_keys=True, as_keys=True, rspauth=True)
Step = Callable[[Request], Response]


class Bench:
    """A UE, and a network that plays one prepared step for each REGISTER."""

    def __init__(self, *steps: Step, card: Any = CARD, **profile: Any) -> None:
        self.clock, self.log, self.network = FakeClock(), RecordingLog(), Network()
        self.steps = list(steps)
        self.seen: list[Request] = []
        self.network.attach("P", "pcscf", self.answer)
        sip = self.network.attach("UE", "ue", None)
        settings: dict[str, Any] = {"impi": ALICE.impi, "impu": ALICE.impus[0].impu, "home_domain": REALM, **profile}
        self.ue = Ue(
            UeProfile(**settings), Usim(card), sip, self.network.peer("P"), "sip:alice@192.0.2.1", "urn:uuid:1", self.clock,
            SeededRandom(), self.log,
        )  # fmt: skip

    async def answer(self, request: Request, peer: SipPeer) -> Response:
        self.seen.append(request)
        return self.steps.pop(0)(request)

    async def register(self, state: UeState | None = None) -> UeState:
        return await self.ue.register(state)

    def credentials(self, place: int = -1) -> Credentials:
        return parse_credentials(self.seen[place].get("Authorization") or "")


def vector(seq: int = 1, card: Any = CARD) -> AuthVector:
    return generate_vector(card, bytes((seq,)) * 16, sqn_of(seq, seq % 32), b"\x80\x00")


def challenge(av: AuthVector, marker: Marker | None = FULL, **changes: Any) -> Step:
    """Answer 401 for an AV."""
    nonce = aka_nonce(av.rand, av.autn, build_marker(marker) if marker else b"")
    offered = replace(Challenge(REALM, nonce, "AKAv1-MD5", qop=("auth",)), **changes)
    return lambda request: make_response(request, 401, headers=(("WWW-Authenticate", build_challenge(offered)),))


def accept(av: AuthVector, *extra: tuple[str, str], proof: bool = True) -> Step:
    """Answer 200 to the right response, as an S-CSCF with XRES does."""

    def step(request: Request) -> Response:
        given = parse_credentials(request.get("Authorization") or "")
        ha1 = hash_a1("AKAv1-MD5", given.username, given.realm, av.xres)
        check_response(ha1, given, algorithm="AKAv1-MD5", method="REGISTER")
        info = AuthenticationInfo(rspauth_of(ha1, given, algorithm="AKAv1-MD5"), given.qop, given.cnonce, given.nc)
        proven = (("Authentication-Info", build_authentication_info(info)),) if proof and given.qop else ()
        return make_response(request, 200, headers=(("Expires", request.get("Expires") or "0"), *proven, *bound(request, *extra)))

    return step


def bound(request: Request, *headers: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Add the Contact that a registrar lists, unless the test says which (RFC 3261 §10.3 step 8)."""
    if request.get("Expires") == "0" or any(name == "Contact" for name, _ in headers):
        return headers
    return (("Contact", f"{request.get('Contact')};expires={request.get('Expires')}"), *headers)


def status(code: int, *headers: tuple[str, str]) -> Step:
    return lambda request: make_response(request, code, headers=bound(request, *headers) if code == 200 else headers)


def ladder(*, marker: Marker | None = FULL, proof: bool = True, seq: int = 1, **changes: Any) -> list[Step]:
    """REGISTER > 401 > REGISTER > 200."""
    return [challenge(vector(seq), marker, **changes), accept(vector(seq), proof=proof)]


async def fails(bench: Bench, state: UeState | None = None) -> RegistrationFailed:
    with pytest.raises(RegistrationFailed) as caught:
        await bench.register(state)
    return caught.value


class TestRegistration:
    """§5.1.1.2."""

    async def test_the_first_register_names_the_user_and_the_device(self) -> None:
        """§5.1.1.2.1, §5.1.1.2.2: Authorization is there with empty nonce and response; DESIGN §4: the release in Contact."""
        bench = Bench(*ladder())
        await bench.register()
        first = bench.seen[0]
        assert (first.method, first.uri) == ("REGISTER", "sip:home1.net")
        assert first.get("To") == "<sip:alice@home1.net>"
        assert (first.get("From") or "").startswith("<sip:alice@home1.net>;tag=")
        assert first.get("Expires") == "600000"
        assert first.get("Contact") == '<sip:alice@192.0.2.1>;+sip.instance="<urn:uuid:1>";+g.keyferry.release="6"'
        assert first.get("Supported") == "path"
        assert bench.credentials(0) == Credentials("alice@home1.net", REALM, "", "sip:home1.net", "")

    async def test_the_answer_follows_the_challenge(self) -> None:
        """§5.1.1.5.1: same Call-ID, CSeq + 1; RFC 3310 §3.3."""
        bench = Bench(*ladder(opaque="o"))
        await bench.register()
        first, second = bench.seen
        assert second.get("Call-ID") == first.get("Call-ID")
        assert (first.get("CSeq"), second.get("CSeq")) == ("1 REGISTER", "2 REGISTER")
        given = bench.credentials()
        assert (given.algorithm, given.qop, given.nc, given.opaque) == ("AKAv1-MD5", "auth", "00000001", "o")
        assert len(given.cnonce or "") >= 16
        assert given.nonce == aka_nonce(vector().rand, vector().autn, build_marker(FULL))

    async def test_all_conditions_together_yield_the_master_key_and_masked_gm_keys(self) -> None:
        """DESIGN §5 steps 3 and 5."""
        state = await Bench(*ladder()).register()
        av = vector()
        pair = access_keys(av.ck, av.ik, av.rand, ALICE.impi)
        assert state.k_m == application_master_key(av.ck, av.ik, av.rand, ALICE.impi)
        assert state.gm_keys == Secret(pair.ck.reveal() + pair.ik.reveal())
        assert (state.masked, state.rspauth, state.no_keys_because, state.realm) == (True, True, "", REALM)
        assert state.release_marker == build_marker(FULL)
        assert state.pinned == (REALM,)
        assert state.seq_ms[1] == 1

    async def test_what_the_network_grants_is_kept(self) -> None:
        """RFC 3261 §10.2.4; RFC 3455 §4.1, RFC 3608."""
        others = "<sip:other@192.0.2.9>;expires=50, <sip:alice@192.0.2.1>;expires=3600"
        bench = Bench(
            challenge(vector()),
            accept(
                vector(), ("Contact", others), ("P-Associated-URI", "<sip:alice@home1.net>, <tel:+15551234>"),
                ("Service-Route", "<sip:orig@scscf1.home1.net;lr>"),
            ),
        )  # fmt: skip
        state = await bench.register()
        assert state.expires_at == bench.clock.now() + 3600
        assert state.associated == ("sip:alice@home1.net", "tel:+15551234")
        assert state.service_route == ("<sip:orig@scscf1.home1.net;lr>",)

    @pytest.mark.parametrize(
        ("headers", "granted"),
        [
            ((), 600_000),
            ((("Contact", "<sip:other@192.0.2.9>;expires=5, <sip:alice@192.0.2.1>;expires=60"),), 60),
            ((("Contact", "<sip:alice@192.0.2.1>;expires=60"), ("Expires", "999")), 60),
            ((("Contact", "<sip:alice@192.0.2.1>"), ("Expires", "60")), 60),
        ],
    )
    async def test_the_lifetime_is_that_of_our_contact_or_of_the_header(self, headers: tuple[tuple[str, str], ...], granted: int) -> None:
        bench = Bench(challenge(vector()), status(200, *headers))
        assert (await bench.register()).expires_at == bench.clock.now() + granted

    @pytest.mark.parametrize("contact", ["<sip:alice@192.0.2.1>;expires=0", "<sip:other@192.0.2.9>;expires=5"])
    async def test_a_2xx_that_does_not_list_us_is_no_registration(self, contact: str) -> None:
        """RFC 3261 §10.2.4: somebody on the way may have put Expires: 0 into our REGISTER, which no qop covers."""
        bench = Bench(challenge(vector()), accept(vector(), ("Contact", contact), ("Expires", "0")))
        assert "not with a registration of this UE" in str(await fails(bench))

    async def test_another_registration_goes_on_where_the_last_one_ended(self) -> None:
        """§5.1.1.4: the same Call-ID, a higher CSeq; no old credentials; new RAND, new keys."""
        bench = Bench(*ladder(), *ladder(seq=2))
        first = await bench.register()
        second = await bench.register(first)
        assert (second.call_id, second.cseq) == (first.call_id, first.cseq + 2)
        assert (bench.credentials(2).nonce, bench.credentials(2).response) == ("", "")
        assert second.k_m == application_master_key(vector(2).ck, vector(2).ik, vector(2).rand, ALICE.impi)
        assert second.pinned == (REALM,)

    @pytest.mark.parametrize("header", [("Contact", "<sip:alice@192.0.2.1"), ("P-Associated-URI", "<>")])
    async def test_a_2xx_that_cannot_be_read_is_a_failure(self, header: tuple[str, str]) -> None:
        assert "cannot be read" in str(await fails(Bench(challenge(vector()), status(200, header))))

    @pytest.mark.parametrize("code", [403, 500, 302, 600])
    async def test_any_other_final_answer_is_a_failure(self, code: int) -> None:
        assert (await fails(Bench(challenge(vector()), status(code)))).status == code

    async def test_silence_is_a_transport_error(self) -> None:
        bench = Bench()
        bench.network.down("P")
        with pytest.raises(TransportError):
            await bench.register()


class TestInterval:
    """RFC 3261 §10.2.8."""

    async def test_423_is_tried_again_with_what_the_network_wants(self) -> None:
        bench = Bench(status(423, ("Min-Expires", "3600")), *ladder(), expires=60)
        await bench.register()
        assert [each.get("Expires") for each in bench.seen] == ["60", "3600", "3600"]

    async def test_423_to_the_answer_begins_from_the_start(self) -> None:
        """DESIGN §5 step 5: an answer is sent once, and the time for its 2xx runs from then."""
        bench = Bench(challenge(vector()), status(423, ("Min-Expires", "3600")), *ladder(seq=2), expires=60)
        assert (await bench.register()).k_m is not None
        assert (bench.credentials(2).nonce, bench.credentials(2).response) == ("", "")
        assert bench.credentials(3).nonce != bench.credentials(1).nonce

    async def test_what_the_card_accepted_is_kept_before_the_answer_is_sent(self) -> None:
        """TS 33.102 §6.3.3: after a kill the same AUTN must be stale."""
        kept: list[UeState] = []
        bench = Bench(*ladder())
        sent_when_kept: list[int] = []

        async def keep(state: UeState) -> None:
            kept.append(state)
            sent_when_kept.append(len(bench.seen))

        bench.ue.keep = keep
        await bench.register()
        assert sent_when_kept == [0, 1, 1]  # the CSeq before each REGISTER, the card between challenge and answer
        assert kept[1].seq_ms == bench.ue.usim.seq_ms
        assert (kept[1].k_m, kept[1].no_keys_because) == (None, "a registration was begun and not finished")
        assert [state.cseq for state in kept] == [1, 1, 2]

    async def test_the_keys_of_before_are_not_kept_beside_an_answer_that_is_on_its_way(self) -> None:
        """DESIGN §5 step 6: who is killed between SM7 and its 200 has no keys; those of the last authentication end."""
        kept: list[UeState] = []
        bench = Bench(*ladder())

        async def keep(state: UeState) -> None:
            kept.append(state)

        before = await bench.register()
        bench.ue.keep = keep
        bench.steps = ladder(seq=2)
        await bench.register(before)
        assert before.k_m is not None
        assert [state.k_m is not None for state in kept] == [True, False, False]  # before SM1, after the 401, before SM7

    async def test_a_cseq_is_used_once_whatever_becomes_of_the_answer(self) -> None:
        """RFC 3261 §10.2: a registrar refuses a number that is not higher."""
        kept: list[UeState] = []
        bench = Bench(status(500))

        async def keep(state: UeState) -> None:
            kept.append(state)

        bench.ue.keep = keep
        await fails(bench)
        bench.steps = ladder()
        await bench.register(kept[-1])
        assert [request.get("CSeq") for request in bench.seen] == ["1 REGISTER", "2 REGISTER", "3 REGISTER"]

    async def test_a_minimum_that_is_none_still_asks_for_more(self) -> None:
        bench = Bench(status(423, ("Min-Expires", "1")), *ladder(), expires=60)
        await bench.register()
        assert bench.seen[1].get("Expires") == "61"

    async def test_423_without_a_minimum_ends_it(self) -> None:
        assert (await fails(Bench(status(423)))).status == 423

    async def test_423_for_ever_ends_it(self) -> None:
        assert "again and again" in str(await fails(Bench(*[status(423, ("Min-Expires", "9")) for _ in range(MAX_ROUNDS)])))


class TestInvalidChallenges:
    """TS 33.102 §6.3.3; §5.1.1.5.3."""

    async def test_a_wrong_mac_is_answered_with_an_empty_response(self) -> None:
        other = algorithm_of("milenage", Secret(b"k" * 16), Secret(b"o" * 16))
        bench = Bench(challenge(vector(1, other)), *ladder())
        assert (await bench.register()).k_m is not None
        given = bench.credentials(1)
        assert (given.response, given.auts) == ("", None)
        assert bench.log.warnings == ["autn-mac-wrong"]
        assert bench.log.fields("autn-mac-wrong")["reasons"] == "mac"

    async def test_an_old_sqn_is_answered_with_auts(self) -> None:
        """RFC 3310 §3.4: the response is computed with an empty password."""
        bench = Bench(*ladder(seq=40), challenge(vector(8)), *ladder(seq=41))
        await bench.register(await bench.register())
        given = bench.credentials(3)
        assert verify_auts(CARD, vector(8).rand, decode_base64(given.auts or "")) == sqn_of(40, 8)
        empty = hash_a1("AKAv1-MD5", ALICE.impi, REALM, Secret(b""))
        check_response(empty, given, algorithm="AKAv1-MD5", method="REGISTER")
        assert bench.log.warnings == ["autn-sqn-not-fresh"]
        because = str(bench.log.fields("autn-sqn-not-fresh")["because"])
        assert "SQN_MS - SQN_HE is +32 in SEQ (IND 8 of the card, 8 of the challenge); for IND 8 the card was at +32" in because

    async def test_the_third_invalid_challenge_in_a_row_ends_it(self) -> None:
        """§5.1.1.5.3: two consecutive invalid challenges are answered."""
        other = algorithm_of("milenage", Secret(b"k" * 16), Secret(b"o" * 16))
        bench = Bench(*[challenge(vector(seq, other)) for seq in (1, 2, 3)])
        assert "not valid for this ISIM" in str(await fails(bench))
        assert len(bench.seen) == 3

    async def test_a_valid_one_between_begins_the_count_anew(self) -> None:
        other = algorithm_of("milenage", Secret(b"k" * 16), Secret(b"o" * 16))
        wrong = challenge(vector(9, other))
        bench = Bench(wrong, wrong, challenge(vector(1)), wrong, challenge(vector(2)), accept(vector(2)))
        assert (await bench.register()).k_m == application_master_key(vector(2).ck, vector(2).ik, vector(2).rand, ALICE.impi)

    async def test_a_network_that_challenges_for_ever_is_left(self) -> None:
        bench = Bench(*[challenge(vector(seq)) for seq in range(1, MAX_ROUNDS + 1)])
        assert "again and again" in str(await fails(bench))
        assert len(bench.seen) == MAX_ROUNDS

    @pytest.mark.parametrize("changes", [{"nonce": "not base64"}, {"nonce": ""}, {"nonce": "AAAA"}])
    async def test_a_nonce_that_is_none_ends_it(self, changes: dict[str, Any]) -> None:
        assert "cannot be read" in str(await fails(Bench(challenge(vector(), **changes))))

    @pytest.mark.parametrize("value", ["", 'Digest nonce="n"', "Bearer x", "Digest"])
    async def test_a_challenge_that_cannot_be_read_ends_it(self, value: str) -> None:
        failure = await fails(Bench(status(401, ("WWW-Authenticate", value))))
        assert failure.status == 401

    async def test_without_an_aka_challenge_it_ends(self) -> None:
        assert "no AKAv1-MD5" in str(await fails(Bench(status(401))))
        assert "no AKAv1-MD5" in str(await fails(Bench(challenge(vector(), algorithm="MD5"))))

    async def test_the_aka_challenge_is_found_among_others(self) -> None:
        first = challenge(vector())
        both = lambda request: first(request).prepending("WWW-Authenticate", 'Digest realm="home1.net", nonce="n", algorithm=MD5')  # noqa: E731
        assert (await Bench(both, accept(vector())).register()).k_m is not None


class ShortRes:
    """Milenage whose RES has four octets, as TS 33.102 §6.3.7 allows."""

    def __getattr__(self, name: str) -> Any:
        return getattr(CARD, name)

    def f2345(self, rand: bytes) -> Any:
        whole = CARD.f2345(rand)
        return whole._replace(res=Secret(whole.res.reveal()[:4]))

    def vector(self, rand: bytes, sqn: bytes, amf: bytes) -> Any:
        return CARD.f1(rand, sqn, amf), self.f2345(rand)


class TestKeys:
    """DESIGN §5 step 5, invariant S2: each condition false in turn, everything else right."""

    @pytest.mark.parametrize(
        ("steps", "profile", "reason"),
        [
            (ladder(), {"release": None}, "states no release"),
            (ladder(marker=None), {}, "no release marker"),
            (ladder(marker=replace(FULL, access_keys=False)), {}, "does not promise"),
            (ladder(marker=replace(FULL, as_keys=False)), {}, "does not promise"),
            (ladder(marker=replace(FULL, rspauth=False)), {}, "does not promise"),
            ([challenge(vector(card=ShortRes())), accept(vector(card=ShortRes()))], {"card": ShortRes()}, "shorter than 8"),
            (ladder(qop=()), {}, "qop auth was not offered"),
            (ladder(qop=("auth-int",)), {}, "qop auth was not offered"),
            (ladder(realm="visited1.net"), {}, "not from the home realm"),
            (ladder(proof=False), {}, "no rspauth that verifies"),
            ([challenge(vector()), status(200)], {}, "no rspauth that verifies"),
        ],
        ids=["no release stated", "no marker", "no access keys", "no AS keys", "no rspauth promised", "short RES", "no qop", "other qop",
             "other realm", "no rspauth", "bare 200"],
    )  # fmt: skip
    async def test_without_one_there_are_none(self, steps: list[Step], profile: dict[str, Any], reason: str) -> None:
        bench = Bench(*steps, **profile)
        state = await bench.register()
        assert state.expires_at > 0
        assert state.k_m is None
        assert reason in state.no_keys_because
        assert state.pinned == ()

    async def test_an_answer_over_32_seconds_late_brings_none(self) -> None:
        def late(request: Request) -> Response:
            bench.clock.time += 32.1
            return accept(vector())(request)

        bench = Bench(challenge(vector()), late)
        state = await bench.register()
        assert (state.k_m, "too late" in state.no_keys_because) == (None, True)

    async def test_the_time_counts_from_the_answer_not_from_the_first_register(self) -> None:
        def slow(request: Request) -> Response:
            bench.clock.time += 31.0
            return bench.steps.pop(0)(request)

        bench = Bench(slow, challenge(vector()), slow, accept(vector()))
        assert (await bench.register()).k_m is not None

    async def test_a_2xx_without_a_challenge_brings_none(self) -> None:
        state = await Bench(status(200)).register()
        assert (state.k_m, state.gm_keys, state.no_keys_because) == (None, None, "the network did not authenticate")

    async def test_a_2xx_to_an_invalid_challenge_brings_none(self) -> None:
        """The proof of an earlier run in the same procedure does not count for the last REGISTER."""
        other = algorithm_of("milenage", Secret(b"k" * 16), Secret(b"o" * 16))
        bench = Bench(challenge(vector()), challenge(vector(2, other)), status(200))
        state = await bench.register()
        assert (state.k_m, state.no_keys_because) == (None, "the network did not authenticate")

    async def test_no_later_message_activates_a_dropped_key(self) -> None:
        bench = Bench(*ladder(proof=False), accept(vector()), *ladder(seq=2))
        without = await bench.register()
        assert without.k_m is None
        bench.steps[0] = status(200, ("Authentication-Info", _proof_for(bench.credentials())))  # the right proof, too late
        later = await bench.register(without)
        assert later.k_m is None
        fresh = await bench.register(later)  # only a new AKA run
        assert fresh.k_m is not None

    async def test_a_release_5_ue_states_nothing_and_uses_raw_keys(self) -> None:
        """DESIGN §5: the marker is harmless, the nonce is echoed unchanged."""
        bench = Bench(*ladder(), release=None)
        state = await bench.register()
        av = vector()
        assert "keyferry" not in (bench.seen[0].get("Contact") or "")
        assert state.gm_keys == Secret(av.ck.reveal() + av.ik.reveal())
        assert (state.masked, state.rspauth) == (False, True)
        assert bench.credentials().nonce == aka_nonce(av.rand, av.autn, build_marker(FULL))


def _proof_for(given: Credentials) -> str:
    ha1 = hash_a1("AKAv1-MD5", given.username, given.realm, vector().xres)
    return build_authentication_info(AuthenticationInfo(rspauth_of(ha1, given, algorithm="AKAv1-MD5"), given.qop, given.cnonce, given.nc))


class TestPinning:
    """DESIGN §4: a home network that once proved flags 7."""

    async def test_a_downgrade_is_reported(self) -> None:
        bench = Bench(*ladder(), *ladder(seq=2, marker=None))
        state = await bench.register(await bench.register())
        assert state.k_m is None
        assert state.no_keys_because.startswith("downgraded: the S-CSCF shows no release marker")
        assert bench.log.warnings == ["downgraded"]
        assert state.pinned == (REALM,)

    async def test_a_network_that_never_proved_them_is_not_downgraded(self) -> None:
        bench = Bench(*ladder(marker=None), *ladder(seq=2, marker=None))
        state = await bench.register(await bench.register())
        assert not state.no_keys_because.startswith("downgraded")

    async def test_a_ue_that_states_no_release_asked_for_it(self) -> None:
        before = await Bench(*ladder()).register()
        bench = Bench(*ladder(seq=2), release=None)
        assert not (await bench.register(before)).no_keys_because.startswith("downgraded")
        assert bench.log.warnings == []

    async def test_require_keys_refuses_to_go_on(self) -> None:
        failure = await fails(Bench(*ladder(marker=None), require_keys=True))
        assert "requires" in str(failure)
        assert "no release marker" in str(failure)

    async def test_require_keys_is_content_with_keys(self) -> None:
        assert (await Bench(*ladder(), require_keys=True).register()).k_m is not None


class TestDeregistration:
    """§5.1.1.6."""

    @pytest.mark.parametrize("every", [False, True])
    async def test_expires_0_ends_it_and_the_keys(self, every: bool) -> None:
        """RFC 3261 §10.2.2: of this device, or of all."""
        bench = Bench(*ladder(), *ladder(seq=2), require_keys=True)
        state = await bench.ue.deregister(await bench.register(), every=every)
        assert [(request.get("Contact") == "*", request.get("Expires")) for request in bench.seen[-2:]] == [(every, "0")] * 2
        assert state.masked is not every  # where nothing is stated, nothing is masked, whatever the marker says
        assert (state.expires_at, state.k_m, state.gm_keys, state.no_keys_because) == (0.0, None, None, "de-registered")
        assert state.pinned == (REALM,)

    async def test_423_makes_no_sense_of_it(self) -> None:
        bench = Bench(*ladder(), status(423, ("Min-Expires", "60")))
        state = await bench.register()
        with pytest.raises(RegistrationFailed):
            await bench.ue.deregister(state)


async def test_another_user_has_other_names() -> None:
    bench = Bench(*ladder(), impi=Impi("carol@home1.net"), impu=Impu("sip:carol@home1.net"))
    await bench.register()
    assert bench.credentials().username == "carol@home1.net"
