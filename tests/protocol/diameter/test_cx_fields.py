# SPDX-License-Identifier: Apache-2.0
"""TS 29.229 §6: codes and results of Cx, and what every command has in common."""

from __future__ import annotations

import pytest
from diameter.message import constants

from keyferry.errors import CxError, ParseError
from keyferry.protocol.diameter import base, cx, cx_fields
from keyferry.protocol.diameter.base import Result, ResultCode
from keyferry.protocol.diameter.cx_fields import CxResult, Fields, cx_error_of, error_for
from keyferry.protocol.diameter.message import VENDOR_3GPP, Avp, AvpFault, DiameterMessage, make_avp
from protocol.diameter.cxkit import FIRST, HSS, IMPU, MAR, SAR, answers, requests

OF_SIP = ("NUMBER_AUTH_ITEMS", "AUTHENTICATION_SCHEME", "AUTHENTICATE", "AUTHORIZATION", "AUTH_DATA_ITEM", "ITEM_NUMBER")
RENAMED = {"USER_DATA": "CX_USER_DATA"} | {f"SIP_{name}": f"3GPP_SIP_{name}" for name in OF_SIP}


def changed(message: DiameterMessage, *more: Avp, without: int | None = None) -> DiameterMessage:
    """Return a message with AVPs more, or without some."""
    kept = tuple(avp for avp in message.avps if avp.code != without)
    return DiameterMessage(message.code, message.application, message.request, (*kept, *more), message.proxiable)


def test_our_codes_are_those_of_the_dictionary() -> None:
    """TS 29.229 §6.3, against the library's table."""
    names = [name for name, value in vars(cx_fields).items() if name.isupper() and isinstance(value, int) and 600 <= value < 700]
    assert len(names) == 22
    for name in names:
        assert getattr(constants, f"AVP_TGPP_{RENAMED.get(name, name)}") == getattr(cx_fields, name), name


@pytest.mark.parametrize("kind", [cx.UserAuthorizationType, cx.ReasonCode])
def test_our_enumerations_are_those_of_the_dictionary(kind: type[cx.UserAuthorizationType]) -> None:
    prefix = {"UserAuthorizationType": "E_USER_AUTHORIZATION_TYPE", "ReasonCode": "E_REASON_CODE"}[kind.__name__]
    assert {value.name: value for value in kind} == {
        name.removeprefix(f"{prefix}_"): value for name, value in vars(constants).items() if name.startswith(f"{prefix}_")
    }


class TestHeads:
    """TS 29.229 §5, §6.1: what each command begins with."""

    @pytest.mark.parametrize("name", requests())
    def test_of_a_request(self, name: str) -> None:
        message = requests()[name]
        assert (message.application, message.request, message.proxiable) == (16_777_216, True, True)
        assert [avp.name for avp in message.avps[:7]] == [
            "Session-Id", "Vendor-Specific-Application-Id", "Auth-Session-State", "Origin-Host", "Origin-Realm", "Destination-Host",
            "Destination-Realm",
        ]  # fmt: skip
        assert message.avps[2].number == 1  # NO_STATE_MAINTAINED

    @pytest.mark.parametrize("name", answers())
    def test_of_an_answer(self, name: str) -> None:
        message = answers()[name]
        assert (message.request, message.proxiable, message.hop_by_hop, message.end_to_end) == (False, True, 0xFFFF_FFFF, 5)
        assert [avp.name for avp in message.avps[:2]] == ["Session-Id", "Vendor-Specific-Application-Id"]
        assert [avp.name for avp in message.avps[3:6]] == ["Auth-Session-State", "Origin-Host", "Origin-Realm"]

    @pytest.mark.parametrize("name", requests() | answers())
    def test_an_avp_of_3gpp_has_its_flags(self, name: str) -> None:
        """§6.3, table 6.3.1: V and M; Associated-Identities without M."""
        todo = list((requests() | answers())[name].avps)
        while todo:
            avp = todo.pop()
            todo += avp.group
            expected = 0x40 if not avp.vendor else 0x80 if avp.code == cx_fields.ASSOCIATED_IDENTITIES else 0xC0
            assert (avp.vendor in (0, VENDOR_3GPP), avp.flags) == (True, expected), avp

    def test_a_request_to_any_hss_of_the_realm(self) -> None:
        route = cx.Route(HSS, "s;1;1", "home1.net")
        assert cx.build_mar(MAR, route).first(base.DESTINATION_HOST) is None


