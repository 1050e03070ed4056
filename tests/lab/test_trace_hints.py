# SPDX-License-Identifier: Apache-2.0
"""What is wrong is said in plain words, once, and nothing else is."""

from __future__ import annotations

import struct
import time

import pytest

from keyferry.protocol.capture.diameter import VENDOR_3GPP
from keyferry.protocol.sip.message import Message, Request
from lab.tracekit import (
    AUTS,
    IMPI,
    IMPU,
    RESPONSE,
    answer,
    challenge,
    credentials,
    cx,
    cx_exchange,
    drawn,
    hints,
    push_answer,
    register,
    registration,
    response,
    third_party,
    traced,
)  # fmt: skip
from protocol.capture.capturekit import AS, PCSCF, SCSCF, START, UE, avp, diameter, nonce

SECOND = nonce(rand=2)


def changed(label: str, name: str, *values: str) -> list[str]:
    """Return the hints where one message has other values of a header field."""
    return hints(registration(lambda place, message: message.replacing(name, *values) if place == label else message))


def without(*labels: str) -> list[str]:
    """Return the hints where messages are missing."""
    return hints(registration(lambda label, message: None if label in labels else message))


def test_nothing_wrong_nothing_said() -> None:
    """The good case."""
    assert hints(registration()) == []


def test_ck_and_ik_towards_a_ue_are_an_alarm_in_capitals() -> None:
    """TS 24.229 §5.2.2: the P-CSCF takes them out."""
    found = traced(registration(lambda label, m: m.replacing(*challenge(0, nonce(), keys=True)) if label == "401-0" else m))
    (hint,) = found.subscribers[0].hints
    assert hint.alarm
    assert hint.frame == 6
    assert hint.text.startswith("CK AND IK GO TO A UE: the 401 of P-CSCF to 10.0.0.1:40000")


def test_keys_in_clear_on_isc_are_an_alarm() -> None:
    """DESIGN §6."""
    found = traced(registration(lambda label, message: third_party(plain=True) if label == "push" else message))
    assert [(hint.alarm, hint.text[:17]) for hint in found.subscribers[0].hints] == [(True, "AS KEYS IN CLEAR ")]


def test_401_after_an_answered_401_is_a_wrong_response_or_a_lost_challenge() -> None:
    """Another nonce: the answer was not accepted."""

    def refused(label: str, message: Message) -> Message | None:
        if label.startswith("200"):
            return response(int(label[-1]), 2, 401, challenge(int(label[-1]), SECOND))
        return None if label.startswith("push") else message

    (only,) = hints(registration(refused))
    assert only.startswith("401 after an answered 401, with another nonce: the response was not accepted.")
    (same,) = hints(
        registration(
            lambda label, m: (
                response(int(label[-1]), 2, 401, challenge(int(label[-1]), nonce()))
                if label.startswith("200")
                else None
                if label.startswith("push")
                else m
            )
        )
    )
    assert same.startswith("401 with the same nonce again")


def test_auts_is_a_resynchronisation() -> None:
    """TS 33.102 §6.3.5."""
    wanted = credentials(f'nonce="{nonce()}", response="", auts="{AUTS}"')

    def resync(label: str, message: Message) -> Message | None:
        if label.startswith("sm7"):
            return message.replacing(*wanted)
        if label.startswith("200"):
            return response(int(label[-1]), 2, 401, challenge(int(label[-1]), SECOND))
        return None if label.startswith("push") else message

    (only,) = hints(registration(resync))
    assert only.startswith("resynchronisation: ")
    assert only.endswith("; here the network answered with a new challenge.")
    short = credentials(f'nonce="{nonce()}", response="", auts="AAAA"')
    found = changed("sm7-0", *short)
    assert "Digest of UE: auts is not the base64 of 14 octets." in found


def test_an_empty_response_is_a_wrong_mac() -> None:
    """RFC 3310 §3.4."""
    found = changed("sm7-0", *credentials(f'nonce="{nonce()}", response=""'))
    assert any(text.startswith("the UE answered with an empty response: the MAC in AUTN is wrong") for text in found)


