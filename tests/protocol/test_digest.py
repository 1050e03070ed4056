# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.4, RFC 3310, RFC 4169; the published vectors are in tests/vectors."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import keyferry.protocol.digest as module
from keyferry.errors import DigestRejected, LocalProtocolError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    AuthenticationInfo,
    Credentials,
    aka_nonce,
    aka_v2_keys,
    aka_v2_password,
    check_response,
    check_rspauth,
    decode_base64,
    encode_base64,
    hash_a1,
    parse_aka_nonce,
    respond,
    rspauth_of,
)

ALGORITHMS = [f"{v}{h}{s}" for v in ("", "AKAv1-", "AKAv2-") for h in ("MD5", "SHA-256") for s in ("", "-sess")]
QOPS: list[str | None] = ["auth", "auth-int", None]
RES = Secret(b"\x00:\xff\x80RES8")
TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)


def plain(algorithm: str, data: bytes) -> str:
    return (hashlib.sha256 if "SHA-256" in algorithm else hashlib.md5)(data).hexdigest()


def by_the_book(algorithm: str, c: Credentials, password: bytes, method: str, body: bytes) -> str:
    """RFC 7616 §3.4.1 to §3.4.3, literally."""

    def h(text: bytes) -> bytes:
        return plain(algorithm, text).encode()

    a1 = c.username.encode() + b":" + c.realm.encode() + b":" + password
    if algorithm.endswith("-sess"):
        a1 = h(a1) + b":" + c.nonce.encode() + b":" + (c.cnonce or "").encode()
    a2 = method.encode() + b":" + c.uri.encode() + (b":" + h(body) if c.qop == "auth-int" else b"")
    if c.qop is None:
        return h(h(a1) + b":" + c.nonce.encode() + b":" + h(a2)).decode()
    middle = ":".join((c.nonce, c.nc or "", c.cnonce or "", c.qop)).encode()
    return h(h(a1) + b":" + middle + b":" + h(a2)).decode()


def signed(algorithm: str = "AKAv1-MD5", qop: str | None = "auth", body: bytes = b"") -> tuple[Secret, Credentials]:
    c = Credentials("user1@home1.net", "home1.net", "bm9uY2U=", "sip:home1.net", "", algorithm, cnonce="0a4f113b", qop=qop)
    c = replace(c, nc="00000001" if qop else None)
    ha1 = hash_a1(algorithm, c.username, c.realm, RES)
    response = respond(algorithm, ha1, method="REGISTER", uri=c.uri, nonce=c.nonce, qop=qop, nc=c.nc, cnonce=c.cnonce, body=body)
    return ha1, replace(c, response=response)


@pytest.mark.parametrize("qop", QOPS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_and_qop_computes_what_the_rfc_says(algorithm: str, qop: str | None) -> None:
    """RFC 7616 §3.4; RFC 3310 §3.3: the password is RES in octets, colon, zero and all."""
    ha1, credentials = signed(algorithm, qop, b"body")
    assert credentials.response == by_the_book(algorithm, credentials, RES.reveal(), "REGISTER", b"body")
    check_response(ha1, credentials, algorithm=algorithm, method="REGISTER", body=b"body")
    rspauth = rspauth_of(ha1, credentials, algorithm=algorithm, body=b"answer")
    assert rspauth == by_the_book(algorithm, credentials, RES.reveal(), "", b"answer")
    info = AuthenticationInfo(rspauth, qop, credentials.cnonce, credentials.nc)
    check_rspauth(info, ha1, credentials, algorithm=algorithm, body=b"answer")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_name_of_an_algorithm_has_no_case(algorithm: str) -> None:
    ha1, credentials = signed(algorithm)
    for name in (algorithm.lower(), algorithm.upper()):
        assert hash_a1(name, credentials.username, credentials.realm, RES) == ha1
        check_response(ha1, replace(credentials, algorithm=name), algorithm=algorithm, method="REGISTER")


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "bm9uY2V="},
        {"uri": "sip:home2.net"},
        {"cnonce": "0a4f113c"},
        {"nc": "00000002"},
        {"qop": None},
        {"qop": "auth-int"},
        {"response": ""},
        {"response": "0" * 32},
        {"response": "é" * 32},
        {"response": "\udc80"},
        {"algorithm": "MD5"},
        {"algorithm": ""},
        {"qop": "AUTH"},
        {"qop": ""},
        {"qop": "x"},
        {"nc": None},
        {"nc": "1"},
        {"nc": "0000000g"},
        {"nc": "00000001\n"},
        {"nc": ""},
        {"cnonce": None},
    ],
)
def test_credentials_changed_in_any_way_are_refused(change: dict[str, Any]) -> None:
    ha1, credentials = signed()
    with pytest.raises(DigestRejected) as refusal:
        check_response(ha1, replace(credentials, **change), algorithm="AKAv1-MD5", method="REGISTER")
    assert credentials.response not in str(refusal.value)


