# SPDX-License-Identifier: Apache-2.0
"""Tables that an operator reads, and copies identities out of."""

from __future__ import annotations

import pytest

from keyferry.cli import failures, registrations

IMPI = "001010000000001@ims.mnc001.mcc001.3gppnetwork.org"


def unfolded(text: str) -> str:
    """Join what a table broke, column by column."""
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return " ".join("".join(cell.strip() for cell in column) for column in zip(*rows, strict=True))


def test_an_identity_is_whole_however_narrow_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    server = "sip:scscf1.ims.mnc001.mcc001.3gppnetwork.org:6060"
    row = {"impi": IMPI, "contact": "<sip:a@127.0.0.1>", "keys": True, "release": 6, "expires": "2026-01-01T00:00:00", "server": server}
    registrations._show({"registrations": [row]})
    shown = unfolded(capsys.readouterr().out)
    assert IMPI in shown
    assert server in shown


def test_a_failure_says_each_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"at": "2026-01-01T00:00:00", "count": 1, "impi": IMPI, "reasons": ["hss-away"], "server": "", "remedy": "see that it runs"}
    failures._show_failures([said | {"because": "not asked: UNABLE", "problem": "UNABLE"}])
    shown = capsys.readouterr().out
    assert IMPI in unfolded(shown)
    assert shown.count("UNABLE") == 1