def test_403_is_told_with_who_said_it() -> None:
    """After an answer, and without one."""

    def forbidden(label: str, message: Message) -> Message | None:
        if label.startswith("200"):
            return response(int(label[-1]), 2, 403)
        return None if label.startswith("push") else message

    (after,) = hints(registration(forbidden))
    assert after.startswith("403 from S-CSCF after an answer: ")
    first = register(0, 1, credentials('nonce="", response=""'))
    (at_once,) = hints(drawn([("sm1", UE, PCSCF, first), ("403", PCSCF, UE, response(0, 1, 403))]))
    assert at_once.startswith("403 from P-CSCF: this user may not register here")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ('response="abc", algorithm=AKAv1-MD5, qop=auth, nc=00000001, cnonce="cccccccccccccccc"', "response is not 32 hexadecimal digits"),
        (f'response="{RESPONSE}", algorithm=AKAv2-SHA-256, qop=auth, nc=00000001, cnonce="cccccccccccccccc"', "is not 64 hexadecimal"),
        (f'response="{RESPONSE}", algorithm=AKAv1-MD5, qop=auth, nc=1, cnonce="cccccccccccccccc"', "nc is not 8 hexadecimal digits"),
        (f'response="{RESPONSE}", algorithm=AKAv1-MD5, qop=auth, nc=00000002, cnonce="cccccccccccccccc"', "it starts with 00000001"),
        (f'response="{RESPONSE}", algorithm=AKAv1-MD5, qop=auth, nc=00000001, cnonce="short"', "cnonce of 5 characters"),
        (f'response="{RESPONSE}", algorithm=AKAv1-MD5, qop=auth, nc=00000001', "qop without cnonce"),
        (f'response="{RESPONSE}", algorithm=AKAv1-MD5, cnonce="cccccccccccccccc"', "cnonce or nc without qop"),
        (f'response="{RESPONSE}", algorithm=AKAv1-MD5', "the challenge offers qop and the answer uses none"),
        (f'response="{RESPONSE}", qop=auth, nc=00000001, cnonce="cccccccccccccccc"', "algorithm not given, so MD5 answers"),
    ],
)  # fmt: skip
def test_digest_parameters_that_cannot_be_right_are_named(rest: str, says: str) -> None:
    """RFC 7616 §3.4; RFC 3310 §3."""
    found = changed("sm7-0", *credentials(f'nonce="{nonce()}", {rest}'))
    assert any(says in text for text in found), found


def test_an_answer_to_another_nonce_or_realm_is_named() -> None:
    """The nonce is echoed whole."""
    assert any("the UE shortened the nonce" in text for text in changed("sm7-0", *answer(nonce(b""))))
    assert any("answers a nonce that no 401 in this capture has" in text for text in changed("sm7-0", *answer(SECOND)))
    other = answer(nonce())[1].replace('realm="home1.net"', 'realm="other.net"')
    assert any("the realm of the answer" in text for text in changed("sm7-0", "Authorization", other))


def test_a_marker_that_was_stripped_or_changed_is_named_with_who_did_it() -> None:
    """DESIGN §4."""
    (stripped,) = [text for text in changed("401-0", *challenge(0, nonce(b""))) if "marker" in text]
    assert stripped.startswith("the release marker is missing after P-CSCF, though I-CSCF sent it: somebody stripped it")
    found = changed("401-1", *challenge(1, nonce(b"3G\x06\x00")))
    assert found[0].startswith("I-CSCF changed the server data of the nonce")
    with_hss = hints(sorted(registration() + cx(START + 0.0031, b"3G\x06\x07")))
    assert with_hss == ["the HSS itself gave 4 octets after RAND and AUTN."]
    assert hints(sorted(registration() + cx(START + 0.0031))) == []


def test_a_release_that_was_stripped_and_an_s_cscf_without_marker_are_named() -> None:
    """DESIGN §5."""
    (lost,) = changed("sm1-1", "Contact", "<sip:10.0.0.1:40000>")
    assert lost.startswith("P-CSCF took +g.keyferry.release out of Contact")
    assert hints(registration(text=nonce(b"")))[0].startswith("the UE states a release, the S-CSCF sends no marker")


def test_what_the_marker_promises_and_does_not_come_is_named() -> None:
    """rspauth and the key block."""
    none = hints(registration(lambda label, message: message.without("Authentication-Info")))
    assert none == ["the marker announces rspauth, the 200 has none: the UE activates no AS key (the S-CSCF has not proved itself)."]
    (lost,) = hints(registration(lambda label, m: m.without("Authentication-Info") if label == "200-0" else m))
    assert lost.startswith("P-CSCF took Authentication-Info out of the 200")
    (keys,) = without("push", "push-200")
    assert keys.startswith("the marker announces AS keys, and no key block is in the capture")
    away = registration(lambda label, message: None if label.startswith("push") else message.replacing("Expires", "0"))
    assert hints(away) == []


