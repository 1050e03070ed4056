# SPDX-License-Identifier: Apache-2.0
"""The table at the end of `make interop` counts each test where it belongs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from interop.peer_table import NO_PROGRAM, Result, met, table, version_of
from interop.peers import program
from system.serving import environment

RESULTS = [
    Result("a.py::test_one", "passed"), Result("a.py::test_two", "failed"), Result("b.py::test_one", "skipped", "curl is not installed"),
    Result("c.py::test_one", "passed"),
]  # fmt: skip


def test_a_test_counts_for_its_peers_and_a_fixture_for_its_whole_file() -> None:
    """Whoever asks for none is in the last row; a row says why tests were skipped."""
    lines = table(RESULTS, {"curl": {"b.py", "a.py::test_two"}, "sipp": {"a.py"}, "nft": {"c.py"}}, {"curl": "absent", "sipp": "3.6.1"})
    assert lines == [
        "peer  version  passed  failed  skipped  skipped because",
        "sipp  3.6.1    1       1       0",
        "curl  absent   0       1       1        curl is not installed",
    ]
    assert table(RESULTS[:1], {}, {})[1].split() == [*NO_PROGRAM.split(), "1", "0", "0"]


def test_a_program_that_is_asked_for_is_met(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Absent or not: a peer that is not installed belongs into the table."""
    before: dict[str, set[str]] = {}
    monkeypatch.setattr("interop.peer_table.met", before)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.skip.Exception):
        program("curl")
    assert before == {"curl": {request.node.nodeid}}
    assert before is not met


def test_who_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does PJSIP, which is a client that somebody built."""
    monkeypatch.setattr("interop.peer_table.SEARCH", "/nowhere")
    monkeypatch.delenv("KEYFERRY_PJSIP", raising=False)
    assert (version_of("sipp"), version_of("PJSIP")) == ("absent", "absent")


def test_one_program_may_have_several_rows() -> None:
    """Kamailio is whichever CSCF it is told to be."""
    assert version_of("kamailio (I-CSCF)") == version_of("kamailio")


@pytest.mark.interop
def test_charon_is_not_started_to_say_its_version() -> None:
    """Its package's other program says it."""
    program("charon-systemd")
    assert version_of("charon-systemd").count(".") >= 1


@pytest.mark.interop
def test_a_run_ends_with_the_table() -> None:
    """Asked of pytest itself; curl may be there or not."""
    tests = Path(__file__).with_name("test_curl_proxy.py")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "interop", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=tests.parents[2])
    head = next(number for number, line in enumerate(done.stdout.splitlines()) if line.split()[:2] == ["peer", "version"])
    assert done.stdout.splitlines()[head + 1].startswith("curl "), done.stdout
