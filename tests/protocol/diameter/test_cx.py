# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6, TS 29.229 §6.1: six commands, both directions, and what real peers make of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.errors import CxError, LocalProtocolError, ParseError
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.diameter import base, cx, cx_fields
from keyferry.protocol.diameter.base import Result
from keyferry.protocol.diameter.message import VENDOR_3GPP, Avp, AvpFault, DiameterMessage, make_avp, parse_message, render_message
from keyferry.protocol.identity import Impi, Impu
from protocol.diameter.cxkit import (
    FIRST,
    HSS,
    IMPI,
    IMPU,
    KEYS,
    LIA,
    LIR,
    MAA,
    MAR,
    PPR,
    RESYNCHRONISATION,
    RTA,
    RTR,
    SAA,
    SAR,
    SERVER,
    TO_HSS,
    TO_SCSCF,
    UAA,
    UAR,
    VECTOR,
    answers,
    requests,
)

READ: dict[str, tuple[Callable[[DiameterMessage], Any], Any]] = {
    "UAR": (cx.parse_uar, UAR),
    "UAA": (cx.parse_uaa, UAA),
    "LIR": (cx.parse_lir, LIR),
    "LIA": (cx.parse_lia, LIA),
    "MAR": (cx.parse_mar, MAR),
    "MAA": (cx.parse_maa, MAA),
    "SAR": (cx.parse_sar, SAR),
    "SAA": (cx.parse_saa, SAA),
    "RTR": (cx.parse_rtr, RTR),
    "RTA": (cx.parse_rta, RTA),
    "PPR": (cx.parse_ppr, PPR),
    "PPA": (cx.parse_ppa, None),
}
EVERY = requests() | answers()

TEXTS = st.text(st.characters(codec="utf-8", categories=("L", "N")), max_size=30)
IMPIS = st.from_regex(r"[a-z0-9]{1,10}@[a-z]{1,8}\.net", fullmatch=True).map(Impi)
IMPUS = st.from_regex(r"sip:[a-z0-9]{1,10}@[a-z]{1,8}\.net", fullmatch=True).map(Impu)
SERVERS = st.from_regex(r"sip:[a-z]{1,8}\.net:[1-9][0-9]{3}", fullmatch=True)
KEY = st.binary(min_size=16, max_size=16)
VECTORS = st.builds(
    AuthVector, rand=KEY, autn=KEY, xres=st.binary(min_size=4, max_size=16).map(Secret), ck=KEY.map(Secret), ik=KEY.map(Secret)
)
ITEMS = st.lists(st.builds(cx.AuthItem, VECTORS, st.binary(max_size=64)), min_size=1, max_size=5).map(tuple)
RESYNCHRONISATIONS = st.none() | st.builds(cx.Resynchronisation, KEY, st.binary(min_size=14, max_size=14))


def over(message: DiameterMessage) -> DiameterMessage:
    """Return a message as the other side reads it."""
    return parse_message(render_message(message))


def item_of(*avps: Avp) -> DiameterMessage:
    """Return a MAA with one item of these AVPs."""
    maa = answers()["MAA"]
    kept = tuple(avp for avp in maa.avps if avp.code != cx_fields.SIP_AUTH_DATA_ITEM)
    return over(DiameterMessage(303, base.CX, False, (*kept, make_avp(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP, avps))))


def item(**changes: bytes | None) -> DiameterMessage:
    """Return a MAA with an item whose AVPs are changed, or left out."""
    values: dict[str, bytes | None] = {
        "SIP_AUTHENTICATION_SCHEME": b"Digest-AKAv1-MD5",
        "SIP_AUTHENTICATE": VECTOR.rand + VECTOR.autn,
        "SIP_AUTHORIZATION": VECTOR.xres.reveal(),
        "CONFIDENTIALITY_KEY": VECTOR.ck.reveal(),
        "INTEGRITY_KEY": VECTOR.ik.reveal(),
    }
    values |= changes
    return item_of(*(Avp(getattr(cx_fields, name), VENDOR_3GPP, data, 0xC0) for name, data in values.items() if data is not None))