def test_a_large_request_over_udp_is_named() -> None:
    """RFC 3261 §18.1.1."""
    (large,) = hints(registration(lambda label, message: third_party(large=True) if label == "push" else message))
    assert large.startswith("third-party REGISTER of 1,")
    assert "above 1,300 it must go over TCP" in large


def test_retransmissions_and_silence_are_named() -> None:
    """RFC 3261 §17.1.2."""
    frames = registration()
    (again,) = hints([frames[0], (START + 0.5, frames[0][1]), (START + 1.5, frames[0][1]), *frames[1:]])
    assert again.startswith("2 retransmissions from UE to P-CSCF")
    (silent,) = hints(frames[:1])
    assert silent == "no answer from P-CSCF to the REGISTER of UE in this capture."
    assert traced(frames[:1], late=False).subscribers[0].hints == []


@pytest.mark.parametrize(("status", "says"), [(403, "it refused the key block"), (500, "an error inside"), (410, "the AS has no key")])
def test_a_refused_push_is_named(status: int, says: str) -> None:
    """TS 24.229 §5.4.1.7."""
    (refused,) = hints(registration(lambda label, message: push_answer(status) if label == "push-200" else message))
    assert refused == f"AS xcap-as answered the third-party REGISTER with {status}: {says}" + (
        "; its log says which." if status == 500 else "."
    )


@pytest.mark.parametrize(("status", "says"), [(423, "Min-Expires"), (494, "Security-Client"), (480, "the HSS"), (499, "Odd")])
def test_other_refusals_are_explained(status: int, says: str) -> None:
    """RFC 3261 §21; RFC 3329."""
    first = register(0, 1, credentials('nonce="", response=""'))
    (refused,) = hints(drawn([("sm1", UE, PCSCF, first), ("no", PCSCF, UE, response(0, 1, status))]))
    assert refused.startswith(f"{status} from P-CSCF to REGISTER: ")
    assert says in refused


def test_other_methods_are_not_judged_as_registrations() -> None:
    """A MESSAGE of the user."""
    message = Request(
        "MESSAGE",
        "sip:b@home1.net",
        (("Via", "SIP/2.0/UDP 10.0.0.1:40000;branch=z9hG4bKm"), ("From", f"<{IMPU}>;tag=a"), ("To", "<sip:b@home1.net>"), ("Call-ID", "m"),
         ("CSeq", "1 MESSAGE")),
        b"x" * 1_400,
    )  # fmt: skip
    found = hints([*registration(), *drawn([("message", UE, PCSCF, message)], at=START + 30)])
    assert len(found) == 2
    assert found[0].startswith("MESSAGE of 1,")
    assert found[1].startswith("no answer from P-CSCF to the MESSAGE of UE")


def test_time_is_linear_in_the_messages_of_one_subscriber() -> None:
    """A retransmission storm of hours."""
    frames = registration()
    storm = [(START + 1 + number, frame) for number in range(400) for _, frame in frames]
    began = time.process_time()
    traced(storm)
    assert time.process_time() - began < 10.0
    assert AS != SCSCF


@pytest.mark.parametrize(
    ("avps", "says"),
    [
        (avp(297, avp(298, struct.pack(">I", 5001))), "5001 USER_UNKNOWN, the HSS does not know this IMPI or IMPU."),
        (avp(297, avp(298, struct.pack(">I", 5999))), "5999 a code that is not known here."),
        (avp(268, struct.pack(">I", 3002)), "3002 UNABLE_TO_DELIVER, no route to the HSS."),
        (avp(268, struct.pack(">I", 5012)), "5012 UNABLE_TO_COMPLY; to a MAR with AUTS: its MAC-S is wrong"),
        (avp(297, avp(298, struct.pack(">I", 2001))), ""),
        (avp(268, struct.pack(">I", 2001)), ""),
        (avp(268, b"odd"), ""),
        (avp(297, b"\0"), ""),
        (b"", ""),
    ],
)
def test_what_an_hss_refuses_is_explained(avps: bytes, says: str) -> None:
    """TS 29.229 §6.2, RFC 6733 §7.1: UAR and UAA; the same number means different things in the two."""
    asked = diameter(300, avp(1, IMPI.encode()) + avp(601, IMPU.encode(), VENDOR_3GPP))
    frames = [*registration(), *cx_exchange(START + 5, asked, diameter(300, avps, request=False))]
    found = [hint for hint in hints(frames) if hint.startswith("UAA of HSS")]
    assert [hint.partition(": ")[2].startswith(says) for hint in found] == ([True] if says else [])
