# SPDX-License-Identifier: Apache-2.0
"""Request smuggling through the proxy: RFC 9112 §11.2; what is accepted reaches the server once and well formed, the rest not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi.doorkit import AS_ID, Client, Echo, FakeClock, FakeKeys, FakeRandom, call, record
from asgi.proxy.proxykit import KEY, LIMIT, Proxy, proxying, recording, status
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import App
from keyferry.asgi.proxy.front import Front
from keyferry.errors import LocalProtocolError
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId

SECOND = b'GET /smuggled HTTP/1.1\r\nHost: xcap.home1.net\r\nX-3GPP-Asserted-Identity: "sip:eve@home1.net"\r\n\r\n'

FRAMINGS = [  # of a request that the door lets in; a second request stands in its body
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"Content-Length: 0\r\nContent-Length: 90\r\n\r\n",
    b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    b"Content-Length: 3, 3\r\n\r\nabc",
    b"Content-Length: +3\r\n\r\nabc",
    b"Content-Length: 0x3\r\n\r\nabc",
    b"Content-Length: -3\r\n\r\n",
    b"Content-Length: \r\n\r\n",
    b"Content-Length: 99999999999999999999999\r\n\r\n",
    b"Transfer-Encoding: identity\r\n\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"X: a\0b\r\n\r\n",
    b"X: a\x7fb\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
    b"Transfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Expect: 200-ok\r\nContent-Length: 3\r\n\r\nabc",
    b"Expect: 100-continue\r\nExpect: x\r\nContent-Length: 3\r\n\r\nabc",
    b"Host: other.home1.net\r\n\r\n",
    b"Authorization: Digest username=x\r\n\r\n",
]  # fmt: skip
HARMLESS = [
    b"Transfer_Encoding: chunked\r\n\r\n",
    b"Content_Length: 90\r\n\r\n",
    b"Connection: close, content-length\r\nContent-Length: 3\r\n\r\nabc",
    b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1;ext=\"x\"\r\na\r\n0\r\nHost: evil\r\nX-3GPP-Asserted-Identity: eve\r\n\r\n",
    b"Content-Length: 3  \r\n\r\nabc",
]  # fmt: skip


async def _start(proxy: Proxy, method: str = "PUT") -> bytes:
    name, value = Client(KEY).answer(await proxy.challenge(), 1, method=method, uri="/a")
    return f"{method} /a HTTP/1.1\r\nHost: {AS_ID}\r\n{name}: {value}\r\n".encode()


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_request_with_two_readings_reaches_nobody(framing: bytes) -> None:
    async with recording() as server, proxying(server) as proxy:
        method = "GET" if b"Upgrade: websocket" in framing else "PUT"
        said = await proxy.ask(await _start(proxy, method) + framing + SECOND)
        assert status(said) in {400, 401, 417, 421, 431, 501}, said
        assert b" 200 " not in said
    assert [got.target for got in server.requests() if got.whole] == []
    assert b"smuggled" not in b"".join(server.octets)


@pytest.mark.parametrize("framing", HARMLESS)
async def test_what_has_one_reading_reaches_the_server_once(framing: bytes) -> None:
    async with recording() as server, proxying(server) as proxy:
        assert status(await proxy.ask(await _start(proxy) + framing + SECOND)) == 200
    (got,) = server.requests()
    assert got.whole
    assert len(got.body) <= 3
    assert got.all(b"host") == [b"xcap.home1.net"]
    assert b"eve" not in b"".join(server.octets)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b"GET https://other.home1.net/a HTTP/1.1", 400),
        (b"GET https://xcap.home1.net/a HTTP/1.1", 400),
        (b"GET http://xcap.home1.net/a HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET /a#f HTTP/1.1", 400),
        (b"GET /a HTTP/1.0", 505),
        (b"GET /a HTTP/0.9", 505),
        (b"GET /a HTTP/2.0", 505),
        (b"GET /a HTTP/1.2", 400),
        (b"GET /\xe9 HTTP/1.1", 400),
        (b"GET /a\tb HTTP/1.1", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400),
        (b"CONNECT other.home1.net:80 HTTP/1.1", 400),
        (b"TRACE /a HTTP/1.1", 405),
        (b"FOO /a HTTP/1.1", 400),
        (b"GET /a HTTP/1.1\nX: y", 400),
        (b" GET /a HTTP/1.1", 400),
        (b"GET /\0 HTTP/1.1", 400),
    ],
)
async def test_a_request_line_of_another_form_reaches_nobody(line: bytes, wanted: int) -> None:
    """RFC 9112 §3.2: we are an origin server to our clients, so the target is a path."""
    async with recording() as server, proxying(server) as proxy:
        start = await _start(proxy, "GET")
        assert status(await proxy.ask(line + start[start.index(b"\r\n") :] + b"\r\n")) == wanted
    assert server.octets == []


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        (b"Host: other.home1.net", 421),
        (b"Host: xcap.home1.net\r\nHost: xcap.home1.net", 400),
        (b"Host: ", 400),
        (b"X: y", 400),
        (b"Host: xcap.home1.net, other", 400),
        (b"Host: xcap.home1.net@other", 400),
        (b"Host: 127.0.0.1:1/x", 400),
        (b"Host: xcap.home1.net:0", 400),
        (b"Host: xcap.home1.net:65536", 400),
        (b"Host: xcap.home1.net:8443, evil", 400),
        (b"Host: xcap.home1.net:84 43", 400),
        (b"Host: xcap.home1.net:8443@evil", 400),
        (b"Host: XCAP.home1.net.:8443", 200),
    ],
)
async def test_the_host_decides_and_is_one_of_ours(host: bytes, wanted: int) -> None:
    async with recording() as server, proxying(server) as proxy:
        start = await _start(proxy, "GET")
        lies = b"X-Forwarded-Port: 1\r\nX-Forwarded-Host: evil\r\nForwarded: host=evil\r\nX_Forwarded_Port: 1\r\n"
        assert status(await proxy.ask(start.replace(b"Host: xcap.home1.net", host) + lies + b"\r\n")) == wanted
    assert len(server.octets) == (wanted == 200)
    for got in server.requests():  # behind a mapping of ports only the client knows which one it opened
        assert [got.all(name) for name in (b"host", b"x-forwarded-host", b"x-forwarded-port")] == [[b"xcap.home1.net:8443"]] * 2 + [
            [b"8443"]
        ]
        assert got.all(b"forwarded") == [b'for=127.0.0.1;host="xcap.home1.net:8443";proto=https']
        assert b"evil" not in b"".join(server.octets)


async def test_pipelined_requests_are_each_asked_who_they_are() -> None:
    async with recording() as server, proxying(server) as proxy, proxy.connected() as (reader, writer):
        writer.write(await _start(proxy, "GET") + b"\r\n" + SECOND)
        first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), LIMIT)
        second = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
    assert (status(first), status(second)) == (200, 401)
    assert b"smuggled" not in b"".join(server.octets)


async def test_the_same_credentials_do_not_open_another_path_or_method() -> None:
    async with recording() as server, proxying(server) as proxy:
        start = await _start(proxy, "GET")
        assert status(await proxy.ask(start.replace(b"GET /a ", b"GET /b ") + b"\r\n")) == 400
        assert status(await proxy.ask(start.replace(b"GET /a ", b"DELETE /a ") + b"\r\n")) == 401
        assert status(await proxy.ask(start + b"\r\n")) == 200
        assert status(await proxy.ask(start + b"\r\n")) == 401  # once
    assert [got.target for got in server.requests()] == ["/a"]


async def test_relayed_credentials_of_one_server_do_not_open_another() -> None:
    """Relay AS1 → AS2, both behind this proxy: the AS_ID is in the realm, in the nonce and in the key."""
    mine, other = record(), record("alice-at-as2", as_id=AsId("localhost"))
    apps = {name: Echo() for name in (AS_ID, "localhost")}
    doors: dict[str, App] = {
        name: SimLogin(app, as_id=name, keys=FakeKeys(mine, other), clock=FakeClock(), random=FakeRandom(name))
        for name, app in apps.items()
    }
    front = Front(doors, clock=FakeClock())
    told: dict[str, Any] = {"keyferry.target": b"/notes"}
    of_as1 = (await call(front, **told)).challenge()
    of_as2 = (await call(front, host="LOCALHOST:8443", **told)).challenge()
    assert (await call(front, headers=[Client(mine).answer(of_as1)], host="localhost", **told)).status == 401
    assert (await call(front, headers=[Client(mine).answer(of_as2)], host="localhost", **told)).status == 401
    forged = Client(mine)
    forged.realm = of_as2.realm
    forged.ha1 = digest.hash_a1("SHA-256", mine.key_id, of_as2.realm, forged.password)
    assert (await call(front, headers=[forged.answer(of_as2)], host="localhost", **told)).status == 401
    assert apps["localhost"].scopes == []
    granted = await call(front, headers=[Client(other).answer(of_as2)], host="localhost", **told)
    assert (granted.status, granted.get("date")) == (200, "Fri, 15 Jan 2027 08:00:00 GMT")
    assert (await call(front, headers=[Client(mine).answer(of_as1)], **told)).status == 200
    assert (await call(front, host="as3.home1.net", **told)).status == 421


async def test_another_http_server_is_refused() -> None:
    """One that does not tell the target as it was sent."""
    front = Front({}, clock=FakeClock())
    with pytest.raises(LocalProtocolError):
        await call(front)
    with pytest.raises(LocalProtocolError):
        await front({"type": "websocket"}, None, None)  # type: ignore[arg-type]


TOKENS = st.sampled_from(
    [
        *(
            b"GET",
            b"PUT",
            b" ",
            b"/a",
            b" HTTP/1.1",
            b"\r\n",
            b"\n",
            b"\r",
            b":",
            b": ",
            b",",
            b"\t",
            b"\0",
            b";",
            b"\xff",
            b"3",
            b"0",
            b"abc",
        ),
        *(b"Host", AS_ID.encode(), b"Content-Length", b"Transfer-Encoding", b"chunked", b"Expect", b"100-continue"),
        *(b"X_3GPP-Asserted-Identity", b"X-3GPP-Asserted-Identity", b"Connection", b"upgrade", b"Upgrade", b"websocket", SECOND),
    ]
)


def test_no_head_makes_two_requests_of_one() -> None:
    """Fuzz: a login, then anything; at most the one request reaches the server, well formed."""

    @given(st.lists(TOKENS, max_size=30).map(b"".join))
    @settings(max_examples=60, deadline=None)
    def run(rest: bytes) -> None:
        asyncio.run(_fuzz(rest))

    run()


async def _fuzz(rest: bytes) -> None:
    async with recording() as server, proxying(server, client_timeout=0.2) as proxy:
        async with proxy.connected() as (reader, writer):
            writer.write(await _start(proxy) + rest + b"\r\n\r\n")
            writer.write_eof()
            async with asyncio.timeout(LIMIT):
                while await reader.read(65_536):
                    pass
        got = server.requests()
        assert len(got) <= 1
        assert all(one.target == "/a" and one.method == "PUT" for one in got)
        assert all(one.all(b"x-3gpp-asserted-identity") == [b'"sip:alice@home1.net", "tel:+15551234"'] for one in got)
        assert not any(fields.get("traceback") for _, fields in proxy.log.lines)