class TestResults:
    """TS 29.229 §6.2; RFC 6733 §7."""

    def test_a_result_of_cx(self) -> None:
        problem = error_for(CxResult.ERROR_USER_UNKNOWN)
        assert (problem.code, problem.name, problem.experimental) == (5001, "DIAMETER_ERROR_USER_UNKNOWN", True)
        answer = cx.build_error(requests()["MAR"], problem, HSS)
        group = answer.first(base.EXPERIMENTAL_RESULT)
        assert group is not None
        assert [(avp.name, avp.number) for avp in group.group] == [("Vendor-Id", 10415), ("Experimental-Result-Code", 5001)]
        assert answer.first(base.RESULT_CODE) is None
        assert not answer.error

    @pytest.mark.parametrize("code", CxResult)
    def test_results_of_cx_go_over_and_come_back(self, code: CxResult) -> None:
        if 2000 <= code < 3000:
            uaa = cx.Uaa(Result(code, experimental=True))
            assert cx.parse_uaa(cx.build_uaa(requests()["UAR"], uaa, HSS)) == uaa
        else:
            found = cx_error_of(cx.build_error(requests()["UAR"], error_for(code), HSS))
            assert found is not None
            assert (found.code, found.name, found.experimental) == (code, f"DIAMETER_{code.name}", True)

    @pytest.mark.parametrize("code", [code for code in ResultCode if code >= 3000])
    def test_results_of_the_base_protocol_go_over_and_come_back(self, code: ResultCode) -> None:
        answer = cx.build_error(requests()["UAR"], error_for(code), HSS)
        found = cx_error_of(answer)
        assert found is not None
        assert (found.code, found.name, found.experimental) == (code, f"DIAMETER_{code.name}", False)
        assert answer.error is (code < 4000)

    @pytest.mark.parametrize(
        ("result", "name", "experimental"),
        [(Result(5999, experimental=True), "DIAMETER_ERROR_5999", True), (Result(4100, experimental=False), "DIAMETER_RESULT_4100", False)],
    )
    def test_a_code_that_nobody_knows_keeps_its_number(self, result: Result, name: str, experimental: bool) -> None:
        """PyHSS answers 4100 as a base code where it failed."""
        found = cx_error_of(cx_fields.build_answer(requests()["MAR"], result, HSS))
        assert found is not None
        assert (found.code, found.name, found.experimental) == (result.code, name, experimental)

    def test_a_fault_is_answered_with_its_avp(self) -> None:
        fault = AvpFault(ResultCode.MISSING_AVP, "", make_avp(1, 0, ""))
        answer = cx.build_error(requests()["MAR"], fault, HSS)
        failed = answer.first(base.FAILED_AVP)
        assert base.result_of(answer) == Result(5005, experimental=False)
        assert failed is not None
        assert failed.group == (make_avp(1, 0, ""),)

    def test_a_success_is_no_error(self) -> None:
        assert cx_error_of(answers()["UAA"]) is None
        assert cx_error_of(answers()["MAA"]) is None

    def test_no_result_at_all(self) -> None:
        with pytest.raises(ParseError):
            cx_error_of(changed(answers()["MAA"], without=base.RESULT_CODE))


