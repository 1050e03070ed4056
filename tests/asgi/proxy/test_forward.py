# SPDX-License-Identifier: Apache-2.0
"""One request through the proxy on real sockets: RFC 9110 §7.6, §10.1.1; RFC 9112 §6; TS 33.222 §6.5."""

from __future__ import annotations

import asyncio

import pytest

from asgi.proxy.proxykit import LIMIT, Proxy, Recorder, Wire, answer, proxying, recording, status
from keyferry.asgi.watch import RECHECK
from keyferry.client.upstream import Timeouts
from steady import steady

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "target",
    ["/", "/a%2Fb/../c", "/x?", "/?a=1&b=%20", "//double", "/users/sip:alice@home1.net/~~/a%5b@id=%22x%22%5D?xmlns(c=u)", "/%e9%00"],
)
async def test_a_target_goes_on_octet_for_octet(target: str) -> None:
    async with recording() as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head("GET", target))
    assert status(said) == 200
    (got,) = server.requests()
    assert (got.target, got.whole, got.body) == (target, True, b"")
    assert got.all(b"x-3gpp-asserted-identity") == [b'"sip:alice@home1.net", "tel:+15551234"']
    assert got.all(b"authorization") == []
    assert got.all(b"host") == [b"xcap.home1.net"]


async def test_nothing_reaches_the_server_before_the_login() -> None:
    async with recording() as server, proxying(server) as proxy:
        assert status(await proxy.ask(b"PUT / HTTP/1.1\r\nHost: xcap.home1.net\r\nContent-Length: 3\r\n\r\nabc")) == 401
    assert server.octets == []


async def test_bodies_go_up_as_they_are_delimited() -> None:
    async with recording() as server, proxying(server) as proxy:
        await proxy.ask(await proxy.head("PUT", "/a", b"Content-Length: 5\r\n") + b"hello")
        await proxy.ask(
            await proxy.head("PUT", "/b", b"Transfer-Encoding: chunked\r\n") + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-3GPP-Late: 1\r\n\r\n"
        )
        await proxy.ask(await proxy.head("POST", "/c"))
    first, second, third = server.requests()
    assert (first.body, first.all(b"content-length")) == (b"hello", [b"5"])
    assert (second.body, second.all(b"transfer-encoding"), second.all(b"x-3gpp-late")) == (b"abcde", [b"chunked"], [])
    assert (third.body, third.all(b"content-length")) == (b"", [b"0"])


