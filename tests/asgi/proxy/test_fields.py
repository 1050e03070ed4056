# SPDX-License-Identifier: Apache-2.0
"""Header fields of the authentication proxy: RFC 9110 §7.6, TS 24.109 §7.2."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from asgi.doorkit import ALICE, AS_ID
from keyferry.asgi.exchange import Header
from keyferry.asgi.proxy.fields import Route, answer_fields, asserted_field, asserted_identities, expects, one, opened, request_fields
from keyferry.errors import LocalProtocolError, RemoteProtocolError
from keyferry.protocol.identity import Impu

ROUTE = Route(AS_ID, b"127.0.0.1:8000")
HOST = (b"host", AS_ID.encode())
SEPARATORS = b"-_.!'|~#$%&*+^`"
SPELLINGS = [
    *(b"x" + bytes([one]) + b"3gpp" + bytes([two]) + b"asserted-identity" for one, two in zip(SEPARATORS, SEPARATORS, strict=True)),
    b"x_3gpp-asserted_identity", b"x-3gpp_asserted-identity", b"x-3gpp.asserted.identity", b"x-3gpp-asserted-identity-",
    b"x-3gpp-authorization-flags", b"x-3gpp-intended-identity", b"x-3gpp-anything",
]  # fmt: skip


def fields(*received: Header, method: str = "GET", route: Route = ROUTE, upgrade: bool = False) -> list[Header]:
    scope = {"method": method, "headers": [HOST, *received], "client": ("192.0.2.7", 5), "user": SimpleNamespace(id="Uq3")}
    return request_fields(scope, route, ALICE, upgrade=upgrade)


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_identity_that_a_stranger_asserts_is_dropped_however_it_is_spelt(name: bytes) -> None:
    """TS 24.109 §7.2; CGI and WSGI make one name of all of them (RFC 3875 §4.1.18)."""
    sent = fields((name, b'"sip:eve@home1.net"'), (b"x-app", b"1"))
    assert all(b"eve" not in value for _, value in sent)
    assert (b"x-app", b"1") in sent
    assert [value for field, value in sent if b"3gpp" in field] == [b'"sip:alice@home1.net", "tel:+15551234"']


def test_what_is_for_this_hop_alone_ends_here() -> None:
    """RFC 9110 §7.6.1: the fixed ones, and those that Connection names."""
    hop = [b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"proxy-authorization", b"x-private", b"x-more"]
    received = [(name, b"1") for name in hop] + [(b"connection", b"close, X-Private"), (b"connection", b"x-more")]
    names = {name for name, _ in fields(*received, (b"cookie", b"a=b"))}
    assert not names & {*hop, b"connection"}
    assert b"cookie" in names


def test_connection_cannot_name_away_what_the_proxy_says() -> None:
    """A field that the proxy writes is written after the client's were sorted out."""
    sent = fields((b"connection", b"x-3gpp-asserted-identity, host, x-forwarded-for, forwarded, content-length"), (b"content-length", b"3"))
    names = [name for name, _ in sent]
    for name in (b"x-3gpp-asserted-identity", b"host", b"x-forwarded-for", b"forwarded", b"content-length"):
        assert names.count(name) == 1


def test_credentials_end_at_the_door() -> None:
    names = {name for name, _ in fields((b"authorization", b"Digest x"), (b"proxy-authorization", b"x"), (b"authorization_", b"x"))}
    assert not any(b"auth" in name for name in names)


def test_what_strangers_say_about_the_way_is_replaced() -> None:
    """RFC 7239: Forwarded is set, never appended to."""
    lies = [(b"forwarded", b"for=1.1.1.1"), (b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-host", b"evil"), (b"x-real-ip", b"1.1.1.1")]
    sent = dict(fields(*lies, (b"x-forwarded-server", b"evil"), (b"x_forwarded_for", b"1.1.1.1")))
    assert sent[b"forwarded"] == b"for=192.0.2.7;host=xcap.home1.net;proto=https"
    assert (sent[b"x-forwarded-for"], sent[b"x-forwarded-host"], sent[b"x-forwarded-proto"]) == (b"192.0.2.7", b"xcap.home1.net", b"https")
    assert all(b"evil" not in value and b"1.1.1.1" not in value for value in sent.values())


@pytest.mark.parametrize(
    ("host", "shown", "port"),
    [
        (b"xcap.home1.net", b"xcap.home1.net", b"443"),
        (b"XCAP.home1.net.:00443", b"xcap.home1.net", b"443"),
        (b" xcap.home1.net:1 ", b"xcap.home1.net:1", b"1"),
        (b"xcap.home1.net:65535", b"xcap.home1.net:65535", b"65535"),
    ],
)
def test_the_server_is_told_the_port_that_the_user_opened(host: bytes, shown: bytes, port: bytes) -> None:
    """RFC 7239 §5.3: not the listener's, which may stand behind a mapping of ports; and the name as it is written in the AS_ID."""
    scope = {"method": "GET", "headers": [(b"host", host)], "client": None}
    sent = dict(request_fields(scope, Route(AS_ID), ALICE))
    assert (sent[b"host"], sent[b"x-forwarded-host"], sent[b"x-forwarded-port"]) == (shown, shown, port)
    quoted = b'"%b"' % shown if b":" in shown else shown
    assert sent[b"forwarded"] == b"for=unknown;host=" + quoted + b";proto=https"
    other = dict(request_fields(scope, ROUTE, ALICE))
    assert (other[b"host"], other[b"x-forwarded-host"], other[b"x-forwarded-port"]) == (b"127.0.0.1:8000", shown, port)


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"a", b"a"],
        *(
            [b"xcap.home1.net" + end]
            for end in (b":0", b":00000", b":65536", b":", b":-1", b":+1", b":1x", b":1:2", b":1 2", b":\xb2", b":000443")
        ),
    ],
)
def test_a_host_without_one_name_and_a_possible_port_is_refused(hosts: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        opened([(b"host", host) for host in hosts])
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("client", "shown"), [(("2001:db8::1", 1), b'for="[2001:db8::1]"'), (None, b"for=unknown"), (("x", 0), b"for=unknown")]
)
def test_where_the_client_is_may_be_an_address_of_any_kind(client: object, shown: bytes) -> None:
    scope = {"method": "GET", "headers": [HOST], "client": client}
    sent = dict(request_fields(scope, ROUTE, ALICE))
    assert sent[b"forwarded"].startswith(shown)
    assert (b"x-forwarded-for" in sent) == (shown != b"for=unknown")


