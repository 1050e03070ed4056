# SPDX-License-Identifier: Apache-2.0
"""Non-INVITE transactions, as ladders: input, then the effects (RFC 3261 §17.1.2, §17.2.2)."""

from __future__ import annotations

import pytest

from keyferry.errors import LocalProtocolError
from keyferry.protocol.sip.headers import parse_via
from keyferry.protocol.sip.message import Request, Response
from keyferry.protocol.sip.transaction import (
    CLIENT,
    SERVER,
    ClientTransaction,
    Deliver,
    Failed,
    Input,
    ServerTransaction,
    State,
    Timers,
    Transmit,
    server_key,
)

TRYING = Response(100, "Trying", ())
OK = Response(200, "OK", ())
AGAIN = [Transmit(retransmission=True)]


def client(*, reliable: bool = False) -> ClientTransaction:
    transaction = ClientTransaction(reliable=reliable, timers=Timers())
    assert transaction.start(0.0) == [Transmit(retransmission=False)]
    return transaction


def drive(transaction: ClientTransaction) -> list[float]:
    """Fire every timer until one fails the transaction; return when it transmitted."""
    sent: list[float] = []
    while (when := transaction.deadline) is not None:
        assert transaction.tick(when - 0.001) == []
        if transaction.tick(when) == AGAIN:
            sent.append(when)
    return sent


def test_timer_e_doubles_to_t2_and_timer_f_ends_it() -> None:
    """RFC 3261 §17.1.2.2: 500 ms, 1 s, 2 s, 4 s, 4 s …, 11 transmissions in 32 s."""
    transaction = client()
    assert drive(transaction) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert transaction.state is State.TERMINATED


def test_a_proxy_may_end_it_earlier_and_answers_retransmissions_as_long_as_anybody() -> None:
    """RFC 4321 §1.1; timer J stays 64*T1."""
    transaction = ClientTransaction(reliable=False, timers=Timers(f=28.0))
    transaction.start(0.0)
    assert drive(transaction)[-1] == 27.5
    assert (transaction.state, Timers(f=28.0).j, Timers().f) == (State.TERMINATED, 32.0, 64 * Timers().t1)


def test_timer_f_reports_a_time_out() -> None:
    """RFC 3261 §17.1.2.2."""
    transaction = client()
    assert transaction.tick(32.0) == [Failed(Input.TIMER_F)]
    assert transaction.deadline is None


def test_after_a_provisional_response_timer_e_is_t2() -> None:
    """RFC 3261 §17.1.2.2."""
    transaction = client()
    assert transaction.receive(TRYING, 0.2) == [Deliver(TRYING)]
    assert transaction.state is State.PROCEEDING
    assert transaction.tick(0.5) == AGAIN
    assert transaction.deadline == 4.5
    assert transaction.receive(TRYING, 1.0) == [Deliver(TRYING)]
    assert transaction.tick(4.5) == AGAIN
    assert transaction.tick(32.0) == [Failed(Input.TIMER_F)]


def test_a_final_response_is_delivered_once_and_absorbed_until_timer_k() -> None:
    """RFC 3261 §17.1.2.2."""
    transaction = client()
    assert transaction.receive(OK, 0.1) == [Deliver(OK)]
    assert transaction.receive(OK, 0.2) == []
    assert transaction.receive(TRYING, 0.3) == []
    assert transaction.transport_failed(0.4) == []
    assert transaction.deadline == pytest.approx(5.1)
    assert transaction.tick(1.0) == []
    assert transaction.tick(5.2) == []
    assert transaction.state is State.TERMINATED
    with pytest.raises(LocalProtocolError):
        transaction.receive(OK, 6.0)


def test_over_a_reliable_transport_nothing_is_retransmitted_or_absorbed() -> None:
    """RFC 3261 §17.1.2.2: timers E and K are for unreliable transports."""
    transaction = client(reliable=True)
    assert (transaction.deadline, transaction.tick(1.0)) == (32.0, [])
    assert transaction.receive(OK, 0.1) == [Deliver(OK)]
    assert transaction.deadline is None
    assert transaction.tick(2.0) == []
    assert transaction.state is State.TERMINATED


