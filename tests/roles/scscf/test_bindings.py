# SPDX-License-Identifier: Apache-2.0
"""RFC 3261 §10.3 steps 7 and 8; TS 24.229 §5.4.1.2.2F: the bindings of one user."""

from __future__ import annotations

import pytest

from keyferry.errors import RegistrationFailed
from keyferry.protocol.identity import Impi, Impu, Reg
from keyferry.protocol.ims.registration import MAX_CONTACT, RegisterView
from keyferry.protocol.sip.message import Response
from keyferry.roles.scscf.bindings import is_of, may_stay
from roles.home import Home, open_home
from roles.manual import DEVICE, SIP_ALICE, TEL_ALICE, Manual, answers

LONG = {
    "Via": "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKlong;x=", "From": "<sip:alice@home1.net>;tag=1;x=", "To": "<sip:alice@home1.net>;x=",
    "Path": "<sip:pcscf1.visited1.net;lr>;x=",
}  # fmt: skip


def listed(answer: Response) -> list[tuple[str, str]]:
    return [(value.partition(">")[0].strip("<"), value.rpartition("expires=")[2]) for value in answer.all("Contact")]


@pytest.mark.parametrize(
    ("impus", "ours"), [((), True), ((SIP_ALICE,), True), (("sip:x@home1.net", TEL_ALICE), True), (("sip:x@home1.net",), False)]
)
async def test_a_registration_is_that_of_its_whole_implicit_set(home: Home, impus: tuple[str, ...], ours: bool) -> None:
    """TS 29.228 §6.1.3; TS 24.229 §5.4.1.5."""
    await Manual(home).procedure()
    (registration,) = await home.registrations.of_impi(Impi("alice@home1.net"))
    assert is_of(registration, [Impu(impu) for impu in impus]) is ours


@pytest.mark.parametrize(
    ("change", "stays"),
    [({}, True), ({"impu": Impu(TEL_ALICE)}, False), ({"path": ("<sip:p2.net;lr>",)}, False), ({"release": 15}, False),
     ({"contact_uri": "sip:alice@192.0.2.9"}, False), ({"every_contact": True}, False)],
    ids=lambda change: next(iter(change), "same") if isinstance(change, dict) else None,
)  # fmt: skip
async def test_a_protected_register_stays_without_a_challenge_for_the_same_identity_path_and_contact_alone(
    home: Home, change: dict[str, object], stays: bool
) -> None:
    """TS 24.229 §5.4.1.2.2: another public identity of the same user was not in the AKA run that made the associations."""
    await Manual(home).procedure()
    (held,) = await home.registrations.of_impi(Impi("alice@home1.net"))
    uri = held.contact.partition(">")[0].strip("<")
    view = RegisterView(
        held.impi, held.impu, None, held.contact, uri, Reg(held.reg), held.release, 600, False, held.call_id, held.cseq + 1, held.path, ""
    )._replace(**change)  # type: ignore[arg-type]
    assert may_stay(held, view, home.clock.now(), reauth_age=600.0) is stays


