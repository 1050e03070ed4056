# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.5, DESIGN §10: rspauth for a nonce that this HSS gave, for the right answer to it, once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from keyferry.errors import DigestRejected
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import AuthenticationInfo, Credentials, aka_nonce, build_credentials, check_rspauth, hash_a1, respond
from keyferry.protocol.identity import Impi
from keyferry.roles.cx_rspauth import LIFE, RspauthBook

IMPI, REALM, XRES, MARKER = Impi("u@home1.net"), "home1.net", Secret(bytes(range(8))), b"3G\x06\x07"
HA1 = hash_a1("AKAv1-MD5", IMPI, REALM, XRES)


class Clock:
    """Time that a test moves."""

    at = 0.0

    def now(self) -> float:
        """Return it."""
        return self.at

    monotonic = now


def vector(number: int) -> AuthVector:
    """Return one."""
    return AuthVector(rand=bytes([number]) * 16, autn=bytes(16), xres=XRES, ck=Secret(bytes(16)), ik=Secret(bytes(16)))


def answer(number: int = 1, **changes: Any) -> Credentials:
    """Return the right answer to a vector's challenge, then changed."""
    nonce, uri = aka_nonce(vector(number).rand, bytes(16), MARKER), "sip:home1.net"
    response = respond("AKAv1-MD5", HA1, method="REGISTER", uri=uri, nonce=nonce, qop="auth", nc="00000001", cnonce="c" * 16)
    right = Credentials(IMPI, REALM, nonce, uri, response, "AKAv1-MD5", "c" * 16, qop="auth", nc="00000001")
    return dataclasses.replace(right, **changes)


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    """Time."""
    return Clock()


@pytest.fixture(name="book")
def book_fixture(clock: Clock) -> RspauthBook:
    """A book that knows the first vector."""
    book = RspauthBook(clock, maximum=3)
    book.remember(IMPI, vector(1), MARKER)
    return book


def test_the_right_answer_gets_it_once(book: RspauthBook) -> None:
    rspauth = book.prove(build_credentials(answer()))
    check_rspauth(AuthenticationInfo(rspauth, "auth", "c" * 16, "00000001"), HA1, answer(), algorithm="AKAv1-MD5")
    with pytest.raises(DigestRejected):
        book.prove(build_credentials(answer()))
    assert len(book) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"response": "0" * 32},
        {"username": "v@home1.net"},
        {"realm": "x"},
        {"uri": "sip:x"},
        {"cnonce": "d" * 16},
        {"nonce": "AAAA"},
        {"nc": "x"},
    ],
)
def test_any_other_answer_gets_nothing_and_spends_nothing(book: RspauthBook, changes: dict[str, Any]) -> None:
    with pytest.raises(DigestRejected):
        book.prove(build_credentials(answer(**changes)))
    assert book.prove(build_credentials(answer()))


def test_what_is_no_authorization_is_refused(book: RspauthBook) -> None:
    for text in ("", "Digest", "Basic x", 'Digest username="u"'):
        with pytest.raises(DigestRejected):
            book.prove(text)
    with pytest.raises(DigestRejected):
        book.prove(build_credentials(dataclasses.replace(answer(), qop=None, nc=None, cnonce=None)))


def test_it_is_bounded_in_time_and_number(book: RspauthBook, clock: Clock) -> None:
    for number in (2, 3, 4):
        book.remember(IMPI, vector(number), MARKER)
    assert len(book) == 3
    with pytest.raises(DigestRejected):
        book.prove(build_credentials(answer(1)))
    clock.at += LIFE
    with pytest.raises(DigestRejected):
        book.prove(build_credentials(answer(4)))
    book.remember(IMPI, vector(5), MARKER)
    assert len(book) == 1


def test_it_prints_no_secret(book: RspauthBook) -> None:
    assert XRES.reveal().hex() not in repr(book)
