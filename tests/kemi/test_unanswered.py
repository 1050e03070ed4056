# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.7 at Kamailio, DESIGN §6: what ims_isc sends once is sent again until the AS has answered it with 200."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kemi.kemikit import IMPU, SCSCF, SERVER, Clock, opened, register, response, scscf
from kemi.kemikit import answer as answer_of
from kemi.test_scscf import K_AS, SECOND, push, pushed, registered
from keyferry.kemi.ended import KemiEnded, Outgoing
from keyferry.kemi.scscf import KemiScscf
from keyferry.kemi.store import ANSWERED_WITHIN, MAX_UNANSWERED, SEND_AGAIN, TELL_AGAIN
from keyferry.protocol.identity import AsId, Impi, Impu, Reg

OK = response("200 OK", cseq=10, branch="z9hG4bK9", call_id="k1").replace(b"SIP/2.0/UDP 192.0.2.7:5060", b"SIP/2.0/TCP 127.0.0.1:6060")
"""What an AS answers to what ims_isc sends in these tests."""


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    """Time."""
    return Clock()


@pytest.fixture(name="kemi")
def kemi_fixture(tmp_path: Path, clock: Clock) -> KemiScscf:
    """A worker."""
    return scscf(tmp_path, clock, print)


@pytest.fixture(name="timer")
def timer_fixture(tmp_path: Path, clock: Clock) -> KemiEnded:
    """The timer's process, without an HSS of ours."""
    return timer_of(tmp_path, clock)


def timer_of(folder: Path, clock: Clock) -> KemiEnded:
    """Start one; another knows what the first did, as after a restart."""
    found = scscf(folder, clock, print)
    return KemiEnded(found.policy, SCSCF, found.store, None)


def sent(timer: KemiEnded) -> Outgoing:
    """Return the only request that is due."""
    timer.look()
    request = timer.next()
    assert request is not None
    assert timer.next() is None
    assert (request.uri, request.to_uri) == (SERVER, IMPU)
    return request


def leave(kemi: KemiScscf) -> bytes | None:
    """De-register over the same challenge, as Kamailio does before it saves; return what the AS is told."""
    return push(kemi, register(answer_of(), cseq=3, branch="z9hG4bKc", expires=0), expires=0)


def test_a_key_that_no_as_has_answered_is_sent_again_with_a_later_number(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    first = pushed(push(kemi, registered(kemi), service_info="of the HSS"))
    assert timer.next() is None
    clock.at += SEND_AGAIN
    request = sent(timer)
    again = pushed(request.body)
    assert again.seq > first.seq
    assert dataclasses.replace(again, seq=first.seq) == first
    assert (again.keys[0].k_as, again.service_info) == (K_AS, "of the HSS")
    assert 590 < request.expires < 600


def test_what_an_as_has_answered_is_not_sent_again(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    push(kemi, registered(kemi))
    assert not kemi.as_answered(OK.replace(b"200 OK", b"500 Server Internal Error"))
    kemi.as_answered(OK.replace(b"k1", b"k2"))  # of another transaction
    clock.at += SEND_AGAIN
    timer.answered(sent(timer).ticket, 503)
    clock.at += TELL_AGAIN
    timer.answered(sent(timer).ticket, 200)
    clock.at += 5 * TELL_AGAIN
    assert timer.next() is None
    push(kemi, registered(kemi, SECOND))
    assert kemi.as_answered(OK)
    clock.at += TELL_AGAIN
    assert timer.next() is None


def test_the_end_of_a_user_who_leaves_is_sent_until_the_as_has_answered(
    kemi: KemiScscf, timer: KemiEnded, clock: Clock, tmp_path: Path
) -> None:
    first = pushed(push(kemi, registered(kemi)))
    ending = pushed(leave(kemi))
    clock.at += SEND_AGAIN
    request = sent(timer)
    assert request.expires == 0
    again = pushed(request.body)
    assert again.seq > ending.seq > first.seq
    assert (again.keys, again.reg) == ((), first.reg)
    clock.at += TELL_AGAIN
    timer.answered(sent(timer_of(tmp_path, clock)).ticket, 200)  # Kamailio was started anew meanwhile
    clock.at += 5 * TELL_AGAIN
    assert timer.next() is None


def test_only_the_latest_of_two_messages_about_a_device_is_sent_again(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    push(kemi, registered(kemi))
    clock.at += 1
    second = pushed(push(kemi, registered(kemi, SECOND)))
    clock.at += SEND_AGAIN
    assert pushed(sent(timer).body).keys == second.keys


def test_no_key_is_sent_again_when_the_registration_is_over(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    push(kemi, registered(kemi))
    clock.at += 601
    assert timer.next() is None


def test_a_key_that_was_forgotten_is_not_sent_again(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    """As where the user leaves, and the filter criteria name this AS no longer."""
    before = pushed(push(kemi, registered(kemi)))
    kemi.store.forget(before.impi, before.reg)
    clock.at += SEND_AGAIN
    assert timer.next() is None


def test_a_clock_that_was_set_back_keeps_no_key_waiting(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    push(kemi, registered(kemi))
    clock.at -= 10_000
    assert pushed(sent(timer).body).keys[0].k_as == K_AS


def test_an_as_that_answers_nothing_keeps_nothing_from_another(kemi: KemiScscf, timer: KemiEnded, clock: Clock) -> None:
    """And ims_isc's own messages, of which there may be any number under way, keep back none of ours."""
    dead = AsId("dead.home1.net")
    timer.policy.servers["sip:dead.home1.net"] = (dead,)
    for number in range(2 * MAX_UNANSWERED):
        impi = Impi(f"u{number}@home1.net")
        kemi.store.owe(impi, dead, Reg("A" * 12), Impu(f"sip:{impi}"), f"t{number}", clock.now() + 600)
    push(kemi, registered(kemi))
    clock.at += SEND_AGAIN
    told = []
    while (request := timer.next()) is not None:
        told.append(request.uri)
    assert told.count(SERVER) == 1
    assert told.count("sip:dead.home1.net") == MAX_UNANSWERED // 2
    clock.at += ANSWERED_WITHIN
    push(kemi, registered(kemi, SECOND))
    clock.at += SEND_AGAIN
    told.clear()
    while (request := timer.next()) is not None:
        told.append(request.uri)
    assert told.count(SERVER) == 1


def test_the_ends_that_an_earlier_version_owed_are_still_told(tmp_path: Path, clock: Clock, timer: KemiEnded, kemi: KemiScscf) -> None:
    ended = pushed(push(kemi, registered(kemi)))
    kemi.store.end(ended.impi, int(clock.now() * 1000), 1)
    with closing(sqlite3.connect(tmp_path / "kemi.db", isolation_level=None)) as connection:
        connection.execute("DROP INDEX owed_ticket")
        for column in ("nonce", "service_info", "ticket"):
            connection.execute(f"ALTER TABLE owed DROP COLUMN {column}")
    timer.store = opened(tmp_path, clock)
    assert pushed(sent(timer).body).keys == ()