class TestContacts:
    """RFC 3261 §10.3 step 8; TS 24.229 §5.4.1.2.2F."""

    async def test_the_200_lists_every_device_with_what_is_left_its_own_first(self, home: Home) -> None:
        for number, expires in ((1, 3600), (2, 7200)):
            await home.device(number=number, expires=expires).register()
        await home.clock.advance(600)
        answer = await Manual(home).procedure(expires="1800")
        assert listed(answer)[0][1] == "1800"
        assert sorted(listed(answer)[1:]) == [("sip:alice@alice1.visited1.net", "3000"), ("sip:alice@alice2.visited1.net", "6600")]

    async def test_a_binding_whose_time_is_over_is_not_listed_though_no_sweep_has_come(self, home: Home) -> None:
        await home.device(expires=600).register()
        await home.clock.advance(601)
        assert len(listed(await Manual(home).procedure())) == 1

    async def test_the_200_to_a_de_registration_lists_what_is_left(self, home: Home) -> None:
        await home.device(expires=3600).register()
        manual = Manual(home)
        await manual.procedure()
        assert listed(await manual.procedure(expires="0")) == [("sip:alice@alice1.visited1.net", "3600")]
        assert listed(await manual.procedure(contact="*", expires="0")) == []

    async def test_nobody_elses_binding_is_listed(self, home: Home) -> None:
        await home.device("bobby").register()
        assert len(listed(await Manual(home).procedure())) == 1

    async def test_a_displaced_device_is_not_listed(self) -> None:
        """TS 24.229 §5.4.1.2.2: there is a maximum; whoever is over it is not refused here."""
        async with open_home(registrar={"max_devices": 1}) as home:
            home.network.attach("X", "x.invalid", None)
            await home.device().register()
            assert len(listed(await Manual(home).procedure())) == 1

    async def test_a_contact_that_would_swell_the_200_of_others_is_400(self, home: Home) -> None:
        assert (await Manual(home).send(contact=f"{DEVICE};x={'y' * 2048}")).status == 400

    async def test_a_contact_is_measured_in_octets(self, home: Home) -> None:
        """A euro sign has three."""
        own = f'"{"{}"}" {DEVICE}'
        room = MAX_CONTACT - len(own.format(""))
        assert (await Manual(home).send(contact=own.format("\u20ac" * (room // 3)))).status == 401
        assert (await Manual(home).send(contact=own.format("\u20ac" * (room // 3 + 1)))).status == 400

    async def test_what_would_be_answered_with_too_large_a_200_changes_nothing(self) -> None:
        """Every device's longest contact fits; not with all that one of them would have repeated besides."""

        def device(number: int) -> str:
            own = DEVICE.replace("urn:uuid:9", f"urn:uuid:{number}")
            return f"{own};x={'y' * (MAX_CONTACT - len(own) - 3)}"

        async with open_home(registrar={"max_devices": 24}) as home:
            home.network.attach("X", "x.invalid", None)
            manual = Manual(home)
            for number in range(23):
                assert (await manual.procedure(contact=device(number))).status == 200
            more = {name: value + "y" * (8_000 - len(value)) for name, value in LONG.items()}
            for number, expires in ((23, "600"), (22, "0")):
                assert (await manual.procedure(contact=device(number), expires=expires, **more)).status == 413
                assert len(await home.registrations.of_impi(Impi("alice@home1.net"))) == 23
            assert (await manual.procedure(contact=device(23))).status == 200

    async def test_a_ue_knows_its_own_among_several(self, home: Home) -> None:
        await home.device(number=1, expires=3600).register()
        state = await home.device(number=2, expires=1800).register()
        assert state.expires_at == home.clock.now() + 1800


class TestOrder:
    """§10.3 step 7."""

    @pytest.mark.parametrize("expires", ["600", "0"])
    async def test_a_register_sent_before_the_binding_was_made_changes_nothing(self, home: Home, expires: str) -> None:
        manual = Manual(home)
        await manual.procedure()
        manual.cseq -= 2
        before = await home.registrations.of_impi(manual.impi)
        assert (await manual.procedure(expires=expires)).status == 500
        assert await home.registrations.of_impi(manual.impi) == before

    async def test_a_star_that_is_late_for_one_binding_ends_none(self, home: Home) -> None:
        other, manual = home.device(), Manual(home)
        await other.register()
        await manual.procedure()
        manual.cseq -= 2
        assert (await manual.procedure(contact="*", expires="0")).status == 500
        assert await home.registrations.count() == 2

    async def test_another_call_id_begins_its_own_order(self, home: Home) -> None:
        manual = Manual(home)
        await manual.procedure()
        manual.cseq = 0
        assert (await manual.procedure(**{"Call-ID": "other"})).status == 200

    async def test_a_ue_whose_procedure_failed_goes_on_counting(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        home.network.responses["P", "I"] = lambda response: Response(500, "Server Internal Error", response.headers)
        with pytest.raises(RegistrationFailed):
            await alice.register()
        home.network.responses.clear()
        await alice.register()


class TestAssociated:
    """RFC 7315 §4.1: a list, in one header field or several."""

    @pytest.mark.parametrize(
        ("form", "values"),
        [("combined", [f"<{SIP_ALICE}>, <{TEL_ALICE}>"]), ("separate", [f"<{SIP_ALICE}>", f"<{TEL_ALICE}>"])],
    )
    async def test_both_forms_and_a_ue_reads_them(self, form: str, values: list[str]) -> None:
        async with open_home(registrar={"associated": form}) as home:
            state = await home.device().register()
            assert answers(home, "S", "I")[-1].all("P-Associated-URI") == values
            assert state.associated == (SIP_ALICE, TEL_ALICE)
