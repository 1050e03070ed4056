# SPDX-License-Identifier: Apache-2.0
"""The ladder: what is drawn, and that it never says a key."""

from __future__ import annotations

from keyferry.lab.ladder import Ladder, Step, draw, note_of
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import aka_nonce
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.keypush import Push, seal_push
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.sip.message import Message, Request, Response

PCSCF = SipPeer("UDP", "127.0.0.1", 5060)
UE = SipPeer("UDP", "127.0.0.1", 40_000)
CK = "00" * 15 + "ff"


def request(*headers: tuple[str, str], body: bytes = b"") -> Request:
    """A REGISTER of the UE."""
    return Request("REGISTER", "sip:home1.net", (("Via", "SIP/2.0/UDP 127.0.0.1:40000;branch=z9hG4bK1"), *headers), body)


def challenge(server_data: bytes, rest: str = "") -> Response:
    """A 401."""
    nonce = aka_nonce(bytes(16), bytes(16), server_data)
    via = ("Via", "SIP/2.0/UDP 127.0.0.1:40000;branch=z9hG4bK1")
    return Response(401, "Unauthorized", (via, ("WWW-Authenticate", f'Digest realm="r", nonce="{nonce}", algorithm=AKAv1-MD5{rest}')))


def event(message: Message, node: str, outgoing: bool, peer: SipPeer, at: float = 10.0) -> SipEvent:
    """One event at a node."""
    return SipEvent(at, node, outgoing, PCSCF, peer, 1400, message, retransmission=False)


def credentials(rest: str) -> tuple[str, str]:
    """An Authorization header."""
    return ("Authorization", f'Digest username="a@r", realm="r", uri="sip:r", {rest}')


def test_requests_and_responses_run_between_named_parties() -> None:
    ladder = Ladder()
    ladder.phase = "first"
    ladder.names["127.0.0.1", 5060] = "P-CSCF"
    ladder.observe(event(request(), "UE", True, PCSCF, 10.0))
    ladder.observe(event(request(), "P-CSCF", False, UE, 10.1))
    ladder.observe(event(challenge(b""), "P-CSCF", True, UE, 10.5))
    assert [(step.source, step.target, step.what, round(step.at, 3)) for step in ladder.steps] == [
        ("UE", "P-CSCF", "REGISTER", 0.0),
        ("P-CSCF", "UE", "401 Unauthorized", 0.5),
    ]
    assert ladder.steps[0].size_mark == "> 1300"


def test_a_ladder_is_drawn_with_a_heading_for_each_phase() -> None:
    steps = [
        Step("one", 0.0, "UE A", "P-CSCF", "UDP", "REGISTER", 500, "states release 6"),
        Step("one", 0.1, "S-CSCF", "P-CSCF", "TCP", "401 Unauthorized", 1600, "", retransmission=True),
    ]
    assert draw(steps) == [
        "",
        "one",
        "  UE A    P-CSCF   S-CSCF",
        "    │───────>│        │     UDP   500        REGISTER  states release 6",
        "    │        │<───────│     TCP  1600 > 1500 401 Unauthorized (again)",
    ]


def test_what_went_in_esp_is_marked_with_the_octets_on_the_wire() -> None:
    """RFC 3261 §18.1.1 asks nothing of a tunnel; fragments it makes all the same."""
    ladder = Ladder()
    ladder.names["127.0.0.1", 5060] = "P-CSCF"
    ladder.observe(event(request(), "UE", True, PCSCF._replace(transport="ESP"))._replace(wire=1_476))
    ladder.observe(event(request(), "UE", True, PCSCF._replace(transport="ESP"))._replace(wire=1_508))
    assert [step.size_mark for step in ladder.steps] == ["", "> 1500"]
    assert [step.said for step in ladder.steps] == [f"REGISTER  [in ESP: {wire} octets]" for wire in (1_476, 1_508)]
    assert "ESP  1400        REGISTER  [in ESP: 1476 octets]" in draw(ladder.steps)[3]


def test_notes_say_what_matters() -> None:
    release = ("Contact", '<sip:a@b>;+g.keyferry.release="6"')
    assert note_of(request(release)) == "states release 6"
    assert note_of(request(("Contact", "<sip:a@b>"), ("Expires", "0"))) == "de-registers; states no release"
    assert note_of(request(credentials('nonce="n", response="", auts="YQ=="'))) == "auts: SQN not fresh"
    assert note_of(request(credentials('nonce="n", response=""'))) == "empty response: MAC wrong"
    answer = credentials('nonce="n", response="r", qop=auth, nc=00000001, cnonce="c", integrity-protected="no"')
    assert note_of(request(answer, ("Path", "<sip:p>"))) == "integrity-protected=no; answers: response, qop=auth; Path"
    assert note_of(challenge(b"")) == "no marker: Release 5; no ck, ik"
    assert note_of(challenge(b"3G\x06\x07", f', ck="{CK}", ik="{CK}"')) == "marker: release 6, flags 7; CK', IK' for the P-CSCF"
    assert note_of(challenge(b"3G\x06\x00", f', ck="{CK}", ik="{CK}"')) == "marker: release 6, flags 0; CK, IK for the P-CSCF"
    assert note_of(Response(200, "OK", (("Authentication-Info", 'rspauth="00"'),))) == "rspauth: the S-CSCF proves itself"
    assert note_of(Response(200, "OK", ())) == ""
    assert note_of(request(("Authorization", "Basic x"))).startswith("not readable: ")


def test_a_push_is_named_but_not_opened() -> None:
    push = Push(1, Impi("a@home1.net"), AsId("xcap.home1.net"), Reg("abcdefghijkl"), (), (Impu("sip:a@home1.net"),), None)
    sealed = seal_push(push, transport_key=Secret(bytes(64)), scscf="scscf1.home1.net", kid="t1")

    def third_party(expires: int, service_info: str | None) -> Request:
        return build_third_party_register(
            server_name="sip:as", scscf_uri="sip:scscf1.home1.net", impu="sip:a@home1.net", expires=expires, call_id="c", cseq=1,
            from_tag="t", service_info=service_info,
        ).without("Event")  # fmt: skip

    assert note_of(third_party(600, sealed)) == "key block for xcap.home1.net, sealed by scscf1.home1.net, kid t1"
    assert note_of(third_party(0, sealed)).startswith("ends the keys: key block")
    assert note_of(third_party(600, "naf=x")) == "service-info without a key block"
