# SPDX-License-Identifier: Apache-2.0
"""RFC 6733 §8.8; TS 29.229 §6.2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest

from keyferry.errors import CxError, ParseError, TransportError
from keyferry.ports.correlation import correlate
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import CX, SESSION_ID, ResultCode
from keyferry.protocol.diameter.message import AvpFault, DiameterMessage, make_avp
from keyferry.roles.cx_exchange import Sessions, correlation_of, count_request, exchanged, order_of, outcome_of
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom


def test_a_session_id_never_comes_again() -> None:
    clock, random = FakeClock(), SeededRandom()
    sessions = [Sessions("scscf1.home1.net", clock, random) for _ in range(3)]
    made = [each.next() for each in sessions for _ in range(100)]
    assert len(set(made)) == 300
    assert made[0].startswith(f"scscf1.home1.net;{int(clock.now())};")


def test_a_session_id_says_which_registration_it_is_for() -> None:
    """RFC 6733 §8.8: what follows the two numbers is implementation-specific; of another's we believe nothing."""
    sessions = Sessions("scscf1.home1.net", FakeClock(), SeededRandom())
    correlate("0123456789abcdef")
    try:
        ours = sessions.next()
    finally:
        correlate("")
    assert ours.endswith(";icid=0123456789abcdef")

    def asked(session: str) -> str:
        return correlation_of(DiameterMessage(cx.LOCATION_INFO, CX, True, (make_avp(SESSION_ID, 0, session),)))

    assert asked(ours) == "0123456789abcdef"
    for other in (
        sessions.next(),
        "pyhss;1;2;hss",
        "a;1;2;icid=",
        f"a;1;2;icid={'x' * 65}",
        "a;1;2;icid=sip:user@home1.net",
        "a;1;2;x;icid=y",
        "",
    ):
        assert asked(other) == ""
    assert correlation_of(DiameterMessage(cx.LOCATION_INFO, CX, True, ())) == ""


class Peer(NamedTuple):
    """The other end, as its CER names it."""

    origin_host: str = "scscf1.home1.net"
    role: str = ""
    product: str = "keyferry"


def test_session_ids_rise_also_where_the_lower_half_is_full_and_after_a_restart() -> None:
    """RFC 6733 §8.8."""

    class Full(SeededRandom):
        def octets(self, count: int) -> bytes:
            return b"\xff" * count

    clock = FakeClock()
    first = Sessions("scscf1.home1.net", clock, Full())
    made = [first.next() for _ in range(3)]
    clock.time += 2
    made += [Sessions("scscf1.home1.net", clock, SeededRandom()).next()]
    orders = [order_of(asked(each), Peer()) for each in made]
    assert orders == sorted(set(orders))
    assert orders[0] > 0


@pytest.mark.parametrize(
    ("session", "peer", "order"),
    [
        ("scscf1.home1.net;1;2", Peer(), (1 << 32) + 2), ("SCSCF1.home1.net;1;2;icid=a;b", Peer(), (1 << 32) + 2),
        ("scscf1.home1.net;1;2", Peer(product="CDiameterPeer"), 0), ("scscf1.home1.net;1;2", Peer(product=""), 0),
        ("scscf1.home1.net;1;2", Peer("agent.home1.net"), 0), ("scscf1.home1.net;1", Peer(), 0), ("scscf1.home1.net;1;x", Peer(), 0),
        ("scscf1.home1.net;1;12345678901", Peer(), 0), ("", Peer(), 0), ("\u0131cscf1;1;2", Peer(), 0),
    ],
)  # fmt: skip
def test_the_order_of_requests_is_believed_of_nodes_of_ours_alone(session: str, peer: Peer, order: int) -> None:
    assert order_of(asked(session), peer) == order
    assert order_of(DiameterMessage(cx.SERVER_ASSIGNMENT, CX, True, ()), peer) == 0


