# SPDX-License-Identifier: Apache-2.0
"""bench/login.py works and says what it measured; only its form is asserted: a machine that tests has others to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from system.serving import RUN_LIMIT, environment

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "login.py"


def run(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), "--requests", "30", "--rounds", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT, check=True, env=environment()).stdout


def test_every_request_is_admitted_and_both_are_measured() -> None:
    """A request that is not admitted ends the script with an error."""
    report = json.loads(run("--json"))
    assert 0 < report["bare"] < report["login"]
    assert report["check"] == report["login"] - report["bare"]
    assert run("--audit").startswith("CPU of a request: ")
