# SPDX-License-Identifier: Apache-2.0
"""RFC 6733 §3, §5, §6.2, §7: what every peer says, whatever the application."""

from __future__ import annotations

import pytest
from diameter.message import constants

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import (
    RELAY,
    Application,
    DiameterIdentity,
    DisconnectCause,
    Identifiers,
    PeerCapabilities,
    Result,
    ResultCode,
)
from keyferry.protocol.diameter.message import Avp, AvpFault, DiameterMessage, make_avp, parse_message, render_message
from protocol.diameter.cxkit import HSS, SCSCF, requests

CER = base.build_cer(SCSCF, ["192.0.2.1", "2001:db8::1"]).with_ids(5, 6)


def over(message: DiameterMessage) -> DiameterMessage:
    """Return a message as the other side reads it."""
    return parse_message(render_message(message))


def without(message: DiameterMessage, code: int) -> DiameterMessage:
    """Return a message that lacks an AVP."""
    return DiameterMessage(message.code, message.application, message.request, tuple(avp for avp in message.avps if avp.code != code))


def test_our_codes_are_those_of_the_dictionary() -> None:
    """RFC 6733 §4.5, against the library's table."""
    names = [name for name in vars(base) if name.isupper() and hasattr(constants, f"AVP_{name}")]
    assert {name: getattr(base, name) for name in names} == {name: getattr(constants, f"AVP_{name}") for name in names}
    assert len(names) >= 22
    for code in ResultCode:
        assert getattr(constants, f"E_RESULT_CODE_DIAMETER_{code.name}") == code
    assert base.CX == constants.APP_3GPP_CX


class TestCapabilities:
    """§5.3."""

    def test_a_cer_says_who_we_are(self) -> None:
        """Supported-Vendor-Id in this order: Kamailio's cdp counts them, and keeps as many applications."""
        cer = over(CER)
        assert (cer.code, cer.application, cer.request, cer.proxiable) == (257, 0, True, False)
        assert [avp.name for avp in cer.avps] == [
            "Origin-Host", "Origin-Realm", "Host-IP-Address", "Host-IP-Address", "Vendor-Id", "Product-Name", "Origin-State-Id",
            "Supported-Vendor-Id", "Supported-Vendor-Id", "Vendor-Specific-Application-Id",
        ]  # fmt: skip
        assert [avp.number for avp in cer.all(base.SUPPORTED_VENDOR_ID)] == [10415, 13019]
        assert [avp.value for avp in cer.all(base.HOST_IP_ADDRESS)] == [(1, "192.0.2.1"), (2, "2001:db8::1")]
        product = cer.first(base.PRODUCT_NAME)
        assert product is not None
        assert not product.mandatory  # §4.5: M must not be set

    def test_a_cea_says_the_same_of_us_and_its_result_first(self) -> None:
        cea = over(base.build_cea(CER, HSS, ["192.0.2.2"]))
        assert (cea.request, cea.error, cea.hop_by_hop, cea.end_to_end) == (False, False, 5, 6)
        assert cea.avps[0].name == "Result-Code"
        assert base.result_of(cea) == Result(2001, experimental=False)
        assert base.parse_capabilities(cea) == PeerCapabilities(
            "hss.home1.net", "home1.net", "keyferry", frozenset({base.CX}), (10415, 13019), None
        )
        assert base.parse_capabilities(over(CER)).origin_state == 7

    @pytest.mark.parametrize(("code", "error"), [(3010, True), (5010, False)])
    def test_a_cea_that_refuses(self, code: int, error: bool) -> None:
        cea = over(base.build_cea(CER, HSS, ["192.0.2.2"], code))
        assert (base.result_of(cea).code, cea.error) == (code, error)

    def test_applications_are_told_in_three_ways(self) -> None:
        identity = DiameterIdentity("a", "b", applications=(Application(4, 0), Application(base.CX, 10415)))
        assert base.parse_capabilities(base.build_cer(identity, [])).applications == {4, base.CX}
        accounting = make_avp(base.ACCT_APPLICATION_ID, 0, 3)
        group = make_avp(base.VENDOR_SPECIFIC_APPLICATION_ID, 0, (accounting, make_avp(base.VENDOR_ID, 0, 10415)))
        message = DiameterMessage(257, 0, True, (*SCSCF.origin, accounting, group))
        assert base.parse_capabilities(message).applications == {3}

    def test_so_many_are_read_and_no_more(self) -> None:
        many = tuple(make_avp(base.AUTH_APPLICATION_ID, 0, number) for number in range(300))
        vendors = tuple(make_avp(base.SUPPORTED_VENDOR_ID, 0, number) for number in range(200))
        peer = base.parse_capabilities(DiameterMessage(257, 0, True, (*SCSCF.origin, *many, *vendors)))
        assert (len(peer.applications), len(peer.vendor_ids)) == (base.MAX_ADVERTISED, base.MAX_ADVERTISED)

    def test_common_applications(self) -> None:
        def common(*ids: int) -> frozenset[int]:
            return base.common_applications(HSS, PeerCapabilities("a", "b", applications=frozenset(ids)))

        assert common(base.CX, 4) == {base.CX}
        assert common(4) == frozenset()
        assert common() == frozenset()
        assert common(RELAY) == {base.CX}

    @pytest.mark.parametrize(("code", "result"), [(base.ORIGIN_HOST, 5005), (base.ORIGIN_REALM, 5005)])
    def test_nobody_is_refused_by_name(self, code: int, result: int) -> None:
        with pytest.raises(AvpFault) as fault:
            base.parse_capabilities(without(CER, code))
        assert fault.value.code == result
        assert fault.value.failed is not None
        assert fault.value.failed.code == code

    @pytest.mark.parametrize("octets", [b"", b"x" * 256, b"\xff", b"a\nb"])
    def test_a_name_that_is_none(self, octets: bytes) -> None:
        message = DiameterMessage(257, 0, True, (Avp(base.ORIGIN_HOST, 0, octets, 0x40), SCSCF.origin[1]))
        with pytest.raises(AvpFault) as fault:
            base.parse_capabilities(message)
        assert fault.value.code == 5004

    def test_names_are_of_the_dns(self) -> None:
        message = DiameterMessage(257, 0, True, (make_avp(base.ORIGIN_HOST, 0, "HSS.Home1.NET"), SCSCF.origin[1]))
        assert base.identity_of(message, base.ORIGIN_HOST) == "hss.home1.net"

    @pytest.mark.parametrize("missing", [base.HOST_IP_ADDRESS, base.VENDOR_ID, base.PRODUCT_NAME])
    def test_what_nobody_needs_may_be_missing(self, missing: int) -> None:
        assert base.parse_capabilities(without(CER, missing)).origin_host == "scscf1.home1.net"

    def test_an_address_that_is_none_is_our_mistake(self) -> None:
        with pytest.raises(LocalProtocolError):
            base.build_cer(SCSCF, ["localhost.example"])


