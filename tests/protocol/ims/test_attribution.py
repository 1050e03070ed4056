# SPDX-License-Identifier: Apache-2.0
"""Whose is a message that names no IMPI?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.ims.attribution import Attribution, traits_of
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.sip.message import Message, Request, Response

IMPI, IMPU = "user1_private@home1.net", "sip:user1@home1.net"


def request(method: str, call_id: str, *rest: tuple[str, str], source: str = IMPU, target: str = IMPU, branch: str = "b1") -> Request:
    headers = (
        ("Via", f"SIP/2.0/UDP h;branch=z9hG4bK{branch}"), ("From", f"<{source}>;tag=x"), ("To", f"<{target}>"), ("Call-ID", call_id),
        ("CSeq", f"1 {method}"),
    )  # fmt: skip
    return Request(method, "sip:home1.net", headers + rest)


def answer(to: Request, *rest: tuple[str, str]) -> Response:
    return Response(200, "OK", (*to.headers, *rest))


REGISTER = request("REGISTER", "c1", ("Authorization", f'Digest username="{IMPI}", realm="r", nonce="", uri="sip:r", response=""'))


def test_the_username_tells_and_its_transaction_and_dialogue_follow() -> None:
    """Call-ID and branch."""
    known = Attribution()
    assert known.of(answer(REGISTER)) is None
    assert known.of(REGISTER) == IMPI
    assert known.of(answer(REGISTER)) == IMPI
    other_leg = request("REGISTER", "c2", branch="b2")
    assert known.of(other_leg) == IMPI  # by its To
    assert known.of(answer(request("REGISTER", "c3", target="sip:x@y", branch="b2"))) == IMPI  # by the branch
    assert known.of(request("REGISTER", "c4", target="sip:x@y", branch="b2")) is None  # a request begins a transaction


def test_a_push_belongs_to_whose_public_identity_it_names() -> None:
    """TS 24.229 §5.4.1.7: no IMPI, another Call-ID; P-Associated-URI names further identities."""
    known = Attribution()
    known.of(REGISTER)
    known.of(answer(REGISTER, ("P-Associated-URI", f"<{IMPU}>, <tel:+15550100001>")))
    for impu in (IMPU, "tel:+1-555-010-0001"):
        push = build_third_party_register(
            server_name="sip:as", scscf_uri="sip:s", impu=impu, expires=1, call_id=f"push {impu}", cseq=1, from_tag="t"
        )
        assert known.of(push) == IMPI
    assert known.of(request("MESSAGE", "m1", target="sip:b@home1.net")) == IMPI
    assert known.of(request("MESSAGE", "m2", source="sip:b@home1.net")) == IMPI
    assert known.of(request("MESSAGE", "m3", source="sip:b@home1.net", target="sip:c@home1.net")) is None


def test_public_identities_can_be_told() -> None:
    """From the HSS, before any message."""
    known = Attribution()
    known.learn(IMPI, ["sip:USER1@home1.net".replace("USER1", "user1"), "no identity"])
    assert known.of(request("REGISTER", "c9")) == IMPI


def test_what_is_remembered_is_bounded() -> None:
    """The one longest unused goes first."""
    known = Attribution(limit=3)
    for number in range(5):
        known.learn(f"{number}@r", [f"sip:{number}@home1.net"])
    assert known.of(request("REGISTER", "a", target="sip:0@home1.net", source="sip:x@y")) is None
    assert known.of(request("REGISTER", "b", target="sip:4@home1.net", source="sip:x@y")) == "4@r"


TEXT = st.text(max_size=20)


@given(
    st.lists(st.tuples(st.sampled_from(["Via", "From", "To", "Call-ID", "CSeq", "Authorization", "P-Associated-URI"]), TEXT), max_size=8),
    st.booleans(),
)
def test_any_message_is_taken(headers: list[tuple[str, str]], asks: bool) -> None:
    """A name or none, never an exception."""
    message: Message = Request("REGISTER", "sip:a", tuple(headers)) if asks else Response(200, "OK", tuple(headers))
    traits_of(message)
    Attribution().of(message)