def asked(session: str) -> DiameterMessage:
    return DiameterMessage(cx.SERVER_ASSIGNMENT, CX, True, (make_avp(SESSION_ID, 0, session),))


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (cx.error_for(cx.CxResult.ERROR_USER_UNKNOWN), "ERROR_USER_UNKNOWN"),
        (cx.error_for(ResultCode.TOO_BUSY), "TOO_BUSY"),
        (AvpFault(ResultCode.MISSING_AVP, "Server-Name is missing"), "MISSING_AVP"),
        (AvpFault(4711, "what is that"), "other"),
        (CxError(5999, "DIAMETER_ERROR_5999"), "other"),
        (CxError(4100, "a name that a peer has chosen"), "other"),
    ],
)
def test_outcomes_are_words_of_a_fixed_set(problem: CxError | AvpFault, word: str) -> None:
    assert outcome_of(problem) == word


class Exchanging:
    """One exchange, and what it left behind."""

    def __init__(self, result: DiameterMessage | Exception) -> None:
        self.result = result
        self.log, self.counter = RecordingLog(), RecordingCounter()

    async def sending(self) -> DiameterMessage:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def run(self, read: Callable[[DiameterMessage], int]) -> int:
        return await exchanged(self.sending(), read, "MAR", self.log, self.counter)

    async def refusal(self, read: Callable[[DiameterMessage], int] = lambda answer: answer.code) -> CxError:
        with pytest.raises(CxError) as caught:
            await self.run(read)
        return caught.value

    def counted(self, outcome: str) -> bool:
        return dict(self.counter.counts) == {("cx_requests", f"MAR {outcome}"): 1}


async def test_an_answer_is_read_and_counted() -> None:
    exchanging = Exchanging(DiameterMessage(303, 0, False))
    assert await exchanging.run(lambda answer: answer.code) == 303
    assert exchanging.counted("SUCCESS")


async def test_nobody_there_is_no_refusal() -> None:
    exchanging = Exchanging(TransportError("aaa://127.0.0.1:3868", "no peer is connected"))
    found = await exchanging.refusal()
    assert (found.code, found.name, found.experimental) == (3002, "DIAMETER_UNABLE_TO_DELIVER", False)
    assert exchanging.log.fields("cx-unreachable") == {"command": "MAR", "peer": "aaa://127.0.0.1:3868", "problem": "no peer is connected"}
    assert exchanging.counted("UNABLE_TO_DELIVER")


async def test_a_refusal_is_the_peers_and_what_cannot_be_read_is_none() -> None:
    def refusing(answer: DiameterMessage) -> int:
        raise cx.error_for(cx.CxResult.ERROR_USER_UNKNOWN)

    def unreadable(answer: DiameterMessage) -> int:
        raise ParseError("MAA", "has no vector")

    exchanging = Exchanging(DiameterMessage(303, 0, False))
    assert (await exchanging.refusal(refusing)).code == 5001
    assert exchanging.counted("ERROR_USER_UNKNOWN")
    exchanging = Exchanging(DiameterMessage(303, 0, False))
    assert (await exchanging.refusal(unreadable)).code == ResultCode.UNABLE_TO_COMPLY
    assert exchanging.log.fields("cx-answer-unreadable") == {"command": "MAR", "problem": "MAA: has no vector"}
    assert exchanging.counted("unreadable")


async def test_who_waits_no_longer_is_counted_too() -> None:
    answer: asyncio.Future[DiameterMessage] = asyncio.get_running_loop().create_future()
    counter = RecordingCounter()
    task = asyncio.ensure_future(exchanged(answer, lambda answer: answer.code, "MAR", RecordingLog(), counter))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dict(counter.counts) == {("cx_requests", "MAR cancelled"): 1}


def test_a_request_is_counted_by_command_and_outcome() -> None:
    counter = RecordingCounter()
    count_request(counter, "MAR", "SUCCESS")
    assert dict(counter.counts) == {("cx_requests", "MAR SUCCESS"): 1}
