# SPDX-License-Identifier: Apache-2.0
"""The runbook: what can run without systemd runs, and every other command of keyferry's is one that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployment.units import PACKAGING, check_command
from docs.console import ROOT, blocks, run_page

RUNBOOK = ROOT / "docs" / "runbook.md"


def test_the_rehearsal_runs(tmp_path: Path) -> None:
    """A network is set up, saved, lost and restored, and its phone registers again."""
    assert run_page(RUNBOOK, tmp_path, peers=False) == []


def ours() -> list[str]:
    """Return each command of keyferry's outside the rehearsal: in blocks, and in the text in backquotes."""
    text = RUNBOOK.read_text("utf-8")
    lines = [line for block in blocks(RUNBOOK) if block.language == "sh" for line in block.body.splitlines()]
    lines += re.findall(r"`(keyferry(?:-admin)? [^`]+)`", text)
    return [line.partition("#")[0].replace("keyferry-admin ", "keyferry ") for line in lines if re.match(r"keyferry(-admin)? [a-z]", line)]


@pytest.mark.parametrize("line", ours())
def test_every_command_is_one_that_there_is(line: str) -> None:
    """Groups, commands, options."""
    check_command(line)


def test_every_file_of_packaging_that_it_names_is_there() -> None:
    """With stars as the shell reads them."""
    for name in set(re.findall(r"packaging/([\w./@*-]+)", RUNBOOK.read_text("utf-8"))):
        assert list(PACKAGING.glob(name.rstrip("."))), name
