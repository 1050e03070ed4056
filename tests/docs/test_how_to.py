# SPDX-License-Identifier: Apache-2.0
"""Each guide of docs/how-to runs as it is written: its files and its commands, in an empty folder, over real sockets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.console import ROOT, blocks, commands, run_page

GUIDES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
LANGUAGES = {"console", "docker", "python", "nginx", "toml", "xml", "yaml"}
FOR_WEB_DEVELOPERS = ("fastapi", "testing")
READ = 200
"""Words that are read in a minute."""
TYPED = 200
"""Characters that are typed in a minute: 40 words."""


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_guide_runs_as_it_is_written(guide: Path, tmp_path: Path) -> None:
    """tests/interop/test_how_to.py runs what needs curl and nginx, too."""
    if all(command.needs for command in commands(guide)):
        pytest.skip("every command needs a peer: make interop runs them")
    assert run_page(guide, tmp_path, peers=False, copied=()) == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_nothing_in_the_guide_escapes(guide: Path) -> None:
    """A block that is shown is a command, or a file that the commands use."""
    text = guide.read_text("utf-8")
    assert text.count("```") == 2 * len(blocks(guide))
    assert commands(guide)
    for block in blocks(guide):
        assert block.language in LANGUAGES
        assert block.language == "console" or block.file is not None, block.body


@pytest.mark.parametrize("name", FOR_WEB_DEVELOPERS)
def test_a_web_developer_never_sees_sip(name: str) -> None:
    """But in the public identities, which are what they are."""
    text = (ROOT / "docs" / "how-to" / f"{name}.md").read_text("utf-8")
    prose = re.sub(r"sip:[a-z]+@", "", text)
    assert not re.search(r"\b(SIP|IMS|S-CSCF|P-CSCF|AKA|REGISTER|sip)\b", prose)


def test_the_first_guide_takes_five_minutes() -> None:
    """Until the application runs and knows alice from bob: reading all, typing all by hand, pasting nothing."""
    text = (ROOT / "docs" / "how-to" / "fastapi.md").read_text("utf-8").partition("## In your own server")[0]
    boxes = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    typed = sum(len(body) for language, body in boxes if language == "python")
    typed += sum(len(line) - 2 for language, body in boxes if language == "console" for line in body.splitlines() if line.startswith("$ "))
    words = len(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split())
    assert typed > 500
    assert words / READ + typed / TYPED < 5


def test_every_guide_can_be_found() -> None:
    index, readme = ((ROOT / name).read_text("utf-8") for name in ("docs/index.md", "README.md"))
    for guide in GUIDES:
        assert f"how-to/{guide.stem}.md" in index, guide.name
        assert f"\nhow-to/{guide.stem}\n" in index, guide.name
        assert f"docs/how-to/{guide.stem}.md" in readme, guide.name


def test_the_nginx_of_the_guide_is_the_example() -> None:
    """What stands in the locations: a change of one is a change of both."""
    example = (ROOT / "examples" / "nginx" / "keyferry.conf").read_text("utf-8")
    shown = next(block.body for block in blocks(ROOT / "docs" / "how-to" / "nginx.md") if block.file == "nginx.conf")
    lines = [line.strip() for line in example[example.index("location / {") :].splitlines()]
    there = [line.strip() for line in shown.splitlines() if "include secret.conf" not in line]
    start = there.index("location / {")
    assert there[start : start + len(lines)] == lines
