# SPDX-License-Identifier: Apache-2.0
"""bench/diameter_node.py works with both servers and leaves none behind; no rate is asserted."""

from __future__ import annotations

import json
from pathlib import Path

from bench.benchrun import nothing_runs, script


def test_both_servers_answer_and_end(tmp_path: Path) -> None:
    done = script("diameter_node.py", "--requests", "20", "--window", "4", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["server"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"library", "asyncio"}
    assert all(row["per_second"] > 0 for row in rows.values())
    nothing_runs(tmp_path)