class TestFields:
    """RFC 6733 §4.1, §7.1.5: what is asked of who gets a request."""

    def test_a_mandatory_avp_that_is_not_understood_is_named(self) -> None:
        """5001, AVP_UNSUPPORTED, with Failed-AVP."""
        for strange in (make_avp(40_000, 40_000, b"x", mandatory=True), make_avp(1407, VENDOR_3GPP, b"x"), make_avp(25, 0, b"x")):
            with pytest.raises(AvpFault) as fault:
                Fields(changed(requests()["MAR"], strange), cx.MULTIMEDIA_AUTH)
            assert fault.value.code == 5001
            assert fault.value.failed is strange

    def test_one_that_need_not_be_understood_is_passed_over(self) -> None:
        strange = make_avp(40_000, 40_000, b"x"), make_avp(1407, VENDOR_3GPP, b"x", mandatory=False), make_avp(301, 0, 1)
        assert cx.parse_mar(changed(requests()["MAR"], *strange)) == MAR

    def test_every_avp_of_cx_is_passed_over_where_it_is_not_used(self) -> None:
        """Supported-Features, SCSCF-Restoration-Info, UAR-Flags …: a S-CSCF may send them to any HSS."""
        more = make_avp(628, VENDOR_3GPP, (make_avp(629, VENDOR_3GPP, 1),)), make_avp(637, VENDOR_3GPP, 1), make_avp(655, VENDOR_3GPP, 1)
        route_record = make_avp(base.ROUTE_RECORD, 0, "dra.home1.net")
        assert cx.parse_mar(changed(requests()["MAR"], *more, route_record)) == MAR

    @pytest.mark.parametrize("code", [base.USER_NAME, cx_fields.PUBLIC_IDENTITY, cx_fields.SERVER_NAME, cx_fields.SIP_AUTH_DATA_ITEM])
    def test_what_may_be_there_once(self, code: int) -> None:
        """5009: which of two would be meant, two parsers would say differently."""
        message = requests()["MAR"]
        again = next(avp for avp in message.avps if avp.code == code)
        second = Avp(again.code, again.vendor, again.data, again.flags, again.group)
        with pytest.raises(AvpFault) as fault:
            cx.parse_mar(changed(message, second))
        assert (fault.value.code, fault.value.failed) == (5009, second)

    @pytest.mark.parametrize("code", [base.USER_NAME, cx_fields.PUBLIC_IDENTITY, cx_fields.SERVER_NAME, cx_fields.SIP_AUTH_DATA_ITEM])
    def test_what_must_be_there(self, code: int) -> None:
        """5005, with an example of what is missing (RFC 6733 §7.5)."""
        with pytest.raises(AvpFault) as fault:
            cx.parse_mar(changed(requests()["MAR"], without=code))
        assert fault.value.code == 5005
        assert fault.value.failed is not None
        assert fault.value.failed.code == code

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("UAR", cx_fields.VISITED_NETWORK_IDENTIFIER),
            ("SAR", cx_fields.SERVER_ASSIGNMENT_TYPE),
            ("SAR", cx_fields.SERVER_NAME),
            ("RTR", cx_fields.DEREGISTRATION_REASON),
            ("PPR", base.USER_NAME),
            ("LIR", cx_fields.PUBLIC_IDENTITY),
        ],
    )
    def test_what_must_be_there_of_others(self, name: str, code: int) -> None:
        parse = {"UAR": cx.parse_uar, "SAR": cx.parse_sar, "RTR": cx.parse_rtr, "PPR": cx.parse_ppr, "LIR": cx.parse_lir}[name]
        with pytest.raises(AvpFault) as fault:
            parse(changed(requests()[name], without=code))
        assert fault.value.code == 5005
        assert fault.value.failed is not None
        assert fault.value.failed.code == code

    @pytest.mark.parametrize("text", ["", "user1", "user1@", "a b@home1.net", "sip:user1@home1.net", "x" * 300 + "@home1.net"])
    def test_an_identity_that_can_be_nobodys_is_unknown(self, text: str) -> None:
        """TS 29.228 §6: USER_UNKNOWN, an Experimental-Result."""
        for code, vendor in ((base.USER_NAME, 0), (cx_fields.PUBLIC_IDENTITY, VENDOR_3GPP)):
            if code == cx_fields.PUBLIC_IDENTITY and text.startswith("sip:"):
                continue
            message = changed(changed(requests()["MAR"], without=code), make_avp(code, vendor, text))
            with pytest.raises(CxError) as problem:
                cx.parse_mar(message)
            assert (problem.value.code, problem.value.experimental) == (5001, True)

    def test_an_identity_that_is_no_text(self) -> None:
        message = changed(changed(requests()["MAR"], without=base.USER_NAME), Avp(base.USER_NAME, 0, b"\xff@home1.net", 0x40))
        with pytest.raises(AvpFault) as fault:
            cx.parse_mar(message)
        assert fault.value.code == 5004

    def test_a_public_identity_is_canonical(self) -> None:
        """TS 23.003 §13.4: what the S-CSCF heard may have parameters and a host in capitals."""
        written = make_avp(cx_fields.PUBLIC_IDENTITY, VENDOR_3GPP, "sip:user1_public1@HOME1.net;user=phone")
        assert cx.parse_lir(changed(changed(requests()["LIR"], without=cx_fields.PUBLIC_IDENTITY), written)).impu == IMPU

    def test_so_many_public_identities_and_no_more(self) -> None:
        identities = [make_avp(cx_fields.PUBLIC_IDENTITY, VENDOR_3GPP, f"sip:u{number}@home1.net") for number in range(101)]
        sar = changed(requests()["SAR"], without=cx_fields.PUBLIC_IDENTITY)
        assert len(cx.parse_sar(changed(sar, *identities[:100])).impus) == 100
        with pytest.raises(AvpFault) as fault:
            cx.parse_sar(changed(sar, *identities))
        assert fault.value.code == 5009

    @pytest.mark.parametrize("number", [15, 255, 2**32 - 1])
    def test_an_enumeration_that_has_no_such_value(self, number: int) -> None:
        """5004, INVALID_AVP_VALUE."""
        sar = changed(requests()["SAR"], without=cx_fields.SERVER_ASSIGNMENT_TYPE)
        wrong = Avp(cx_fields.SERVER_ASSIGNMENT_TYPE, VENDOR_3GPP, number.to_bytes(4, "big"), 0xC0)
        with pytest.raises(AvpFault) as fault:
            cx.parse_sar(changed(sar, wrong))
        assert (fault.value.code, fault.value.failed) == (5004, wrong)

    @pytest.mark.parametrize("assignment", cx.ServerAssignmentType)
    def test_every_assignment(self, assignment: cx.ServerAssignmentType) -> None:
        sar = SAR._replace(assignment=assignment)
        assert cx.parse_sar(cx.build_sar(sar, cx.Route(HSS, "s;1;1", "home1.net"))) == sar

    @pytest.mark.parametrize("name", requests())
    def test_another_command_is_not_read(self, name: str) -> None:
        parsers = {
            "UAR": cx.parse_uar,
            "LIR": cx.parse_lir,
            "MAR": cx.parse_mar,
            "SAR": cx.parse_sar,
            "RTR": cx.parse_rtr,
            "PPR": cx.parse_ppr,
        }
        for other, parse in parsers.items():
            if other != name:
                with pytest.raises(ParseError):
                    parse(requests()[name])
        with pytest.raises(ParseError):
            parsers[name](answers()[f"{name[:2]}A"])


