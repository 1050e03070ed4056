# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3 at Kamailio: whom the HSS has ended loses the keys that he had then, and none that came later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kemi.kemikit import AS_ID, IMPI, IMPU, NONCE, REALM, SCSCF, SERVER, TRANSPORT_KEY, Clock, opened, scscf
from keyferry.errors import TransportError
from keyferry.kemi.ended import KemiEnded
from keyferry.kemi.rspauth import MAX_LINE
from keyferry.kemi.store import KemiStore
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Reg, parse_impi
from keyferry.protocol.ims.keypush import SealedPush, open_push, parse_service_info
from keyferry.protocol.ims.third_party import parse_ims_body
from keyferry.roles.cx_ended import MAX_TOLD, EndedBook
from keyferry.transports.clock import SystemClock

REG, OTHER = Reg("AAAAAAAAAAAA"), Reg("BBBBBBBBBBBB")


class Hss:
    """Says what a test wants."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, Impi]] = []
        self.asked: list[tuple[str, int]] = []

    def ended(self, scscf: str, since: int) -> Sequence[tuple[int, Impi]]:
        """Return it."""
        self.asked.append((scscf, since))
        return [end for end in self.ends if end[0] > since]


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


def test_each_device_is_erased_at_each_as_and_its_key_forgotten(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    first, second = pushed(store, clock, NONCE, REG), pushed(store, clock, "n2", OTHER)
    pushed(store, clock, NONCE, REG, AsId("gone.home1.net"))  # no longer configured
    clock.at += 1
    hss.ends = [(int(clock.at * 1000), IMPI), (int(clock.at * 1000) + 1, Impi("nobody@home1.net"))]
    assert ended.look()
    erased = {}
    while (request := ended.next()) is not None:
        assert (request.uri, request.from_uri, request.to_uri) == (SERVER, f"sip:{SCSCF}", IMPU)
        sealed = parse_service_info(parse_ims_body(request.body) or "")
        assert isinstance(sealed, SealedPush)
        block = open_push(sealed, TRANSPORT_KEY)
        assert (block.impi, block.as_id, block.keys) == (IMPI, AS_ID, ())
        erased[block.reg] = block.seq
    assert erased.keys() == {REG, OTHER}
    assert min(erased.values()) > max(first, second)
    assert store.challenged(NONCE) is None
    assert not ended.look()
    assert hss.asked == [(SCSCF, 0), (SCSCF, hss.ends[1][0])]


def test_a_key_of_a_later_registration_stays(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    """The HSS is asked some seconds after, and the user may be back; after a restart all that it remembers comes again."""
    hss.ends = [(int(clock.at * 1000), IMPI)]
    clock.at += 1
    pushed(store, clock, NONCE, REG)
    assert not ended.look()
    assert ended.next() is None
    assert store.challenged(NONCE) is not None


def test_what_is_left_is_gone_on_with_before_more_is_asked(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    pushed(store, clock, NONCE, REG)
    pushed(store, clock, "n2", OTHER)
    clock.at += 1
    hss.ends = [(int(clock.at * 1000), IMPI)]
    assert ended.look()
    assert ended.next() is not None
    assert ended.look()
    assert len(hss.asked) == 1
    assert ended.next() is not None
    assert ended.next() is None


def test_an_answer_of_the_hss_is_never_too_long_for_the_script() -> None:
    clock = SystemClock()
    book = EndedBook(clock)
    for number in range(MAX_TOLD + 1):
        book.note(SCSCF, parse_impi(f"{number:03}{'u' * 120}@{'a' * 60}.{'b' * 60}.net"), clock.now())
    told = book.since(SCSCF, 0)
    assert len(told) == MAX_TOLD
    assert len(json.dumps({"ended": told})) < MAX_LINE


def test_an_hss_that_is_away_is_asked_again(ended: KemiEnded, store: KemiStore, clock: Clock, hss: Hss) -> None:
    pushed(store, clock, NONCE, REG)
    clock.at += 1

    def away(scscf: str, since: int) -> Sequence[tuple[int, Impi]]:
        raise TransportError("hss", f"away: {scscf} {since}")

    there, ended.source = ended.source, type("Away", (), {"ended": staticmethod(away)})()
    with pytest.raises(TransportError):
        ended.look()
    hss.ends, ended.source = [(int(clock.at * 1000), IMPI)], there
    assert ended.look()
