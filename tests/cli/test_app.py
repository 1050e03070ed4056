# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: what it lists, and that a command starts without the modules of the others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from keyferry.cli.app import COMMANDS, application

LOADED = """
import sys
from keyferry.cli.app import main
sys.argv = ["keyferry", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted(name.removeprefix("keyferry.cli.") for name in sys.modules if name.startswith("keyferry.cli.")), file=sys.stderr)
"""


def loaded(*arguments: str) -> set[str]:
    """The commands whose modules a process with these arguments has imported."""
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=False, timeout=60)
    return set(done.stderr.splitlines()[-1].split()) & set(COMMANDS)


def test_all_commands_are_listed_in_their_order() -> None:
    assert tuple(typer.main.get_command(application()).commands) == COMMANDS  # type: ignore[attr-defined]
    shown = CliRunner().invoke(application(), ["--help"])
    assert shown.exit_code == 0
    assert all(f"\n  {name} " in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", ["check", "failures", "subscriber"])
def test_a_command_is_not_slowed_down_by_the_others(name: str) -> None:
    assert loaded(name, "--help") == {name}


def test_what_is_no_command_is_looked_for_among_all() -> None:
    assert loaded("registration") == set(COMMANDS)
    told = CliRunner().invoke(application(), ["registration"])
    assert told.exit_code == 2
    assert "registration" in told.stderr