def test_another_method_body_password_or_case_is_refused() -> None:
    ha1, credentials = signed(qop="auth-int", body=b"body")
    check_response(ha1, credentials, algorithm="AKAv1-MD5", method="REGISTER", body=b"body")
    other = hash_a1("AKAv1-MD5", credentials.username, credentials.realm, Secret(b""))
    wrong: list[tuple[Secret, Credentials, str, bytes]] = [
        (ha1, credentials, "register", b"body"),
        (ha1, credentials, "REGISTER", b"Body"),
        (other, credentials, "REGISTER", b"body"),
        (ha1, replace(credentials, response=credentials.response.upper()), "REGISTER", b"body"),
    ]
    for key, answer, method, body in wrong:
        with pytest.raises(DigestRejected):
            check_response(key, answer, algorithm="AKAv1-MD5", method=method, body=body)


def test_credentials_that_name_no_algorithm_are_checked_by_the_one_offered() -> None:
    """RFC 2617 clients leave it out; no weaker hash is ever used for it."""
    ha1, credentials = signed("SHA-256")
    check_response(ha1, replace(credentials, algorithm=None), algorithm="SHA-256", method="REGISTER")


def test_an_nc_is_hashed_as_received() -> None:
    """Some phones count in decimal, or in upper case."""
    ha1, credentials = signed("SHA-256")
    response = respond("SHA-256", ha1, method="GET", uri="/", nonce="n", qop="auth", nc="000000AF", cnonce="c")
    answer = replace(credentials, nc="000000AF", nonce="n", cnonce="c", uri="/", response=response)
    check_response(ha1, answer, algorithm="SHA-256", method="GET")
    with pytest.raises(DigestRejected):
        check_response(ha1, replace(answer, nc="000000af"), algorithm="SHA-256", method="GET")


@example(nonce="", uri="", response="", cnonce="\ud800")
@given(TEXT, TEXT, TEXT, TEXT)
def test_any_credentials_are_refused_without_another_exception(nonce: str, uri: str, response: str, cnonce: str) -> None:
    ha1, credentials = signed()
    hostile = replace(credentials, nonce=nonce, uri=uri, response=response, cnonce=cnonce)
    with pytest.raises(DigestRejected):
        check_response(ha1, hostile, algorithm="AKAv1-MD5", method="REGISTER")


@pytest.mark.parametrize(
    "change",
    [
        {"rspauth": None},
        {"rspauth": ""},
        {"rspauth": "é"},
        {"rspauth": "0" * 32},
        {"qop": None},
        {"cnonce": "other"},
        {"cnonce": None},
        {"nc": "00000002"},
        {"nc": None},
    ],
)
def test_a_server_that_proves_nothing_is_refused(change: dict[str, Any]) -> None:
    """RFC 7616 §3.5."""
    ha1, credentials = signed()
    info = AuthenticationInfo(rspauth_of(ha1, credentials, algorithm="AKAv1-MD5"), "auth", credentials.cnonce, credentials.nc)
    check_rspauth(info, ha1, credentials, algorithm="AKAv1-MD5")
    with pytest.raises(DigestRejected):
        check_rspauth(replace(info, **change), ha1, credentials, algorithm="AKAv1-MD5")


