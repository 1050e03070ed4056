# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1; DESIGN §5 (the matrix and steps 1 to 4), from the UE to the AS and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyferry.errors import CxError, RegistrationFailed
from keyferry.ports import Registration
from keyferry.protocol.aka import Usim, algorithm_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import aka_nonce, build_challenge, parse_aka_nonce, parse_authentication_info, parse_challenge
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.keys import access_keys, application_master_key, as_key
from keyferry.protocol.sip.message import Request, Response, build_message
from roles.home import NOTES, REALM, XCAP, Home, open_home, subscriber
from roles.manual import SIP_ALICE, TEL_ALICE, Manual, answers
from roles.network import Fault


class TestLadder:
    """TS 24.229 §5.1.1, §5.2.2, §5.3.1, §5.4.1; DESIGN §5."""

    async def test_a_registration(self, home: Home) -> None:
        await home.device().register()
        assert home.network.ladder() == [
            "alice1 > P REGISTER", "P > I REGISTER", "I > S REGISTER",
            "S > I 401", "I > P 401", "P > alice1 401",
            "alice1 > P REGISTER", "P > I REGISTER", "I > S REGISTER",
            "S > AS1 REGISTER", "AS1 > S 200", "S > AS2 REGISTER", "AS2 > S 200",
            "S > I 200", "I > P 200", "P > alice1 200",
        ]  # fmt: skip

    async def test_ue_and_as_have_the_same_key_and_nobody_told_it(self, home: Home) -> None:
        alice = home.device()
        state = await alice.register()
        record = await home.key_of(alice)
        assert record is not None
        assert (record.k_as, record.impi, record.impus, record.reg) == (alice.k_as(), alice.impi, (SIP_ALICE, TEL_ALICE), alice.reg)
        wire = b"".join(build_message(each.message) for each in home.network.seen)
        for secret in (record.k_as, state.k_m):
            assert secret is not None
            assert secret.reveal() not in wire
            assert secret.reveal().hex().encode() not in wire

    async def test_gm_has_the_same_keys_at_both_ends_and_they_are_not_ck_and_ik(self, home: Home) -> None:
        alice = home.device()
        state = await alice.register()
        assert state.gm_keys is not None
        assert home.pcscf.fingerprint(state.impi, state.contact) == state.gm_keys.fingerprint()
        (challenge,) = [parse_challenge(each.get("WWW-Authenticate") or "") for each in answers(home, "S", "I") if each.status == 401]
        nonce, own = parse_aka_nonce(challenge.nonce), subscriber("alice")
        f2345 = algorithm_of("milenage", own.k, own.opc).f2345(nonce.rand)
        pair = access_keys(f2345.ck, f2345.ik, nonce.rand, alice.impi)
        assert (challenge.parameter("ck"), challenge.parameter("ik")) == (pair.ck.reveal().hex(), pair.ik.reveal().hex())

    async def test_the_200(self, home: Home) -> None:
        """§5.4.1.2.2F; RFC 3327 §5.3; RFC 3608."""
        await home.device(expires=3600).register()
        answer = answers(home, "S", "I")[-1]
        assert answer.all("Path") == ["<sip:pcscf1.visited1.net;lr>"]
        assert answer.get("Service-Route") == "<sip:orig@scscf1.home1.net;lr>"
        assert answer.get("P-Associated-URI") == f"<{SIP_ALICE}>, <{TEL_ALICE}>"
        assert (answer.get("Contact") or "").endswith(";expires=3600")
        info = parse_authentication_info(answer.get("Authentication-Info") or "")
        assert (info.qop, info.nc, info.nextnonce) == ("auth", "00000001", None)
        assert "tag=" in (answer.get("To") or "")

    async def test_a_registration_of_a_tuak_subscriber(self) -> None:
        async with open_home(subscribers=[subscriber("tara", algorithm="tuak")]) as home:
            tara = home.device("tara", algorithm="tuak")
            await tara.register()
            assert await home.key_of(tara) is not None


