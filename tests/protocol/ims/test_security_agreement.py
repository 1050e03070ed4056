# SPDX-License-Identifier: Apache-2.0
"""RFC 3329 with the parameters of TS 33.203 annex H."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError, RemoteProtocolError
from keyferry.protocol.ims.security_agreement import (
    MAX_MECHANISMS,
    UDP_TUNNEL,
    Agreement,
    Mechanism,
    build_mechanisms,
    by_preference,
    check_same,
    choose,
    ipsec_3gpp,
    parse_mechanisms,
    same,
)

CLIENT = "ipsec-3gpp; alg=hmac-sha-1-96; spi-c=23456789; spi-s=12345678; port-c=2468; port-s=1357"
SERVER = (
    "ipsec-3gpp; q=0.1; alg=hmac-sha-1-96; prot=esp; mod=UDP-enc-tun; ealg=aes-cbc; "
    "spi-c=0098765432; spi-s=4294967295; port-c=8642; port-s=7531"
)


def mechanism(ealg: str = "aes-cbc", q: int | None = None, *, spi: int = 1_000, alg: str = "hmac-sha-1-96") -> Mechanism:
    return ipsec_3gpp(alg=alg, ealg=ealg, spi_c=spi, spi_s=spi + 1, port_c=5062, port_s=5064, q=q)


SPIS = st.integers(256, 2**32 - 1)
PORTS = st.integers(1, 65_535)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
OTHERS = st.dictionaries(WORDS.map(lambda word: "x" + word), st.none() | WORDS | st.just('"a, ;\\"B"'), max_size=3).map(
    lambda d: tuple(d.items())
)
IPSEC = st.builds(
    Mechanism, st.just("ipsec-3gpp"), WORDS, SPIS, SPIS, PORTS, PORTS, WORDS, st.sampled_from(["esp", "ah"]),
    st.sampled_from(["trans", "tun", UDP_TUNNEL]), st.none() | st.integers(0, 1000), OTHERS,
).filter(lambda one: one.spi_c != one.spi_s and one.port_c != one.port_s)  # fmt: skip
TLS = st.builds(Mechanism, st.sampled_from(["tls", "digest"]), q=st.none() | st.integers(0, 1000), others=OTHERS)
LISTS = st.lists(IPSEC | TLS, min_size=1, max_size=4).map(tuple)


def test_what_is_not_written_has_the_default() -> None:
    """TS 33.203 annex H: ealg null, prot esp, mod trans."""
    expected = Mechanism("ipsec-3gpp", "hmac-sha-1-96", 23456789, 12345678, 2468, 1357, "null", "esp", "trans")
    assert parse_mechanisms([CLIENT]) == (expected,)
    assert same((expected,), parse_mechanisms([CLIENT + ";prot=esp;mod=trans;ealg=null"]))


def test_every_parameter_is_read() -> None:
    """TS 33.203 annex H; spivalue is 10DIGIT, with leading zeros."""
    (found,) = parse_mechanisms([SERVER + ';d-ver="0A";Flag'])
    assert found == Mechanism(
        "ipsec-3gpp", "hmac-sha-1-96", 98765432, 4294967295, 8642, 7531, "aes-cbc", "esp", UDP_TUNNEL, 100,
        (("d-ver", '"0A"'), ("flag", None)),
    )  # fmt: skip


def test_names_and_values_have_no_case() -> None:
    """RFC 3261 §7.3.1."""
    assert parse_mechanisms([SERVER.upper()]) == parse_mechanisms([SERVER])


def test_several_fields_and_comma_lists_are_one_list() -> None:
    """RFC 3329 §2.2, RFC 3261 §7.3.1."""
    tls = Mechanism("tls", q=200, others=(("a", "b"),))
    ipsec = parse_mechanisms([CLIENT])[0]
    assert parse_mechanisms([f"tls;q=0.2;a=b , {CLIENT}", CLIENT]) == (tls, ipsec, ipsec)
    assert parse_mechanisms([]) == ()


@pytest.mark.parametrize(("text", "q"), [("0", 0), ("0.", 0), ("0.5", 500), ("0.05", 50), ("0.001", 1), ("1", 1000), ("1.000", 1000)])
def test_qvalues(text: str, q: int) -> None:
    """RFC 3261 §25.1."""
    (found,) = parse_mechanisms([f"tls;q={text}"])
    assert found.q == q
    assert parse_mechanisms([build_mechanisms([found])]) == (found,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "tls,",
        "tls tls",
        "tls;q=1.1",
        "tls;q=2",
        "tls;q",
        "tls;q=0.1234",
        "tls;q=0.1;q=0.1",
        "ipsec-3gpp",
        CLIENT + ",",
        CLIENT + ";alg=hmac-sha-1-96",
        CLIENT.replace("alg=hmac-sha-1-96; ", ""),
        CLIENT.replace("hmac-sha-1-96", '"hmac sha"'),
        CLIENT.replace("hmac-sha-1-96", "a" * 33),
        CLIENT.replace("spi-c=23456789; ", ""),
        CLIENT.replace("23456789", "255"),
        CLIENT.replace("23456789", "4294967296"),
        CLIENT.replace("23456789", "23456789012"),
        CLIENT.replace("23456789", "-1"),
        CLIENT.replace("23456789", "\uff11\uff12\uff13"),
        CLIENT.replace("23456789", "12345678"),  # the SPI of the other side
        CLIENT.replace("2468", "0"),
        CLIENT.replace("2468", "65536"),
        CLIENT.replace("2468", "1357"),
        CLIENT + ";mod=a_b",
        CLIENT + "".join(f";p{number}" for number in range(57)),
        ", ".join(["tls"] * (MAX_MECHANISMS + 1)),
        "tls;a=" + "b" * 9_000,
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_mechanisms([text])


def test_all_fields_together_are_bounded() -> None:
    with pytest.raises(ParseError):
        parse_mechanisms(["tls;a=" + "b" * 500] * 20)
    with pytest.raises(ParseError):
        parse_mechanisms(["tls"] * (MAX_MECHANISMS + 1))
    assert len(parse_mechanisms(["tls"] * MAX_MECHANISMS)) == MAX_MECHANISMS


def test_a_mechanism_is_written_with_its_defaults() -> None:
    assert build_mechanisms([mechanism(q=100), Mechanism("tls")]) == (
        "ipsec-3gpp;q=0.1;alg=hmac-sha-1-96;ealg=aes-cbc;prot=esp;mod=UDP-enc-tun;spi-c=1000;spi-s=1001;port-c=5062;port-s=5064, tls"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        Mechanism("two words"),
        Mechanism("TLS"),
        Mechanism("tls", q=1001),
        Mechanism("tls", others=(("a", "b\r\nVia: c"),)),
        Mechanism("tls", others=(("a", ""),)),
        Mechanism("tls", others=(("A", "b"),)),
        Mechanism("tls", others=(("q", "0.1"),)),
        Mechanism("tls", others=(("a", "b"), ("a", "c"))),
        dataclasses.replace(mechanism(), others=(("alg", "null"),)),
        dataclasses.replace(mechanism(), alg=""),
        dataclasses.replace(mechanism(), mod="udp-enc-tun"),
        dataclasses.replace(mechanism(), spi_c=0),
        dataclasses.replace(mechanism(), port_s=70_000),
    ],
)
def test_what_cannot_be_written_is_our_bug(wrong: Mechanism) -> None:
    """No value may end the header field."""
    with pytest.raises(LocalProtocolError):
        build_mechanisms([wrong])


def test_a_mechanism_of_ours_is_checked_when_it_is_made() -> None:
    with pytest.raises(LocalProtocolError):
        mechanism(spi=0)


def test_the_server_s_preference_decides() -> None:
    """TS 33.203 §7.2: the first on the P-CSCF's list that the UE has too; both sides find the same."""
    offer = [Mechanism("tls"), mechanism("null"), mechanism("aes-cbc"), mechanism("aes-gcm", alg="null")]
    server = [mechanism("null", 100, spi=9_000), mechanism("aes-cbc", 500, spi=9_000), mechanism("des-ede3-cbc", 900, spi=9_000)]
    assert choose(offer, server) == Agreement(offer[2], server[1])
    assert choose(offer, parse_mechanisms([build_mechanisms(server)])) == Agreement(offer[2], server[1])


