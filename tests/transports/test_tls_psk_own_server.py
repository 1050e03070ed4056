# SPDX-License-Identifier: Apache-2.0
"""TLS-PSK in a server of somebody's own, and what a stranger can measure of it (DESIGN §7)."""

from __future__ import annotations

import asyncio
import socket
import ssl
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import uvicorn

from asgi.doorkit import FakeClock
from keyferry.asgi.auth import SimLogin
from keyferry.protocol.ims.keys import psk_identity
from keyferry.transports.http_bounds import BoundedHttp
from keyferry.transports.tls_psk import FULL, PskDoor, PskObject, PskVersion, psk_context
from transports.pskkit import (
    AS_ID,
    Connection,
    FakeLog,
    PskKeys,
    Wire,
    client_context,
    context_of,
    make_psk_door,
    psk_record,
    psk_serving,
    refused,
    who,
)

pytestmark = pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")
both = pytest.mark.parametrize("version", ["1.3", "1.2"])
ALICE, BOB = psk_record("alice"), psk_record("bob")


@both
def test_an_unknown_name_costs_what_a_known_one_costs(version: PskVersion) -> None:
    """One look and one derivation each; who measures learns nothing from the rest."""
    door = make_psk_door(ALICE, version=version)
    names = [psk_identity(door.ua_id, record.key_id) for record in (ALICE, BOB)]
    wire = Wire(psk_context(door), client_context(version, names[0], b"w" * 32))
    assert isinstance(wire.server, PskObject)
    door.running.handshake = wire.server
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(2_000):
        for name in names:
            began = time.perf_counter()
            door.key_for(name)
            times[name].append(time.perf_counter() - began)
    known, unknown = (statistics.median(times[name]) for name in names)
    assert 0.3 < known / unknown < 3.0
    keys = door.sources[0]
    assert isinstance(keys, PskKeys)
    assert len(keys.asked) == 4_000


@both
async def test_uvicorn_itself_takes_the_context(version: PskVersion) -> None:
    """For an application that `keyferry serve` does not serve: docs/simlogin.md."""
    context = psk_context(PskDoor(AS_ID, [PskKeys({ALICE.key_id: ALICE})], version=version))
    config = uvicorn.Config(
        who, http=BoundedHttp, ssl_context_factory=lambda _config, _default: context, lifespan="off", log_level="critical", access_log=False
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await server.startup(sockets=[listener])
        try:
            port = listener.getsockname()[1]
            connection = await Connection.open(port, context_of(ALICE, version))
            assert (await connection.get())[2] == ALICE.impi
            await connection.close()
            assert await refused(port, context_of(ALICE, version, key=b"w" * 32))
        finally:
            await server.shutdown(sockets=[listener])


@both
def test_a_flood_of_wrong_handshakes_makes_some_lines(version: PskVersion) -> None:
    """Anybody can send them, by thousands a second; whoever names a key is logged apart from whoever does not even speak TLS."""
    clock = FakeClock()
    door = replace(make_psk_door(ALICE, version=version), clock=clock)
    assert isinstance(door.log, FakeLog)
    server, client = psk_context(door), client_context(version, psk_identity(door.ua_id, BOB.key_id), b"w" * 32)
    for _ in range(FULL + 20):
        noise = Wire(server, client)
        noise.server_in.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            noise.server.do_handshake()
    for _ in range(FULL + 7):
        with pytest.raises(ssl.SSLError):
            Wire(server, client).shake()
    assert [event for event, _ in door.log.seen] == ["psk-refused"] * 2 * FULL
    clock.time += 60
    Wire(server, context_of(ALICE, version)).shake()
    again = [fields for event, fields in door.log.seen if event == "psk-refused-again"]
    assert [(fields["claims"], fields["repeated"]) for fields in again] == [("nameless", 20), ("named", 7)]
    Wire(server, context_of(ALICE, version)).shake()
    assert len(door.log.seen) == 2 * FULL + 2
    with pytest.raises(ssl.SSLError):
        Wire(server, client).shake()
    assert door.log.seen[-1][0] == "psk-refused"


async def test_an_upload_on_a_connection_ends_with_the_key_that_the_handshake_proved() -> None:
    """The door looks again at the next piece of the body, and the connection ends."""
    door, heard, clock = make_psk_door(ALICE), asyncio.Queue[dict[str, Any]](), FakeClock()
    (keys,) = door.sources
    assert isinstance(keys, PskKeys)

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        more = True
        while more:
            message = await receive()
            heard.put_nowait(message)
            more = message.get("more_body", False)

    login = SimLogin(app, as_id=AS_ID, keys=keys, clock=clock, user_id_key=b"u" * 32)
    async with psk_serving(door, login) as port, asyncio.timeout(60):
        connection = await Connection.open(port, context_of(ALICE, "1.3"))
        connection.write(f"PUT / HTTP/1.1\r\nHost: {AS_ID}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        assert (await heard.get())["body"] == b"a"
        keys.records.clear()
        clock.time += 0.9
        connection.write("1\r\nb\r\n")
        assert (await heard.get())["type"] == "http.disconnect"
        status, fields, _ = await connection.answer()
        assert (status, fields["connection"]) == (503, "close")
        connection.write("0\r\n\r\n")
        assert await connection.ended()
        await connection.close()