def resynchronising(octets: bytes) -> DiameterMessage:
    """Return a MAR with such a SIP-Authorization."""
    mar = cx.build_mar(MAR._replace(resynchronisation=None), TO_HSS)
    scheme = make_avp(cx_fields.SIP_AUTHENTICATION_SCHEME, VENDOR_3GPP, cx.AKA_SCHEME)
    group = make_avp(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP, (scheme, make_avp(cx_fields.SIP_AUTHORIZATION, VENDOR_3GPP, octets)))
    kept = tuple(avp for avp in mar.avps if avp.code != cx_fields.SIP_AUTH_DATA_ITEM)
    return over(DiameterMessage(303, base.CX, True, (*kept, group)))


@pytest.mark.parametrize("name", READ)
def test_a_command_is_read_back(name: str) -> None:
    """§6.1.1 to §6.1.12."""
    parse, expected = READ[name]
    assert parse(over(EVERY[name])) == expected


@pytest.mark.parametrize("name", [name for name in READ if name.endswith("A")])
def test_an_answer_that_refuses_is_an_error_of_cx(name: str) -> None:
    parse, _ = READ[name]
    refused = cx.build_error(requests()[f"{name[:2]}R"], cx.error_for(cx.CxResult.ERROR_IDENTITIES_DONT_MATCH), HSS)
    with pytest.raises(CxError) as problem:
        parse(over(refused))
    assert (problem.value.code, problem.value.name) == (5002, "DIAMETER_ERROR_IDENTITIES_DONT_MATCH")
    with pytest.raises(ParseError):
        parse(EVERY[f"{name[:2]}R"])


class TestUserAuthorization:
    """§6.1.1, §6.1.2."""

    @pytest.mark.parametrize(
        "uaa",
        [
            cx.Uaa(FIRST, None, cx.Capabilities()),
            cx.Uaa(Result(cx.CxResult.SUBSEQUENT_REGISTRATION, experimental=True), SERVER),
            cx.Uaa(cx.SUCCESS, SERVER),
            cx.Uaa(FIRST),
        ],
    )
    def test_answers(self, uaa: cx.Uaa) -> None:
        assert cx.parse_uaa(over(cx.build_uaa(requests()["UAR"], uaa, HSS))) == uaa

    def test_without_a_type_it_is_a_registration(self) -> None:
        uar = requests()["UAR"]
        kept = tuple(avp for avp in uar.avps if avp.code != cx_fields.USER_AUTHORIZATION_TYPE)
        assert cx.parse_uar(DiameterMessage(300, base.CX, True, kept)).kind is cx.UserAuthorizationType.REGISTRATION

    def test_capabilities_of_others_are_passed_over(self) -> None:
        group = make_avp(
            cx_fields.SERVER_CAPABILITIES, VENDOR_3GPP, (make_avp(605, VENDOR_3GPP, 9), make_avp(1, 0, "x"), make_avp(40_000, 40_000, b"x"))
        )
        message = cx.build_uaa(requests()["UAR"], cx.Uaa(FIRST), HSS)
        read = cx.parse_uaa(DiameterMessage(300, base.CX, False, (*message.avps, group)))
        assert read.capabilities == cx.Capabilities((), (9,), ())