class TestMatrix:
    """The compatibility matrix of DESIGN §5."""

    @pytest.mark.parametrize(
        ("ue", "scscf", "info", "marker", "masked", "why"),
        [
            (None, 5, "always", False, False, "states no release"),
            (None, 6, "always", True, False, "states no release"),
            (None, 6, "capable", False, False, "states no release"),
            (6, 5, "always", False, False, "no release marker"),
            (6, 6, "always", True, True, ""),
            (6, 6, "capable", True, True, ""),
            (17, 6, "always", True, True, ""),
            (6, 17, "always", True, True, ""),
        ],
    )
    async def test_each_cell(self, ue: int | None, scscf: int, info: str, marker: bool, masked: bool, why: str) -> None:
        async with open_home(auth={"release": scscf, "release_info": info}) as home:
            alice = home.device(release=ue)
            state = await alice.register()
            assert state.expires_at > 0
            assert (bool(state.release_marker), state.masked) == (marker, masked)
            assert why in state.no_keys_because
            assert (state.k_m is not None) is masked
            assert await home.keys_at() == masked
            assert state.gm_keys is not None
            assert home.pcscf.fingerprint(state.impi, state.contact) == state.gm_keys.fingerprint()  # Gm works in every cell
            blocks = [push for each in (XCAP, NOTES) for push in home.servers[each].keys.pushes]
            assert len(blocks) == (2 if masked else 0)

    async def test_masking_switched_off_is_a_release_5_network_with_a_marker(self) -> None:
        async with open_home(auth={"mask": False}) as home:
            state = await home.device().register()
            assert (state.masked, state.k_m, await home.keys_at()) == (False, None, 0)
            assert "does not promise" in state.no_keys_because

    async def test_a_raw_registration_after_a_masked_one_erases_the_key(self, home: Home) -> None:
        """S1: an old phone with the card of a new one."""
        alice = home.device()
        await alice.register()
        old = home.device(release=None)
        old.state = alice.state
        old.ue.usim = alice.ue.usim
        await old.register()
        assert await home.keys_at() == 0
        registration = await home.registration(alice)
        assert registration is not None
        assert registration.k_m is None
        await old.register()  # and a further one pushes no block at all
        assert len(home.servers[XCAP].keys.pushes) == 2


class TestMiddlemen:
    """The attack table of specs/11 §11.7: somebody between UE and S-CSCF; S1 and S2 hold."""

    async def test_a_stripped_capability_denies_the_keys_and_raises_an_alarm(self, home: Home) -> None:
        def strip(request: Request) -> Request:
            contact = (request.get("Contact") or "").replace(';+g.keyferry.release="6"', "")
            return request.replacing("Contact", contact) if 'nonce=""' in (request.get("Authorization") or "") else request

        home.network.requests["P", "I"] = strip
        alice = home.device()
        state = await alice.register()
        assert state.k_m is None
        assert "does not promise" in state.no_keys_because
        assert await home.keys_at() == 0
        assert home.log.warnings == ["release-stated-after-raw-challenge"]

    async def test_a_stripped_marker_is_an_unknown_nonce(self, home: Home) -> None:
        def strip(response: Response) -> Response:
            challenge = parse_challenge(response.get("WWW-Authenticate") or "")
            bare = challenge.nonce[:44]  # RAND and AUTN are 32 octets, but base64 has no edge there
            return response.replacing("WWW-Authenticate", build_challenge(replace(challenge, nonce=bare)))

        home.network.responses["I", "S"] = lambda response: strip(response) if response.status == 401 else response
        alice = home.device()
        with pytest.raises(RegistrationFailed):
            await alice.register()
        assert await home.keys_at() == 0

    async def test_a_capability_added_for_a_release_5_ue_yields_no_key_at_the_ue(self, home: Home) -> None:
        home.network.requests["P", "I"] = lambda request: request.replacing(
            "Contact", (request.get("Contact") or "") + ';+g.keyferry.release="6"'
        )
        alice = home.device(release=None)
        state = await alice.register()
        assert state.k_m is None
        assert state.gm_keys is not None
        assert home.pcscf.fingerprint(state.impi, state.contact) != state.gm_keys.fingerprint()  # Gm would fail: denial, not exposure

    async def test_a_lost_or_changed_rspauth_leaves_the_ue_without_keys(self, home: Home) -> None:
        home.network.responses["I", "S"] = lambda response: response.without("Authentication-Info")
        alice = home.device()
        state = await alice.register()
        assert (state.k_m, state.rspauth) == (None, False)
        assert "did not prove itself" in state.no_keys_because

    async def test_a_marker_added_in_front_of_a_release_5_s_cscf_activates_nothing(self) -> None:
        """The middleman knows CK, IK, so it could compute every key; it cannot forge rspauth, nor the nonce."""

        def add(response: Response) -> Response:
            if response.status != 401:
                return response
            challenge = parse_challenge(response.get("WWW-Authenticate") or "")
            nonce = parse_aka_nonce(challenge.nonce)
            marked = replace(challenge, nonce=aka_nonce(nonce.rand, nonce.autn, b"3G\x06\x07"), qop=("auth",))
            return response.replacing("WWW-Authenticate", build_challenge(marked))

        async with open_home(auth={"release": 5}) as home:
            home.network.responses["I", "S"] = add
            with pytest.raises(RegistrationFailed):
                await home.device().register()
            assert await home.keys_at() == 0