async def test_no_octet_of_a_slow_upload_reaches_the_server_after_the_end_of_its_key() -> None:
    """The server behind sees a request that is cut off, the client a 503 and the end of the connection."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hear(_: Recorder, wire: Wire) -> None:
        while await wire.read():
            if b"ab" in wire.seen:
                begun.set()
        ended.set()

    async with recording(hear) as server, proxying(server) as proxy, proxy.connected() as (reader, writer):
        writer.write(await proxy.head("PUT", "/a", b"Transfer-Encoding: chunked\r\n") + b"2\r\nab\r\n")
        async with asyncio.timeout(LIMIT):
            await begun.wait()
            proxy.keys.records.clear()
            proxy.clock.time += 0.9
            writer.write(b"2\r\ncd\r\n")
            assert status(await reader.read()) == 503
            await ended.wait()
    assert b"cd" not in b"".join(server.octets)
    assert not b"".join(server.octets).endswith(b"0\r\n\r\n")


async def test_an_intended_identity_is_honoured_or_refused() -> None:
    """TS 24.109 §7.2."""
    async with recording() as server, proxying(server) as proxy:
        assert status(await proxy.ask(await proxy.head(fields=b"X-3GPP-Intended-Identity: tel:+15551234\r\n"))) == 200
        assert status(await proxy.ask(await proxy.head(fields=b'X-3GPP-Intended-Identity: "sip:bob@home1.net"\r\n'))) == 403
    (got,) = server.requests()
    assert got.all(b"x-3gpp-asserted-identity") == [b'"tel:+15551234"']
    assert got.all(b"x-3gpp-intended-identity") == []
    assert "proxy refused" in proxy.counter.seen


@pytest.mark.parametrize(
    ("answered", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: 1\r\n\r\n", b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b""),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 77\r\n\r\n', b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
async def test_answers_of_every_framing_arrive(answered: bytes, body: bytes) -> None:
    """RFC 9112 §6.3."""

    async def once(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(answered)

    async with recording(once) as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head())
    head, _, rest = said.partition(b"\r\n\r\n")
    assert status(said) == (200 if body else int(answered[9:12]))
    assert rest in {body, b"2\r\nok\r\n0\r\n\r\n"}
    assert head.lower().count(b"date:") == 1
    assert b"authentication-info: rspauth=" in head


async def test_head_has_a_length_and_no_body() -> None:
    async with recording() as server, proxying(server) as proxy:
        server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"
        async with proxy.connected() as (reader, writer):
            for _ in range(2):
                writer.write(await proxy.head("HEAD"))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
                assert b"content-length: 77" in head
    assert len(server.octets) == 1  # kept alive behind


async def test_what_the_server_says_of_this_hop_or_of_logins_ends_here() -> None:
    async with recording() as server, proxying(server) as proxy:
        server.answer = (
            b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: X-Hop\r\nX-Hop: 1\r\nWWW-Authenticate: Basic\r\n"
            b"Authentication-Info: rspauth=1\r\nKeep-Alive: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
        )
        said = (await proxy.ask(await proxy.head())).lower()
    assert status(said) == 401
    for gone in (b"x-hop", b"www-authenticate", b"keep-alive", b"rspauth=1"):
        assert gone not in said
    assert said.count(b"set-cookie") == 2
    assert said.count(b"date:") == 1
    assert b"06 nov 1994" in said


async def test_100_continue_is_the_servers_to_say() -> None:
    """RFC 9110 §10.1.1."""
    asked = asyncio.Event()

    async def wants(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await asked.wait()
        await wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not wire.seen.endswith(b"hello"):
            await wire.read()
        await wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with recording(wants) as server, proxying(server) as proxy, proxy.connected() as (reader, writer):
        writer.write(await proxy.head("PUT", "/", b"Content-Length: 5\r\nExpect: 100-continue\r\n"))
        waiting = asyncio.get_running_loop().create_task(reader.readuntil(b"\r\n\r\n"))
        await asyncio.sleep(0)
        assert not waiting.done()
        asked.set()
        assert (await asyncio.wait_for(waiting, LIMIT)).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hello")
        assert status(await answer(reader)) == 200
    assert server.requests()[0].body == b"hello"


async def test_an_answer_instead_of_100_spares_the_body() -> None:
    async def refuses(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await wire.read()

    async with recording(refuses) as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head("PUT", "/", b"Content-Length: 5\r\nExpect: 100-continue\r\n"))
    assert status(said) == 413
    assert b"100 Continue" not in said
    assert b"connection: close" in said


async def test_an_answer_may_come_before_the_bodys_end() -> None:
    async def early(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        while await wire.read():
            pass

    async with recording(early) as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head("PUT", "/", b"Content-Length: 5000000\r\n") + b"x" * 1000)
        assert status(said) == 413
        assert b"connection: close" in said
        await asyncio.wait_for(server.ended.wait(), LIMIT)


async def test_a_client_that_leaves_ends_the_request_behind() -> None:
    """In the body, and while it waits for the answer."""
    for body in (b"he", b"hello"):
        arrived = asyncio.Event()

        async def waits(_: Recorder, wire: Wire, arrived: asyncio.Event = arrived, body: bytes = body) -> None:
            await wire.head()
            while not wire.seen.endswith(body):
                await wire.read()
            arrived.set()
            await wire.read()

        async with recording(waits) as server, proxying(server) as proxy:
            async with proxy.connected() as (_, writer):
                writer.write(await proxy.head("PUT", "/", b"Content-Length: 5\r\n") + body)
                await asyncio.wait_for(arrived.wait(), LIMIT)
            await asyncio.wait_for(server.ended.wait(), LIMIT)
            assert server.requests()[0].whole is (body == b"hello")
            assert proxy.log.lines == []


async def test_a_client_that_leaves_has_its_request_made_once() -> None:
    """What breaks off is ours: it only looks like a kept connection that the server had closed, upon which a GET is repeated."""
    arrived = asyncio.Event()

    async def first_alone(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        if len(recorder.octets) > 1:
            await _pour(wire, 20 * MEGABYTE)
            return
        await wire.write(recorder.answer)
        await wire.read()
        arrived.set()
        await wire.read()

    async with recording(first_alone) as server, proxying(server) as proxy:
        assert status(await proxy.ask(await proxy.head())) == 200
        async with proxy.connected() as (_, writer):
            writer.write(await proxy.head())
            await asyncio.wait_for(arrived.wait(), LIMIT)
        await _until_idle(proxy)
        assert [got.method for got in server.requests()] == ["GET", "GET"]
        assert len(server.octets) == 1
        assert proxy.counter.seen[-1] == "proxy client"


@pytest.mark.parametrize(
    ("method", "fields", "then"),
    [
        ("GET", b"", b""),
        ("GET", b"", b"GET /next HTTP/1.1\r\nHost: xcap.home1.net\r\n\r\n"),  # of which uvicorn tells the second alone that nobody is there
        ("PUT", b"Content-Length: 5\r\nExpect: 100-continue\r\n", b""),
    ],
    ids=["plain", "pipelined", "answered without the body"],
)
async def test_a_large_answer_is_not_read_on_for_nobody(method: str, fields: bytes, then: bytes) -> None:
    given = 0

    async def pours(_: Recorder, wire: Wire) -> None:
        nonlocal given
        await wire.head()
        await wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000000\r\n\r\n")
        while True:
            await wire.write(b"x" * 65_536)
            given += 65_536

    async with recording(pours) as server, proxying(server) as proxy:
        async with proxy.connected() as (reader, writer):
            writer.write(await proxy.head(method, "/", fields) + then)
            await asyncio.wait_for(reader.readexactly(MEGABYTE), LIMIT)
        before = given
        await asyncio.wait_for(server.ended.wait(), LIMIT)
        assert given - before < 20 * MEGABYTE  # what the buffers of two sockets held
        await _until_idle(proxy)
        assert len(server.octets) == 1
        assert "proxy client" in proxy.counter.seen


async def _pour(wire: Wire, octets: int) -> None:
    await wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % octets)
    for _ in range(0, octets, MEGABYTE):
        await wire.write(b"x" * MEGABYTE)


async def _until_idle(proxy: Proxy) -> None:
    """Wait until no request is under way."""
    async with asyncio.timeout(LIMIT):
        while proxy.forward._of_user:
            await asyncio.sleep(0)


async def test_an_answer_cut_off_is_cut_off_for_the_client_too() -> None:
    """RFC 9112 §8: never completed as if it were whole."""
    for framing, piece in ((b"Content-Length: 9\r\n", b"half"), (b"Transfer-Encoding: chunked\r\n", b"9\r\nhalf")):

        async def dies(_: Recorder, wire: Wire, framing: bytes = framing, piece: bytes = piece) -> None:
            await wire.head()
            await wire.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + piece)

        async with recording(dies) as server, proxying(server) as proxy:
            said = await proxy.ask(await proxy.head())
            assert b"half" in said
            assert not said.endswith(b"0\r\n\r\n")
            assert proxy.log.lines[0][1]["reason"] == "closed"


async def test_an_answer_that_outlasts_its_login_is_cut_off_on_both_sides() -> None:
    """A de-registered user gets no further piece of a stream, and takes what came for no whole; the server behind stops, too."""
    go_on = asyncio.Event()

    async def stream(_recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        await wire.write(b"3\r\ntwo\r\n")
        while await wire.read():
            pass

    async with recording(stream) as server, proxying(server) as proxy, proxy.connected() as (reader, writer):
        writer.write(await proxy.head())
        async with asyncio.timeout(LIMIT):
            begun = await reader.readuntil(b"one\r\n")
            proxy.keys.records.clear()
            proxy.clock.time += RECHECK
            go_on.set()
            assert (status(begun), await reader.read()) == (200, b"")
            await server.ended.wait()
    assert proxy.counter.seen[-2:] == ["proxy ended", "door_ended over"]


@pytest.mark.parametrize(
    ("answered", "reason", "wanted"),
    [
        (b"", "closed", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed", 502),
        (b"SSH-2.0-x\r\n\r\n", "malformed", 502),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "malformed", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "malformed", 502),
        (b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n", "malformed", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "malformed", 502),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", "malformed", 502),
    ],
)
async def test_what_is_no_answer_is_502(answered: bytes, reason: str, wanted: int) -> None:
    async def once(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(answered)

    async with recording(once) as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head())
        assert status(said) == wanted, said
        assert f"proxy {reason}" in proxy.counter.seen


async def test_a_server_that_cannot_be_reached_is_502_and_says_so_in_the_log() -> None:
    async with proxying() as proxy:
        said = await proxy.ask(await proxy.head())
    assert status(said) == 502
    assert b"127.0.0.1" not in said
    ((event, fields),) = proxy.log.lines
    assert (event, fields["name"], fields["reason"], fields["upstream"]) == ("upstream-failed", "xcap.home1.net", "connect", "127.0.0.1:1")


async def test_a_slow_server_is_504() -> None:
    async def silent(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.read()

    async with recording(silent) as server, proxying(server, timeouts=Timeouts(answer=0.05)) as proxy:
        assert status(await proxy.ask(await proxy.head())) == 504
        assert "proxy answer-timeout" in proxy.counter.seen
        await asyncio.wait_for(server.ended.wait(), LIMIT)


@steady(0.02)
async def test_a_server_that_stops_in_its_answer_is_given_up() -> None:
    async def stops(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await wire.read()

    async with recording(stops) as server, proxying(server, timeouts=Timeouts(idle=0.05)) as proxy:
        assert (await proxy.ask(await proxy.head())).endswith(b"half")
        assert "proxy idle-timeout" in proxy.counter.seen


@steady(0.02)
async def test_a_body_that_stops_arriving_is_408_and_ends_the_request_behind() -> None:
    """Slowloris in the body: the head is bounded by the server of ours, the body here."""

    async def reads(_: Recorder, wire: Wire) -> None:
        while await wire.read():
            pass

    async with recording(reads) as server, proxying(server, client_timeout=0.05) as proxy:
        said = await proxy.ask(await proxy.head("PUT", "/", b"Content-Length: 500\r\n") + b"drop")
        assert status(said) == 408
        await asyncio.wait_for(server.ended.wait(), LIMIT)
        assert not server.requests()[0].whole


@steady(0.05)
async def test_a_client_that_stops_reading_does_not_fill_the_memory() -> None:
    taken = 0

    async def pours(_: Recorder, wire: Wire) -> None:
        nonlocal taken
        await wire.head()
        await wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await wire.write(b"x" * 65_536)
            taken += 65_536

    async with recording(pours) as server, proxying(server, client_timeout=0.2) as proxy, proxy.connected() as (_, writer):
        writer.write(await proxy.head())
        await asyncio.wait_for(server.ended.wait(), LIMIT)
    assert taken < 20_000_000  # the buffers of four sockets
    assert "proxy client" in proxy.counter.seen


async def test_one_user_cannot_take_all_connections() -> None:
    begun, answered = asyncio.Event(), asyncio.Event()

    async def waits(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        begun.set()
        await answered.wait()
        await wire.write(recorder.answer)

    async with recording(waits) as server, proxying(server, per_user=1) as proxy, proxy.connected() as (reader, writer):
        writer.write(await proxy.head())
        await asyncio.wait_for(begun.wait(), LIMIT)
        said = await proxy.ask(await proxy.head())
        assert status(said) == 429
        answered.set()
        assert status(await answer(reader)) == 200
        assert status(await proxy.ask(await proxy.head())) == 200
