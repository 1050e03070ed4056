# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3 at Kamailio: whom the HSS has ended loses the keys that he had then, and none that came later."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kemi.kemikit import AS_ID, IMPI, IMPU, NONCE, REALM, SCSCF, SERVER, TRANSPORT_KEY, Clock, opened, scscf
from keyferry.errors import TransportError
from keyferry.kemi.ended import REMIND_EVERY, KemiEnded, Outgoing, Trouble
from keyferry.kemi.rspauth import MAX_LINE
from keyferry.kemi.store import ANSWERED_WITHIN, MAX_UNANSWERED, TELL_AGAIN, KemiStore
from keyferry.ports.scripts import End
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Reg, parse_impi
from keyferry.protocol.ims.keypush import SealedPush, open_push, parse_service_info
from keyferry.protocol.ims.third_party import parse_ims_body
from keyferry.stores.sqlite.scripts import MAX_TOLD

REG, OTHER = Reg("AAAAAAAAAAAA"), Reg("BBBBBBBBBBBB")


class Hss:
    """Says what a test wants."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, Impi]] = []  # each of the moment that is its place, too
        self.asked: list[tuple[str, int]] = []

    def ended(self, scscf: str, since: int) -> Sequence[tuple[int, int, Impi]]:
        """Return it."""
        self.asked.append((scscf, since))
        return [(at, at, impi) for at, impi in self.ends if at > since]


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    """Time."""
    return Clock()


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path, clock: Clock) -> KemiStore:
    """One process's."""
    return opened(tmp_path, clock)


@pytest.fixture(name="hss")
def hss_fixture() -> Hss:
    """The HSS."""
    return Hss()


@pytest.fixture(name="ended")
def ended_fixture(tmp_path: Path, clock: Clock, store: KemiStore, hss: Hss) -> KemiEnded:
    """The timer's process."""
    return KemiEnded(scscf(tmp_path, clock, print).policy, SCSCF, store, hss)


def pushed(store: KemiStore, clock: Clock, nonce: str, reg: Reg, as_id: AsId = AS_ID) -> int:
    """Let a device have its key at the AS; return when, in milliseconds."""
    store.keep(nonce, IMPI, IMPU, REALM, Secret(nonce.encode().ljust(32, b"x")[:32]))
    store.authenticated(nonce, IMPI, IMPU, reg, clock.now() + 600)
    return store.next_seq(IMPI, as_id, reg)


def blocks(ended: KemiEnded) -> list[tuple[Reg, int]]:
    """Take every request; return whose keys each erases, and its sequence number."""
    found = []
    while (request := ended.next()) is not None:
        assert (request.uri, request.from_uri, request.to_uri) == (SERVER, f"sip:{SCSCF}", IMPU)
        sealed = parse_service_info(parse_ims_body(request.body) or "")
        assert isinstance(sealed, SealedPush)
        block = open_push(sealed, TRANSPORT_KEY)
        assert (block.impi, block.as_id, block.keys) == (IMPI, AS_ID, ())
        found.append((block.reg, block.seq))
    return found