def test_identities_of_an_answer_may_be_anything() -> None:
    """PyHSS once put an IMSI into Public-Identity."""
    maa = answers()["MAA"]
    other = changed(changed(maa, without=cx_fields.PUBLIC_IDENTITY), make_avp(cx_fields.PUBLIC_IDENTITY, VENDOR_3GPP, "001011234567081"))
    read = cx.parse_maa(changed(other, without=base.USER_NAME))
    assert (read.impi, read.impu, len(read.items)) == (None, None, 2)
    assert cx.parse_maa(changed(changed(maa, without=base.USER_NAME), Avp(1, 0, b"\xff", 0x40))).impi is None


def test_associated_identities_are_read_as_far_as_they_are_some() -> None:
    group = make_avp(
        cx_fields.ASSOCIATED_IDENTITIES,
        VENDOR_3GPP,
        (
            make_avp(1, 0, "a@home1.net"),
            make_avp(1, 0, "nobody"),
            Avp(1, 0, b"\xff", 0x40),
            make_avp(266, 0, 1),
            make_avp(1, 0, "b@home1.net"),
        ),
    )
    saa = changed(answers()["SAA"], group, without=cx_fields.ASSOCIATED_IDENTITIES)
    assert cx.parse_saa(saa).associated == ("a@home1.net", "b@home1.net")
    assert FIRST.success
