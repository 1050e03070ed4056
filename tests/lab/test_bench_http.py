# SPDX-License-Identifier: Apache-2.0
"""The GET benchmark's two sides against each other, and the load against answers that are wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyferry.lab.bench_http import AUID, DOCUMENT_OCTETS, HttpSetup, document, http_user, serve_documents
from keyferry.lab.bench_http_load import Browser, Connection, HttpLoad, HttpOrder, HttpTally, load_documents
from keyferry.lab.bench_register_load import Burst
from keyferry.lab.bench_worker import Usage
from keyferry.protocol.xcap.usages import USAGES, validate
from lab.benchkit import part


@pytest.mark.parametrize("granian", [False, True], ids=["uvicorn", "granian"])
async def test_every_user_reads_its_document_at_both_doors(tmp_path: Path, granian: bool) -> None:
    """Each user once, then for a moment: Digest with a count that rises, rspauth verified by the load."""
    setup = HttpSetup(tmp_path / "state", 5, granian)
    async with part(serve_documents, setup) as server, part(load_documents, HttpLoad(5, 2)) as load:
        await load.ask(await server.answer())
        assert server.told == [("storing keys", 5, 5), ("storing documents", 5, 5)]
        for login in (False, True):
            for seconds in (None, 0.05):
                await load.ask(HttpOrder(login, seconds))
                burst: Burst = await load.ask("go")
                assert (burst.errors, burst.problems) == (0, ())
                assert burst.done == 5 if seconds is None else burst.done > 0
        assert isinstance(await server.ask("usage"), Usage)


def test_the_document_is_one_that_the_server_would_take() -> None:
    """A valid simservs document of 2 kB."""
    body = document()
    assert len(body) == DOCUMENT_OCTETS
    validate(next(usage for usage in USAGES if usage.auid == AUID), body)


def browser() -> Browser:
    return Browser(http_user(1), b"a" * 64, b"b" * 64, b"c" * 64, b"cb1.x.y")


def test_a_browser_says_what_is_wrong_with_an_answer() -> None:
    """Status, challenge, rspauth, nextnonce."""
    one = browser()
    assert one.take(b"HTTP/1.1 500 Oh", login=False) == "status 500"
    assert one.take(b"HTTP/1.1 200 OK", login=False) == ""
    assert one.take(b"HTTP/1.1 401 No\r\nwww-authenticate: Digest qop=auth", login=True) == "no nonce"
    assert one.take(b'HTTP/1.1 401 No\r\nwww-authenticate: Digest realm="r", nonce="n1"', login=True) is None
    assert b'nonce="n1", uri="/simservs.ngn.etsi.org/' in one.request(login=True)
    assert one.take(b"HTTP/1.1 401 No", login=True) == "status 401"
    assert one.take(b"HTTP/1.1 200 OK", login=True) == "rspauth is wrong"
    proof = b'HTTP/1.1 200 OK\r\nauthentication-info: rspauth="%b", nextnonce="n2"' % one.rspauth
    assert one.take(proof, login=True) == ""
    assert b'nonce="n2"' in one.request(login=True)
    assert one.count == 1


class Wire(asyncio.Transport):
    """Keep what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        """Nothing to close."""


async def test_an_answer_in_pieces_is_one_answer_and_a_closed_connection_an_error() -> None:
    """Content-Length says where an answer ends."""
    tally = HttpTally(login=False, until=1e18, once=False)
    wire, connection = Wire(), Connection([browser()], tally)
    connection.connection_made(wire)
    connection.begin()
    for piece in (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 6\r\n\r\nab", b"cd", b"ef"):
        assert len(wire.written) == 1
        connection.data_received(piece)
    assert (len(wire.written), len(tally.latencies)) == (2, 1)
    connection.data_received(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    connection.connection_lost(None)
    assert tally.problems == ["status 404", "the server closed the connection"]
    assert connection.ended.done()
    connection.close()


async def test_a_connection_without_users_has_nothing_to_do() -> None:
    """More connections than users."""
    connection = Connection([], HttpTally(login=False, until=1e18, once=False))
    connection.connection_made(Wire())
    connection.begin()
    assert connection.ended.done()
