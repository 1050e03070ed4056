# SPDX-License-Identifier: Apache-2.0
"""Every command of README.md and of the guide runs, in order, and prints what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.console import ROOT, blocks, commands, missing, run_page, same

README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "getting-started.md"
PAGES = (README, GUIDE)
PEERS = {"sipp", "curl", "tshark", "openssl"}
LANGUAGES = {"console", "python", "toml", "text", "xml", "json"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs_and_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    """Commands that need a peer are run by tests/interop/test_readme_peers.py."""
    assert run_page(page, tmp_path, peers=False) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_escapes(page: Path) -> None:
    """A command stands in a console block, or nothing runs it; a block that is shown in full says its language."""
    for block in blocks(page):
        assert block.language in LANGUAGES, block.body
        if block.language != "console":
            assert not re.search(r"^\$ ", block.body, re.MULTILINE), block.body
    text = page.read_text("utf-8")
    assert text.count("```") == 2 * len(blocks(page))
    assert all(set(command.needs) <= PEERS for command in commands(page))
    for command in commands(page):
        used = {word for word in PEERS if re.search(rf"(^|\| |WIRESHARK_CONFIG_DIR=\S+ ){word} ", command.text)}
        assert used <= set(command.needs), f"not marked: {command.text}"


def test_the_readme_offers_its_doors() -> None:
    """The first screen: what it is, a picture, a command, three doors, the honest box, the matrix."""
    text = README.read_text("utf-8")
    marks = ("docs/overview.svg", "$ make demo", "I run a lab", "Read this first", "| mechanism |", "## What it does")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    for mark in ("<!-- bench:begin -->", "<!-- bench:end -->"):
        assert text.count(mark) == 1


def test_lines_are_compared_without_what_changes() -> None:
    """The harness itself: a shown line that was not printed is found."""
    assert same("│ key │ 00112233445566ff, 1271 │") == same("│  key │ ffeeddccbbaa0011, 1270 │")
    assert missing(("200 OK", "…", '{"a": …'), '200 OK\n{"a": 1}') == []
    assert missing(("201 Created",), "200 OK\n") == ["201 Created"]
