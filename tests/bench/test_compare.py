# SPDX-License-Identifier: Apache-2.0
"""bench/compare.py runs the benchmark of two commits in turn, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench.benchrun import BENCH, interrupted, nothing_runs, processes_of, script
from compare import Figure, Pair, summary

QUICK = ("--pairs", "1", "--seconds", "0.1", "--subscribers", "20")


@pytest.fixture(name="_repository", autouse=True)
def repository_fixture() -> None:
    """Skip where this is no clone."""
    if subprocess.run(["git", "-C", str(BENCH), "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("this is no git repository, and commits are what is compared")


def worktrees() -> str:
    return subprocess.run(["git", "-C", str(BENCH), "worktree", "list"], capture_output=True, text=True, check=True).stdout


def test_a_commit_compared_with_itself(tmp_path: Path) -> None:
    """The ratio is of this machine's noise; the report names both commits."""
    options = ("--base", "HEAD", "--head", "HEAD", "--at-least", "0", "--json", "--output", "compare.json")
    done = script("compare.py", *QUICK, *options, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "compare.json").read_text())
    assert report["commits"]["base"] == report["commits"]["head"]
    assert len(report["pairs"]) == 1
    assert report["ratio"] > 0
    assert str(tmp_path) not in worktrees()


def test_a_commit_that_is_not_there_is_said(tmp_path: Path) -> None:
    """Exit code 1, one line."""
    done = script("compare.py", *QUICK, "--base", "no-such-commit", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("compare: git rev-parse")


def test_ctrl_c_ends_a_comparison_and_leaves_nothing(tmp_path: Path) -> None:
    """130, no process, no worktree."""
    code, errors = interrupted(
        "compare.py", "--base", "HEAD", "--seconds", "60", "--json", folder=tmp_path,
        when=lambda _: any(" -m keyferry bench " in one for one in processes_of(tmp_path)),
    )  # fmt: skip
    assert (code, "interrupted" in errors.splitlines()) == (130, True)  # one that was just starting may still complain after it
    nothing_runs(tmp_path)
    assert str(tmp_path) not in worktrees()
    assert [one.name for one in tmp_path.iterdir()] == ["stderr"]


def test_the_answer_is_the_median_of_the_ratios() -> None:
    """Not the ratio of the medians: both of a pair had the same neighbours."""
    pairs = [Pair(Figure(1000, 900), Figure(900, 990)), Pair(Figure(500, 900), Figure(500, 900)), Pair(Figure(800, 900), Figure(960, 810))]
    found = summary(pairs)
    assert (found["ratio"], found["ratio_low"], found["ratio_high"], found["cpu_ratio"]) == (1.0, 0.9, 1.2, 1.0)
    assert (found["base"]["per_second"], found["head"]["per_second"]) == (800, 900)
