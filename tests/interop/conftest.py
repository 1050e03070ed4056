# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the files of examples/ on free ports, and a process that serves them; and the table that ends a run."""

from __future__ import annotations

import pytest

from interop import peer_table
from system.serving import lab_fixture, served_fixture

__all__ = ["lab_fixture", "served_fixture"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note which tests are of interoperability: in a report the name of this folder looks like the mark."""
    peer_table.marked.update(item.nodeid for item in items if item.get_closest_marker("interop"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what ran, against which version of what, and what did not and why."""
    results = [
        peer_table.Result(report.nodeid, "failed" if outcome == "error" else outcome, _reason(report))
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if isinstance(report, pytest.TestReport) and report.nodeid in peer_table.marked
    ]
    if results and peer_table.met:  # workers of pytest-xdist know who was met, and their leader does not
        terminalreporter.section("peers")
        versions = {name: peer_table.version_of(name) for name in peer_table.met if name in peer_table.VERSIONS}
        for line in peer_table.table(results, peer_table.met, versions):
            terminalreporter.write_line(line)


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return ""
