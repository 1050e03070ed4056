# SPDX-License-Identifier: Apache-2.0
"""The names of a door, and what a proxy in front may say."""

from __future__ import annotations

from typing import Any, cast

import pytest

from keyferry.asgi.names import MAX_SHOWN, Proxies, PublicNames, check_as_id, shown
from keyferry.errors import ConfigError

NAMES = PublicNames("notes.home1.net", ("www.notes.home1.net", "notes.example"))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"notes.home1.net", "notes.home1.net"),
        (b"NOTES.home1.NET.:8443", "notes.home1.net"),
        (b"www.notes.home1.net", "www.notes.home1.net"),
        (b"notes.example:443", "notes.example"),
    ],
)
def test_a_host_is_one_of_the_names_whatever_its_port(host: bytes, name: str) -> None:
    assert NAMES.of(host) == name


@pytest.mark.parametrize(
    "host",
    [b"", b"home1.net", b"notes.home1.net.evil.net", b"notes.home1.net:", b"notes.home1.net:x", b"evil@notes.home1.net",
     b"notes.home1.net\n",
     b"[::1]", b"notesxhome1.net", b"a" * 1000, b"notes.home1.net:443,evil", b" notes.home1.net"],
)  # fmt: skip
def test_any_other_host_is_wrong(host: bytes) -> None:
    assert NAMES.of(host) is None


def test_the_error_says_which_name_was_used_and_which_are_served() -> None:
    assert NAMES.wrong(b"127.0.0.1:8000") == (
        "The client used the name 127.0.0.1:8000; here is notes.home1.net, www.notes.home1.net, notes.example."
    )


def test_what_a_client_wrote_is_shown_harmlessly() -> None:
    assert shown(b"<script>\"'\\\x00\r\n&\xff") == "%3Cscript%3E%22%27%5C%00%0D%0A%26%FF"
    assert shown(b"") == "(none)"
    assert shown(b"a" * 5000) == "a" * MAX_SHOWN + "..."


@pytest.mark.parametrize(
    ("as_id", "others", "says"),
    [
        ("Notes.home1.net", (), "Write notes.home1.net"),
        ("https://notes.home1.net/", (), "is a URI"),
        ("notes.home1.net:8443", (), "Write notes.home1.net"),
        ("192.0.2.1", (), "IP address"),
        ("a b", (), "not a host name"),
        ("münchen.example", (), "Write xn--mnchen-3ya.example"),
        (None, (), "NoneType"),
        ("notes.home1.net", "other.example", "not several"),
        ("notes.home1.net", ("Other.example",), "public_names.*Write other.example"),
        ("notes.home1.net", ("other.example", "other.example"), "one twice"),
        ("notes.home1.net", [f"n{number}.example" for number in range(64)], "more than"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_what_to_write(as_id: Any, others: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PublicNames(as_id, others)


def test_the_first_name_may_be_repeated() -> None:
    assert PublicNames("a.example", ("a.example", "b.example")).names == ("a.example", "b.example")
    assert check_as_id("here", "a.example") == "a.example"


# ---- proxies


def scope(client: str | None, scheme: str = "http", **fields: str) -> dict[str, Any]:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return {"scheme": scheme, "client": (client, 5000) if client is not None else None, "headers": headers}


@pytest.mark.parametrize(
    ("scheme", "trusted", "client", "fields", "secure"),
    [
        ("https", (), "192.0.2.1", {}, True),
        ("wss", (), "192.0.2.1", {}, True),
        ("http", (), "192.0.2.1", {}, False),
        ("http", (), "127.0.0.1", {"x_forwarded_proto": "https"}, False),
        ("http", ("127.0.0.1",), "127.0.0.1", {"x_forwarded_proto": "https"}, True),
        ("ws", ("127.0.0.1",), "127.0.0.1", {"x_forwarded_proto": "wss"}, True),
        ("http", ("127.0.0.1",), "127.0.0.1", {"x_forwarded_proto": "http"}, False),
        ("http", ("127.0.0.1",), "127.0.0.1", {"x_forwarded_proto": "https, http"}, False),
        ("http", ("127.0.0.1",), "127.0.0.1", {}, False),
        ("http", ("127.0.0.1",), "127.0.0.2", {"x_forwarded_proto": "https"}, False),
        ("http", ("10.0.0.0/8", "::1"), "10.9.8.7", {"x_forwarded_proto": "HTTPS"}, True),
        ("http", ("10.0.0.0/8",), "::ffff:10.9.8.7", {"x_forwarded_proto": "https"}, True),
        ("http", ("10.0.0.0/8",), None, {"x_forwarded_proto": "https"}, False),
        ("http", ("unix",), None, {"x_forwarded_proto": "https"}, True),
        ("http", ("unix",), "", {"x_forwarded_proto": "https"}, True),
        ("http", ("unix",), "192.0.2.1", {"x_forwarded_proto": "https"}, False),
        ("http", ("10.0.0.0/8",), "testclient", {"x_forwarded_proto": "https"}, False),
        ("https", ("127.0.0.1",), "127.0.0.1", {"x_forwarded_proto": "http"}, True),  # TLS between the proxy and us
    ],
)
def test_tls_is_believed_to_whom_the_developer_names(
    scheme: str, trusted: tuple[str, ...], client: str | None, fields: Any, secure: bool
) -> None:
    assert Proxies(trusted).secure(scope(client, scheme, **fields)) is secure


def test_two_fields_are_no_clear_word() -> None:
    said = scope("127.0.0.1", x_forwarded_proto="https")
    said["headers"] *= 2
    assert not Proxies(("127.0.0.1",)).secure(said)


@pytest.mark.parametrize(
    ("client", "forwarded", "source"),
    [
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:203.0.113.9", "198.51.100.1", "198.51.100.1"),
        ("2001:DB8:1:0::5", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.1,10.0.0.2", "198.51.100.1"),
        ("127.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "nonsense, 10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        (None, "198.51.100.1", ""),
    ],
)
def test_the_source_is_the_last_address_that_no_trusted_proxy_has(client: str | None, forwarded: str, source: str) -> None:
    trusted = ("127.0.0.1", "10.0.0.0/8", "::ffff:203.0.113.0/120", "2001:db8:1::/64")
    assert Proxies(trusted).source(scope(client, x_forwarded_for=forwarded)) == source


@pytest.mark.parametrize(("client", "seen"), [("10.0.0.1", ("198.51.100.1", 0)), ("192.0.2.1", ("192.0.2.1", 40_000))])
async def test_what_stands_behind_a_trusted_proxy_sees_its_client(client: str, seen: tuple[str, int]) -> None:
    found: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        found.append(scope["client"])

    asked = {**scope(client, x_forwarded_for="198.51.100.1"), "client": (client, 40_000)}
    await Proxies(("10.0.0.0/8",)).in_front_of(app)(asked, cast("Any", None), cast("Any", None))
    assert found == [seen]


def test_of_a_long_list_only_the_end_is_read() -> None:
    assert Proxies(("10.0.0.0/8",)).source(scope("10.0.0.1", x_forwarded_for="6.6.6.6," + "10.0.0.1," * 31 + "10.0.0.1")) == "10.0.0.1"


@pytest.mark.parametrize("trusted", ["127.0.0.1", ("localhost",), ("10.0.0.1/8",), (1.5,), ("*",)])
def test_proxies_that_are_no_addresses_are_refused(trusted: Any) -> None:
    with pytest.raises(ConfigError, match="trusted_proxies"):
        Proxies(trusted)
