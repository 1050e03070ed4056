# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.3 to §3.5; TS 24.229 §7.2A."""

from __future__ import annotations

import contextlib
import time
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.digest_header import (
    MAX_HEADER,
    MAX_PARAMETERS,
    AuthenticationInfo,
    Challenge,
    Credentials,
    build_authentication_info,
    build_challenge,
    build_credentials,
    is_digest,
    parse_authentication_info,
    parse_challenge,
    parse_credentials,
    with_parameter,
    without_parameter,
)

FIRST_REGISTER = 'Digest username="user1_private@home1.net", realm="home1.net", nonce="", uri="sip:home1.net", response=""'
MINIMAL = Credentials("u", "r", "n", "/", "x")

# Whatever a quoted-string can carry: no control character but the tab (RFC 9110 §5.6.4); lone surrogates stand for raw octets.
VALUE = st.text(st.characters(exclude_categories=[]).filter(lambda c: c == "\t" or (c >= " " and c != "\x7f")), max_size=12)
NAME = st.text("abcxyz019!#$%&'*+-.^_`|~", min_size=1, max_size=6).map("x-".__add__)
EXTRAS = st.lists(st.tuples(NAME, VALUE), max_size=4, unique_by=lambda pair: pair[0]).map(tuple)
QOP = st.lists(st.sampled_from(["auth", "auth-int", "x"]), max_size=3).map(tuple)
CHALLENGES = st.builds(Challenge, VALUE, VALUE, VALUE, QOP, st.none() | VALUE, st.booleans(), st.none() | VALUE, EXTRAS)
CREDENTIALS = st.builds(Credentials, *[VALUE] * 5, *[st.none() | VALUE] * 6, EXTRAS)
INFOS = st.builds(AuthenticationInfo, *[st.none() | VALUE] * 5).filter(lambda info: info != AuthenticationInfo())
PARSERS: pytest.MarkDecorator = pytest.mark.parametrize("parse", [parse_challenge, parse_credentials, parse_authentication_info])


@given(CHALLENGES)
def test_a_challenge_is_read_as_it_was_written(challenge: Challenge) -> None:
    assert parse_challenge(build_challenge(challenge)) == challenge


@given(CREDENTIALS)
def test_credentials_are_read_as_they_were_written(credentials: Credentials) -> None:
    assert parse_credentials(build_credentials(credentials)) == credentials


NAMES = ("response", "algorithm", "cnonce", "opaque", "qop", "nc", "Qop", "auts", "username", "userhash", "integrity-protected")
PARAMETER = st.tuples(st.sampled_from(NAMES), st.sampled_from(["x", '"x"', '""', '"a, nc=1"', '"\x80"', '"\\""', "", '"'])).map("=".join)
PIECES = st.lists(st.sampled_from([",", " ", '"', "x"]) | PARAMETER | PARAMETER.map(", ".__add__), max_size=9).map("".join)


@given(PIECES)
@example(', response="x", algorithm=SHA-256, qop=auth, nc=00000001, cnonce="x"')
@example(', response="x", response="x"')
@example(', response="x", qop=auth, nc=1, qop=auth')
@example(", algorithm=SHA-256")
@example(', response="x", qop=auth, integrity-protected="no"')
@example(', response="x", integrity-protected="no", integrity-protected="yes"')
@example(', response="x", integrity-protected="no", qop=auth')
def test_the_usual_form_of_credentials_is_read_as_any_other(rest: str) -> None:
    """A comma behind the last parameter changes nothing of their meaning (RFC 9110 §5.6.1), but they are then read by the grammar."""
    text = f'Digest username="u", realm="r", nonce="n", uri="/a, nc=1"{rest}'
    read: list[Credentials | None] = []
    for one in (text, f"{text},", f"{text} , "):
        try:
            read.append(parse_credentials(one))
        except ParseError:
            read.append(None)
    assert read[0] == read[1] == read[2]


@given(INFOS)
def test_authentication_info_is_read_as_it_was_written(info: AuthenticationInfo) -> None:
    assert parse_authentication_info(build_authentication_info(info)) == info


