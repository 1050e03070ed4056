# SPDX-License-Identifier: Apache-2.0
"""Subscribers who are not in the configuration file any more: reported by `serve`, removed by `keyferry subscriber prune`."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from system.serving import RUN_LIMIT, Lab, environment, keyferry, make_lab, serving, ue

USER1, USER2, HAND = (f"{name}_private@home1.net" for name in ("user1", "user2", "user3"))
CARD = ("--k", "465b5ce8b199b49faa5f0a2ee238a6bc", "--opc", "cd63cb71954a9f4e48a5994e37a02baf")


@pytest.fixture(name="lab")
def lab_fixture(tmp_path: Path) -> Lab:
    return make_lab(tmp_path)


def take_out(lab: Lab) -> None:
    """Take every subscriber out of the file."""
    text = lab.serve.read_text("utf-8")
    lab.serve.write_text(re.sub(r"(?m)^\[\[subscribers\]\].*\n(?:[a-z]+ = .*\n)*", "", text), "utf-8")
    assert "\n[[subscribers]]" not in lab.serve.read_text("utf-8")


def served_once(lab: Lab, *, registered: bool = False) -> None:
    """Serve with two subscribers in the file and one by hand; afterwards the file has none."""
    with serving(lab.serve, lab.state):
        if registered:
            assert ue(lab, "register")["keys"]
    added = keyferry("subscriber", "add", "--impi", HAND, "--impu", "sip:user3@home1.net", *CARD, "--state", lab.state)
    assert added.returncode == 0, added.stderr
    take_out(lab)


def prune(lab: Lab, *words: str, status: int = 0) -> dict[str, Any]:
    done = keyferry("subscriber", "prune", "--config", lab.serve, "--state", lab.state, "--json", *words)
    assert done.returncode == status, done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def known(lab: Lab) -> list[str]:
    return [each["impi"] for each in json.loads(keyferry("subscriber", "list", "--state", lab.state, "--json").stdout)["subscribers"]]


def test_who_has_gone_from_the_file_is_reported_and_pruned_with_his_registration(lab: Lab) -> None:
    served_once(lab, registered=True)
    with serving(lab.serve, lab.state) as served:
        (line,) = [line for line in lab.state.with_suffix(".log").read_text().splitlines() if "subscribers-not-in-file" in line]
        assert "number=2" in line
        assert USER1 in line
        assert USER2 in line
        assert HAND not in line
        assert served.health()["registrations"] == 1
        pruned = prune(lab, "--yes")  # --admin is that of the file
        assert (pruned["removed"], pruned["ended"], pruned["kept"]) == ([USER1, USER2], [USER1], {})
        assert served.health()["registrations"] == 0
        assert set(served.health()["keys"].values()) == {0}
        assert known(lab) == [HAND]
        assert prune(lab, "--yes")["found"] == []


def test_who_is_registered_where_serve_is_not_reached_is_kept(lab: Lab) -> None:
    served_once(lab, registered=True)
    with serving(lab.serve, lab.state) as served:
        refused = keyferry("subscriber", "prune", "--config", lab.serve, "--state", lab.state, "--yes", "--admin", "127.0.0.1:1")
        assert (refused.returncode, "--offline" in refused.stderr) == (2, True), refused.stderr
        assert known(lab) == [USER1, USER2, HAND]
        assert (prune(lab, "--yes", "--offline")["ended"], served.health()["registrations"]) == ([], 1)
        assert known(lab) == [HAND]


def test_nothing_is_removed_without_a_yes(lab: Lab) -> None:
    served_once(lab)
    listed = prune(lab, status=1)
    assert ([each["impi"] for each in listed["found"]], listed["removed"]) == ([USER1, USER2], [])
    for answer, status in (("n", 1), ("y", 0)):
        assert known(lab) == [USER1, USER2, HAND]
        said, code = answered(answer, "subscriber", "prune", "--config", lab.serve, "--state", lab.state)
        assert code == status, said
        assert said.index(USER1) < said.index(USER2) < said.index("Remove these 2 subscribers?")
    assert "removed 2" in said
    assert known(lab) == [HAND]


def answered(answer: str, *words: str | Path) -> tuple[str, int]:
    """Run a command on a terminal, answer its question, and return what it has said and its exit code."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "keyferry", *map(str, words)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()) as process:
        os.close(theirs)
        said = b""
        try:
            while b"?" not in said:
                said += os.read(ours, 65_536)
            os.write(ours, f"{answer}\n".encode())
            while True:
                said += os.read(ours, 65_536)
        except OSError:  # EIO: the command has ended
            pass
        finally:
            os.close(ours)
        return said.decode(), process.wait(RUN_LIMIT)
