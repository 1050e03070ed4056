# SPDX-License-Identifier: Apache-2.0
"""What stands around roles, ports and doors: it measures, tells the log which registration, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import pytest

from keyferry.asgi.auth import Identity
from keyferry.asgi.exchange import Message, Receive, Scope, Send
from keyferry.asgi.proxy.forward import LEFT
from keyferry.errors import CxError, RemoteProtocolError, StoreError, TransportError
from keyferry.ports import CxClient, PeerCheck, SipHandler, SipPeer
from keyferry.ports.correlation import correlate, correlation
from keyferry.protocol.identity import AsId, Impu, KeyId
from keyferry.protocol.repeats import WINDOW
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.wiring.measuring import (
    ALL_LINES,
    GONE,
    LINES,
    OTHER,
    MeasuredCx,
    MeasuredDoor,
    MeasuredPushes,
    RegisterLines,
    measured_handler,
    outcome_of,
)
from keyferry.wiring.metrics import Metrics
from roles.network import FakeClock, RecordingLog

Trusts: TypeAlias = Callable[[SipPeer], bool]
PEER = SipPeer("UDP", "127.0.0.1", 5060)
ICID = "0123456789abcdef" * 2
AS = "sip:xcap-as.home1.net:5090"


def register(*headers: tuple[str, str], method: str = "REGISTER") -> Request:
    base = (("Via", "SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK1"), ("From", "<sip:a@home1.net>;tag=1"), ("To", "<sip:a@home1.net>"),
            ("Call-ID", "1"), ("CSeq", f"1 {method}"))  # fmt: skip
    return Request(method, "sip:home1.net", (*base, *headers), b"")


def taking(clock: FakeClock, seconds: float, status: int, seen: list[str] | None = None) -> SipHandler:
    """A handler that takes its time; a status of 0 is a bug in it."""

    async def handle(request: Request, peer: SipPeer) -> Response:
        del peer
        clock.time += seconds
        if seen is not None:
            seen.append(correlation())
        if status == 0:
            raise RuntimeError
        if status == 420:
            raise RemoteProtocolError("no", 420)
        return make_response(request, status)

    return handle


def handled(
    handler: SipHandler, function: str, metrics: Metrics, clock: FakeClock, log: RecordingLog, trusts: Trusts = lambda _peer: True
) -> SipHandler:  # fmt: skip
    return measured_handler(handler, RegisterLines(function, clock, log, trusts), metrics, clock)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(401, "challenged"), (200, "accepted"), (403, "refused"), (420, "refused"), (603, "refused"), (301, "refused"), (500, "failed"),
     (504, "failed"), (0, "failed")],
)  # fmt: skip
async def test_a_register_is_timed_by_its_outcome(status: int, outcome: str) -> None:
    clock, metrics, log = FakeClock(), Metrics(), RecordingLog()
    handle = handled(taking(clock, 0.2, status), "S-CSCF", metrics, clock, log)
    try:
        assert (await handle(register(), PEER)).status == status
    except (RemoteProtocolError, RuntimeError):
        assert status in {0, 420}
    histogram = metrics.histogram("sip_register_seconds", "S-CSCF", outcome)
    assert (histogram.count, round(histogram.total, 3)) == (1, 0.2)
    assert outcome_of(status or 500) == outcome
    assert [event for _, event, _ in log.events] == ["register"]


async def test_other_methods_are_not_timed() -> None:
    clock, metrics, log = FakeClock(), Metrics(), RecordingLog()
    await handled(taking(clock, 1.0, 200), "S-CSCF", metrics, clock, log)(register(method="SUBSCRIBE"), PEER)
    assert metrics.histogram("sip_register_seconds", "S-CSCF", "accepted").count == 0


async def test_peers_are_believed_an_icid_and_strangers_are_not() -> None:
    """RFC 7315 §4.6.2: what a UE, or whoever reaches the core, writes into P-Charging-Vector is nothing to us; each request begins anew."""
    clock, seen = FakeClock(), list[str]()
    vector = ("P-Charging-Vector", f'icid-value="{ICID}-2"')
    handle = handled(taking(clock, 0, 200, seen), "I-CSCF", Metrics(), clock, RecordingLog(), trusts=lambda peer: peer == PEER)
    for peer in (PEER, SipPeer("UDP", "203.0.113.9", 5060)):
        await handle(register(vector), peer)
        await handle(register(), peer)
        await handle(register(vector, method="SUBSCRIBE"), peer)
    correlate("")
    assert seen == [ICID, "", ICID, "", "", ""]


def lines_of(log: RecordingLog, event: str, **wanted: object) -> list[Mapping[str, object]]:
    return [fields for _, name, fields in log.events if name == event and fields.items() >= wanted.items()]


async def test_a_flood_of_strangers_is_some_lines_and_a_number_and_leaves_room_for_others() -> None:
    """The first of a source and a status in full; after the minute, or at the end, how many more there were; what is accepted always."""
    clock, log = FakeClock(), RecordingLog()
    lines = RegisterLines("P-CSCF", clock, log, lambda _peer: False)
    for number in range(LINES + 30):
        lines.tell(SipPeer("UDP", "203.0.113.9", 1024 + number), 403, 0.001)
        lines.tell(SipPeer("UDP", "203.0.113.9", 1024 + number), 200, 0.001)
        clock.time += 0.1
    lines.tell(PEER, 403, 0.002)
    assert len(lines_of(log, "register", status=200)) == LINES + 30
    assert len(lines_of(log, "register", status=403)) == LINES + 1
    lines.tell_counts()
    assert not lines_of(log, "register-repeated")
    clock.time += WINDOW
    lines.tell_counts()
    (told,) = lines_of(log, "register-repeated")
    assert told == {"function": "P-CSCF", "status": 403, "source": "203.0.113.9", "count": 30, "seconds": 3}
    for _ in range(LINES + 1):
        lines.tell(PEER, 401, 0.001)
    lines.tell_counts(final=True)
    assert [fields["count"] for fields in lines_of(log, "register-repeated", source="127.0.0.1")] == [1]


async def test_what_a_peer_of_ours_carries_is_told_in_full() -> None:
    """A P-CSCF's REGISTERs are those of many phones."""
    clock, log = FakeClock(), RecordingLog()
    lines = RegisterLines("I-CSCF", clock, log, lambda _peer: True)
    for _ in range(ALL_LINES + 5):
        lines.tell(PEER, 401, 0.001)
    lines.tell_counts(final=True)
    assert len(lines_of(log, "register")) == ALL_LINES
    assert [fields["count"] for fields in lines_of(log, "register-repeated")] == [5]