@PARSERS
@given(text=st.text(max_size=200) | st.text('digest=",\\ \tanu', max_size=60).map("Digest ".__add__))
@example(text='Digest a="\\')
@example(text='Digest a="\\"')
@example(text="Digest " + "a=b," * 3000)
def test_any_text_is_a_value_or_a_parse_error(parse: Any, text: str) -> None:
    with contextlib.suppress(ParseError):
        parse(text)


@PARSERS
@given(text=st.text(max_size=40) | st.text('digest=",\\ \tanu', max_size=40).map("Digest ".__add__))
def test_an_error_does_not_show_the_text(parse: Any, text: str) -> None:
    with pytest.raises(ParseError) as problem:
        parse(f"{text}\0Zq9")
    assert "Zq9" not in str(problem.value)


@PARSERS
@pytest.mark.parametrize(
    "piece",
    [" ", "\t", ",", ", ", "a", "a=", 'a="', '"', "\\", 'a="\\', "a=b ", "a = ", '="', 'a="b"', "a=b,", "Digest ", "é", '\\"', 'a="b" ,\t'],
)
def test_a_hostile_field_takes_linear_time(parse: Any, piece: str) -> None:
    """8 kB of anything in 10 ms (under 1 ms on an idle machine), and more than that is not looked at."""
    for length in (MAX_HEADER - 20, 400_000):
        for text in ("Digest " + piece * (length // len(piece)), 'Digest realm="' + piece * (length // len(piece))):
            best = 1.0
            for _ in range(5):
                began = time.thread_time()
                with pytest.raises(ParseError):
                    parse(text)
                best = min(best, time.thread_time() - began)
            assert best < 0.01


def test_the_first_register_has_an_empty_nonce_and_response() -> None:
    """TS 24.229 §5.1.1.2.2."""
    credentials = parse_credentials(FIRST_REGISTER)
    assert credentials == Credentials("user1_private@home1.net", "home1.net", "", "sip:home1.net", "")
    assert build_credentials(credentials) == FIRST_REGISTER


def test_a_challenge_of_the_s_cscf_carries_the_keys_as_other_parameters() -> None:
    """TS 24.229 §5.4.1.2.1, §7.2A.1."""
    text = 'Digest realm="home1.net", nonce="I1U8", algorithm=AKAv1-MD5, qop="auth", ik="00ff", ck="ff00"'
    challenge = parse_challenge(text)
    assert challenge == Challenge("home1.net", "I1U8", "AKAv1-MD5", ("auth",), parameters=(("ik", "00ff"), ("ck", "ff00")))
    assert (challenge.parameter("CK"), challenge.parameter("opaque")) == ("ff00", None)
    assert build_challenge(challenge) == text
    assert build_challenge(challenge.with_parameters(())) == text[: text.index(", ik=")]


def test_no_key_and_no_answer_prints() -> None:
    challenge = Challenge("home1.net", "n", parameters=(("ck", "c0ffee"), ("ik", "c0ffee")))
    credentials = Credentials("u", "r", "n", "/", "c0ffee", cnonce="c0ffee", auts="c0ffee", parameters=(("ck", "c0ffee"),))
    assert "c0ffee" not in repr(challenge) + repr(credentials) + repr(AuthenticationInfo("c0ffee", cnonce="c0ffee"))


def test_tokens_stay_bare_and_the_rest_is_quoted() -> None:
    """RFC 7616 §3.4, TS 24.229 §7.2A.2."""
    credentials = Credentials(
        "u", "r", "n", "/", "x", "AKAv1-MD5", "c", "o", "auth", "00000001", "a=", (("integrity-protected", "yes"), ("userhash", "false"))
    )
    assert build_credentials(credentials) == (
        'Digest username="u", realm="r", nonce="n", uri="/", response="x", algorithm=AKAv1-MD5, qop=auth, nc=00000001, '
        'cnonce="c", opaque="o", auts="a=", integrity-protected="yes", userhash=false'
    )
    info = AuthenticationInfo("x", "auth", "c", "00000001", "n")
    assert build_authentication_info(info) == 'qop=auth, nc=00000001, rspauth="x", cnonce="c", nextnonce="n"'
    challenge = Challenge("r", "n", "SHA-256", ("auth", "auth-int"), "o", stale=True, domain="/", parameters=(("charset", "UTF-8"),))
    assert build_challenge(challenge) == (
        'Digest realm="r", nonce="n", algorithm=SHA-256, qop="auth,auth-int", opaque="o", stale=true, domain="/", charset=UTF-8'
    )


@pytest.mark.parametrize(
    "text",
    [
        'digest username="u",realm="r",nonce="n",uri="/",response="x",qop="auth",nc="00000001",cnonce="c",algorithm="MD5"',
        ' DIGEST  ,, username = "u" ,, realm\t=\t"r", NONCE="n", Uri="/", '
        'response="x", QOP=auth, nc=00000001 , cnonce="c", algorithm=MD5 ,,',
        'Digest username="\\u",realm="r",nonce="n",uri="/",response="x",qop=auth,nc=00000001,cnonce="c",algorithm=MD5',
    ],
)
def test_stacks_write_the_same_credentials_in_many_ways(text: str) -> None:
    """RFC 9110 §5.6.1, §5.6.4, §11.2."""
    assert parse_credentials(text) == Credentials("u", "r", "n", "/", "x", "MD5", "c", None, "auth", "00000001")


def test_a_quoted_value_may_hold_commas_equals_signs_and_quotes() -> None:
    text = 'Digest username="a, response=\\"x\\", \\\\", realm="r", nonce="n", uri="/?a=b,c", response="x"'
    credentials = parse_credentials(text)
    assert credentials.username == 'a, response="x", \\'
    assert credentials.uri == "/?a=b,c"
    assert build_credentials(credentials) == text


@pytest.mark.parametrize("name", [f.name for f in fields(Credentials) if f.name != "parameters"] + ["integrity-protected", "Response", "x"])
def test_a_repeated_parameter_is_refused(name: str) -> None:
    """Two readers may take different ones of the two."""
    full = replace(MINIMAL, algorithm="MD5", cnonce="c", opaque="o", qop="auth", nc="00000001", auts="a")
    text = build_credentials(with_parameter(with_parameter(full, "integrity-protected", "no"), "x", "y"))
    parse_credentials(text)
    with pytest.raises(ParseError, match="repeated"):
        parse_credentials(f'{text}, {name}="z"')
    with pytest.raises(ParseError, match="repeated"):
        parse_credentials(f'{text}, {name.upper()}="z"')


@pytest.mark.parametrize("name", ["username", "realm", "nonce", "uri", "response"])
def test_credentials_without_a_mandatory_parameter_are_refused_by_name(name: str) -> None:
    text = build_credentials(MINIMAL).replace(f"{name}=", "other=")
    with pytest.raises(ParseError, match=f"without {name}"):
        parse_credentials(text)


@pytest.mark.parametrize("name", ["realm", "nonce"])
def test_a_challenge_without_a_mandatory_parameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(ParseError, match=f"without {name}"):
        parse_challenge(build_challenge(Challenge("r", "n")).replace(f"{name}=", "other="))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Digest",
        "Digest ",
        "Digest ,",
        'Digestrealm="r"',
        'Basic realm="r", nonce="n"',
        'Digest realm="r" nonce="n"',
        'Digest realm="r", nonce',
        'Digest realm="r", nonce=',
        'Digest realm="r", nonce="n',
        'Digest realm="r", nonce="n"x',
        'Digest realm="r", nonce=n/x',
        'Digest realm="r", nonce="n\x00"',
        'Digest realm="r", nonce="n\r\n"',
        'Digest realm="r",\r\n nonce="n"',
        'Digest realm="r", nonce="n\x7f"',
        'Digest realm="r", nonce="\\\n"',
        'Digest =x, realm="r", nonce="n"',
        'Digest realm="r", nonce="n", Digest realm="s", nonce="m"',
        'Digest realm="r", nonce="n", qop=""',
        'Digest realm="r", nonce="n", qop="au th"',
        'Digest realm="r", nonce="n", qop=","',
        'Digest realm="r", nonce="n", qop="' + "a," * 40 + '"',
        "Digest " + ", ".join(f"p{i}=x" for i in range(MAX_PARAMETERS + 1)),
    ],
)
def test_what_is_no_challenge_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_challenge(text)


