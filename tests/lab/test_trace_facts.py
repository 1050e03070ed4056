# SPDX-License-Identifier: Apache-2.0
"""What a trace tells of one message, as data and as lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyferry.lab.trace_facts import (
    diameter_facts,
    explained,
    facts_of,
    lines_of_answer,
    lines_of_block,
    lines_of_challenge,
)
from keyferry.protocol.capture.diameter import parse_diameter
from keyferry.protocol.sip.message import Message, Request, Response
from lab.tracekit import CK, IK, challenge, register, response, third_party
from protocol.capture.capturekit import avp, diameter, nonce


def lines(server_data: bytes) -> list[str]:
    facts = facts_of(response(1, 1, 401, challenge(1, nonce(server_data))))
    assert facts.challenge is not None
    return lines_of_challenge(facts.challenge)


def test_every_bit_of_a_marker_has_its_meaning() -> None:
    """DESIGN §4: further octets and flags are of later releases."""
    found = "\n".join(lines(b"3G\x07\x85\xab\xcd"))
    for said in ("release 7, flags 10000101", "access keys CK', IK' in use: yes", "AS keys will be pushed: no", "rspauth will be sent: yes",
                 "bits 3 to 7: not 0", "further octets abcd: not known here"):  # fmt: skip
        assert said in found
    assert "server data abcd: no release marker, so Release 5" in lines(b"\xab\xcd")
    assert not any("marker" in line for line in lines(b""))


def test_amf_says_its_separation_bit() -> None:
    """TS 33.102 annex H."""
    facts = facts_of(response(0, 1, 401, challenge(0, "AQEBAQEBAQEBAQEBAQEBAQAAAAAAAIAAAAAAAAAAAAA=")))
    assert facts.challenge is not None
    assert "AMF 8000 (separation bit set)" in "\n".join(lines_of_challenge(facts.challenge))


def test_a_nonce_that_is_no_aka_is_said_so() -> None:
    """SIP Digest."""
    facts = facts_of(response(0, 1, 401, ("WWW-Authenticate", 'Digest realm="r", nonce="abc"')))
    assert facts.challenge is not None
    assert lines_of_challenge(facts.challenge) == ["nonce of 3 characters: no RAND and AUTN in it"]


def test_keys_are_counted_in_octets() -> None:
    """TS 24.229 §7.2A.1: hexadecimal."""
    data = explained(facts_of(response(1, 1, 401, challenge(1, nonce()))))
    assert data["challenge"]["keys"] == {"ck": len(CK) // 2, "ik": len(IK) // 2}
    assert CK not in str(data)


def test_what_is_not_there_is_not_told() -> None:
    """The first REGISTER; a key block in clear."""
    facts = facts_of(register(0, 1, None))
    assert (facts.answer, facts.challenge, facts.block, explained(facts)) == (None, None, None, {})
    sm1 = facts_of(register(0, 1, ("Authorization", 'Digest username="a@b", realm="r", nonce="", uri="sip:r", response=""')))
    assert sm1.answer is not None
    assert lines_of_answer(sm1.answer) == []
    block = facts_of(third_party(plain=True)).block
    assert block is not None
    assert lines_of_block(block)[0].startswith("KEY BLOCK IN CLEAR for xcap.home1.net")


def test_a_vector_of_a_maa_is_compared_as_a_challenge() -> None:
    """SIP-Authenticate is RAND and AUTN (TS 29.228 §6.3.1)."""
    short = diameter_facts(parse_diameter(diameter(303, avp(612, avp(609, b"x", 10415), 10415), request=False)), "a@b")
    assert short.challenge is None
    whole = diameter_facts(parse_diameter(diameter(303, avp(612, avp(609, bytes(33), 10415), 10415), request=False)), "a@b")
    assert whole.challenge is not None
    assert (whole.challenge.octets, whole.challenge.server_data) == (33, "00")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "Via",
                    "From",
                    "To",
                    "CSeq",
                    "Contact",
                    "Authorization",
                    "WWW-Authenticate",
                    "Authentication-Info",
                    "Content-Type",
                    "Expires",
                ]
            ),
            st.one_of(
                st.text(max_size=20),
                st.sampled_from(["Digest a=b", 'Digest nonce="', "<sip:a@b>;x", "1 REGISTER", "application/3gpp-ims+xml"]),
            ),
        ),
        max_size=8,
    ),
    st.booleans(),
    st.binary(max_size=20),
)
def test_any_message_has_facts(headers: list[tuple[str, str]], asks: bool, body: bytes) -> None:
    """Never an exception."""
    message: Message = Request("REGISTER", "sip:a", tuple(headers), body) if asks else Response(401, "no", tuple(headers), body)
    explained(facts_of(message))
