# SPDX-License-Identifier: Apache-2.0
"""One Diameter connection against peers that do what they should not (RFC 6733 §2.1, §5.6, §7.1)."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import ResultCode, result_of
from keyferry.protocol.diameter.message import parse_message, render_message
from keyferry.transports.diameter_connection import DiameterConnection
from keyferry.transports.diameter_context import Admission, DiameterLimits
from protocol.diameter.cxkit import HSS, SCSCF
from transports.diameterkit import Answering, Net, Wire, a_mar, an_maa, an_rtr, asking
from transports.diameterkit import net_fixture as net_fixture
from transports.sipkit import PATIENCE

CER = render_message(base.build_cer(SCSCF, ["127.0.0.1"]).with_ids(1, 1))


# ---- before the capabilities are exchanged


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\xff\xff\xfc" + CER[4:20],  # 16 MB
        b"\x01\0\0\x10" + bytes(16),  # shorter than a header
        b"\x01\0\0\x15" + bytes(17),  # no whole words
        b"\x02" + CER[1:],
    ],
    ids=["http", "huge", "short", "odd", "version"],
)
async def test_what_is_no_diameter_ends_the_connection(net: Net, octets: bytes) -> None:
    _, port = await net.server()
    wire = await net.wire(port)
    wire.send(octets)
    await wire.closed()
    await net.tallies.until("diameter_dropped", "malformed-stream")


async def test_no_cer_in_time_ends_the_connection(net: Net) -> None:
    _, port = await net.server()
    wire = await net.wire(port)
    await net.until(lambda: net.tallies.counts["diameter_peer", "timeout"], step=1.0)
    await wire.closed()


async def test_half_a_cer_for_ever_ends_the_connection(net: Net) -> None:
    _, port = await net.server()
    wire = await net.wire(port)
    for at in range(len(CER) - 1):
        wire.send(CER[at : at + 1])
        await net.passes(0.3)
        if net.tallies.counts["diameter_peer", "timeout"]:
            break
    await wire.closed()


async def test_a_request_before_the_cer_reaches_nobody(net: Net) -> None:
    handler = Answering()
    _, port = await net.server(handler)
    wire = await net.wire(port)
    wire.send(a_mar())
    await wire.closed()
    assert not handler.asked


async def test_avps_that_cannot_be_read_before_the_cer_are_not_answered(net: Net) -> None:
    _, port = await net.server()
    wire = await net.wire(port)
    broken = bytearray(CER)
    broken[25:28] = b"\xff\xff\xff"
    wire.send(bytes(broken))
    assert await wire.reader.read() == b""


async def test_a_cer_octet_by_octet_is_one(net: Net) -> None:
    _, port = await net.server()
    wire = await net.wire(port)
    for octet in CER:
        wire.send(bytes([octet]))
        await asyncio.sleep(0)
    assert result_of(await wire.read()).success


# ---- afterwards


async def open_wire(net: Net, handler: Answering | None = None, **limits: int | float) -> Wire:
    _, port = await net.server(handler, limits=DiameterLimits(**limits))  # type: ignore[arg-type]
    wire = await net.wire(port)
    assert result_of(await wire.hello()).success
    return wire


async def test_half_a_message_for_ever_ends_with_the_watchdog(net: Net) -> None:
    wire = await open_wire(net)
    wire.send(render_message(a_mar())[:-4])
    await net.until(lambda: net.tallies.counts["diameter_peer", "suspect"], step=10.0)
    assert (await wire.read()).code == base.DEVICE_WATCHDOG
    await net.until(lambda: net.tallies.counts["diameter_peer", "watchdog"], step=10.0)
    await wire.closed()


async def test_a_request_with_broken_avps_is_answered_and_the_next_one_too(net: Net) -> None:
    handler = Answering()
    wire = await open_wire(net, handler)
    broken = bytearray(render_message(a_mar().with_ids(5, 50)))
    broken[25:28] = b"\xff\xff\xff"
    wire.send(bytes(broken), a_mar().with_ids(6, 60))
    first, second = await wire.read(), await wire.read()
    assert (first.hop_by_hop, first.end_to_end, result_of(first).code) == (5, 50, ResultCode.INVALID_AVP_LENGTH)
    assert (second.hop_by_hop, result_of(second).success) == (6, True)
    assert len(handler.asked) == 1


async def test_an_answer_with_broken_avps_is_none(net: Net) -> None:
    listener = await net.listener()
    client = await net.client(listener.port)
    wire = await listener.wire()
    await wire.welcome()
    (task,) = await asking(client)
    asked = await wire.read()
    broken = bytearray(render_message(an_maa(asked)))
    broken[25:28] = b"\xff\xff\xff"
    wire.send(bytes(broken))
    await net.tallies.until("diameter_dropped", "malformed-avp")
    assert not task.done()
    wire.send(an_maa(asked))
    await task


async def test_requests_in_progress_are_bounded_and_the_others_wait_unread(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    wire = await open_wire(net, handler, in_flight=4)
    wire.send(*[a_mar().with_ids(number, number) for number in range(1, 2001)])
    wire.send(base.build_dwr(SCSCF).with_ids(9, 9))
    await handler.until(4)
    await net.passes(0.1)
    assert len(handler.asked) == 4
    handler.gate.set()
    seen = [await wire.read() for _ in range(2001)]
    assert sorted(answer.end_to_end for answer in seen if answer.code != base.DEVICE_WATCHDOG) == list(range(1, 2001))


async def test_what_a_silent_peer_has_not_taken_never_reaches_it(net: Net) -> None:
    """A network that is there again would deliver it minutes later: ends of registrations that have begun again since."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        client = await net.client(listener.getsockname()[1])
        peer, _ = await loop.sock_accept(listener)
    with peer:
        peer.setblocking(False)
        cer = parse_message(await loop.sock_recv(peer, 4096))
        await loop.sock_sendall(peer, render_message(base.build_cea(cer, HSS, ["127.0.0.1"])))
        await client.ready()
        tasks = await asking(client, 2_000)
        await net.until(lambda: net.tallies.counts["diameter_peer", "watchdog"], step=2.0)
        await net.settles()
        taken = 0
        with pytest.raises(ConnectionResetError):
            while data := await loop.sock_recv(peer, 65_536):
                taken += len(data)
        assert taken < 2_000 * len(render_message(a_mar()))
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_watchdog_is_answered_while_requests_are_in_progress(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    wire = await open_wire(net, handler, in_flight=2)
    wire.send(*[a_mar().with_ids(number, number) for number in range(1, 5)], base.build_dwr(SCSCF).with_ids(9, 9))
    assert (await wire.read()).code == base.DEVICE_WATCHDOG
    handler.gate.set()


async def test_an_answer_does_not_wait_behind_requests(net: Net) -> None:
    """Otherwise a handler that asks the same peer would wait for itself."""
    serving = Answering(SCSCF)
    serving.gate.clear()
    server, port = await net.server(Answering())
    client = await net.client(port, handler=serving, limits=DiameterLimits(in_flight=4))
    await client.ready()
    await net.until(server.connected)
    tasks = [asyncio.ensure_future(server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)) for _ in range(6)]
    await serving.until(4)
    async with asyncio.timeout(PATIENCE):
        assert result_of(await client.send(a_mar(), timeout=5.0)).success
    serving.gate.set()
    await asyncio.gather(*tasks)