class TestMultimediaAuth:
    """§6.1.7, §6.1.8; TS 29.228 §6.3."""

    def test_the_item_of_a_mar_has_a_scheme_and_no_more(self) -> None:
        mar = over(cx.build_mar(MAR._replace(resynchronisation=None), TO_HSS))
        group = mar.first(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP)
        assert group is not None
        assert [(avp.code, avp.text) for avp in group.group] == [(608, "Digest-AKAv1-MD5")]

    def test_a_resynchronisation_is_rand_and_auts(self) -> None:
        group = over(requests()["MAR"]).first(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP)
        assert group is not None
        authorization = group.first(cx_fields.SIP_AUTHORIZATION, VENDOR_3GPP)
        assert authorization is not None
        assert authorization.data == RESYNCHRONISATION.rand + RESYNCHRONISATION.auts
        assert len(authorization.data) == 30

    @pytest.mark.parametrize("between", [0, 16, 20, 80])
    def test_what_stands_between_rand_and_auts_is_passed_over(self, between: int) -> None:
        """Some S-CSCFs put the whole nonce before AUTS."""
        message = resynchronising(RESYNCHRONISATION.rand + bytes(between) + RESYNCHRONISATION.auts)
        assert cx.parse_mar(message).resynchronisation == RESYNCHRONISATION

    @pytest.mark.parametrize("length", [1, 14, 29, 111])
    def test_what_is_no_rand_and_auts(self, length: int) -> None:
        with pytest.raises(AvpFault) as fault:
            cx.parse_mar(resynchronising(bytes(length)))
        assert fault.value.code == 5004

    def test_an_empty_authorization_is_none(self) -> None:
        """The AVP alone says nothing."""
        assert cx.parse_mar(resynchronising(b"")).resynchronisation is None

    @pytest.mark.parametrize(("rand", "auts"), [(bytes(15), bytes(14)), (bytes(16), bytes(13))])
    def test_a_resynchronisation_that_is_none_is_our_mistake(self, rand: bytes, auts: bytes) -> None:
        with pytest.raises(LocalProtocolError):
            cx.build_mar(MAR._replace(resynchronisation=cx.Resynchronisation(rand, auts)), TO_HSS)

    def test_a_mar_without_a_scheme_or_a_number(self) -> None:
        mar = cx.build_mar(MAR, TO_HSS)
        kept = tuple(avp for avp in mar.avps if avp.code != cx_fields.SIP_NUMBER_AUTH_ITEMS)
        assert cx.parse_mar(DiameterMessage(303, base.CX, True, kept)).items == 1
        bare = tuple(avp for avp in mar.avps if avp.code != cx_fields.SIP_AUTH_DATA_ITEM)
        with pytest.raises(AvpFault) as fault:
            cx.parse_mar(DiameterMessage(303, base.CX, True, (*bare, make_avp(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP, ()))))
        assert (fault.value.code, fault.value.failed) == (5005, make_avp(608, VENDOR_3GPP, ""))

    def test_server_data_goes_behind_rand_and_autn(self) -> None:
        """DESIGN §10: so a S-CSCF that knows nothing of a marker puts it into the nonce."""
        group = over(answers()["MAA"]).first(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP)
        assert group is not None
        authenticate = group.first(cx_fields.SIP_AUTHENTICATE, VENDOR_3GPP)
        assert authenticate is not None
        assert authenticate.data == VECTOR.rand + VECTOR.autn + b"3G\x06\x07"

    def test_items_come_in_the_order_of_their_numbers(self) -> None:
        """§6.3.13; where there are none, in the order in which they stand: PyHSS numbered none."""
        one, two, three = (make_avp(cx_fields.SIP_ITEM_NUMBER, VENDOR_3GPP, number) for number in (1, 2, 3))
        maa = answers()["MAA"]
        group = maa.all(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP)[1].group

        def items(*numbers: Avp | None) -> list[bytes]:
            made = []
            for place, number in enumerate(numbers):
                avps = [avp for avp in group if avp.code not in (cx_fields.SIP_ITEM_NUMBER, cx_fields.SIP_AUTHENTICATE)]
                avps.append(make_avp(cx_fields.SIP_AUTHENTICATE, VENDOR_3GPP, bytes([place]) * 32))
                made.append(make_avp(cx_fields.SIP_AUTH_DATA_ITEM, VENDOR_3GPP, [*avps, *([number] if number else [])]))
            kept = tuple(avp for avp in maa.avps if avp.code != cx_fields.SIP_AUTH_DATA_ITEM)
            return [each.vector.rand[:1] for each in cx.parse_maa(over(DiameterMessage(303, base.CX, False, (*kept, *made)))).items]

        assert items(three, one, two) == [b"\1", b"\2", b"\0"]
        assert items(None, None, None) == [b"\0", b"\1", b"\2"]
        assert items(one, one, one) == [b"\0", b"\1", b"\2"]

    @pytest.mark.parametrize(
        ("name", "octets"),
        [
            ("SIP_AUTHENTICATE", None),
            ("SIP_AUTHENTICATE", bytes(31)),
            ("SIP_AUTHENTICATE", bytes(97)),
            ("SIP_AUTHORIZATION", None),
            ("SIP_AUTHORIZATION", bytes(3)),
            ("SIP_AUTHORIZATION", bytes(17)),
            ("CONFIDENTIALITY_KEY", None),
            ("CONFIDENTIALITY_KEY", bytes(15)),
            ("CONFIDENTIALITY_KEY", bytes(17)),
            ("INTEGRITY_KEY", None),
            ("INTEGRITY_KEY", bytes(15)),
        ],
    )
    def test_a_vector_that_is_none(self, name: str, octets: bytes | None) -> None:
        """One key short would be a registration that nobody can finish."""
        with pytest.raises(ParseError) as problem:
            cx.parse_maa(item(**{name: octets}))
        assert "octets" in str(problem.value)

    def test_a_scheme_is_taken_for_granted_where_the_vector_is_there(self) -> None:
        assert cx.parse_maa(item(SIP_AUTHENTICATION_SCHEME=None)).items == (cx.AuthItem(VECTOR),)

    @pytest.mark.parametrize("scheme", [b"SIP Digest", b"Unknown", b"NASS-Bundled", b"digest-akav1-md5", b""])
    def test_another_scheme_is_an_error_of_cx(self, scheme: bytes) -> None:
        """A user whom the HSS gives a password has no vector: it is no use to ask again."""
        with pytest.raises(CxError) as problem:
            cx.parse_maa(item(SIP_AUTHENTICATION_SCHEME=scheme))
        assert problem.value.code == 5006

    def test_a_maa_without_items(self) -> None:
        with pytest.raises(ParseError):
            cx.parse_maa(cx.build_maa(requests()["MAR"], cx.Maa(IMPI, IMPU, ()), HSS))

    def test_so_many_items_and_no_more(self) -> None:
        maa = cx.build_maa(requests()["MAR"], cx.Maa(None, None, (cx.AuthItem(VECTOR),) * 30), HSS)
        read = cx.parse_maa(over(maa))
        assert (len(read.items), read.impi, read.impu) == (cx_fields.MAX_ITEMS, None, None)

    def test_keys_are_secrets_from_here_on_and_in_no_text(self) -> None:
        read = cx.parse_maa(over(answers()["MAA"]))
        assert [read.items[0].vector.xres, read.items[0].vector.ck, read.items[0].vector.ik] == list(KEYS)
        texts = [repr(read), str(read)]
        for octets in (VECTOR.ck.reveal() + b"!", VECTOR.ck.reveal()[:-1]):
            try:
                cx.parse_maa(item(CONFIDENTIALITY_KEY=octets))
            except ParseError as problem:
                texts += ["".join(traceback.format_exception(problem)), repr(problem)]
        assert len(texts) == 6
        for text in texts:
            for key in KEYS:
                assert repr(key.reveal())[2:-4] not in text
                assert key.reveal().hex() not in text

    @given(IMPIS, IMPUS, SERVERS, st.integers(1, 100), RESYNCHRONISATIONS, TEXTS)
    def test_any_mar(self, impi: Impi, impu: Impu, server: str, items: int, resync: cx.Resynchronisation | None, scheme: str) -> None:
        mar = cx.Mar(impi, impu, server, scheme, items, resync)
        assert cx.parse_mar(over(cx.build_mar(mar, TO_HSS))) == mar

    @given(IMPIS, IMPUS, ITEMS)
    def test_any_maa(self, impi: Impi, impu: Impu, items: tuple[cx.AuthItem, ...]) -> None:
        maa = cx.Maa(impi, impu, items)
        assert cx.parse_maa(over(cx.build_maa(requests()["MAR"], maa, HSS))) == maa


