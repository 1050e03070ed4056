# SPDX-License-Identifier: Apache-2.0
"""A capture explained: ladders, data, text, limits; and no key anywhere."""

from __future__ import annotations

import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.lab import trace as trace_module
from keyferry.lab.trace import Trace, text_of, trace_capture
from keyferry.protocol.capture.packets import Endpoint
from keyferry.protocol.sip.message import Message, Request, Response, build_message
from lab.tracekit import IMPI, IMPU, SECRETS, Frames, credentials, cx, drawn, keep, push_answer, register, registration, third_party, traced
from protocol.capture.capturekit import (
    AS,
    PCSCF,
    SCSCF,
    START,
    UE,
    avp,
    diameter,
    ethernet,
    nonce,
    pcap,
    sent,
    tcp,
    udp,
)  # fmt: skip


def text(trace: Trace) -> str:
    return "\n".join(text_of(trace))


def test_a_registration_becomes_a_ladder_between_named_parties() -> None:
    """Names from Via, Path and the third-party REGISTER."""
    (one,) = traced(registration()).subscribers
    assert (one.impi, one.impus) == (IMPI, [IMPU])
    assert [(step.source, step.target, step.what) for step in one.steps] == [
        ("UE", "P-CSCF", "REGISTER"),
        ("P-CSCF", "I-CSCF", "REGISTER"),
        ("I-CSCF", "S-CSCF", "REGISTER"),
        ("S-CSCF", "I-CSCF", "401 Unauthorized"),
        ("I-CSCF", "P-CSCF", "401 Unauthorized"),
        ("P-CSCF", "UE", "401 Unauthorized"),
        ("UE", "P-CSCF", "REGISTER"),
        ("P-CSCF", "I-CSCF", "REGISTER"),
        ("I-CSCF", "S-CSCF", "REGISTER"),
        ("S-CSCF", "AS xcap-as", "REGISTER"),
        ("AS xcap-as", "S-CSCF", "200 OK"),
        ("S-CSCF", "I-CSCF", "200 OK"),
        ("I-CSCF", "P-CSCF", "200 OK"),
        ("P-CSCF", "UE", "200 OK"),
    ]
    assert one.hints == []
    assert {step.phase for step in one.steps} == {"1. registration, 2027-01-15 08:00:00.000000 UTC, Call-ID call-1"}


def test_the_text_says_the_marker_bit_by_bit_and_the_nonce_in_its_parts() -> None:
    """DESIGN §4; RFC 3310 §3.2."""
    lines = text(traced(registration()))
    for said in (
        "nonce 36 octets: RAND " + "01" * 16,
        "SQN xor AK 000102030405 (SQN cannot be told without K), AMF 0607, MAC 08090a0b0c0d0e0f",
        'marker 33470607: magic 3347 ("3G"), release 6, flags 00000111',
        "bit 0 access keys CK', IK' in use: yes",
        "bit 2 rspauth will be sent: yes",
        "ck: 16 octets, not shown. ik: 16 octets, not shown.",
        "Digest: response 32 characters, qop auth, nc 00000001, algorithm AKAv1-MD5, cnonce 32 characters",
        "sealed key block from scscf1.home1.net, as xcap.home1.net, kid t1, 189 octets",
    ):
        assert lines.count(said) == 1, said


def test_no_key_no_response_and_no_auts_is_printed_or_in_the_data() -> None:
    """With everything wrong that can be wrong."""
    auts = credentials(f'nonce="{nonce()}", response="", auts="{SECRETS[3]}"')

    def leak(label: str, message: Message) -> Message:
        if label == "401-0":
            return message.replacing("WWW-Authenticate", f'Digest realm="r", nonce="{nonce()}", ck="{SECRETS[0]}", ik="{SECRETS[1]}"')
        return message.replacing(*auts) if label == "sm7-0" else message

    found = traced(sorted(registration(leak) + cx(START + 0.0031, resync=True)))
    for shown in (text(found), json.dumps(found.data()), repr(found)):
        assert not any(secret in shown for secret in SECRETS)
        assert "XRES" not in shown


def test_a_key_in_the_wrong_place_is_not_printed_either() -> None:
    """A header field that a bug or damage has put together otherwise."""
    ck = SECRETS[0]

    def odd(label: str, message: Message) -> Message:
        if label == "401-0":
            return message.replacing("WWW-Authenticate", f'Digest realm="{ck}", nonce="{ck}", algorithm="AKAv1-MD5{ck}", qop="auth{ck}"')
        rest = f'Digest username="{ck}", realm="{ck}", nonce="{ck}", uri="sip:{ck}", response="x", qop="{ck}", nc="{ck}", algorithm="{ck}"'
        return message.replacing("Authorization", rest) if label == "sm7-0" else message

    found = traced(registration(odd))
    assert len(found.subscribers) == 2
    assert ck not in text(found) + json.dumps(found.data())


