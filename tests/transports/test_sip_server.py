# SPDX-License-Identifier: Apache-2.0
"""The server side, on real loopback sockets (RFC 3261 §8.2, §17.2.2, §18.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from keyferry.errors import RemoteProtocolError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.headers import parse_name_addr, parse_via_list
from keyferry.protocol.sip.message import Request, Response, build_message, make_response
from keyferry.transports.sip_context import Limits
from transports.sipkit import Lab, TcpPeer, UdpPeer, ok, patiently, register, turns

BARE = Limits(in_progress=2, retry_after=7)


class Held:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()

    async def __call__(self, request: Request, peer: SipPeer) -> Response:
        self.calls += 1
        await self.go.wait()
        return make_response(request, 200)


async def test_a_request_is_answered_with_a_to_tag_and_the_source_in_its_via() -> None:
    """RFC 3261 §8.2.6.2, §18.2.1; RFC 3581 §4."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port), lab.udp)
            response = await peer.response()
            (via,) = parse_via_list(response.get("Via") or "")
            assert (via.received, via.rport, via.branch) == ("127.0.0.1", str(peer.hop.port), "z9hG4bK1")
            assert parse_name_addr(response.get("To") or "").parameter("tag")
            assert response.get("X-Source") == str(peer.hop)
            assert [(event.outgoing, event.retransmission, event.peer, event.node) for event in lab.seen] == [
                (False, False, peer.hop, "node"),
                (True, False, peer.hop, "node"),
            ]
            assert lab.seen[0].local == lab.udp
            assert lab.seen[0].at == lab.clock.now()
            assert lab.seen[0].octets == len(register(peer.hop.port))


async def test_a_response_that_is_too_large_ends_its_transaction_and_not_the_connection() -> None:
    """Its receiver would read no further: RFC 3261 §21.5.14 is what it gets instead, and the next request its own answer."""

    async def much(request: Request, peer: SipPeer) -> Response:
        rows = 3 if request.method == "REGISTER" else 1
        return make_response(request, 200, headers=[("Contact", "\u20ac" * 8_000)] * rows)

    async with Lab(much) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(register(9, transport="TCP"))
        assert (await peer.response()).status == 513
        peer.send(register(9, transport="TCP", branch="z9hG4bK2", method="OPTIONS"))
        assert (await peer.response()).status == 200
        await peer.close()


async def test_what_is_too_large_by_what_it_repeats_of_its_request_is_not_sent() -> None:
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        long = register(9, transport="TCP").replace(b"Max-Forwards: 70", b"\r\n".join([b"Via: SIP/2.0/TCP a;x=" + b"y" * 8_000] * 8))
        room = 65_535 - len(long) - len("X: \r\n") - 10
        peer.send(long.replace(b"Call-ID: c1", b"Call-ID: c1" + b"1" * room))
        await lab.tallies.until("sip_dropped", "too-large")
        peer.send(register(9, transport="TCP", branch="z9hG4bK2", method="OPTIONS"))
        assert (await peer.response()).status == 200
        await peer.close()


async def test_without_rport_the_answer_goes_to_the_port_in_sent_by() -> None:
    """RFC 3261 §18.2.2: to the source address, at the port in sent-by."""
    async with Lab(ok) as lab:
        with UdpPeer() as sender, UdpPeer() as sent_by:
            sender.send(register(sent_by.hop.port, rport=False, host="pcscf.example.com"), lab.udp)
            (via,) = parse_via_list((await sent_by.response()).get("Via") or "")
            assert (via.host, via.received, via.rport) == ("pcscf.example.com", "127.0.0.1", None)
            sender.send(register(sent_by.hop.port, rport=False, branch="z9hG4bK2"), lab.udp)
            (via,) = parse_via_list((await sent_by.response()).get("Via") or "")
            assert via.received is None


