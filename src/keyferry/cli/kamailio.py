# SPDX-License-Identifier: Apache-2.0
"""`keyferry kamailio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.config import load_config
from keyferry.wiring.kamailio import SHARE, write_kamailio


def kamailio(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; a directory that only Kamailio's user may enter.")],
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file with [kamailio], as for `keyferry serve`.")],
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Python of the version that Kamailio embeds, with cryptography; default: DIR/venv, or found."),
    ] = None,
    modules: Annotated[Path | None, typer.Option(metavar="DIR", help="Kamailio's modules, where they are not in /usr/lib.")] = None,
    share: Annotated[Path, typer.Option(metavar="DIR", help="Kamailio's SQL files, in db_sqlite.")] = SHARE,
    stderr: Annotated[bool, typer.Option("--stderr", help="Let Kamailio log to standard error instead of syslog.")] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Write a complete configuration with which a stock Kamailio 5.6 is the S-CSCF, keys pushed by a script of ours inside it.

    Run it again after a change; keys of Kamailio's own state, local.cfg and calls.cfg stay. The README there says how to go on.

    Example: keyferry kamailio /etc/kamailio/keyferry --config examples/kamailio.toml
    """
    written = write_kamailio(load_config(config), state, directory, python=python, modules=modules, share=share, log_stderror=stderr)
    if as_json:
        show_json(
            {
                "ok": True, "directory": str(written.directory), "python": written.python, "python_version": written.python_version,
                "hss": written.hss, "application_servers": list(written.application_servers), "rspauth": written.rspauth,
                "trusts_loopback": written.trusts_loopback,
            }
        )  # fmt: skip
        return
    console.print(
        f"written to {written.directory}, for Python {written.python_version} ({written.python}); HSS {written.hss}", markup=False
    )
    if written.trusts_loopback:
        console.print("warning: trusted_peers lists loopback: every process of this machine is taken for a P-CSCF (docs/kamailio.md)")
    console.print(f"next: kamailio -c -f {written.directory}/scscf.cfg, and see README there", markup=False)
