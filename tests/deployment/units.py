# SPDX-License-Identifier: Apache-2.0
"""What packaging/ holds, read as systemd and the tools read it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, cast

import typer.main

from keyferry.cli.app import application

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))
PROGRAM = "/usr/bin/keyferry"


def settings(unit: Path) -> dict[str, list[str]]:
    """Return every setting of a unit file by name, in order; a later empty one does not reset here: none of ours does so."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text("utf-8").splitlines():
        match = re.fullmatch(r"([A-Za-z]+)=(.*)", line)
        if match:
            found.setdefault(match[1], []).append(match[2])
        else:
            assert not line or line.startswith(("#", "[")), f"{unit.name}: {line}"
    return found


def options_of(*words: str) -> set[str]:
    """Return the options of a command of keyferry's. Raises KeyError for one that is not there."""
    command: Any = typer.main.get_command(application())
    for word in words:
        command = command.commands[word]
    return {name for parameter in command.params for name in parameter.opts}


def check_command(line: str) -> None:
    """Fail where a line calls a command or an option of keyferry's that there is not."""
    words = shlex.split(line, comments=True)
    start = next(place for place, word in enumerate(words) if Path(word).name == "keyferry")
    command: Any = cast("Any", typer.main.get_command(application()))
    named: list[str] = []
    for word in words[start + 1 :]:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command = command.commands[word]
        named.append(word)
    assert named, line
    assert not hasattr(command, "commands"), f"{' '.join(named)} is a group"
    following = words[start + 1 + len(named) :]
    if following and not following[0].startswith("-"):
        assert any(parameter.param_type_name == "argument" for parameter in command.params), f"{' '.join(named)} takes no {following[0]}"
    known = options_of(*named)
    for word in words[start + 1 :]:
        if word.startswith("--") and word != "--help":
            assert word.partition("=")[0] in known, f"{word} is no option of {' '.join(named)}"