def test_the_data_is_what_the_help_says() -> None:
    """`keyferry trace --json`."""
    data = traced(registration()).data()
    assert set(data) == {"ok", "frames", "messages", "subscribers", "hints", "left_out", "unread", "problems"}
    (one,) = data["subscribers"]
    assert set(one) == {"impi", "impus", "ladder", "hints"}
    first, challenge, push = one["ladder"][0], one["ladder"][3], one["ladder"][9]
    assert {"frame", "at", "phase", "source", "target", "source_address", "target_address", "transport", "what", "octets"} <= set(first)
    assert {"size_mark", "note", "retransmission"} <= set(first)
    assert (first["at"], first["source_address"]) == (START, "10.0.0.1:40000")
    assert challenge["challenge"]["marker"] == {
        "octets": "33470607",
        "release": 6,
        "flags": 7,
        "further": "",
        "meaning": {"access keys CK', IK' in use": True, "AS keys will be pushed": True, "rspauth will be sent": True},
    }
    assert challenge["challenge"]["keys"] == {"ck": 16, "ik": 16}
    assert one["ladder"][6]["answer"]["cnonce"] == 32
    assert push["key_block"] == {"sealed": True, "scscf": "scscf1.home1.net", "as_id": "xcap.home1.net", "kid": "t1", "octets": 189}


def test_registrations_are_told_apart() -> None:
    """One begins with the REGISTER after a final answer."""
    away = registration(lambda _label, message: message.replacing("Expires", "0"), at=START + 10)
    (one,) = traced(registration() + [(at, frame.replace(b"call-1", b"call-2")) for at, frame in away]).subscribers
    phases = list(dict.fromkeys(step.phase for step in one.steps))
    assert [phase.partition(",")[0] for phase in phases] == ["1. registration", "2. de-registration"]
    middle = registration()[5:]
    (one,) = traced(middle).subscribers
    assert one.steps[0].phase == "before the first REGISTER of this capture"
    assert one.impi == IMPI  # a later message tells


def test_one_subscriber_can_be_asked_for() -> None:
    """--impi."""
    other = [
        (at + 1, frame.replace(b"user1", b"user2").replace(b"call-1", b"call-2").replace(b"push-1", b"push-2"))
        for at, frame in registration()
    ]
    both = registration() + other
    assert [one.impi for one in traced(both).subscribers] == [IMPI, IMPI.replace("1", "2", 1)]
    (one,) = traced(both, impi=IMPI).subscribers
    assert (one.impi, len(one.rows)) == (IMPI, 14)
    assert sum(traced(both, impi=IMPI).left_out.values()) == 14
    assert traced(both, impi="nobody@home1.net").subscribers == []
    shown = "\n".join(text_of(traced(both), shown=1))
    assert "1 subscribers are not shown" in shown
    assert "user2" not in shown


def test_pushes_alone_are_shown_by_their_public_identity() -> None:
    """A capture at the AS: no message names the IMPI."""
    (one,) = traced(drawn([("push", SCSCF, AS, third_party()), ("push-200", AS, SCSCF, push_answer())])).subscribers
    assert (one.impi, one.impus) == ("", [IMPU])
    assert one.name == f"{IMPU} (no message in the capture tells the IMPI)"
    options = Request("OPTIONS", "sip:a", (("Via", "SIP/2.0/UDP h;branch=z"), ("CSeq", "1 OPTIONS")))
    assert traced(drawn([("options", SCSCF, AS, options)])).left_out == {"of nobody known": 1}


def test_cx_stands_in_the_ladder_and_other_diameter_does_not() -> None:
    """Keys of the MAA are lengths (TS 29.228 §6.3)."""
    found = traced(sorted(registration() + cx(START + 0.0031)))
    (one,) = found.subscribers
    assert [(step.source, step.target, step.what) for step in one.steps if step.transport == "SCTP"] == [
        ("S-CSCF", "HSS", "MAR"), ("HSS", "S-CSCF", "MAA"),
    ]  # fmt: skip
    assert "Confidentiality-Key 16 octets" in text(found)
    rx = diameter(265, avp(1, b"a@b"), application=16_777_236)
    location = diameter(302, avp(601, IMPU.encode(), 10415), hop=7)
    stream = tcp(UE, AS, 1, rx + location)
    found = traced([*registration(), (START + 1, ethernet(stream))])
    assert found.left_out == {"Diameter other than Cx": 1}
    assert found.subscribers[0].steps[-1].what == "LIR"
    answer = diameter(303, avp(1, IMPI.encode()), request=False, hop=99)
    assert traced([(START, ethernet(tcp(UE, AS, 1, answer)))]).subscribers[0].impi == IMPI


