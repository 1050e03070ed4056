# SPDX-License-Identifier: Apache-2.0
"""bench/key_first.py works and says what it measured; the figures themselves are in docs/measurements.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from system.serving import RUN_LIMIT, environment

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "key_first.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT, check=False, env=environment())


def test_without_loss_every_key_is_first_and_a_relay_that_loses_all_lets_none_through() -> None:
    """DESIGN §5 step 4."""
    done = run("--by", "relay", "--loss", "0,99.9999", "--registrations", "4", "--users", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "TCP is left out" in done.stderr
    report = json.loads(done.stdout)
    assert (report["by"], report["users"]) == ("relay", 2)
    whole, lost = report["points"]
    assert (whole["transport"], whole["registrations"], whole["failed"], whole["key_first"]) == ("udp", 4, 0, 1.0)
    assert (lost["loss_percent"], lost["registrations"], lost["failed"], lost["key_first"]) == (99.9999, 4, 0, 0.0)
    assert 0 < whole["p50_ms"] <= whole["p99_ms"]


def test_the_table_has_a_line_for_each_loss_and_the_help_an_example() -> None:
    table = run("--by", "relay", "--transport", "udp", "--loss", "0", "--registrations", "1", "--users", "1").stdout.splitlines()
    assert table[0].startswith("| transport | lost, each way |")
    assert re.fullmatch(r"\| udp \| 0 % \| 1 \| 0 \| 100\.0 % \| \d+ ms \| \d+ ms \|", table[2])
    assert "python bench/key_first.py --transport udp" in run("--help").stdout


def test_what_cannot_be_measured_is_a_mistake_of_the_user() -> None:
    for wrong in (("--loss", "100"), ("--transport", "sctp"), ("--registrations", "0")):
        done = run(*wrong)
        assert (done.returncode, done.stdout) == (2, "")