async def test_further_vias_in_one_row_survive() -> None:
    """RFC 3261 §7.3.1."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port).replace(b";rport\r\n", b";rport, SIP/2.0/UDP ue.example.com;branch=z9hG4bKx\r\n"), lab.udp)
            vias = parse_via_list((await peer.response()).get("Via") or "")
            assert [via.host for via in vias] == ["127.0.0.1", "ue.example.com"]


async def test_a_retransmission_is_absorbed_while_the_handler_works() -> None:
    """RFC 3261 §17.2.2, Trying."""
    held = Held()
    async with Lab(held) as lab:
        with UdpPeer() as peer:
            for _ in range(3):
                peer.send(register(peer.hop.port), lab.udp)
            await patiently(lab.tallies.until("sip_retransmissions", "received", 2))
            assert (held.calls, lab.node.in_progress) == (1, 1)
            assert [event.retransmission for event in lab.seen] == [False, True, True]
            held.go.set()
            assert (await peer.response()).status == 200
            await turns()
            assert peer.nothing()
            assert lab.node.in_progress == 0


async def test_a_late_retransmission_gets_the_same_response_until_timer_j() -> None:
    """RFC 3261 §17.2.2, Completed: 64*T1."""
    calls = 0

    async def count(request: Request, peer: SipPeer) -> Response:
        nonlocal calls
        calls += 1
        return make_response(request, 401, headers=(("WWW-Authenticate", f"Digest nonce={calls}"),), body=b"b")

    async with Lab(count) as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port), lab.udp)
            first = await peer.octets()
            assert lab.node.remembered == 1
            lab.move(31.0)
            peer.send(register(peer.hop.port), lab.udp)
            assert await peer.octets() == first
            assert calls == 1
            assert [event.retransmission for event in lab.seen] == [False, False, True, True]
            lab.move(5.0)
            lab.move(8.0)
            assert lab.node.remembered == 0
            peer.send(register(peer.hop.port), lab.udp)
            assert await peer.octets() != first
            assert calls == 2
            lab.move(8.1)
            assert lab.node.remembered == 1


async def test_another_source_is_another_transaction() -> None:
    """Nobody gets another's response by guessing a branch."""
    held = Held()
    held.go.set()
    async with Lab(held) as lab:
        with UdpPeer() as one, UdpPeer() as other:
            one.send(register(one.hop.port), lab.udp)
            await one.octets()
            other.send(register(one.hop.port), lab.udp)
            await other.octets()
            assert held.calls == 2


async def raise_remote(request: Request, peer: SipPeer) -> Response:
    raise RemoteProtocolError("no", 423)


async def raise_odd_status(request: Request, peer: SipPeer) -> Response:
    raise RemoteProtocolError("no", 200)


async def raise_bug(request: Request, peer: SipPeer) -> Response:
    raise ValueError("a secret")


async def answer_provisional(request: Request, peer: SipPeer) -> Response:
    return make_response(request, 183)


async def inject(request: Request, peer: SipPeer) -> Response:
    return make_response(request, 200, headers=(("X", "a\r\nEvil: b"),))


@pytest.mark.parametrize(
    ("handler", "status", "failures"),
    [(raise_remote, 423, 0), (raise_odd_status, 500, 0), (raise_bug, 500, 1), (answer_provisional, 500, 1), (inject, 500, 1)],
)
async def test_what_a_handler_raises_becomes_an_answer(
    handler: Callable[[Request, SipPeer], asyncio.Future[Response]], status: int, failures: int
) -> None:
    """ports.SipHandler; the log names the type only."""
    async with Lab(handler) as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port), lab.udp)
            response = await peer.response()
            assert (response.status, response.body) == (status, b"")
            assert lab.tallies.counts["sip_dropped", "handler-failed"] == failures
            assert "secret" not in str(lab.tallies.events)
            peer.send(register(peer.hop.port), lab.udp)
            assert await peer.response() == response


async def test_above_the_limit_503_says_when_to_come_back() -> None:
    """RFC 3261 §21.5.4; nothing is kept for it."""
    held = Held()
    async with Lab(held, BARE) as lab:
        with UdpPeer() as peer:
            for number in range(3):
                peer.send(register(peer.hop.port, branch=f"z9hG4bK{number}"), lab.udp)
            response = await peer.response()
            assert (response.status, response.get("Retry-After")) == (503, "7")
            assert parse_via_list(response.get("Via") or "")[0].branch == "z9hG4bK2"
            held.go.set()
            assert {(await peer.response()).status, (await peer.response()).status} == {200}
            assert lab.node.remembered == 2


