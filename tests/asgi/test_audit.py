# SPDX-License-Identifier: Apache-2.0
"""The audit log: JSON lines, written beside the requests, never instead of them."""

from __future__ import annotations

import json
import os
import random
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import FakeClock, call, make_door
from keyferry.asgi.audit import MAX_FIELD, REFUSED_SHARE, SEVERAL, AuditLog, Event, audit_of
from keyferry.errors import ConfigError
from keyferry.protocol.repeats import FULL, Repeats

GRANTED = Event(
    1_800_000_000.1234, "notes.home1.net", "granted", "", "digest", "KRvc1wflndjj-Sbq7F0GviLz",
    "sip:alice@home1.net", "k@home1.net", "192.0.2.1", "GET",
)  # fmt: skip
REFUSED = Event(1_800_000_001.0, "notes.home1.net", "refused", "unknown-key", "", "", "", "", "2001:db8::1", "PUT")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines() if line]


def test_a_line_says_who_what_when_how_and_the_result(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log(GRANTED)
    log(REFUSED)
    log.close()
    assert lines(tmp_path / "audit.log") == [
        {
            "time": "2027-01-15T08:00:00.123Z",
            "as": "notes.home1.net",
            "result": "granted",
            "mechanism": "digest",
            "user": "KRvc1wflndjj-Sbq7F0GviLz",
            "public_identity": "sip:alice@home1.net",
            "key_id": "k@home1.net",
            "source": "192.0.2.1",
            "method": "GET",
        },
        {
            "time": "2027-01-15T08:00:01.000Z",
            "as": "notes.home1.net",
            "result": "refused",
            "reason": "unknown-key",
            "source": "2001:db8::1",
            "method": "PUT",
        },
    ]
    assert stat.S_IMODE((tmp_path / "audit.log").stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """Whoever made it before, and whatever log rotation made it with."""
    path = tmp_path / "audit.log"
    path.touch()
    path.chmod(0o666)
    AuditLog(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """Whoever may write to the folder would choose which file of ours the log is written to."""
    (tmp_path / "other").write_text("untouched")
    (tmp_path / "audit.log").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="audit"):
        AuditLog(tmp_path / "audit.log")
    assert (tmp_path / "other").read_text() == "untouched"


def test_fields_are_bounded_and_cannot_begin_a_line(tmp_path: Path) -> None:
    line = GRANTED._replace(method="X" * 1000 + "\n", source="\n\u2028\x00\ud800").line()
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert json.loads(line)["method"] == "X" * MAX_FIELD


def test_several_logs_append_to_one_file(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path / "a") for _ in range(3)]
    for _ in range(100):
        for log in logs:
            log(GRANTED)
    for log in logs:
        log.close()
    assert len(lines(tmp_path / "a")) == 300


def test_a_renamed_file_is_followed_by_a_new_one(tmp_path: Path) -> None:
    log = Steps(tmp_path / "a")
    log.write(GRANTED)
    (tmp_path / "a").rename(tmp_path / "a.1")
    log.write(REFUSED)
    log.close()
    assert [line["result"] for line in lines(tmp_path / "a.1")] == ["granted"]
    assert [line["result"] for line in lines(tmp_path / "a")] == ["refused"]


class Steps(AuditLog):
    """An AuditLog that tells when a batch was tried."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.tried = threading.Semaphore(0)

    def write(self, event: Event) -> None:
        self(event)
        assert self.tried.acquire(timeout=60)

    def _write(self, batch: list[Event], lost: int) -> None:
        super()._write(batch, lost)
        self.tried.release()


def test_what_could_not_be_written_is_counted_and_told_later(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = Steps(folder / "a")
    (folder / "a").unlink()
    folder.rmdir()
    log.write(GRANTED)
    log.write(GRANTED)
    assert log.lost == 2
    folder.mkdir()
    log.write(REFUSED)
    assert log.lost == 0
    log.close()
    assert [line.get("lost", line.get("result")) for line in lines(folder / "a")] == [2, "refused"]


def test_a_full_disk_tears_no_later_line(tmp_path: Path) -> None:
    log = Steps(tmp_path / "a")
    log.write(GRANTED)
    with (tmp_path / "a").open("ab") as file:
        file.write(b'{"time": "2027-01-15T08')
    log._torn = True  # as after a write that ended in the middle
    log.write(REFUSED)
    log.close()
    assert [json.loads(line)["result"] for line in (tmp_path / "a").read_text().splitlines() if line.endswith("}")] == [
        "granted",
        "refused",
    ]


def test_a_disk_that_stands_still_holds_up_nobody(tmp_path: Path) -> None:
    """The queue is bounded: later events are lost, and counted."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    gate = threading.Event()

    class Stuck(AuditLog):
        def _write(self, batch: list[Event], lost: int) -> None:
            gate.wait(60)

    log = Stuck(fifo, queued=5)
    for _ in range(300):
        log(GRANTED)
    assert log.lost >= 300 - 5 - 256
    gate.set()
    log.close()
    log(GRANTED)
    os.close(reader)


def counted(found: list[dict[str, Any]]) -> int:
    """Return how many events lines tell of."""
    return sum(line.get("lost") or line.get("repeated", 1) for line in found)


def test_of_one_address_and_one_reason_the_first_few_of_a_minute_are_lines(tmp_path: Path) -> None:
    clock = FakeClock()
    log = Steps(tmp_path / "a", clock=clock)
    for number in range(1000):
        log(REFUSED._replace(time=clock.now() + number / 100, source=f"2001:db8::{number:x}"))  # one subscriber has all of a /64
    log(REFUSED._replace(source="192.0.2.9"))
    log(REFUSED._replace(reason="uri"))
    log.close()
    found = lines(tmp_path / "a")
    assert len(found) == FULL + 3
    assert found[-1] == {
        "time": "2027-01-15T08:00:09.990Z",
        "as": "notes.home1.net",
        "result": "refused",
        "reason": "unknown-key",
        "source": "2001:db8::/64",
        "repeated": 1000 - FULL,
        "since": "2027-01-15T08:00:00.050Z",
    }
    assert counted(found) == 1002


def test_the_number_is_told_when_the_minute_is_over(tmp_path: Path) -> None:
    clock = FakeClock()
    log = Steps(tmp_path / "a", clock=clock, repeats=Repeats(full=1))
    log.write(REFUSED)
    log(REFUSED)
    log(REFUSED)
    clock.time += 60
    with log._wake:
        log._wake.notify()  # as the end of its wait does
    assert log.tried.acquire(timeout=60)
    assert [line.get("repeated") for line in lines(tmp_path / "a")] == [None, 2]
    log.write(REFUSED)
    log.close()
    assert [line.get("repeated") for line in lines(tmp_path / "a")] == [None, 2, None]


def test_a_wait_ends_with_the_minute(tmp_path: Path) -> None:
    """By the machine's clock, with a short minute."""
    log = Steps(tmp_path / "a", repeats=Repeats(full=1, window=0.02))
    log.write(REFUSED)
    log(REFUSED)
    assert log.tried.acquire(timeout=60)
    assert counted(lines(tmp_path / "a")) == 2
    log.close()


def test_refusals_push_out_no_login(tmp_path: Path) -> None:
    """A disk that stands still, a flood from everywhere, and some users: what they did is in the log, and the rest is counted."""
    gate, tried = threading.Event(), threading.Event()

    class Stuck(AuditLog):
        def _write(self, batch: list[Event], lost: int) -> None:
            tried.set()
            gate.wait(60)
            super()._write(batch, lost)

    log = Stuck(tmp_path / "a", queued=100, repeats=Repeats(full=1000, all_full=10**9, kinds=10**6), clock=FakeClock())
    log(REFUSED)
    assert tried.wait(60)
    for number in range(5000):
        log(REFUSED._replace(source=f"192.0.2.{number % 250}", reason=f"r{number}"))
        if number % 50 == 0:
            log(GRANTED)
    assert log.lost == 5000 - 100 // REFUSED_SHARE
    gate.set()
    log.close()
    found = lines(tmp_path / "a")
    assert [line["result"] for line in found if "result" in line].count("granted") == 100
    assert counted(found) == 1 + 5000 + 100


@pytest.mark.parametrize("seed", range(4))
def test_the_counts_add_up(seed: int, tmp_path: Path) -> None:
    """More addresses than are told apart, minutes that pass, a folder that goes and comes back: each event is in one line's number."""
    chance, clock = random.Random(seed), FakeClock()
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AuditLog(folder / "a", queued=64, clock=clock, repeats=Repeats(kinds=20, all_full=40))
    granted = 0
    for number in range(3000):
        clock.time += chance.choice((0, 0, 0, 0.1, 3))
        if number == 1000:
            folder.rename(tmp_path / "away")
        if number == 2000:
            (tmp_path / "away").rename(folder)
        if chance.random() < 0.01:
            granted += 1
            log(GRANTED)
        else:
            log(REFUSED._replace(time=clock.now(), source=f"192.0.2.{chance.randrange(100)}", reason=chance.choice(("uri", "host"))))
    log.close(10)
    found = lines(folder / "a")
    assert (counted(found), log.lost) == (3000, 0)
    assert any(line.get("source") == SEVERAL for line in found)


async def test_a_flood_at_a_door_makes_some_lines(tmp_path: Path) -> None:
    """Wrong hosts, plain http and a phone that nobody serves count as no failed login: nothing else slows whoever sends them."""
    door = make_door(audit=tmp_path / "a")
    for _ in range(200):
        await call(door.door, host="other.example", client=("192.0.2.1", 5))
        await call(door.door, scheme="http", client=("192.0.2.1", 5))
        await call(door.door, headers=[("User-Agent", "x 3gpp-gba")], scheme="http", client=("192.0.2.1", 5))
    log = door.door._audit
    assert isinstance(log, AuditLog)
    log.close()
    found = lines(tmp_path / "a")
    assert len(found) == 3 * (FULL + 1)
    assert counted(found) == 600


def test_what_audit_may_be(tmp_path: Path) -> None:
    seen: list[Event] = []
    assert audit_of(None) is None
    assert audit_of(seen.append) == seen.append
    assert isinstance(audit_of(str(tmp_path / "a")), AuditLog)
    assert isinstance(audit_of(tmp_path / "a"), AuditLog)
    with pytest.raises(ConfigError, match="audit"):
        audit_of(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        audit_of(tmp_path / "none" / "a")
