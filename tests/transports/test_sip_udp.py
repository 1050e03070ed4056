# SPDX-License-Identifier: Apache-2.0
"""SIP over UDP, on real loopback sockets (RFC 3261 §18)."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.transaction import Timers
from keyferry.transports import sip_udp
from keyferry.transports.sip_context import Flow, Limits, SipContext
from keyferry.transports.sip_udp import BACKLOG, DRAIN, TURN, UdpEndpoint, UdpFlow, address_towards, bind
from transports.sipkit import FakeClock, Numbers, Tallies, UdpPeer, patiently, turns


class Inbox:
    """Keep what arrives."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, Flow]] = []
        self.then: Callable[[], None] | None = None
        self.waits: list[float] = []
        self.refused: set[bytes] = set()
        self.shedding = False
        self.let_in: list[bytes] = []

    def admitted(self, data: bytes, flow: Flow) -> None:
        self.let_in.append(data)
        self.received(data, flow)

    def received(self, data: bytes, flow: Flow) -> None:
        self.got.append((data, flow))
        if self.then is not None:
            self.then()

    def lost(self, flow: Flow, problem: str) -> None:
        raise AssertionError

    def undelivered(self, data: bytes, flow: Flow) -> None:
        raise AssertionError

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def shed(self, data: bytes, flow: Flow) -> bool:
        return data in self.refused


class FullSocket:
    """A socket whose buffer is full for a while; the rest is a real one."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.problems: list[OSError] = []

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        if self.problems:
            raise self.problems.pop(0)
        return self._real.sendto(data, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def endpoint(sock: Any = None, clock: FakeClock | None = None) -> tuple[UdpEndpoint, Inbox, Tallies]:
    tallies, inbox = Tallies(), Inbox()
    context = SipContext("n", clock or FakeClock(), Numbers(), tallies, tallies, None, Timers(), Limits())
    return UdpEndpoint(sock or bind(socket.SOCK_DGRAM, "127.0.0.1", 0), context, inbox), inbox, tallies


async def test_datagrams_go_both_ways() -> None:
    """RFC 3261 §18.2.1: the source address comes along."""
    end, inbox, _ = endpoint()
    with UdpPeer() as peer:
        peer.send(b"hello", end.local)
        await turns()
        data, flow = inbox.got[0]
        assert (data, flow.peer, flow.local) == (b"hello", peer.hop, end.local)
        flow.send(b"answer")
        assert await peer.octets() == b"answer"
        assert peer.source == (end.local.host, end.local.port)
        end.close()
        end.close()
        with pytest.raises(TransportError, match="closed"):
            flow.send(b"late")


async def test_a_burst_is_drained_without_starving_the_loop() -> None:
    """At most DRAIN datagrams in one turn."""
    end, inbox, _ = endpoint()
    with UdpPeer() as peer:
        for number in range(DRAIN + 10):
            peer.send(b"%d" % number, end.local)
        await turns(2)
        assert len(inbox.got) >= DRAIN
        await turns(4)
        assert [data for data, _ in inbox.got] == [b"%d" % number for number in range(DRAIN + 10)]
    end.close()


async def test_work_is_done_in_turns_and_the_wait_is_told() -> None:
    """TURN: other tasks of the loop run between; what was not worked on says how long it has waited."""
    clock = FakeClock()
    end, inbox, _ = endpoint(clock=clock)

    def work() -> None:
        clock.time += TURN

    inbox.then = work
    with UdpPeer() as peer:
        for number in range(3):
            peer.send(b"%d" % number, end.local)
        seen = []
        for _ in range(20):
            await asyncio.sleep(0)
            seen.append(len(inbox.got))
        assert {1, 2, 3} <= set(seen)
        assert [round(wait, 6) for wait in inbox.waits] == [0.0, TURN, 2 * TURN, 0.0]
    end.close()


async def test_what_is_refused_is_refused_as_it_is_read() -> None:
    """Receiver.shed: it takes no place in the inbox."""
    end, inbox, _ = endpoint()
    inbox.refused = {b"no"}
    with UdpPeer() as peer:
        for data in (b"no", b"yes", b"no"):
            peer.send(data, end.local)
        await turns()
        assert [data for data, _ in inbox.got] == [b"yes"]
    end.close()


async def test_what_was_let_in_under_load_is_not_asked_again() -> None:
    """Receiver.admitted: the question costs as much as a part of the answer."""
    end, inbox, _ = endpoint()
    with UdpPeer() as peer:
        for inbox.shedding, data in ((True, b"one"), (False, b"two")):
            peer.send(data, end.local)
            await turns()
        assert [data for data, _ in inbox.got] == [b"one", b"two"]
        assert inbox.let_in == [b"one"]
    end.close()


@pytest.mark.parametrize("limit", [("MAX_INBOX", 2), ("MAX_INBOX_OCTETS", 2)])
async def test_beyond_the_inbox_the_kernel_keeps_or_drops(monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]) -> None:
    """MAX_INBOX, MAX_INBOX_OCTETS: memory and waiting are bounded, and nothing is lost while the kernel's buffer lasts."""
    monkeypatch.setattr(sip_udp, *limit)
    clock = FakeClock()
    end, inbox, _ = endpoint(clock=clock)

    def work() -> None:
        clock.time += TURN

    inbox.then = work
    with UdpPeer() as peer:
        for number in range(6):
            peer.send(b"%d" % number, end.local)
        await turns(30)
        assert [data for data, _ in inbox.got] == [b"%d" % number for number in range(6)]
        assert max(inbox.waits) <= 2 * TURN + 1e-6
    end.close()


