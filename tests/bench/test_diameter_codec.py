# SPDX-License-Identifier: Apache-2.0
"""bench/diameter_codec.py works and says what it measured; no time is asserted: a machine that tests has others to do."""

from __future__ import annotations

import json
from pathlib import Path

from bench.benchrun import script


def test_each_message_of_a_registration_is_measured(tmp_path: Path) -> None:
    """And the library renders the same octets, or the script ends with an error."""
    done = script("diameter_codec.py", "--rounds", "3", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"MAR", "MAA", "SAR", "SAA"}
    assert all(min(figures.values()) > 0 for figures in report.values())
    shown = script("diameter_codec.py", "--rounds", "1", folder=tmp_path).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["microseconds", "MAR", "MAA", "SAR", "SAA"]
