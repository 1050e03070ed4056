# SPDX-License-Identifier: Apache-2.0
"""What explains a wrong Digest AKA response (RFC 3310 §3.3, RFC 7616 §3.4, RFC 4169 §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.protocol.aka import AkaName, algorithm_of
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import derive_topc
from keyferry.protocol.digest import Credentials, aka_nonce, aka_v2_password, encode_base64, hash_a1, respond
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.response_trial import MAX_HASHED, WrongAnswer, differences, explain_response, key_passwords, res_passwords, shown
from keyferry.protocol.ims.verdicts import Analysis, Reason

IMPI, IMPU, REALM = Impi("user1_private@home1.net"), Impu("sip:user1_public1@ims.home1.net"), "home1.net"
OCTETS = st.binary(min_size=16, max_size=16)
RIGHT = Credentials(IMPI, REALM, "", "sip:home1.net", "", "AKAv1-MD5", "c" * 32, None, "auth", "00000001")


class Card:
    """K and OPc of one side, the nonces of a few challenges, and how a client may hash."""

    def __init__(self, k: bytes, op: bytes, rands: tuple[bytes, ...], name: AkaName = "milenage") -> None:
        self.name, self.k, self.op = name, Secret(k), Secret(op)
        self.opc = derive_opc(self.k, self.op) if name == "milenage" else derive_topc(self.k, self.op)
        self.nonces = tuple(aka_nonce(rand, bytes(16), b"\x06\x01\x02\x07\x00") for rand in rands)
        self.rands = rands

    def f2345(self, rand: bytes | None = None) -> Any:
        return algorithm_of(self.name, self.k, self.opc).f2345(rand or self.rands[0])

    @property
    def res(self) -> bytes:
        octets: bytes = self.f2345().res.reveal()
        return octets

    def answer(self, stated: Credentials = RIGHT, *, masked: bool = True, **hashed: Any) -> WrongAnswer:
        """State `stated`, and hash what `hashed` says otherwise."""
        stated = replace(stated, nonce=self.nonces[0])
        used: dict[str, Any] = {
            "password": self.res, "username": stated.username, "realm": stated.realm, "uri": stated.uri, "nonce": stated.nonce,
            "qop": stated.qop, "nc": stated.nc, "cnonce": stated.cnonce, "algorithm": "AKAv1-MD5", **hashed,
        }  # fmt: skip
        ha1 = hash_a1(used["algorithm"], used["username"], used["realm"], Secret(used["password"]))
        response = respond(
            used["algorithm"], ha1, method="REGISTER", uri=used["uri"], nonce=used["nonce"], qop=used["qop"], nc=used["nc"],
            cnonce=used["cnonce"],
        )  # fmt: skip
        return WrongAnswer(IMPI, IMPU, REALM, self.nonces[0], masked, replace(stated, response=response), self.nonces[1:])


CARDS = st.builds(Card, OCTETS, OCTETS, st.lists(OCTETS, min_size=3, max_size=3, unique=True).map(tuple))
Mistake = Callable[[Card], dict[str, Any]]
AT_SCSCF: dict[str, tuple[Mistake, Reason, str]] = {
    "hex": (lambda card: {"password": card.res.hex().encode()}, Reason.RES, "hexadecimal text"),
    "HEX": (lambda card: {"password": card.res.hex().upper().encode()}, Reason.RES, "hexadecimal text in capitals"),
    "base64": (lambda card: {"password": encode_base64(card.res).encode()}, Reason.RES, "base64 text"),
    "four octets": (lambda card: {"password": card.res[:4]}, Reason.RES, "its first 4 octets"),
    "filled up": (lambda card: {"password": card.res.ljust(16, b"\0")}, Reason.RES, "filled up with zeros to 16 octets"),
    "empty": (lambda card: {"password": b""}, Reason.MAC, "an empty password was hashed"),
    "realm": (lambda card: {"realm": "ims.home1.net"}, Reason.REALM, '"ims.home1.net" was hashed'),
    "no realm": (lambda card: {"realm": ""}, Reason.REALM, '"" was hashed'),
    "user part": (lambda card: {"username": "user1_private"}, Reason.USERNAME, '"user1_private" was hashed'),
    "impu": (lambda card: {"username": IMPU}, Reason.USERNAME, f'"{IMPU}" was hashed'),
    "uri": (lambda card: {"uri": "sip:home1.net:5060"}, Reason.URI, '"sip:home1.net:5060" was hashed'),
    "no qop": (lambda card: {"qop": None}, Reason.QOP, "hashed as if without qop"),
    "auth-int": (lambda card: {"qop": "auth-int"}, Reason.QOP, "hashed with qop=auth-int"),
    "short nc": (lambda card: {"nc": "1"}, Reason.QOP, "nc was hashed as 1"),
    "padding": (lambda card: {"nonce": card.nonces[0].rstrip("=")}, Reason.NONCE, "hashed without its padding"),
    "server data": (lambda card: {"nonce": aka_nonce(card.rands[0], bytes(16))}, Reason.NONCE, "hashed without its server data"),
    "old nonce": (lambda card: {"nonce": card.nonces[2]}, Reason.NONCE, "that of an earlier challenge was hashed"),
    "SHA-256": (lambda card: {"algorithm": "SHA-256"}, Reason.ALGORITHM, "hashed with SHA-256"),
    "session": (lambda card: {"algorithm": "MD5-sess"}, Reason.ALGORITHM, "hashed with MD5-sess"),
}
AT_HSS: dict[str, tuple[Mistake, Reason, str]] = {
    "v2": (lambda card: {"password": _v2(card)}, Reason.ALGORITHM, "the password of AKAv2"),
    "K as text": (lambda card: {"password": card.k.reveal().hex().encode()}, Reason.NO_AKA, "K as hexadecimal text"),
    "K": (lambda card: {"password": card.k.reveal()}, Reason.NO_AKA, "K itself"),
    "old RAND": (lambda card: {"password": card.f2345(card.rands[1]).res.reveal()}, Reason.RAND, "1 before the one asked"),
}


def _v2(card: Card) -> bytes:
    found = card.f2345()
    return aka_v2_password("AKAv2-MD5", found.res, found.ck, found.ik).reveal()


def at_scscf(card: Card, answer: WrongAnswer) -> Analysis | None:
    return explain_response(answer, res_passwords(Secret(card.res)))


def at_hss(card: Card, answer: WrongAnswer, opc: Secret | None = None) -> Analysis | None:
    return explain_response(answer, key_passwords(card.name, card.k, opc or card.opc, answer))


def said(analysis: Analysis | None) -> list[list[tuple[Reason, str]]]:
    return (
        [[(verdict.reason, verdict.detail) for verdict in cause] for cause in analysis.causes] if analysis else [[(Reason.UNEXPLAINED, "")]]
    )


@settings(max_examples=60, deadline=None)
@given(CARDS, st.sampled_from(sorted(AT_SCSCF)))
def test_an_scscf_names_each_mistake_that_was_planted(card: Card, mistake: str) -> None:
    """It has XRES, and no key."""
    change, reason, detail = AT_SCSCF[mistake]
    changed = change(card)
    found = said(at_scscf(card, card.answer(**changed)))
    assert [(reason, detail)] in found
    # where two forms of RES are the same octets, both are said; nothing else is blamed
    assert all(cause[0][0] in {reason, Reason.RES} and len(cause) == 1 for cause in found)
    assert len(found) == 1 or 0 in card.res or mistake.lower() == "hex"


@settings(max_examples=40, deadline=None)
@given(CARDS, st.sampled_from(sorted(AT_HSS)))
def test_an_hss_names_what_takes_k_to_try(card: Card, mistake: str) -> None:
    change, reason, detail = AT_HSS[mistake]
    answer = card.answer(**change(card))
    assert said(at_hss(card, answer)) == [[(reason, detail)]]
    assert at_scscf(card, answer) is None  # which cannot tell


@pytest.mark.parametrize("name", ["milenage", "tuak"])
def test_op_in_place_of_opc_at_the_hss_is_seen(name: AkaName) -> None:
    """TS 35.206 §4.1, TS 35.231 §6.1: the operator gave OP under the name of OPc."""
    card = Card(bytes(range(16)), bytes(range(100, 116 if name == "milenage" else 132)), (bytes(16),), name)
    found = at_hss(card, card.answer(), opc=card.op)
    assert said(found) == [[(Reason.OP_FOR_OPC, "what the HSS holds as OPc is OP for the UE")]]


@settings(max_examples=25, deadline=None)
@given(CARDS, st.sampled_from(["realm", "uri", "no qop", "padding"]), st.sampled_from(["hex", "user part", "session", "empty"]))
def test_two_mistakes_together_are_both_said(card: Card, one: str, other: str) -> None:
    first, second = AT_SCSCF[one], AT_SCSCF[other]
    if 0 in card.res[:1]:
        return  # RES cut at its first octet is the empty password: the next test
    found = said(at_scscf(card, card.answer(**first[0](card), **second[0](card))))
    assert [sorted(cause) for cause in found] == [sorted([(first[1], first[2]), (second[1], second[2])])]


def test_where_two_mistakes_give_the_same_octets_both_are_said() -> None:
    """A RES whose fifth octet is zero: cut there, or to four octets, nobody can tell."""
    number = next(number for number in range(100_000) if b"\0" in _card(number).res[4:5] and b"\0" not in _card(number).res[:4])
    found = at_scscf(_card(number), _card(number).answer(password=_card(number).res[:4]))
    assert said(found) == [[(Reason.RES, "cut at its first zero octet")], [(Reason.RES, "its first 4 octets")]]
    assert found is not None and "; or " in found.text


def _card(number: int) -> Card:
    return Card(bytes(range(16)), bytes(16), (number.to_bytes(16, "big"),))


def test_the_response_of_an_earlier_challenge_is_seen_whole() -> None:
    """Old RAND and old nonce: a client that repeats itself."""
    card = Card(bytes(range(16)), bytes(16), (b"a" * 16, b"b" * 16))
    found = at_hss(card, card.answer(password=card.f2345(b"b" * 16).res.reveal(), nonce=card.nonces[1]))
    assert said(found) == [[(Reason.RAND, "1 before the one asked"), (Reason.NONCE, "that of an earlier challenge was hashed")]]


@settings(max_examples=25, deadline=None)
@given(CARDS, OCTETS)
def test_another_k_is_blamed_on_nothing(card: Card, k: bytes) -> None:
    other = Card(k, card.op.reveal(), card.rands)
    if k != card.k.reveal():
        answer = card.answer(password=other.res)
        assert at_scscf(card, answer) is None
        assert at_hss(card, answer) is None


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"realm": "home2.net"}, [(Reason.REALM, 'the answer says "home2.net", the challenge "home1.net"')]),
        ({"algorithm": None}, [(Reason.ALGORITHM, "none is stated, which means MD5")]),
        ({"algorithm": "AKAv2-MD5"}, [(Reason.ALGORITHM, '"AKAv2-MD5" is stated')]),
        ({"qop": None}, [(Reason.QOP, "no qop is stated")]),
        ({"qop": "auth-int"}, [(Reason.QOP, 'qop "auth-int" is stated')]),
        ({"nc": "00000002"}, [(Reason.QOP, "nc is not 00000001")]),
        ({"cnonce": "short"}, [(Reason.QOP, "cnonce has 5 characters")]),
        ({"username": "bob@home1.net"}, [(Reason.USERNAME, '"bob@home1.net" is stated')]),
        ({"algorithm": "MD5", "nc": "2"}, [(Reason.ALGORITHM, '"MD5" is stated'), (Reason.QOP, "nc is not eight hexadecimal digits")]),
    ],
)  # fmt: skip
def test_what_the_answer_openly_says_otherwise_needs_no_trial(stated: dict[str, Any], expected: list[tuple[Reason, str]]) -> None:
    card = _card(3)
    answer = card.answer(replace(RIGHT, **stated))
    assert [tuple(verdict) for verdict in differences(answer)] == expected
    assert said(at_scscf(card, answer)) == [expected]
    again = card.answer(replace(RIGHT, **stated), uri="sip:home1.net:5060")
    assert said(at_scscf(card, again)) == [[*expected, (Reason.URI, '"sip:home1.net:5060" was hashed')]]


def test_an_nc_that_was_changed_on_its_way_is_the_only_one_to_blame() -> None:
    card = _card(13)
    found = at_scscf(card, card.answer(replace(RIGHT, nc="00000002"), nc="00000001"))
    assert said(found) == [[(Reason.QOP, "nc is not 00000001"), (Reason.QOP, "nc was hashed as 00000001")]]


def test_a_raw_challenge_asks_for_no_qop() -> None:
    card = _card(5)
    plain = replace(RIGHT, qop=None, nc=None, cnonce=None, algorithm=None)
    assert differences(card.answer(plain, masked=False)) == ()
    assert at_scscf(card, card.answer(plain, masked=False)) is None  # right
    assert differences(card.answer(RIGHT, masked=False)) == ()
    nc, cnonce = replace(RIGHT, nc="1"), replace(RIGHT, cnonce="")
    for wrong, detail in ((nc, "nc is not eight hexadecimal digits"), (cnonce, "cnonce has 0 characters")):
        assert [tuple(one) for one in differences(card.answer(wrong, masked=False))] == [(Reason.QOP, detail)]
    found = at_scscf(card, card.answer(plain, masked=False, qop="auth", nc="00000001", cnonce=""))
    assert said(found) == [[(Reason.QOP, "hashed with qop=auth")]]


def test_an_answer_that_is_too_long_is_not_analysed() -> None:
    card = _card(7)
    answer = card.answer(replace(RIGHT, uri="sip:" + "x" * MAX_HASHED))
    assert said(at_scscf(card, answer)) == [[(Reason.NOT_ANALYSED, f"its fields have over {MAX_HASHED} characters")]]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=10) | st.none())
def test_any_answer_is_judged(response: str, uri: str, username: str, realm: str, qop: str | None) -> None:
    """Whatever a stranger writes: a verdict or none, no exception."""
    card = _card(9)
    credentials = replace(RIGHT, response=response, uri=uri, username=username, realm=realm, qop=qop, nonce=card.nonces[0])
    answer = WrongAnswer(IMPI, IMPU, REALM, card.nonces[0], True, credentials)
    at_scscf(card, answer)
    at_hss(card, answer)


def test_nothing_that_is_printed_holds_a_key() -> None:
    card = _card(11)
    answer = card.answer(password=b"")
    texts = [repr(answer), repr(res_passwords(Secret(card.res))), repr(key_passwords("milenage", card.k, card.opc, answer))]
    for key in (card.res, card.k.reveal(), card.opc.reveal(), answer.credentials.response.encode()):
        assert not any(repr(key)[2:-1] in text or key.hex() in text for text in texts)
    assert shown("a\nb" + "x" * 100) == '"a?b' + "x" * 77 + '"'
    assert shown("0123456789abcdef0123456789abcdef") == '"(not shown: it may hold a key)"'
