# SPDX-License-Identifier: Apache-2.0
"""`keyferry check`: read a configuration and say what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, fail, show_json
from keyferry.cli.roles import RoleOption, ScscfOption, roles_named
from keyferry.config import load_ue_config
from keyferry.config.agent import load_agent_config
from keyferry.config.explaining import kind_of
from keyferry.config.reading import load_toml
from keyferry.errors import ConfigError, KeyferryError, StateError
from keyferry.wiring.checking import domain_of, plan_of, read_served, warnings_of
from keyferry.wiring.services import Role


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file for `keyferry serve`, `keyferry agent` or `keyferry ue`.")],
    role: RoleOption = None,
    scscf: ScscfOption = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="The file is for another machine: do not ask for addresses, users and folders here.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file without starting anything: what is refused here `serve` refuses, with the same words, and nothing else.

    Give --role, --scscf and --state as you give them to `serve`: the applications of the file are imported, certificates in the state
    directory looked at, and hosts to listen on must be this machine's, unless --elsewhere says otherwise. It looks names in `cx.peers`
    up, and warns of one that nobody knows, of a port that cannot be had now, of an application server that the S-CSCF would not find,
    and of subscribers of another home domain.

    --json prints {"ok", "file", "kind", "warnings"}.

    Example: keyferry check examples/lab.toml
    """
    try:
        kind, warnings = _check(file, state, roles_named(role), scscf or None, here=not elsewhere)
    except KeyferryError as problem:
        raise fail(str(problem), as_json=as_json, status=1 if isinstance(problem, StateError) else 2) from None
    if as_json:
        show_json({"ok": True, "file": str(file), "kind": kind, "warnings": warnings})
    else:
        console.print(f"{file}: a good {kind} configuration", markup=False)
        for warning in warnings:
            console.print(f"warning: {warning}", markup=False)


def _check(file: Path, state: Path, roles: list[Role] | None, scscfs: list[str] | None, *, here: bool) -> tuple[str, list[str]]:
    if file.exists() and not file.is_file() and not file.is_dir():
        raise ConfigError(str(file), "is no file", "It is read twice, and a pipe can be read once: give the path of a file")
    command = kind_of(load_toml(file))
    if command == "keyferry ue":
        ue = load_ue_config(file).ue
        domain = domain_of(ue.impu)
        strange = domain not in {"", ue.home_domain.lower()}
        return "ue", [f"ue.impu: is of {domain}, and ue.home_domain is {ue.home_domain!r}: which one is right?"] if strange else []
    if command == "keyferry agent":
        load_agent_config(file)
        return "agent", []
    loaded = read_served(file, state, roles, scscfs, here=here)
    return "serve", warnings_of(plan_of(loaded, roles, scscfs), here=here)