async def test_who_does_not_read_is_cut_off(net: Net) -> None:
    handler = Answering()
    wire = await open_wire(net, handler, backlog=100_000)
    sock = cast("socket.socket", wire.writer.get_extra_info("socket"))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    cast("asyncio.ReadTransport", wire.writer.transport).pause_reading()
    async with asyncio.timeout(60):
        number = 0
        while not net.tallies.counts["diameter_dropped", "slow-reader"] and not wire.writer.transport.is_closing():
            number += 1
            wire.send(a_mar().with_ids(number, number))
            if number % 50 == 0:
                await asyncio.sleep(0)
    await net.tallies.until("diameter_dropped", "slow-reader")


async def test_who_does_not_read_gets_no_more_work_done(net: Net) -> None:
    """Before it is cut off: its answers wait, so its requests do."""
    handler = Answering()
    wire = await open_wire(net, handler, backlog=1 << 30)
    cast("asyncio.ReadTransport", wire.writer.transport).pause_reading()
    requests = b"".join(render_message(a_mar().with_ids(number, number)) for number in range(1, 20_001))
    wire.send(requests)
    done, quiet = 0, 0
    async with asyncio.timeout(60):
        while quiet < 2_000:  # turns of the loop in which nothing was asked
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(handler.asked) == done else 0
            done = len(handler.asked)
    assert done < 20_000
    cast("asyncio.ReadTransport", wire.writer.transport).resume_reading()
    for _ in range(20_000):
        await wire.read()
    assert len(handler.asked) == 20_000