class TestAnswers:
    """§5.4.1.2.2, §5.4.1.2.3."""

    async def test_a_wrong_card_is_refused(self, home: Home) -> None:
        own = subscriber("alice")
        alice = home.device(card=algorithm_of("milenage", own.k, Secret(b"o" * 16)))
        with pytest.raises(RegistrationFailed) as caught:
            await alice.register()
        assert caught.value.status == 403
        assert home.log.warnings == ["autn-mac-wrong", "authentication-failed"]
        assert await home.registrations.count() == 0

    async def test_a_card_ahead_of_the_hss_synchronises(self, home: Home) -> None:
        """REGISTER > 401 > auts > 401 > REGISTER > 200."""
        alice = home.device()
        alice.ue.usim = Usim(algorithm_of("milenage", subscriber("alice").k, subscriber("alice").opc), (900,) * 32)
        await alice.register()
        assert [line for line in home.network.ladder() if "alice1" in line] == [
            "alice1 > P REGISTER", "P > alice1 401", "alice1 > P REGISTER", "P > alice1 401", "alice1 > P REGISTER", "P > alice1 200",
        ]  # fmt: skip
        assert await home.key_of(alice) is not None

    async def test_a_challenge_answered_twice_registers_once_and_leaves_the_key(self, home: Home) -> None:
        ue = Manual(home)
        given = ue.answer(await ue.send())
        assert (await ue.send(given)).status == 200
        assert (await ue.send(given)).status == 401
        assert (await home.keys_at(), await home.registrations.count()) == (1, 1)

    async def test_an_answer_held_back_until_a_newer_one_was_given_brings_no_old_keys_back(self, home: Home) -> None:
        """The UE gave up waiting and registered again; then its first answer arrives."""
        alice = home.device()
        home.network.next_to("S", Fault.NONE, Fault.HELD)
        with pytest.raises(RegistrationFailed):
            await alice.register()
        await alice.register()
        assert await home.network.release() == 401
        record = await home.key_of(alice)
        assert record is not None
        assert not record.superseded

    async def test_nor_does_it_revive_a_device_that_has_gone(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        home.network.next_to("S", Fault.NONE, Fault.HELD)
        with pytest.raises(RegistrationFailed):
            await alice.register()
        await alice.deregister()
        assert await home.network.release() == 401
        assert (await home.registrations.count(), await home.keys_at()) == (0, 0)

    async def test_a_duplicate_on_the_network_does_no_harm(self, home: Home) -> None:
        home.network.next_to("S", Fault.DUPLICATED, Fault.DUPLICATED)
        alice = home.device()
        await alice.register()
        assert await home.key_of(alice) is not None

    async def test_a_restart_between_challenge_and_answer_costs_one_more_challenge(self, home: Home) -> None:
        ue = Manual(home)
        given = ue.answer(await ue.send())
        await home.restart_scscf()
        assert (await ue.send(ue.answer(await ue.send(given)))).status == 200

    async def test_the_answer_of_another_user_is_challenged_anew(self, home: Home) -> None:
        alice, bob = Manual(home), Manual(home, "bobby")
        given = replace(alice.answer(await alice.send()), username=bob.impi)
        assert (await bob.send(given)).status == 401
        assert await home.registrations.count() == 0

    @pytest.mark.parametrize(("impi", "impu"), [("eve@home1.net", SIP_ALICE), ("bobby@home1.net", SIP_ALICE)])
    async def test_a_user_that_the_hss_does_not_know_is_403(self, home: Home, impi: str, impu: Impu) -> None:
        """§5.4.1.2; TS 29.229 §6.2.2."""
        ue = Manual(home)
        ue.impi = Impi(impi)
        assert (await ue.send()).status == 403
        assert home.log.warnings == ["hss-refused"]

    async def test_an_hss_in_trouble_is_504(self, home: Home) -> None:
        """§5.4.1.2."""

        class Broken:
            async def server_assignment(self, *args: object) -> bytes:
                raise CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")

        ue = Manual(home)
        object.__setattr__(home.scscf, "cx", Broken())
        assert (await ue.procedure()).status == 504
        assert await home.registrations.count() == 0
        assert await home.keys_at() == 0

    async def test_another_method_is_405(self, home: Home) -> None:
        headers = (("From", "<sip:a@b.net>;tag=1"), ("To", "<sip:a@b.net>"), ("Call-ID", "c"), ("CSeq", "1 INVITE"))
        answer = await home.network.carry("X", Request("INVITE", "sip:a@b.net", headers), home.network.peer("S"))
        assert (answer.status, answer.get("Allow")) == (405, "REGISTER, SUBSCRIBE")


class TestInterval:
    """RFC 3261 §10.3 step 6."""

    async def test_a_brief_one_is_423_and_the_ue_asks_again(self) -> None:
        async with open_home(registrar={"min_expires": 300}) as home:
            state = await home.device(expires=60).register()
            assert "P > alice1 423" in home.network.ladder()
            assert state.expires_at == home.clock.now() + 300

    async def test_423_to_an_answer_leaves_the_challenge(self) -> None:
        async with open_home(registrar={"min_expires": 300}) as home:
            home.network.attach("X", "x.invalid", None)
            ue = Manual(home)
            given = ue.answer(await ue.send())
            brief = await ue.send(given, expires="60")
            assert (brief.status, brief.get("Min-Expires")) == (423, "300")
            assert (await ue.send(given)).status == 200

    async def test_a_long_one_is_cut(self) -> None:
        async with open_home(registrar={"max_expires": 3600}) as home:
            assert (await home.device().register()).expires_at == home.clock.now() + 3600


class TestAtRest:
    """DESIGN §5 steps 1 and 4: what the S-CSCF keeps."""

    async def test_the_registration_holds_k_m_and_no_ck_or_ik(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        registration = await home.registration(alice)
        assert isinstance(registration, Registration)
        challenge = parse_challenge(answers(home, "S", "I")[0].get("WWW-Authenticate") or "")
        nonce, own = parse_aka_nonce(challenge.nonce), subscriber("alice")
        f2345 = algorithm_of("milenage", own.k, own.opc).f2345(nonce.rand)
        assert registration.k_m == application_master_key(f2345.ck, f2345.ik, nonce.rand, alice.impi)
        assert as_key(registration.k_m, XCAP) == alice.k_as()
        secrets = [getattr(registration, name) for name in registration._fields]
        assert [each for each in secrets if isinstance(each, Secret)] == [registration.k_m]
        assert (registration.impu, registration.release, registration.realm) == (SIP_ALICE, 6, REALM)
        assert registration.expires_at == home.clock.now() + 86_400  # no longer than its keys

    async def test_no_log_line_holds_a_key(self, home: Home) -> None:
        alice = home.device()
        state = await alice.register()
        await alice.register()
        await alice.deregister()
        written = repr(home.log.events)
        for secret in (state.k_m, state.gm_keys):
            assert secret is not None
            assert secret.reveal().hex() not in written