def test_an_answer_may_be_of_qop_auth_only_where_its_body_need_not_be_proven() -> None:
    """RFC 7616 §3.5: the server SHOULD use the qop of the request, and says which one it used."""
    ha1 = hash_a1("SHA-256", "u", "r", RES)
    asked = Credentials("u", "r", "n", "/", "", "SHA-256", cnonce="c", qop="auth-int", nc="00000001")
    honest = AuthenticationInfo(rspauth_of(ha1, replace(asked, qop="auth"), algorithm="SHA-256"), "auth", "c", "00000001")
    check_rspauth(honest, ha1, asked, algorithm="SHA-256", body=b"anything", integrity=False)
    with pytest.raises(DigestRejected, match="did not sign the body"):
        check_rspauth(honest, ha1, asked, algorithm="SHA-256", body=b"anything")
    signed_body = rspauth_of(ha1, asked, algorithm="SHA-256", body=b"body")
    for forged in (replace(honest, rspauth=signed_body), replace(honest, cnonce="d"), replace(honest, qop=None), replace(honest, qop="x")):
        with pytest.raises(DigestRejected):
            check_rspauth(forged, ha1, asked, algorithm="SHA-256", body=b"body", integrity=False)
    with pytest.raises(DigestRejected, match="another qop"):  # nobody asked for that
        check_rspauth(replace(honest, qop="auth-int"), ha1, replace(asked, qop="auth"), algorithm="SHA-256", integrity=False)


def test_the_response_itself_is_no_rspauth() -> None:
    ha1, credentials = signed()
    info = AuthenticationInfo(credentials.response, "auth", credentials.cnonce, credentials.nc)
    with pytest.raises(DigestRejected, match="wrong"):
        check_rspauth(info, ha1, credentials, algorithm="AKAv1-MD5")


def test_both_checks_compare_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    genuine = hmac.compare_digest

    def recording(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    ha1, credentials = signed()
    check_response(ha1, credentials, algorithm="AKAv1-MD5", method="REGISTER")
    rspauth = rspauth_of(ha1, credentials, algorithm="AKAv1-MD5")
    check_rspauth(AuthenticationInfo(rspauth, "auth", credentials.cnonce, credentials.nc), ha1, credentials, algorithm="AKAv1-MD5")
    assert compared == [credentials.response.encode(), rspauth.encode()]


@pytest.mark.parametrize("algorithm", ["", "SHA-512-256", "AKAv3-MD5", "MD5-sess-sess", "AKAv1-", "\udc80"])
def test_an_unknown_algorithm_is_an_error(algorithm: str) -> None:
    ha1, credentials = signed()
    for call in (
        lambda: hash_a1(algorithm, "u", "r", RES),
        lambda: respond(algorithm, ha1, method="GET", uri="/", nonce="n"),
        lambda: aka_v2_password(algorithm, RES, RES, RES),
        lambda: aka_v2_keys(algorithm, RES, RES),
    ):
        with pytest.raises(ParseError):
            call()
    with pytest.raises(DigestRejected):
        check_response(ha1, replace(credentials, algorithm=None), algorithm=algorithm, method="REGISTER")


def test_our_own_answer_needs_what_its_qop_needs() -> None:
    ha1, _ = signed()
    with pytest.raises(ParseError):
        respond("MD5", ha1, method="GET", uri="/", nonce="n", qop="token", nc="00000001", cnonce="c")
    incomplete: list[tuple[dict[str, Any], str]] = [
        ({"qop": "auth", "nc": "00000001"}, "MD5"),
        ({"qop": "auth", "cnonce": "c"}, "MD5"),
        ({}, "MD5-sess"),
    ]
    for given_, algorithm in incomplete:
        with pytest.raises(LocalProtocolError):
            respond(algorithm, ha1, method="GET", uri="/", nonce="n", **given_)


def test_neither_ha1_nor_a_password_prints() -> None:
    ha1, _ = signed()
    assert repr(ha1) == "Secret(32 octets)"
    assert repr(aka_v2_password("AKAv2-SHA-256", RES, RES, RES)) == "Secret(44 octets)"


@given(st.binary(max_size=32), st.binary(max_size=32), st.binary(max_size=32))
def test_akav2_takes_res_then_ik_then_ck(res: bytes, ck: bytes, ik: bytes) -> None:
    """RFC 4169 §3, §4.2."""
    for algorithm, name in (("AKAv2-MD5", "md5"), ("AKAv2-SHA-256-sess", "sha256")):
        password = base64.b64encode(hmac.digest(res + ik + ck, b"http-digest-akav2-password", name))
        assert aka_v2_password(algorithm, Secret(res), Secret(ck), Secret(ik)) == Secret(password)
        assert aka_v2_keys(algorithm, Secret(ck), Secret(ik)) == (
            Secret(hmac.digest(ck, b"http-digest-akav2-cipherkey", name)),
            Secret(hmac.digest(ik, b"http-digest-akav2-integritykey", name)),
        )


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.binary(max_size=64))
def test_an_aka_nonce_is_read_as_it_was_written(rand: bytes, autn: bytes, server_data: bytes) -> None:
    """RFC 3310 §3.2."""
    nonce = aka_nonce(rand, autn, server_data)
    assert base64.b64decode(nonce, validate=True) == rand + autn + server_data
    assert parse_aka_nonce(nonce) == (rand, autn, server_data)