def test_each_device_is_erased_at_each_as_and_its_key_forgotten(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    first, second = pushed(store, clock, NONCE, REG), pushed(store, clock, "n2", OTHER)
    pushed(store, clock, NONCE, REG, AsId("gone.home1.net"))  # no longer configured
    clock.at += 1
    hss.ends = [(int(clock.at * 1000), IMPI), (int(clock.at * 1000) + 1, Impi("nobody@home1.net"))]
    ended.look()
    erased = dict(blocks(ended))
    assert erased.keys() == {REG, OTHER}
    assert min(erased.values()) > max(first, second)
    assert store.challenged(NONCE) is None
    ended.look()
    assert blocks(ended) == []
    assert hss.asked == [(SCSCF, 0), (SCSCF, hss.ends[1][0])]


def test_a_key_of_a_later_registration_stays(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    """The HSS is asked some seconds after, and the user may be back; after a restart all that it remembers comes again."""
    hss.ends = [(int(clock.at * 1000), IMPI)]
    clock.at += 1
    pushed(store, clock, NONCE, REG)
    ended.look()
    assert ended.next() is None
    assert store.challenged(NONCE) is not None


def test_a_clock_that_was_set_back_leaves_no_key_to_whom_the_hss_ends(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    pushed(store, clock, NONCE, REG)
    clock.at -= 10_000
    hss.ends = [(int(clock.at * 1000), IMPI)]
    clock.at += 2
    ended.look()
    assert [reg for reg, _ in blocks(ended)] == [REG]
    assert store.challenged(NONCE) is None


def test_an_end_from_before_the_clock_was_set_back_ends_no_later_registration(
    ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss, tmp_path: Path
) -> None:
    """The HSS tells a Kamailio that starts again of every end within the last hour."""
    hss.ends = [(int(clock.at * 1000), IMPI)]
    ended.look()
    clock.at -= 10_000
    pushed(store, clock, NONCE, REG)
    KemiEnded(ended.policy, SCSCF, opened(tmp_path, clock), hss).look()
    assert store.challenged(NONCE) is not None


@pytest.fixture(name="again")
def again_fixture(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss, tmp_path: Path) -> Callable[[], KemiEnded]:
    """Somebody was ended; return what starts Kamailio anew."""
    pushed(store, clock, NONCE, REG)
    clock.at += 1
    hss.ends = [(int(clock.at * 1000), IMPI)]
    ended.look()

    def start() -> KemiEnded:
        found = KemiEnded(ended.policy, SCSCF, opened(tmp_path, clock), hss)
        found.look()
        return found

    return start


def told(ended: KemiEnded) -> Outgoing:
    """Take the only request."""
    request = ended.next()
    assert request is not None
    assert ended.next() is None
    return request


def test_a_kamailio_that_is_killed_before_it_told_the_as_tells_it_when_it_is_back(again: Callable[[], KemiEnded]) -> None:
    assert [reg for reg, _ in blocks(again())] == [REG]


def test_a_kamailio_that_is_killed_while_it_told_the_as_tells_it_again(
    again: Callable[[], KemiEnded], ended: KemiEnded, clock: Clock
) -> None:
    ((_, first),) = blocks(ended)
    assert blocks(again()) == []
    clock.at += TELL_AGAIN
    ((_, second),) = blocks(again())
    assert second > first


@pytest.mark.parametrize("status", [408, 403, 500, 100])
def test_an_as_that_says_anything_but_200_is_told_again_less_and_less_often(
    again: Callable[[], KemiEnded], ended: KemiEnded, clock: Clock, status: int
) -> None:
    first = told(ended)
    ended.answered(first.ticket, status)
    clock.at += TELL_AGAIN
    second = told(ended)
    clock.at += TELL_AGAIN - 1
    assert blocks(again()) == []
    clock.at += 1
    third = told(ended)
    ended.answered(second.ticket, 200)  # late, and of an older message
    clock.at += 2 * TELL_AGAIN
    fourth = told(ended)
    assert len({first.ticket, second.ticket, third.ticket, fourth.ticket}) == 4
    ended.answered(fourth.ticket, 200)
    clock.at += 10 * TELL_AGAIN
    assert blocks(again()) == []


def test_a_clock_that_was_set_back_keeps_no_as_waiting(again: Callable[[], KemiEnded], ended: KemiEnded, clock: Clock) -> None:
    told(ended)
    clock.at -= 10_000
    assert [reg for reg, _ in blocks(again())] == [REG]
    assert blocks(ended) == []


def test_an_end_is_told_no_longer_than_the_key_lives(again: Callable[[], KemiEnded], ended: KemiEnded, clock: Clock) -> None:
    told(ended)
    clock.at += 601
    assert blocks(again()) == []


@pytest.mark.parametrize("when", ["before it was told", "while it is told"])
def test_who_registers_again_meanwhile_keeps_the_new_key(
    again: Callable[[], KemiEnded], ended: KemiEnded, store: KemiStore, clock: Clock, when: str
) -> None:
    if when == "while it is told":
        told(ended)
    clock.at += 1
    pushed(store, clock, "n2", REG)
    clock.at += TELL_AGAIN
    assert blocks(again()) == blocks(ended) == []
    assert store.challenged("n2") is not None


def test_ass_that_answer_nothing_take_no_more_than_their_part_of_the_memory(
    ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss
) -> None:
    for number in range(MAX_UNANSWERED + 3):
        clock.at += 1
        pushed(store, clock, f"n{number}", Reg(f"{number // 50:012}"), AsId(f"as{number}.home1.net"))
    pushed(store, clock, NONCE, REG)
    clock.at += 1
    ended.policy.servers[SERVER] = tuple(AsId(f"as{number}.home1.net") for number in range(MAX_UNANSWERED + 3))
    hss.ends = [(int(clock.at * 1000), IMPI)]
    ended.look()
    count = 0
    while ended.next() is not None:
        count += 1
    assert count == MAX_UNANSWERED
    clock.at += ANSWERED_WITHIN
    ended.look()
    while ended.next() is not None:
        count += 1
    assert count == MAX_UNANSWERED + 3


def test_an_answer_of_the_hss_is_never_too_long_for_the_script() -> None:
    longest = parse_impi(f"{'u' * 123}@{'a' * 60}.{'b' * 60}.net")
    told = [End(10**13, 10**13, longest)] * MAX_TOLD
    assert len(json.dumps({"ended": told})) < MAX_LINE


def test_an_hss_that_is_away_is_asked_again(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    pushed(store, clock, NONCE, REG)
    clock.at += 1

    def away(scscf: str, since: int) -> Sequence[tuple[int, int, Impi]]:
        raise TransportError("hss", f"away: {scscf} {since}")

    there, ended.source = ended.source, type("Away", (), {"ended": staticmethod(away)})()
    with pytest.raises(TransportError):
        ended.look()
    hss.ends, ended.source = [(int(clock.at * 1000), IMPI)], there
    ended.look()
    assert [reg for reg, _ in blocks(ended)] == [REG]


def test_a_trouble_is_told_when_it_begins_once_a_minute_and_when_it_is_over(clock: Clock) -> None:
    said: list[str] = []
    trouble = Trouble(clock.now, said.append)
    trouble.over()
    assert said == []
    for _ in range(int(REMIND_EVERY)):  # two minutes
        trouble.here("the HSS is away")
        clock.at += 2
    assert ["the HSS is away" in words for words in said] == [True, True]
    trouble.over()
    trouble.over()
    trouble.here("again")
    assert len(said) == 4
    assert said[3].endswith("again")
