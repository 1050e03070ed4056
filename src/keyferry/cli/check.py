# SPDX-License-Identifier: Apache-2.0
"""`keyferry check`: read a configuration and say what is wrong with it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, fail, show_json
from keyferry.config import Config, load_config, load_ue_config
from keyferry.config.agent import load_agent_config
from keyferry.config.cx import cx_peers
from keyferry.config.explaining import kind_of
from keyferry.config.reading import load_toml
from keyferry.errors import ConfigError, KeyferryError
from keyferry.wiring.hss import subscriber_of
from keyferry.wiring.ipsec_files import pairs_of


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file for `keyferry serve`, `keyferry agent` or `keyferry ue`.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file without starting anything; it looks names in `cx.peers` up, and warns of one that nobody knows.

    --json prints {"ok", "file", "kind", "warnings"}.

    Example: keyferry check examples/lab.toml
    """
    del state
    try:
        kind, warnings = _check(file)
    except KeyferryError as problem:
        raise fail(str(problem), as_json=as_json, status=2) from None
    if as_json:
        show_json({"ok": True, "file": str(file), "kind": kind, "warnings": warnings})
    else:
        console.print(f"{file}: a good {kind} configuration", markup=False)
        for warning in warnings:
            console.print(f"warning: {warning}", markup=False)


def _check(file: Path) -> tuple[str, list[str]]:
    if file.exists() and not file.is_file() and not file.is_dir():
        raise ConfigError(str(file), "is no file", "It is read twice, and a pipe can be read once: give the path of a file")
    command = kind_of(load_toml(file))
    if command == "keyferry ue":
        load_ue_config(file)
        return "ue", []
    if command == "keyferry agent":
        load_agent_config(file)
        return "agent", []
    loaded = load_config(file)
    for subscriber in loaded.subscribers:
        subscriber_of(subscriber)
    if any(str(server.protection) == "ipsec" for server in loaded.application_servers):
        pairs_of(loaded)
    return "serve", _unknown_peers(loaded)


def _unknown_peers(config: Config) -> list[str]:
    """Return a warning for each HSS whose name is not in [hosts], and that this machine cannot look up either."""
    warnings = []
    for place, peer in enumerate(cx_peers(config.cx, config.hosts)):
        try:
            socket.getaddrinfo(peer.host, peer.port)
        except (OSError, UnicodeError):
            remedy = "write its address there, or where the S-CSCF runs in /etc/hosts or DNS"
            warnings.append(f"cx.peers[{place}]: {peer.host} is not in [hosts], and cannot be looked up here: {remedy}")
    return warnings
