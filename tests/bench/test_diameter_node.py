# SPDX-License-Identifier: Apache-2.0
"""bench/diameter_node.py works with each server and load and leaves none behind; no rate is asserted."""

from __future__ import annotations

import json
from pathlib import Path

from bench.benchrun import nothing_runs, script


def test_each_server_answers_each_load_and_ends(tmp_path: Path) -> None:
    done = script("diameter_node.py", "--requests", "20", "--window", "4", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {(row["server"], row["load"]): row for row in json.loads(done.stdout)}
    assert {server for server, _ in rows} == {"library", "keyferry", "keyferry-tls"}
    assert ("library", "bare") in rows and ("keyferry", "bare") in rows
    assert all(row["per_second"] > 0 for row in rows.values())
    nothing_runs(tmp_path)