async def test_a_receiver_may_close_the_socket() -> None:
    """No read after close."""
    end, inbox, _ = endpoint()
    inbox.then = end.close
    with UdpPeer() as peer:
        for _ in range(3):
            peer.send(b"x", end.local)
        await turns()
        assert len(inbox.got) == 1


async def test_a_full_buffer_delays_and_then_drops() -> None:
    """The backlog is bounded."""
    sock = FullSocket(bind(socket.SOCK_DGRAM, "127.0.0.1", 0))
    sock.problems = [BlockingIOError()]
    end, _, tallies = endpoint(sock)
    with UdpPeer() as peer:
        flow = UdpFlow(end, peer.hop.host, peer.hop.port)
        for number in range(BACKLOG + 5):
            flow.send(b"%d" % number)
        assert tallies.counts["sip_dropped", "send-buffer-full"] == 5
        sock.problems = [BlockingIOError(), OSError(errno.EPERM, "no")]
        await patiently(tallies.until("sip_dropped", "socket-error"))
        assert await peer.octets() == b"1"
    end.close()


async def test_what_cannot_be_sent_is_said_or_counted() -> None:
    """RFC 3261 §18.4."""
    sock = FullSocket(bind(socket.SOCK_DGRAM, "127.0.0.1", 0))
    end, _, tallies = endpoint(sock)
    sock.problems = [OSError(errno.ENETUNREACH, "Network is unreachable"), OSError(errno.ENOBUFS, "full")]
    with pytest.raises(TransportError, match=r"udp:192\.0\.2\.1:5060: Network is unreachable"):
        end.send(b"x", "192.0.2.1", 5060)
    end.send(b"x", "127.0.0.1", 5060)
    assert tallies.counts["sip_dropped", "send-buffer-full"] == 1
    end.close()


async def test_a_socket_error_while_reading_is_survived() -> None:
    """An ICMP error belongs to some earlier datagram."""

    class Failing(FullSocket):
        failures = 1

        def recvfrom(self, size: int) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionRefusedError
            return self._real.recvfrom(size)

    end, inbox, tallies = endpoint(Failing(bind(socket.SOCK_DGRAM, "127.0.0.1", 0)))
    with UdpPeer() as peer:
        peer.send(b"x", end.local)
        await turns()
        assert len(inbox.got) == 1
        assert tallies.counts["sip_dropped", "socket-error"] == 1
    end.close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_port_in_use_says_what_to_do(kind: socket.SocketKind) -> None:
    """An error says what to do."""
    first = bind(kind, "127.0.0.1", 0)
    try:
        with pytest.raises(TransportError, match="port in use; stop the program that has it or choose another port"):
            bind(kind, "127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


def test_other_ways_to_fail_say_what_to_do_too() -> None:
    """An error says what to do."""
    with pytest.raises(TransportError, match="not an address of this machine"):
        bind(socket.SOCK_DGRAM, "192.0.2.1", 0)
    with pytest.raises(TransportError, match="unknown"):
        bind(socket.SOCK_DGRAM, "no-such-host.invalid", 0)


def test_ipv6_has_a_socket_of_its_own() -> None:
    """A v6 wildcard does not take v4's port."""
    sock = bind(socket.SOCK_DGRAM, "::1", 0)
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    sock.close()


def test_a_flow_is_named_after_its_peer() -> None:
    """For errors and ladders."""
    assert str(SipPeer("UDP", "127.0.0.1", 5060)) == "udp:127.0.0.1:5060"


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", "127.0.0.1"), ("127.9.9.9", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "::1")],
)  # fmt: skip
async def test_a_client_comes_from_the_address_that_leads_to_its_peer(host: str, own: str) -> None:
    """A Contact has it (RFC 3261 §8.1.1.8); other machines' are tested in network namespaces."""
    found = await address_towards(host, 5060)
    assert found in ({own, "::1"} if host == "localhost" else {own})


async def test_without_a_way_there_it_is_a_loopback_address() -> None:
    """`ue status` works without a network."""
    assert await address_towards("no-such-host.invalid", 5060) == "127.0.0.1"
