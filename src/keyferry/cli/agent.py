# SPDX-License-Identifier: Apache-2.0
"""`keyferry agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, console, show_json
from keyferry.config.agent import load_agent_config
from keyferry.errors import ConfigError
from keyferry.wiring.agent import serve_agent


def agent(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file, for example examples/agent.toml.")],
    log: Annotated[str, typer.Option("--log", help="text, json or none; goes to standard error.")] = "text",
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", envvar="KEYFERRY_STATE", metavar="DIR",
            help="State directory: keys, transport keys, certificates. Mode 0700. Default: what the file says, else .keyferry.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Take the keys that S-CSCFs push for the applications of this machine, until SIGTERM or Ctrl-C; SimLogin reads them at a UNIX socket.

    SIGHUP reads the certificate of SIP over TLS again.

    When everything listens, one JSON line is printed: {"ready": true, "listen": [...], "as_ids": [...], "socket": PATH}.

    Example: keyferry agent --config examples/agent.toml
    """
    del as_json  # the ready line is JSON either way: it is there for scripts
    if log not in {"text", "json", "none"}:
        raise ConfigError("--log", f"{log!r} is not text, json or none")
    loaded = load_agent_config(config)
    place = state or (Path(loaded.agent.state) if loaded.agent.state else DEFAULT_STATE)
    serve_agent(loaded, place, show_json, log_format=log)  # type: ignore[arg-type]
    console.print("stopped")