@given(st.text(max_size=140) | st.text("AQgw+/=-_ \n", min_size=40, max_size=50))
def test_any_text_is_an_aka_nonce_or_a_parse_error(text: str) -> None:
    try:
        nonce = parse_aka_nonce(text)
    except ParseError:
        return
    assert aka_nonce(*nonce) == text


@pytest.mark.parametrize("rest", [b"", b"\x06", b"3G"])
def test_only_the_canonical_text_of_a_nonce_is_taken(rest: bytes) -> None:
    """RFC 4648 §3.5, §12: other texts of the same octets would be other nonces."""
    good = aka_nonce(bytes(range(16)), bytes(range(240, 256)), rest)
    stripped = good.rstrip("=")
    padding = good[len(stripped) :]
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bad = [stripped + "=" * n for n in range(4) if n != len(padding)] + [
        good + "\n",
        " " + good,
        good[:8] + "\n" + good[8:],
        good[:8] + "=" + good[9:],
        "-" + good[1:],
        good + "A",
        good + "AA=",
        "é" + good[1:],
    ]
    if padding:
        bad += [stripped[:-1] + last[last.index(stripped[-1]) + n] + padding for n in (1, 2, 3)]
    for text in bad:
        with pytest.raises(ParseError, match="AKA nonce"):
            parse_aka_nonce(text)


def test_the_length_of_a_nonce_is_bounded_on_both_sides() -> None:
    for octets in (0, 1, 31, 97, 98, 99, 100, 6000):
        with pytest.raises(ParseError):
            parse_aka_nonce(encode_base64(bytes(octets)))
    assert len(parse_aka_nonce(encode_base64(bytes(96))).server_data) == 64
    for wrong in ((bytes(15), bytes(16), b""), (bytes(16), bytes(17), b""), (bytes(16), bytes(16), bytes(65))):
        with pytest.raises(LocalProtocolError):
            aka_nonce(*wrong)


def test_auts_is_twenty_characters() -> None:
    """RFC 3310 §3.4."""
    auts = bytes(range(14))
    assert len(encode_base64(auts)) == 20
    assert decode_base64(encode_base64(auts), "auts", 14) == auts
    with pytest.raises(ParseError, match="auts") as problem:
        decode_base64(encode_base64(bytes(15)), "auts", 14)
    assert "AAAA" not in str(problem.value)


def test_every_public_name_can_be_imported_from_here() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