def test_without_q_the_order_decides() -> None:
    """RFC 3329 §2.2."""
    first, second, third = mechanism("null"), mechanism("aes-cbc"), mechanism("x", 500)
    assert by_preference([first, third, second]) == [first, second, third]


@pytest.mark.parametrize(
    "server",
    [
        [],
        [mechanism("x", spi=9_000)],
        [dataclasses.replace(mechanism(spi=9_000), mod="trans")],
        [Mechanism("digest")],
        [mechanism(spi=1_001)],  # an SPI that the client chose (TS 33.203 §7.1)
    ],
)
def test_nothing_in_common_is_494(server: list[Mechanism]) -> None:
    """RFC 3329 §2.3.1."""
    with pytest.raises(RemoteProtocolError) as refusal:
        choose([mechanism(), Mechanism("tls")], server)
    assert refusal.value.status == 494
    assert choose([Mechanism("tls")], [Mechanism("tls", q=1)]).server.q == 1


@pytest.mark.parametrize(
    ("other", "equivalent"),
    [
        (f"{SERVER}, tls;q=0.05", True),
        (f"{SERVER.replace('; ', ' ;')}  ,TLS; Q = 0.050", True),
        (
            "ipsec-3gpp;port-s=7531;port-c=8642;spi-s=4294967295;spi-c=98765432;ealg=AES-CBC;mod=udp-enc-tun;alg=hmac-sha-1-96;q=0.1,tls;q=0.05",
            True,
        ),
        (f"tls;q=0.05, {SERVER}", False),
        (SERVER, False),
        (f"{SERVER}, tls;q=0.05, tls;q=0.05", False),
        (f"{SERVER}, tls;q=0.06", False),
        (f"{SERVER}, tls", False),
        (f"{SERVER}, tls;q=0.05;a", False),
        (f"{SERVER.replace('aes-cbc', 'null')}, tls;q=0.05", False),
        (f"{SERVER.replace('7531', '7532')}, tls;q=0.05", False),
        (f"{SERVER.replace('0098765432', '0098765433')}, tls;q=0.05", False),
    ],
)
def test_two_lists_are_the_same_if_mechanisms_parameters_and_order_are(other: str, equivalent: bool) -> None:
    """RFC 3329 §2.3.1."""
    sent = parse_mechanisms([f"{SERVER}, tls;q=0.05"])
    assert same(parse_mechanisms([other]), sent) is equivalent
    if equivalent:
        check_same([other], sent)
    else:
        with pytest.raises(RemoteProtocolError) as refusal:
            check_same([other], sent)
        assert refusal.value.status == 494