class FakeSip:
    """A SIP client with an answer."""

    def __init__(self, clock: FakeClock, status: int) -> None:
        self.clock, self.status, self.checks = clock, status, list[object]()

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        self.clock.time += 0.01
        self.checks.append(check)
        if not self.status:
            raise TransportError(str(hop), "no answer")
        return make_response(request, self.status)


@pytest.mark.parametrize(("status", "outcome"), [(200, "delivered"), (403, "refused"), (0, "unreachable")])
async def test_a_push_is_timed_by_its_as(status: int, outcome: str) -> None:
    """The protection policy goes along; an AS that only a profile names has no label of its own."""
    clock, metrics, log = FakeClock(), Metrics(), RecordingLog()
    sip = FakeSip(clock, status)
    pushes = MeasuredPushes(sip, metrics, clock, log, frozenset({AS}))
    policy = cast("PeerCheck", object())
    for uri in (AS, "sip:elsewhere.example"):
        try:
            await pushes.send(Request("REGISTER", uri, register().headers, b""), PEER, check=policy)
        except TransportError:
            assert status == 0
    assert sip.checks == [policy, policy]
    for server in (AS, OTHER):
        assert metrics.histogram("isc_push_seconds", server, outcome).count == 1


class FakeCx:
    """An HSS that knows one user, and breaks for another."""

    async def location_info(self, impu: Impu) -> str:
        if impu == "sip:unknown@home1.net":
            raise CxError(5001, "USER_UNKNOWN")
        if impu == "sip:broken@home1.net":
            raise StoreError("disk")
        return "sip:scscf1.home1.net"


async def test_cx_is_timed_by_command_and_outcome() -> None:
    clock, metrics, log = FakeClock(), Metrics(), RecordingLog()
    cx = MeasuredCx(cast("CxClient", FakeCx()), metrics, clock, log)
    assert await cx.location_info(Impu("sip:a@home1.net")) == "sip:scscf1.home1.net"
    for user, problem in (("unknown", CxError), ("broken", StoreError)):
        with pytest.raises(problem):
            await cx.location_info(Impu(f"sip:{user}@home1.net"))
    assert [metrics.histogram("cx_seconds", "LIR", outcome).count for outcome in ("success", "refused", "failed")] == [1, 1, 1]
    assert [fields["result"] for _, _, fields in log.events] == ["success", "USER_UNKNOWN", "failed"]


