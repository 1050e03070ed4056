# SPDX-License-Identifier: Apache-2.0
"""`keyferry check`: read a configuration and say what is wrong with it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, fail, show_json
from keyferry.config import load_config, load_ue_config
from keyferry.config.agent import load_agent_config
from keyferry.errors import ConfigError, KeyferryError
from keyferry.wiring.hss import subscriber_of
from keyferry.wiring.ipsec_files import pairs_of


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file for `keyferry serve`, `keyferry agent` or `keyferry ue`.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file without starting anything.

    Example: keyferry check examples/lab.toml
    """
    del state
    try:
        kind = _check(file)
    except KeyferryError as problem:
        raise fail(str(problem), as_json=as_json, status=2) from None
    if as_json:
        show_json({"ok": True, "file": str(file), "kind": kind})
    else:
        console.print(f"{file}: a good {kind} configuration", markup=False)


def _check(file: Path) -> str:
    if file.exists() and not file.is_file() and not file.is_dir():
        raise ConfigError(str(file), "is no file", "It is read twice, and a pipe can be read once: give the path of a file")
    try:
        tables = set(tomllib.loads(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        tables = set()  # load_config says what is wrong
    if "ue" in tables:
        load_ue_config(file)
        return "ue"
    if "agent" in tables:
        load_agent_config(file)
        return "agent"
    loaded = load_config(file)
    for subscriber in loaded.subscribers:
        subscriber_of(subscriber)
    if any(str(server.protection) == "ipsec" for server in loaded.application_servers):
        pairs_of(loaded)
    return "serve"