def test_the_body_is_delimited_as_the_client_did() -> None:
    assert (b"content-length", b"5") in fields((b"content-length", b"5"), method="PUT")
    assert (b"transfer-encoding", b"chunked") in fields((b"transfer-encoding", b"Chunked"), method="PUT")
    assert (b"content-length", b"0") in fields(method="POST")
    assert not {name for name, _ in fields()} & {b"content-length", b"transfer-encoding"}
    assert (b"expect", b"100-continue") in fields((b"expect", b"100-Continue"), (b"content-length", b"5"), method="PUT")


def test_an_upgrade_asks_for_websocket_alone() -> None:
    sent = fields((b"connection", b"Upgrade, HTTP2-Settings"), (b"upgrade", b"websocket"), (b"http2-settings", b"x"), upgrade=True)
    hop = [pair for pair in sent if pair[0] in {b"connection", b"upgrade", b"http2-settings"}]
    assert hop == [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]


def test_the_server_may_be_told_a_secret_and_an_opaque_id() -> None:
    route = Route(AS_ID, b"h", secret=b"s3", user_id=b"x-user-id")
    sent = fields((b"x-user-id", b"eve"), (b"x_user_id", b"eve"), (b"x-keyferry-secret", b"guess"), route=route)
    assert [value for name, value in sent if name == b"x-user-id"] == [b"Uq3"]
    assert [value for name, value in sent if name == b"x-keyferry-secret"] == [b"s3"]
    assert all(value != b"eve" for _, value in sent)


def test_via_is_appended_to() -> None:
    """RFC 9110 §7.6.3."""
    assert dict(fields((b"via", b"1.1 phone")))[b"via"] == b"1.1 phone, 1.1 keyferry"


@pytest.mark.parametrize(
    "intended", [b'"tel:+15551234"', b"tel:+15551234", b' "tel:+1-555-1234" ', b"TEL:+15551234", b"tel:+15551234;phone-context=x"]
)
def test_an_intended_identity_of_the_user_becomes_the_asserted_one(intended: bytes) -> None:
    """TS 24.109 §7.2: quoted by the standard, not by some clients."""
    assert asserted_identities(ALICE, [intended]) == ("tel:+15551234",)


@pytest.mark.parametrize("intended", [b'"sip:bob@home1.net"', b"", b'"', b"\xff", b'"tel:+15551234', b"sip:alice@home1.net, tel:+15551234"])
def test_an_intended_identity_of_another_is_refused(intended: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        asserted_identities(ALICE, [intended])
    assert refused.value.status == 403


def test_two_intended_identities_or_a_very_long_one_are_refused() -> None:
    for intended in ([b"tel:+15551234"] * 2, [b"a" * 2000]):
        with pytest.raises(RemoteProtocolError) as refused:
            asserted_identities(ALICE, intended)
        assert refused.value.status == 400


def test_all_identities_are_asserted_the_default_first() -> None:
    assert asserted_field(asserted_identities(ALICE, [])) == (b"x-3gpp-asserted-identity", b'"sip:alice@home1.net", "tel:+15551234"')
    with pytest.raises(LocalProtocolError):
        asserted_field([Impu('sip:a"@x')])


def test_an_answer_keeps_its_own_fields_alone() -> None:
    received = [(b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"connection", b"x-hop"), (b"x-hop", b"1"), (b"keep-alive", b"5")]
    door = [(b"www-authenticate", b"Basic"), (b"authentication-info", b"x")]
    assert answer_fields(200, [*received, *door]) == [(b"set-cookie", b"a"), (b"set-cookie", b"b")]


def test_an_answers_length_is_dropped_where_it_means_another_body() -> None:
    """RFC 9112 §6.3, RFC 9110 §8.6."""
    assert answer_fields(304, [(b"content-length", b"9")]) == []
    assert answer_fields(204, [(b"content-length", b"0")]) == []
    assert answer_fields(200, [(b"content-length", b"9"), (b"transfer-encoding", b"chunked")]) == []
    assert answer_fields(200, [(b"content-length", b"9")]) == [(b"content-length", b"9")]


def test_an_answer_with_control_characters_is_not_passed_on() -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        answer_fields(200, [(b"x", b"a\x01b")])
    assert refused.value.status == 502


def test_a_field_that_must_be_there_once() -> None:
    assert one([(b"a", b" 1 ")], b"a") == b"1"
    with pytest.raises(RemoteProtocolError):
        one([(b"a", b"1"), (b"a", b"1")], b"a")
    assert not expects([(b"expect", b"200-ok")])