@pytest.mark.parametrize(("method", "status"), [("INVITE", 501), ("CANCEL", 481)])
async def test_what_needs_a_dialog_is_refused(method: str, status: int) -> None:
    """RFC 3261 §8.2.7, §9.2."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            for _ in range(2):
                peer.send(register(peer.hop.port, method=method), lab.udp)
                assert (await peer.response()).status == status
            assert lab.node.remembered == 0


async def test_without_a_handler_every_request_is_501() -> None:
    """A pure client."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port), lab.udp)
            assert (await peer.response()).status == 501


async def test_an_ack_is_never_answered() -> None:
    """RFC 3261 §17."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port, method="ACK"), lab.udp)
            peer.send(register(peer.hop.port), lab.udp)
            assert (await peer.response()).get("CSeq") == "1 REGISTER"


GOOD = register(1)
MALFORMED = [
    (b"\0" * 100, None),
    (b"\xff\xfe\xfd", None),
    (b"REGISTER\r\n\r\n", None),
    (b"SIP/2.0 200 OK\r\n\r\n", None),
    (b"SIP/2.0 200\r\nVia: SIP/2.0/UDP x;branch=z9hG4bK1\r\nCSeq: 1 REGISTER\r\n\r\n", None),
    (GOOD.replace(b"Max-Forwards: 70", b"Max-Forwards: 700"), 400),
    (GOOD.replace(b"CSeq: 1 REGISTER", b"CSeq: 1 MESSAGE"), 400),
    (GOOD.replace(b"CSeq: 1", b"CSeq: x"), 400),
    (GOOD.replace(b"Call-ID: c1\r\n", b""), None),
    (GOOD.replace(b"Via: SIP/2.0/UDP", b"Via: HTTP"), 400),
    (GOOD.replace(b"Content-Length: 0", b"Content-Length: -1"), 400),
    (GOOD.replace(b"Content-Length: 0", b"Content-Length: 9"), 400),
    (GOOD.replace(b"SIP/2.0\r\nVia", b"SIP/7.0\r\nVia"), 505),
    (GOOD.replace(b"Max-Forwards: 70", b"Max-Forwards"), 400),
    (GOOD.replace(b"From: <", b'From: "<'), 400),
    (GOOD.replace(b"To: <sip:a@home1.net>", b"To: <sip:a@home1.net>\r\nTo: <sip:b@home1.net>"), 400),
]


@pytest.mark.parametrize(("data", "status"), MALFORMED)
async def test_a_malformed_datagram_does_not_stop_the_listener(data: bytes, status: int | None) -> None:
    """RFC 4475 §3.1.2: 400 if it can be answered, silence if not, and the next request is served."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            peer.send(data.replace(b"127.0.0.1:1;", b"127.0.0.1:%d;" % peer.hop.port), lab.udp)
            peer.send(register(peer.hop.port, branch="z9hG4bKgood"), lab.udp)
            response = await peer.response()
            if status is not None:
                assert response.status == status
                response = await peer.response()
            assert (response.status, parse_via_list(response.get("Via") or "")[0].branch) == (200, "z9hG4bKgood")
            assert peer.nothing()


async def test_what_cannot_be_answered_is_counted() -> None:
    """A stranger's sent-by port 0, an answer too long for a datagram."""

    async def long(request: Request, peer: SipPeer) -> Response:
        head = len(build_message(make_response(request, 200, to_tag="1" * 16))) + len("0000")  # of a Content-Length of five digits
        return make_response(request, 200, body=bytes(65_520 - head))

    async with Lab(long) as lab:
        with UdpPeer() as peer:
            peer.send(register(peer.hop.port), lab.udp)
            await lab.tallies.until("sip_dropped", "unreachable")


async def test_aclose_cancels_the_handlers_at_work() -> None:
    """Strong references until then."""
    held = Held()
    lab = await Lab(held).start()
    with UdpPeer() as peer:
        peer.send(register(peer.hop.port), lab.udp)
        await turns()
        assert lab.node.in_progress == 1
        await lab.node.aclose()
        assert lab.node.in_progress == 0
        assert peer.nothing()
