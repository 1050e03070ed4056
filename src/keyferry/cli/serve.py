# SPDX-License-Identifier: Apache-2.0
"""`keyferry serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.cli.roles import RoleOption, ScscfOption, roles_named
from keyferry.config import Config
from keyferry.errors import ConfigError
from keyferry.wiring import serving
from keyferry.wiring.checking import read_served
from keyferry.wiring.observability import LogFormat, LogLevel


def serve(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file, for example examples/lab.toml.")],
    role: RoleOption = None,
    scscf: ScscfOption = None,
    log: Annotated[str, typer.Option("--log", help="text, json or none; goes to standard error.")] = "text",
    log_level: Annotated[
        str | None,
        typer.Option(metavar="info|warning|error", help="Log nothing less than this; default: log.level of the file, else info."),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Run P-CSCF, I-CSCF, S-CSCF with its HSS, and the application servers, until SIGTERM or Ctrl-C.

    With cx.peers in FILE the HSS is another process: `--role hss` of the same file, or one that is not ours.

    SIGHUP reads certificates and FILE again: subscribers and the log level change at once, the log says what else needs a restart.

    When all of them listen, one JSON line is printed: {"ready": true, "listen": [...], "ca": PATH}.

    Example: keyferry serve --config examples/lab.toml
    """
    del as_json  # the ready line is JSON either way: it is there for scripts
    if log not in {"text", "json", "none"}:
        raise ConfigError("--log", f"{log!r} is not text, json or none")
    if log_level not in {None, "info", "warning", "error"}:
        raise ConfigError("--log-level", f"{log_level!r} is not info, warning or error")
    roles = roles_named(role)

    def read() -> Config:
        return read_served(config, state, roles, scscf or None)

    serving.serve(
        read(), state, show_json, roles=roles, scscfs=scscf or None, log_format=cast("LogFormat", log),
        log_level=cast("LogLevel | None", log_level), reread=(config, read),
    )  # fmt: skip
    console.print("stopped")