class TestServerAssignment:
    """§6.1.3, §6.1.4."""

    @pytest.mark.parametrize(("impi", "impus"), [(None, (IMPU,)), (IMPI, ()), (IMPI, (IMPU,))])
    def test_either_identity_names_the_user(self, impi: Impi | None, impus: tuple[Impu, ...]) -> None:
        """A S-CSCF de-registers an IMPI whole without Public-Identity, and serves one who is not registered without User-Name."""
        sar = SAR._replace(impi=impi, impus=impus)
        assert cx.parse_sar(over(cx.build_sar(sar, TO_HSS))) == sar

    def test_nobody_is_an_error(self) -> None:
        with pytest.raises(AvpFault) as fault:
            cx.parse_sar(over(cx.build_sar(SAR._replace(impi=None, impus=()), TO_HSS)))
        assert fault.value.code == 5005

    @pytest.mark.parametrize("saa", [cx.Saa(), cx.Saa(IMPI), cx.Saa(result=Result(2004, experimental=True))])
    def test_answers_without_a_profile(self, saa: cx.Saa) -> None:
        assert cx.parse_saa(over(cx.build_saa(requests()["SAR"], saa, HSS))) == saa

    @given(IMPIS, st.binary(max_size=300), st.lists(IMPIS, max_size=4).map(tuple))
    def test_any_saa(self, impi: Impi, user_data: bytes, associated: tuple[Impi, ...]) -> None:
        saa = cx.Saa(impi, user_data, associated=associated)
        assert cx.parse_saa(over(cx.build_saa(requests()["SAR"], saa, HSS))) == saa


