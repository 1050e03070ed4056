# SPDX-License-Identifier: Apache-2.0
"""The command `keyferry`: its groups, its exit codes (0 done, 1 failed, 2 usage, 130 interrupted)."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from typing import Annotated

import typer

from keyferry.cli.output import errors
from keyferry.errors import ConfigError, KeyferryError, ParseError, StateError
from keyferry.wiring.protection import keep_memory_private

COMMANDS = (
    "demo",
    "init",
    "dev",
    "serve",
    "proxy",
    "agent",
    "check",
    "kamailio",
    "bench",
    "backup",
    "trace",
    "failures",
    "registrations",
    "subscriber",
    "ue",
    "keys",
    "pki",
    "ipsec",
    "lab",
)
"""What `keyferry --help` lists, in its order; each is a module beside this one, with a function of its name or an `app` of several."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"keyferry {metadata.version('keyferry')}")
        raise typer.Exit


def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """SIM-based login for HTTP: a phone registers with IMS AKA, its S-CSCF pushes a key to each application server."""


def application(*names: str) -> typer.Typer:
    """Return the command with those of its commands that are named, or with all: the modules of all take half a second to import."""
    app = typer.Typer(
        name="keyferry",
        epilog="Begin with: keyferry demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(options)
    for name in names or COMMANDS:
        module = importlib.import_module(f"keyferry.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def main() -> None:
    """Run a command and turn every error of ours into one line and an exit code."""
    keep_memory_private()  # a core file would hold every key in clear
    try:
        application(*(name for name in sys.argv[1:2] if name in COMMANDS))()
    except (ConfigError, ParseError) as problem:
        _end(problem, 1 if isinstance(problem, StateError) else 2)
    except KeyferryError as problem:
        _end(problem, 1)
    except KeyboardInterrupt:
        errors.print("keyferry: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def _end(problem: KeyferryError, status: int) -> None:
    errors.print(f"keyferry: {problem}", markup=False)
    sys.exit(status)