class TestWatchdogAndDisconnection:
    """§5.4, §5.5."""

    def test_a_watchdog_and_its_answer(self) -> None:
        dwr = over(base.build_dwr(SCSCF)).with_ids(1, 2)
        dwa = over(base.build_dwa(dwr, HSS))
        assert [avp.name for avp in dwr.avps] == ["Origin-Host", "Origin-Realm", "Origin-State-Id"]
        assert [avp.name for avp in dwa.avps] == ["Result-Code", "Origin-Host", "Origin-Realm"]
        assert (dwr.code, dwr.request, dwa.code, dwa.request, dwa.hop_by_hop, dwa.end_to_end) == (280, True, 280, False, 1, 2)

    @pytest.mark.parametrize("cause", DisconnectCause)
    def test_a_disconnection_and_its_answer(self, cause: DisconnectCause) -> None:
        dpr = over(base.build_dpr(SCSCF, cause))
        assert base.parse_dpr(dpr) is cause
        assert base.result_of(over(base.build_dpa(dpr, HSS))).success

    def test_a_cause_that_nobody_knows_means_the_least(self) -> None:
        assert base.parse_dpr(DiameterMessage(282, 0, True)) is DisconnectCause.REBOOTING
        for octets in (b"\0\0\0\x09", b"", b"\0\0\0\0\0"):
            message = DiameterMessage(282, 0, True, (Avp(base.DISCONNECT_CAUSE, 0, octets, 0x40),))
            assert base.parse_dpr(message) is DisconnectCause.REBOOTING