class TestOfTheHss:
    """§6.1.9 to §6.1.12: RTR, PPR."""

    @pytest.mark.parametrize("reason", cx.ReasonCode)
    def test_every_reason(self, reason: cx.ReasonCode) -> None:
        rtr = cx.Rtr(IMPI, (), reason)
        assert cx.parse_rtr(over(cx.build_rtr(rtr, TO_SCSCF))) == rtr

    def test_a_reason_without_its_code(self) -> None:
        kept = tuple(avp for avp in requests()["RTR"].avps if avp.code != cx_fields.DEREGISTRATION_REASON)
        group = make_avp(cx_fields.DEREGISTRATION_REASON, VENDOR_3GPP, ())
        with pytest.raises(AvpFault) as fault:
            cx.parse_rtr(DiameterMessage(304, base.CX, True, (*kept, group)))
        assert (fault.value.code, fault.value.failed) == (5005, make_avp(616, VENDOR_3GPP, 0))

    def test_a_ppr_without_a_profile_changes_none(self) -> None:
        kept = tuple(avp for avp in requests()["PPR"].avps if avp.code != cx_fields.USER_DATA)
        assert cx.parse_ppr(DiameterMessage(305, base.CX, True, kept)) == cx.Ppr(IMPI, b"")

    def test_answers(self) -> None:
        assert cx.parse_rta(over(cx.build_rta(requests()["RTR"], cx.Rta(), HSS))) == cx.Rta()
        assert cx.parse_ppa(over(answers()["PPA"])) is None  # type: ignore[func-returns-value]


class TestFuzz:
    """Whatever of a message is changed, a reader gives a value, AvpFault, CxError or ParseError."""

    @settings(max_examples=1_000)
    @given(st.sampled_from(sorted(READ)), st.lists(st.tuples(st.integers(20, 600), st.integers(0, 255)), min_size=1, max_size=4))
    def test_good_messages_with_octets_changed(self, name: str, changes: list[tuple[int, int]]) -> None:
        octets = bytearray(render_message(EVERY[name]))
        for at, value in changes:
            octets[20 + (at - 20) % (len(octets) - 20)] = value
        read(name, bytes(octets))

    @settings(max_examples=500)
    @given(
        st.sampled_from(sorted(READ)),
        st.lists(st.tuples(st.sampled_from([1, 260, 263, 268, 297, *range(600, 660)]), st.booleans(), st.binary(max_size=24)), max_size=5),
        st.integers(0, 15),
    )
    def test_good_messages_with_avps_put_in(self, name: str, more: list[tuple[int, bool, bytes]], fewer: int) -> None:
        added = [Avp(code, VENDOR_3GPP if of_3gpp else 0, data, 0xC0 if of_3gpp else 0x40) for code, of_3gpp, data in more]
        message = EVERY[name]
        avps = (*added, *message.avps[:fewer], *message.avps[fewer + 1 :])
        read(name, render_message(DiameterMessage(message.code, base.CX, message.request, avps)))


def read(name: str, octets: bytes) -> None:
    """Read octets as a command, and answer it if it is a request."""
    try:
        message = parse_message(octets)
    except ParseError:
        return
    try:
        READ[name][0](message)
    except (AvpFault, CxError) as problem:
        if message.request:
            assert cx.cx_error_of(over(cx.build_error(message, problem, HSS))) is not None
    except ParseError:
        assert not message.request or message.code != EVERY[name].code
