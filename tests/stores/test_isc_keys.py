# SPDX-License-Identifier: Apache-2.0
"""Transport keys change while everything runs (DESIGN §6)."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.stores.isc_keys import LOOK, RETIRE_AFTER, LiveIscKeys, pairs, retire_isc, rotate_isc
from keyferry.stores.state_dir import StateDir, open_state
from stores.made import CountedRandom, key

S, A, B = "scscf1.home1.net", "xcap.home1.net", "notes.home1.net"


class Surroundings:
    """A clock that stands still, and a log."""

    def __init__(self) -> None:
        self.time = 0.0
        self.events: list[str] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def info(self, event: str, **_: object) -> None:
        self.events.append(event)

    warning = info


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with open_state(tmp_path / "state", random=CountedRandom()) as opened:
        opened.isc_keys(S, A)
        opened.isc_keys(S, B)
        yield opened


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


def changed_at(state: StateDir, as_id: str) -> float:
    return state.isc_file(S, as_id).stat().st_mtime


class TestRotation:
    """Two kids live, then one."""

    def test_a_new_key_seals_and_the_older_one_opens(self, state: StateDir) -> None:
        old = state.isc_keys(S, A)["t1"]
        assert [(pair.as_id, pair.kids) for pair in rotate_isc(state)] == [(B, ("t1", "t2")), (A, ("t1", "t2"))]
        keys = state.isc_keys(S, A)
        assert list(keys) == ["t1", "t2"]
        assert keys["t1"] == old != keys["t2"]
        assert keys["t2"] != state.isc_keys(S, B)["t2"]
        assert state.isc_file(S, A).stat().st_mode & 0o777 == 0o600

    def test_after_a_while_the_older_one_goes_and_no_kid_comes_twice(self, state: StateDir) -> None:
        rotate_isc(state, S, A)
        new = state.isc_keys(S, A)["t2"]
        (left,) = retire_isc(state, changed_at(state, A) + RETIRE_AFTER, S, A)
        assert left.kids == ("t2",)
        assert state.isc_keys(S, A) == {"t2": new}
        assert rotate_isc(state, as_id=A)[0].kids == ("t2", "t3")
        assert list(state.isc_keys(S, B)) == ["t1"]

    def test_a_pair_without_an_older_key_is_left_alone(self, state: StateDir) -> None:
        before = state.isc_file(S, B).stat()
        assert [pair.kids for pair in retire_isc(state, before.st_mtime)] == [("t1",), ("t1",)]
        assert state.isc_file(S, B).stat().st_ino == before.st_ino

    def test_no_third_key_comes_and_none_goes_too_early(self, state: StateDir) -> None:
        """For every pair or for none."""
        rotate_isc(state, as_id=A)
        with pytest.raises(StateError, match="two transport keys already"):
            rotate_isc(state)
        assert list(state.isc_keys(S, B)) == ["t1"]
        with pytest.raises(StateError, match="for 59 s; a push under the older one") as early:
            retire_isc(state, changed_at(state, A) + RETIRE_AFTER - 1)
        assert early.value.remedy == "Wait 1 s"
        assert list(state.isc_keys(S, A)) == ["t1", "t2"]

    def test_kids_of_an_operators_own_are_counted_around(self, state: StateDir) -> None:
        state.write_isc_keys(S, A, {"summer": key("summer", 64)})
        assert rotate_isc(state, as_id=A)[0].kids == ("summer", "t1")

    def test_names_that_share_no_key_are_refused(self, state: StateDir, tmp_path: Path) -> None:
        for chosen in ({"scscf": "s"}, {"as_id": "a"}):
            with pytest.raises(StateError, match="holds no such transport key"):
                rotate_isc(state, **chosen)
        with open_state(tmp_path / "new", random=CountedRandom()) as empty, pytest.raises(StateError, match="no such transport key"):
            retire_isc(empty, 0.0)

    def test_what_is_no_key_file_is_passed_over(self, state: StateDir) -> None:
        for name in (f"{S}--{A}.new", ".4711.new", "readme", "a--b--c"):
            (state.root / "isc" / name).touch()
        assert [(pair.scscf, pair.as_id) for pair in pairs(state)] == [(S, B), (S, A)]

    def test_two_rotations_at_a_time_are_one_after_the_other(self, state: StateDir) -> None:
        """Each pair gets one new key; the other command is refused."""
        problems: list[str] = []

        def rotate() -> None:
            try:
                rotate_isc(state, as_id=A)
            except StateError as problem:
                problems.append(problem.problem)

        threads = [threading.Thread(target=rotate) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == ["have two transport keys already"] * 3
        assert list(state.isc_keys(S, A)) == ["t1", "t2"]

    def test_a_folder_that_cannot_be_used_is_refused(self, tmp_path: Path) -> None:
        with open_state(tmp_path / "new", random=CountedRandom()) as state:
            (state.root / "isc").touch()
            with pytest.raises(StateError, match="cannot be used"):
                rotate_isc(state)


class TestLive:
    """What a running process sees."""

    def test_a_change_is_seen_after_a_second_or_when_it_is_needed(self, state: StateDir, around: Surroundings) -> None:
        live, other = (LiveIscKeys(state, S, A, around, around) for _ in range(2))
        rotate_isc(state)
        assert list(live.current()) == ["t1"]
        assert list(other.current(at_once=True)) == ["t1", "t2"]
        around.time += LOOK
        assert list(live.current()) == ["t1", "t2"]
        around.time += LOOK
        assert live.current() is live.current(at_once=True)
        assert around.events == ["isc-keys-read"] * 2

    @pytest.mark.parametrize("spoilt", ["mode", "content", "gone"])
    def test_what_cannot_be_read_changes_nothing_until_it_can(self, state: StateDir, around: Surroundings, spoilt: str) -> None:
        live = LiveIscKeys(state, S, A, around, around)
        before, file = live.current(), state.isc_file(S, A)
        whole = file.read_bytes()
        if spoilt == "gone":
            file.unlink()
        else:
            file.write_bytes(whole if spoilt == "mode" else b"t1 x\n")
            file.chmod(0o644 if spoilt == "mode" else 0o600)
            os.utime(file, (1, 1))
        for _ in range(2):
            around.time += LOOK
            assert live.current() is before
        assert around.events == ["isc-keys-unusable"]
        file.unlink(missing_ok=True)
        state.write_isc_keys(S, A, {"t1": before["t1"], "t7": key("t7", 64)})
        assert list(live.current(at_once=True)) == ["t1", "t7"]

    def test_a_file_that_is_put_right_in_place_is_read(self, state: StateDir, around: Surroundings) -> None:
        """Another owner or mode, as the error asks for, changes neither inode, time nor size."""
        live = LiveIscKeys(state, S, A, around, around)
        rotate_isc(state, as_id=A)
        state.isc_file(S, A).chmod(0o644)
        assert list(live.current(at_once=True)) == ["t1"]
        state.isc_file(S, A).chmod(0o600)
        assert list(live.current()) == ["t1"]
        around.time += LOOK
        assert list(live.current()) == ["t1", "t2"]
        assert around.events == ["isc-keys-unusable", "isc-keys-read"]

    def test_the_first_is_made(self, state: StateDir, around: Surroundings) -> None:
        live = LiveIscKeys(state, S, "new.home1.net", around, around)
        (made,) = live.current().values()
        assert base64.b64encode(made.reveal()) in state.isc_file(S, "new.home1.net").read_bytes()