def test_a_message_over_tcp_comes_from_where_via_says() -> None:
    """The connection's own port is nobody's name."""
    request = register(1, 1, credentials('nonce="", response=""'))
    frames = [*registration(), (START + 5, ethernet(tcp(Endpoint(PCSCF.host, 50_000), SCSCF, 1, build_message(request))))]
    (one,) = traced(frames).subscribers
    assert (one.steps[-1].source, one.steps[-1].transport) == ("P-CSCF", "TCP")


def test_retransmissions_are_marked() -> None:
    """RFC 3261 §17.1.2."""
    frames = registration()
    (one,) = traced([frames[0], (START + 0.5, frames[0][1]), *frames[1:]]).subscribers
    assert [step.retransmission for step in one.steps].count(True) == 1
    assert " REGISTER (again)" in text(traced([frames[0], (START + 0.5, frames[0][1])]))


def test_packed_and_damaged_files_are_read_as_far_as_they_go() -> None:
    """gzip; a file without its end; what is no capture."""
    file = pcap(registration())
    told: list[int] = []
    assert trace_capture(io.BytesIO(gzip.compress(file)), progress=told.append).messages == 14
    assert told == [len(gzip.compress(file))]
    cut = trace_capture(io.BytesIO(file[:-5]))
    assert (cut.messages, "ends within a frame" in cut.hints[0]) == (13, True)
    damaged = trace_capture(io.BytesIO(file + b"\xff" * 40))
    assert damaged.messages == 14
    assert "damaged after frame 14" in damaged.hints[0]
    for wrong in (b"GET / HTTP/1.1\r\n", b"\x1f\x8b\x08" + b"\xff" * 50):
        with pytest.raises(ParseError):
            trace_capture(io.BytesIO(wrong))


def test_what_cannot_be_read_is_told_with_what_to_do() -> None:
    """ESP, TLS, cut frames, other ports, nothing at all."""
    esp = udp(UE, PCSCF, bytes(99))[:9] + b"\x32" + udp(UE, PCSCF, bytes(99))[10:]
    malformed = sent(UE, PCSCF, b"REGISTER sip:a SIP/2.0\r\nno colon\r\n\r\n")
    frames = [(START, ethernet(esp)), (START, malformed), (START, malformed)]
    found = traced(frames)
    lines = text(found)
    assert "ealg=null" in lines
    assert "captured twice" in lines
    assert "no SIP and no Cx in it" in lines
    assert "frame 2, from 10.0.0.1:40000: SIP message" in lines
    assert "Not read: " in lines
    assert found.data()["problems"] == [{"frame": 2, "from": "10.0.0.1:40000", "problem": found.problems[0].text}]


def test_a_peer_cannot_write_on_the_terminal() -> None:
    """Control characters and octets that are no text, in reason, Call-ID, IMPI."""
    odd = Response(200, "O\x80\udcffK", register(0, 1, None).headers)
    named = register(0, 1, credentials('nonce="", response=""', user="a\x80\udcff@b"))
    found = traced(drawn([("odd", PCSCF, UE, odd), ("named", UE, PCSCF, named)]))
    assert text(found).replace("\n", "").isprintable()
    json.dumps(found.data(), ensure_ascii=False).encode()


def test_a_large_capture_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages, and those compared."""
    monkeypatch.setattr(trace_module, "MAX_ROWS", 5)
    monkeypatch.setattr(trace_module, "MAX_RECENT", 2)
    found = traced(registration() * 2)
    assert sum(len(one.rows) for one in found.subscribers) == 5
    assert found.left_out["after the first 5"] > 5


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 13), st.integers(0, 500), st.binary(max_size=6)), max_size=6), st.sets(st.integers(0, 13)))
def test_any_damage_gives_a_trace(damage: list[tuple[int, int, bytes]], lost: set[int]) -> None:
    """Octets changed in frames, frames lost: text and data, never an exception."""
    frames: Frames = registration(keep)
    for place, pos, octets in damage:
        at, frame = frames[place]
        frames[place] = (at, frame[:42] + (frame[42:][:pos] + octets + frame[42:][pos + len(octets) :]))
    found = traced([frame for place, frame in enumerate(frames) if place not in lost])
    assert text(found).replace("\n", "").isprintable()
    json.dumps(found.data()).encode()