class TestAnswers:
    """§6.2, §7."""

    def test_an_answer_has_what_the_request_had(self) -> None:
        """§6.2: identifiers, P, Session-Id first (§8.8), Proxy-Info as it came and in its order."""
        proxies = tuple(make_avp(base.PROXY_INFO, 0, (make_avp(base.PROXY_HOST, 0, f"p{number}"),)) for number in range(2))
        mar = requests()["MAR"]
        request = DiameterMessage(303, base.CX, True, (proxies[0], *mar.avps, proxies[1]), proxiable=True, hop_by_hop=1, end_to_end=2)
        answer = base.answer_to(request, (HSS.origin[0],))
        assert [avp.name for avp in answer.avps] == ["Session-Id", "Origin-Host", "Proxy-Info", "Proxy-Info"]
        assert answer.avps[2:] == proxies
        assert (answer.request, answer.proxiable, answer.error, answer.hop_by_hop, answer.end_to_end) == (False, True, False, 1, 2)
        assert not base.answer_to(CER, ()).proxiable
        assert not base.answer_to(request.with_ids(1, 2, retransmitted=True), ()).retransmitted

    @pytest.mark.parametrize(("code", "error"), [(3001, True), (3999, True), (4002, False), (5001, False)])
    def test_an_error_says_which_and_why(self, code: int, error: bool) -> None:
        """§7.2: the E bit is for protocol errors."""
        answer = over(base.error_answer(requests()["MAR"], code, HSS, failed=make_avp(1, 0, "x"), message="why"))
        assert (base.result_of(answer), answer.error) == (Result(code, experimental=False), error)
        failed, message = answer.first(base.FAILED_AVP), answer.first(base.ERROR_MESSAGE)
        assert failed is not None
        assert failed.data.hex() == "000000014000000978000000"
        assert message is not None
        assert (message.text, message.mandatory) == ("why", False)

    @pytest.mark.parametrize("code", [base.SESSION_ID, base.PROXY_INFO])
    def test_whatever_a_request_was_its_answer_fits(self, code: int) -> None:
        """Else a peer could bring about what we cannot send."""
        mar = requests()["MAR"]
        long = Avp(code, 0, bytes(1_000_000), 0x40)
        kept = tuple(avp for avp in mar.avps if avp.code != code)
        request = DiameterMessage(303, base.CX, True, (long, *kept), hop_by_hop=1)
        answer = over(base.error_answer(request, 5001, HSS, failed=Avp(9, 9, bytes(1_000_000), 0xC0)))
        assert answer.hop_by_hop == 1
        assert answer.first(code) is None
        failed = answer.first(base.FAILED_AVP)
        assert failed is not None
        assert failed.data.hex() == "00000009c000000c00000009"

    def test_a_result_of_a_vendor_says_more(self) -> None:
        """PyHSS sends both."""
        experimental = make_avp(base.EXPERIMENTAL_RESULT, 0, (make_avp(base.EXPERIMENTAL_RESULT_CODE, 0, 5001),))
        plain = make_avp(base.RESULT_CODE, 0, 2001)
        assert base.result_of(DiameterMessage(303, base.CX, False, (plain, experimental))) == Result(5001, experimental=True)
        empty = make_avp(base.EXPERIMENTAL_RESULT, 0, ())
        assert base.result_of(DiameterMessage(303, base.CX, False, (empty, plain))) == Result(2001, experimental=False)
        with pytest.raises(ParseError):
            base.result_of(DiameterMessage(303, base.CX, False, (empty,)))

    @pytest.mark.parametrize(("code", "success"), [(1999, False), (2000, True), (2001, True), (2999, True), (3000, False), (0, False)])
    def test_success(self, code: int, success: bool) -> None:
        assert Result(code, experimental=False).success is success


class TestIdentifiers:
    """§3, §8.8."""

    def test_they_count_and_come_round(self) -> None:
        numbers = Identifiers(0xFFFF_FFFE, 0xFFFF_FFFF)
        assert [numbers.hop_by_hop() for _ in range(3)] == [0xFFFF_FFFF, 0, 1]
        assert [numbers.end_to_end() for _ in range(2)] == [0, 1]

    def test_end_to_end_begins_with_the_time(self) -> None:
        """§3: twelve bits of the time, twenty of chance."""
        assert base.first_end_to_end(0x1234_5ABC + 0.9, 0xFFF1_2345) == 0xABC1_2345

    def test_a_session_id(self) -> None:
        assert base.session_id("scscf1.home1.net", 2**32 + 5, 7) == "scscf1.home1.net;5;7"