def test_a_field_may_have_as_many_parameters_as_the_limit_says() -> None:
    text = ", ".join(f"p{i}=x" for i in range(MAX_PARAMETERS - 2))
    assert len(parse_challenge(f'Digest realm="r", nonce="n", {text}').parameters) == MAX_PARAMETERS - 2


def test_a_challenge_without_algorithm_means_md5() -> None:
    """RFC 7616 §3.3."""
    challenge = parse_challenge('Digest realm="r", nonce="n", stale=FALSE')
    assert (challenge.algorithm, challenge.qop, challenge.stale) == ("MD5", (), False)


@pytest.mark.parametrize(("text", "stale"), [("true", True), ('"TRUE"', True), ("false", False), ("1", False), ('"tr ue"', False)])
def test_only_true_is_stale(text: str, stale: bool) -> None:
    """RFC 7616 §3.3: any value other than TRUE means false."""
    assert parse_challenge(f'Digest realm="r", nonce="n", stale={text}').stale is stale


def test_integrity_protected_is_set_over_whatever_the_ue_said() -> None:
    """TS 24.229 §5.2.2: the P-CSCF removes the parameter if the UE sent it."""
    forged = parse_credentials(FIRST_REGISTER + ', Integrity-Protected=yes, x="y"')
    assert forged.parameter("INTEGRITY-protected") == "yes"
    marked = with_parameter(forged, "Integrity-Protected", "no")
    assert marked.parameters == (("x", "y"), ("integrity-protected", "no"))
    assert without_parameter(marked, "INTEGRITY-PROTECTED").parameters == (("x", "y"),)
    assert without_parameter(marked, "absent") == marked
    with pytest.raises(LocalProtocolError):
        with_parameter(marked, "Response", "x")
    with pytest.raises(LocalProtocolError):
        without_parameter(marked, "nonce")


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_challenge(Challenge("r\r\nX: y", "n")),
        lambda: build_challenge(Challenge("r", "n\x00")),
        lambda: build_challenge(Challenge("r", "n", algorithm="a\n")),
        lambda: build_challenge(Challenge("r", "n", qop=('a"',))),
        lambda: build_challenge(Challenge("r", "n", parameters=(("ck", "\x7f"),))),
        lambda: build_challenge(Challenge("r", "n", parameters=(("nonce", "m"),))),
        lambda: build_challenge(Challenge("r", "n", parameters=(("ck", "a"), ("ck", "b")))),
        lambda: build_challenge(Challenge("r", "n", parameters=(("CK", "a"),))),
        lambda: build_challenge(Challenge("r", "n", parameters=(("c k", "a"),))),
        lambda: build_credentials(replace(MINIMAL, username="u\n")),
        lambda: build_credentials(replace(MINIMAL, nc="\r")),
        lambda: build_credentials(replace(MINIMAL, parameters=(("response", "a"),))),
        lambda: build_authentication_info(AuthenticationInfo(nextnonce="\n")),
        lambda: build_authentication_info(AuthenticationInfo()),
    ],
)
def test_no_header_field_can_be_smuggled_in(build: Any) -> None:
    with pytest.raises(LocalProtocolError):
        build()


def test_unknown_parameters_of_authentication_info_are_dropped() -> None:
    """RFC 7616 §3.5."""
    info = parse_authentication_info('rspauth="x",qop="auth", cnonce="c", nc=00000001, new=parameter')
    assert info == AuthenticationInfo("x", "auth", "c", "00000001")
    assert parse_authentication_info('nextnonce="n"') == AuthenticationInfo(nextnonce="n")


@pytest.mark.parametrize(
    ("text", "digest"),
    [("Digest x", True), (" digest\tx", True), ("Digest", True), ("DigestX y", False), ("Basic eA==", False), ("", False)],
)
def test_the_scheme_of_credentials_is_known_without_reading_them(text: str, digest: bool) -> None:
    """RFC 4475 §3.3.7."""
    assert is_digest(text) is digest
