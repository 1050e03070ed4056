# SPDX-License-Identifier: Apache-2.0
"""`keyferry serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.cli.roles import RoleOption, ScscfOption, roles_named
from keyferry.errors import ConfigError
from keyferry.wiring import serving
from keyferry.wiring.checking import read_served


def serve(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file, for example examples/lab.toml.")],
    role: RoleOption = None,
    scscf: ScscfOption = None,
    log: Annotated[str, typer.Option("--log", help="text, json or none; goes to standard error.")] = "text",
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Run P-CSCF, I-CSCF, S-CSCF with its HSS, and the application servers, until SIGTERM or Ctrl-C.

    With cx.peers in FILE the HSS is another process: `--role hss` of the same file, or one that is not ours.

    SIGHUP reads the certificates of SIP over TLS again.

    When all of them listen, one JSON line is printed: {"ready": true, "listen": [...], "ca": PATH}.

    Example: keyferry serve --config examples/lab.toml
    """
    del as_json  # the ready line is JSON either way: it is there for scripts
    if log not in {"text", "json", "none"}:
        raise ConfigError("--log", f"{log!r} is not text, json or none")
    roles = roles_named(role)
    loaded = read_served(config, state, roles, scscf or None)
    serving.serve(loaded, state, show_json, roles=roles, scscfs=scscf or None, log_format=log)  # type: ignore[arg-type]
    console.print("stopped")