# ---- doors


class Exchange:
    """One request to a door that has measured surroundings."""

    def __init__(self, status: int | None, *, mechanism: str = "", kind: str = "http") -> None:
        self.clock, self.metrics = FakeClock(), Metrics()
        self.measured = MeasuredDoor(AsId("xcap.home1.net"), self.metrics, self.clock)
        self.status, self.mechanism, self.kind = status, mechanism, kind
        self.inner_scope: Mapping[str, Any] = {}
        self.sent: list[Message] = []

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inner_scope = scope
        self.clock.time += 0.3
        if self.status is None:
            raise RuntimeError
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        self.clock.time += 9.0
        await send({"type": "http.response.body", "body": b""})

    async def run(self) -> None:
        inside = self.measured.inside(self.application)

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            self.clock.time += 0.002
            inner = {**scope}
            if self.mechanism:
                inner["keyferry"] = Identity((Impu("sip:a@home1.net"),), KeyId("k"), self.mechanism)
            await inside(inner, receive, send)

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            self.sent.append(message)

        await self.measured.around(door)({"type": self.kind, "headers": []}, receive, send)

    def responses(self, mechanism: str, class_: str) -> bool:
        """Tell whether this one answer was counted, and no other."""
        answers = self.measured.answers
        return sum(count.value for count in answers.values()) == answers[mechanism, int(class_[0])].value == 1


async def test_the_check_and_the_time_to_the_first_octet_are_told_apart() -> None:
    """A long answer is no slow one."""
    exchange = Exchange(200, mechanism="digest")
    await exchange.run()
    check = exchange.metrics.histogram("door_check_seconds", "xcap.home1.net")
    request = exchange.metrics.histogram("http_request_seconds", "xcap.home1.net", "2xx")
    assert (check.count, round(check.total, 6)) == (1, 0.002)
    assert (request.count, round(request.total, 6)) == (1, 0.302)
    assert exchange.responses("digest", "2xx")
    assert [message["type"] for message in exchange.sent] == ["http.response.start", "http.response.body"]
    assert "keyferry.measured" not in exchange.inner_scope


async def test_who_proves_nothing_and_who_proves_it_strangely_have_one_label() -> None:
    """The set of labels is fixed."""
    for mechanism, status, class_ in (("", 401, "4xx"), ("made-up", 302, "3xx")):
        exchange = Exchange(status, mechanism=mechanism)
        await exchange.run()
        assert exchange.responses("none", class_)
    assert Exchange(200).metrics.histogram("door_check_seconds", "xcap.home1.net").count == 0


async def test_an_application_that_fails_is_a_5xx_and_a_strange_status_nothing() -> None:
    exchange = Exchange(None, mechanism="psk")
    with pytest.raises(RuntimeError):
        await exchange.run()
    assert exchange.responses("psk", "5xx")
    strange = Exchange(999)
    await strange.run()
    assert not any(count.value for count in strange.measured.answers.values())


@pytest.mark.parametrize("known_by", ["receive", "the connection", "nobody"])
async def test_a_client_that_left_before_the_answer_is_no_failure(known_by: str) -> None:
    """Nobody answers then; who reads `http.disconnect`, or what the proxy's listener says, knows. Else it is a bug, which is 500."""
    measured = MeasuredDoor(AsId("xcap.home1.net"), Metrics(), FakeClock())

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, send
        if known_by == "receive":
            assert (await receive())["type"] == "http.disconnect"
            raise RuntimeError

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    left = asyncio.get_running_loop().create_future()
    if known_by == "the connection":
        left.set_result(None)
    try:
        await measured.around(door)({"type": "http", "headers": [], LEFT: left}, receive, send)
    except RuntimeError:
        assert known_by == "receive"
    assert measured.metrics.counter("http_responses", "xcap.home1.net", "none", GONE).value == (known_by != "nobody")
    assert measured.metrics.counter("http_responses", "xcap.home1.net", "none", "5xx").value == (known_by == "nobody")
    assert measured.times[5].count == (known_by == "nobody")


async def test_what_is_not_http_passes() -> None:
    exchange = Exchange(200, kind="lifespan")
    await exchange.run()
    assert len(exchange.sent) == 2
    assert not any(count.value for count in exchange.measured.answers.values())