def test_a_transport_error_ends_a_client_transaction() -> None:
    """RFC 3261 §17.1.4."""
    transaction = client()
    assert transaction.transport_failed(0.1) == [Failed(Input.TRANSPORT_ERROR)]
    assert transaction.state is State.TERMINATED


def test_a_server_transaction_is_silent_until_it_has_a_response() -> None:
    """RFC 3261 §17.2.2."""
    transaction = ServerTransaction(reliable=False, timers=Timers())
    assert transaction.retransmitted(0.5) == []
    assert transaction.respond(100, b"100", 1.0) == [Transmit(retransmission=False)]
    assert transaction.retransmitted(1.5) == AGAIN
    assert transaction.last == b"100"
    assert transaction.respond(200, b"200", 2.0) == [Transmit(retransmission=False)]
    assert transaction.retransmitted(2.5) == AGAIN
    assert transaction.respond(500, b"500", 3.0) == []
    assert transaction.last == b"200"
    assert transaction.deadline == 34.0
    assert transaction.tick(33.0) == []
    assert transaction.tick(34.0) == []
    assert transaction.state is State.TERMINATED
    assert transaction.deadline is None


def test_over_a_reliable_transport_timer_j_is_zero() -> None:
    """RFC 3261 §17.2.2."""
    transaction = ServerTransaction(reliable=True, timers=Timers())
    transaction.respond(200, b"200", 2.0)
    assert transaction.state is State.TERMINATED
    with pytest.raises(LocalProtocolError):
        transaction.retransmitted(2.5)


def test_a_transport_error_ends_a_server_transaction() -> None:
    """RFC 3261 §17.2.4."""
    transaction = ServerTransaction(reliable=False, timers=Timers())
    transaction.respond(200, b"200", 2.0)
    assert transaction.transport_failed(2.1) == [Failed(Input.TRANSPORT_ERROR)]
    assert transaction.state is State.TERMINATED


def test_the_tables_leave_no_state_without_a_way_out() -> None:
    """RFC 3261 figures 6 and 8."""
    for table in (CLIENT, SERVER):
        assert {State.TERMINATED} == set(table.values()) - {state for state, _ in table}
        assert State.TERMINATED in table.values()


def test_the_key_of_a_request_is_branch_sent_by_method_and_source() -> None:
    """RFC 3261 §17.2.3."""
    request = Request("REGISTER", "sip:a", (("To", "<sip:a@b>"),))
    via = parse_via("SIP/2.0/UDP h:5060;branch=z9hG4bK1")
    key = server_key(request, via, "udp:192.0.2.1:5060", b"s")
    assert 0 <= key < 2**64
    assert key == server_key(request, via, "udp:192.0.2.1:5060", b"s")
    others = {
        server_key(request, parse_via("SIP/2.0/UDP h:5060;branch=z9hG4bK2"), "udp:192.0.2.1:5060", b"s"),
        server_key(request, parse_via("SIP/2.0/UDP h;branch=z9hG4bK1"), "udp:192.0.2.1:5060", b"s"),
        server_key(Request("OPTIONS", "sip:a", ()), via, "udp:192.0.2.1:5060", b"s"),
        server_key(request, via, "udp:192.0.2.2:5060", b"s"),
        server_key(request, via, "udp:192.0.2.1:5060", b"t"),
    }
    assert len(others | {key}) == 6


def test_without_the_magic_cookie_the_request_itself_is_compared() -> None:
    """RFC 3261 §17.2.3, for RFC 2543 elements."""
    via = parse_via("SIP/2.0/UDP h")
    one = Request("REGISTER", "sip:a", (("CSeq", "1 REGISTER"),))
    two = Request("REGISTER", "sip:a", (("CSeq", "2 REGISTER"),))
    assert server_key(one, via, "s", b"k") != server_key(two, via, "s", b"k")
    assert server_key(one, via, "s", b"k") == server_key(one, via, "s", b"k")
