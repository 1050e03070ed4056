# SPDX-License-Identifier: Apache-2.0
"""Who is who in captures that show a part of the way."""

from __future__ import annotations

from keyferry.lab.trace_parties import Parties
from keyferry.protocol.capture.packets import Endpoint
from lab.tracekit import credentials, cx, drawn, register, registration, third_party, traced
from protocol.capture.capturekit import AS, HSS, ICSCF, PCSCF, SCSCF, START, UE

FIRST = credentials('nonce="", response=""')


def parties(frames: list[tuple[float, bytes]]) -> Parties:
    return Parties([row for one in traced(frames).subscribers for row in one.rows])


def test_a_capture_at_the_p_cscf_shows_it_and_the_next() -> None:
    """What stands behind may be an I-CSCF or the S-CSCF."""
    found = parties([frame for place, frame in enumerate(registration()) if place in (0, 1, 4, 5)])
    assert [found.of(end) for end in (UE, PCSCF, ICSCF, SCSCF)] == ["UE", "P-CSCF", "I/S-CSCF", "10.0.0.4:6060"]
    assert parties(registration()[:1]).of(PCSCF) == "P-CSCF"


def test_a_p_cscf_that_hides_the_ue_is_known_by_its_path() -> None:
    """A back-to-back user agent keeps no Via; Path and integrity-protected are a P-CSCF's (TS 24.229 §5.2.2)."""
    hidden = register(1, 1, FIRST)
    hidden = hidden.replacing("Via", hidden.all("Via")[0])
    found = parties(drawn([("mw", PCSCF, SCSCF, hidden)]))
    assert (found.of(PCSCF), found.of(SCSCF)) == ("P-CSCF", "I/S-CSCF")


def test_another_port_of_a_known_host_is_the_same_party() -> None:
    """The protected ports of a UE (TS 33.203 §7.1)."""
    found = parties(registration())
    assert found.of(Endpoint(UE.host, 50_001)) == "UE"
    assert found.is_known(UE)
    assert not found.is_known(Endpoint("192.0.2.9", 1))


def test_an_application_server_is_named_by_the_request_uri() -> None:
    """An address there names nobody."""
    assert parties(drawn([("push", SCSCF, AS, third_party())])).of(AS) == "AS xcap-as"
    for uri in ("sip:10.0.0.5:5090", "sip:[2001:db8::5]", "tel:+1555"):
        request = third_party()
        numeric = type(request)("REGISTER", uri, request.headers, request.body)
        assert parties(drawn([("push", SCSCF, AS, numeric)])).of(AS) == "AS"


def test_diameter_names_its_ends() -> None:
    """MAR is of the S-CSCF, whatever else that host does."""
    found = parties(cx(START))
    assert (found.of(HSS), found.of(Endpoint(SCSCF.host, 33_000))) == ("HSS", "S-CSCF")


def test_a_long_way_has_proxies() -> None:
    """More hops than TS 23.228 draws."""
    long = register(2, 1, FIRST).prepending("Via", "SIP/2.0/UDP h;branch=z9hG4bKx")
    assert parties(drawn([("mw", ICSCF, SCSCF, long)])).of(ICSCF) == "proxy"
