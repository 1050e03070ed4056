# SPDX-License-Identifier: Apache-2.0
"""The guides of docs/how-to whole, with what needs curl, nginx and openssl."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from docs.console import ROOT, commands, run_page
from interop.kamailio_kit import kamailio_python
from interop.peers import docker_open5gs, program, pyhss

pytestmark = pytest.mark.interop
GUIDES = [guide for guide in sorted((ROOT / "docs" / "how-to").glob("*.md")) if any(command.needs for command in commands(guide))]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_guide_runs_with_its_peers(guide: Path, tmp_path: Path) -> None:
    needs = {need for command in commands(guide) for need in command.needs}
    for name in sorted(needs - {"pyhss", "docker_open5gs"}):
        program(name)
    if "pyhss" in needs:
        copy, python = pyhss()
        (tmp_path / "pyhss").symlink_to(copy)  # what the guide clones, and makes with pip
        (tmp_path / "pyhss-venv").symlink_to(Path(python).parents[1])
    if "docker_open5gs" in needs:
        shutil.copytree(docker_open5gs(), tmp_path / "docker_open5gs", ignore=shutil.ignore_patterns(".git"))  # what the guide clones
    if "kamailio" in needs:
        (tmp_path / "kamailio").mkdir(0o700)  # what the guide makes with pip, which asks an index
        (tmp_path / "kamailio/venv").symlink_to(Path(kamailio_python()).parents[1])
    assert run_page(guide, tmp_path, peers=True, copied=()) == []
