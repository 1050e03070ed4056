# SPDX-License-Identifier: Apache-2.0
"""The table that ends a run of the interoperability tests: which peer, of which version, and how many of its tests did what."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

VERSIONS: dict[str, tuple[str, ...]] = {
    "kamailio": ("-v",), "kamailio (I-CSCF)": ("-v",), "kamailio (P-CSCF)": ("-v",), "sipp": ("-v",), "PJSIP": (),
    "PyHSS": (), "docker_open5gs": (), "freeDiameterd": ("--version",), "charon-systemd": ("--version",),
    "tshark": ("--version",), "dumpcap": ("--version",), "curl": ("--version",), "openssl": ("version",), "gnutls-cli": ("--version",),
    "chromium": ("--version",), "nginx": ("-v",),
}  # fmt: skip
"""How each says its version, and in brackets what it is where it can be several; in the order of the table.

Other programs that tests use (ip, nft) are no peers."""
SPEAKS = {"charon-systemd": "swanctl"}
"""Who says the version of a peer that takes no option: charon would start."""
NO_PROGRAM = "Python's own clients, or ours"
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"
LIMIT = 10.0  # seconds that a version may take
OUTCOMES = ("passed", "failed", "skipped")

met: dict[str, set[str]] = {}
"""Peer → the tests that asked for it, or the files whose fixtures did; filled while tests run."""

marked: set[str] = set()
"""Node IDs of the tests of interoperability."""


class Result(NamedTuple):
    """What became of one test."""

    test: str  # node ID
    outcome: str  # of OUTCOMES
    reason: str = ""  # why it was skipped


def meet(name: str) -> None:
    """Note that the test that runs, or a fixture of its file, asks for a peer."""
    test, _, phase = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")
    if test:
        met.setdefault(name, set()).add(test if phase == "(call)" else test.partition("::")[0])


def version_of(name: str) -> str:
    """Return the version that a program says, "absent" without one."""
    program = name.partition(" ")[0]
    path = shutil.which(SPEAKS.get(program, program), path=SEARCH)
    if path is None:
        return "own build" if os.environ.get(f"KEYFERRY_{name.upper()}") else "absent"
    try:
        said = subprocess.run([path, *VERSIONS[name]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(r"\bv?(\d+\.\d+(?:[\w.-]*\w)?)", said.stdout + said.stderr)
    return found[1] if found else "unknown"


def table(results: Sequence[Result], peers: Mapping[str, set[str]], versions: Mapping[str, str]) -> list[str]:
    """Return the lines. A test with several peers counts for each."""
    rows: list[tuple[str, ...]] = [("peer", "version", *OUTCOMES, "skipped because")]
    anybody = {where for places in peers.values() for where in places}
    for name in VERSIONS:
        if name in peers:
            rows.append(_row(name, versions[name], [one for one in results if _is_of(one.test, peers[name])]))
    others = [one for one in results if not _is_of(one.test, anybody)]
    if others:
        rows.append(_row(NO_PROGRAM, "", others))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(name: str, version: str, results: Sequence[Result]) -> tuple[str, ...]:
    counts = [str(sum(one.outcome == outcome for one in results)) for outcome in OUTCOMES]
    return (name, version, *counts, "; ".join(sorted({one.reason for one in results if one.reason})))


def _is_of(test: str, places: set[str]) -> bool:
    return test in places or test.partition("::")[0] in places
