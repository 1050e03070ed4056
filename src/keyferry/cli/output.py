# SPDX-License-Identifier: Apache-2.0
"""Options that every command shares, and how results and errors are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column

StateOption = Annotated[
    Path, typer.Option("--state", envvar="KEYFERRY_STATE", metavar="DIR", help="State directory: keys, databases, certificates. Mode 0700.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DEFAULT_STATE = Path(".keyferry")

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = Console(highlight=False, soft_wrap=True, width=120)  # a file or a pipe has no width to keep to


def show_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, nothing escaped that need not be."""
    typer.echo(json.dumps(data, ensure_ascii=False))


def whole(heading: str) -> Column:
    """Return a column of a table that breaks what is too long for it: an identity cut short cannot be given to the next command."""
    return Column(heading, overflow="fold")


def fail(problem: str, *, as_json: bool, status: int) -> typer.Exit:
    """Say what is wrong on standard error and return the exit to raise."""
    if as_json:
        typer.echo(json.dumps({"ok": False, "error": problem}, ensure_ascii=False))
    errors.print(f"keyferry: {problem}", markup=False)
    return typer.Exit(status)