async def test_what_is_answered_at_once_goes_out_in_one_write(net: Net) -> None:
    handler = Answering()
    wire = await open_wire(net, handler)
    wire.send(b"".join(render_message(a_mar().with_ids(number, number)) for number in range(1, 31)))
    first = await wire.reader.read(1 << 20)
    assert first[:1] == b"\x01"
    wanted = len(render_message(an_maa(handler.asked[0]))) * 30
    assert len(first) == wanted  # all thirty answers, in the octets of one read


async def test_one_connection_in_a_loop_does_not_fill_the_log(net: Net) -> None:
    _, port = await net.server()
    for _ in range(40):
        wire = await net.wire(port)
        wire.send(b"GET / HTTP/1.1\r\n\r\n")
        await wire.closed()
    await net.tallies.until("diameter_dropped", "malformed-stream", 40)
    assert len(net.said("diameter-peer-refused")) == 20
    await net.passes(60)
    wire = await net.wire(port)
    wire.send(b"GET / HTTP/1.1\r\n\r\n")
    await wire.closed()
    assert len(net.said("diameter-peer-refused")) == 21


async def test_who_only_looks_whether_the_port_is_open_is_counted_and_not_logged(net: Net) -> None:
    _, port = await net.server()
    for said in (b"", b"\x01"):
        wire = await net.wire(port)
        if said:
            wire.send(said)
            await net.settles()
        wire.close()
        await net.tallies.until("diameter_peer", "lost", 1 + len(said))
        assert len(net.said("diameter-peer-refused")) == len(said)


class Between(asyncio.Transport):
    """A transport between two addresses, which has ended."""

    def __init__(self, peer: str, local: str) -> None:
        super().__init__({"peername": (peer, 40_000), "sockname": (local, 3868)})

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("peer", "lines"), [("192.0.2.1", 0), ("192.0.2.2", 1)], ids=["from-its-own-address", "of-another-machine"]
)  # fmt: skip
async def test_a_probe_by_an_address_that_is_not_loopback_is_told_from_another_machine(net: Net, peer: str, lines: int) -> None:
    """A probe of /ready, or of who waits for the start, refuses nobody: as on loopback."""
    allowed = Admission.of([SCSCF.origin_host], addresses=["192.0.2.0/24"])
    server, _ = await net.server(allowed=allowed)
    connection = DiameterConnection(server.context, server, allowed, dials=False)
    connection.connection_made(Between(peer, "192.0.2.1"))
    connection.connection_lost(None)
    assert net.tallies.counts["diameter_peer", "lost"] == 1
    assert len(net.said("diameter-peer-refused")) == lines


async def test_another_name_in_a_second_cer_ends_the_connection(net: Net) -> None:
    wire = await open_wire(net)
    wire.send(base.build_cer(HSS, ["127.0.0.1"]).with_ids(2, 2))
    await wire.closed()
    await net.tallies.until("diameter_peer", "out-of-step")