def test_only_what_is_quoted_has_a_case() -> None:
    """RFC 3261 §7.3.1."""
    sent = parse_mechanisms(['digest;d-alg=md5;d-ver="0a"'])
    assert same(parse_mechanisms(['digest;d-ver="0a";d-alg=MD5']), sent)
    assert not same(parse_mechanisms(['digest;d-alg=md5;d-ver="0A"']), sent)
    assert not same(parse_mechanisms(["digest;d-alg=md5;d-ver"]), sent)


def test_no_list_at_all_is_not_what_was_sent() -> None:
    """RFC 3329 §2.3.1: a request without Security-Verify."""
    with pytest.raises(RemoteProtocolError):
        check_same([], parse_mechanisms([SERVER]))


@given(LISTS)
def test_mechanisms_are_read_back(mechanisms: tuple[Mechanism, ...]) -> None:
    """Codec property, as one field and as several."""
    assert parse_mechanisms([build_mechanisms(mechanisms)]) == mechanisms
    assert parse_mechanisms([build_mechanisms([each]) for each in mechanisms]) == mechanisms
    assert same(mechanisms, mechanisms)


@given(LISTS, LISTS)
def test_lists_that_differ_are_not_the_same(one: tuple[Mechanism, ...], other: tuple[Mechanism, ...]) -> None:
    assert same(one, other) == same(other, one)
    assert not same(one, (*one, *other))


SCRAPS = st.lists(
    st.sampled_from(["ipsec-3gpp", "tls", ";", ",", "=", '"', "\\", " ", "\t", "q", "alg", "0.1", "spi-c", "256", "é", CLIENT, SERVER]),
    max_size=12,
).map("".join)


@given(SCRAPS | st.text(max_size=60))
def test_any_text_gives_mechanisms_or_a_parse_error(text: str) -> None:
    """Parser property; whatever was read can be written."""
    with contextlib.suppress(ParseError):
        found = parse_mechanisms([text])
        assert parse_mechanisms([build_mechanisms(found)]) == found


@pytest.mark.parametrize(
    "text", ["a;" * 4_000, "tls;" + "a" * 8_000, 'tls;a="' + "\\" * 8_000, " " * 8_192, "tls" + " ;a=b" * 1_600, "tls," * 2_000]
)
def test_hostile_values_take_no_time(text: str) -> None:
    with costs_under(0.1), contextlib.suppress(ParseError):
        parse_mechanisms([text])
