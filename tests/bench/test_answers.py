# SPDX-License-Identifier: Apache-2.0
"""bench/answers.py works and says what it measured; no time is asserted: a machine that tests has others to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from system.serving import RUN_LIMIT, environment

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "answers.py"


def run(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT, check=True, env=environment()).stdout


def test_each_kind_of_wrong_answer_is_measured() -> None:
    """Each of them is a 401, or the script ends with an error."""
    report = json.loads(run("--rounds", "20", "--json"))
    assert set(report) == {"unknown", "wrong", "gone"}
    assert all(0 < figures["quartile1"] <= figures["median"] <= figures["quartile3"] for figures in report.values())
    assert run("--rounds", "5").splitlines()[0].startswith("wrong answer")
