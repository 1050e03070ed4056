# SPDX-License-Identifier: Apache-2.0
"""The command `keyferry`: its groups, its exit codes (0 done, 1 failed, 2 usage, 130 interrupted)."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from keyferry.cli import (
    agent,
    backup,
    bench,
    check,
    demo,
    dev,
    failures,
    ipsec,
    kamailio,
    keys,
    lab,
    pki,
    proxy,
    registrations,
    serve,
    subscriber,
    trace,
    ue,
)
from keyferry.cli.output import errors
from keyferry.errors import ConfigError, KeyferryError, ParseError, StateError
from keyferry.wiring.protection import keep_memory_private

app = typer.Typer(
    name="keyferry",
    epilog="Begin with: keyferry demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"keyferry {metadata.version('keyferry')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """SIM-based login for HTTP: a phone registers with IMS AKA, its S-CSCF pushes a key to each application server."""


app.command("demo")(demo.demo)
app.command("dev")(dev.dev)
app.command("serve")(serve.serve)
app.command("proxy")(proxy.proxy)
app.command("agent")(agent.agent)
app.command("check")(check.check)
app.command("kamailio")(kamailio.kamailio)
app.command("bench")(bench.bench)
app.command("backup")(backup.backup)
app.command("trace")(trace.trace)
app.command("failures")(failures.failures)
app.command("registrations")(registrations.registrations)
app.add_typer(subscriber.app, name="subscriber")
app.add_typer(ue.app, name="ue")
app.add_typer(keys.app, name="keys")
app.add_typer(pki.app, name="pki")
app.add_typer(ipsec.app, name="ipsec")
app.add_typer(lab.app, name="lab")


def main() -> None:
    """Run a command and turn every error of ours into one line and an exit code."""
    keep_memory_private()  # a core file would hold every key in clear
    try:
        app()
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
