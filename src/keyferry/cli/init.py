# SPDX-License-Identifier: Apache-2.0
"""`keyferry init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli import starting
from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.errors import ConfigError


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; it is made if it is not there.")] = Path(),
    full: Annotated[bool, typer.Option("--full", help="The network with all its functions, two application servers, two SIMs.")] = False,
    example: Annotated[str | None, typer.Option(metavar="NAME", help=f"Another example: {', '.join(starting.EXAMPLES)}.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Write a network and its phone, lab.toml and ue.toml, with new keys, and say what to run; nothing is overwritten.

    Files with K and OPc get mode 0600. It works, as `--version` and `keys derive`, without the extra `server`.

    --json prints {"ok", "files": [PATH, ...], "next": [COMMAND, ...]}.

    Example: keyferry init my-lab
    """
    del state
    if full and example is not None:
        raise ConfigError("--full", "is the example lab: give --full or --example")
    chosen = "lab" if full else example
    written = starting.write_files(folder, chosen)
    commands = starting.next_commands(folder, chosen)
    if as_json:
        show_json({"ok": True, "files": [str(path) for path in written], "next": commands})
        return
    for line in starting.told(written, commands):
        console.print(line, markup=False)
