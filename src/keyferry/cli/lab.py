# SPDX-License-Identifier: Apache-2.0
"""`keyferry lab`: experiments, on loopback or in network namespaces."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from keyferry.cli import lab_network
from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.lab.attacks.run import run_attacks

app = typer.Typer(
    help="Networks in namespaces, and attacks on a network on loopback.", epilog="Begin with: keyferry lab up", no_args_is_help=True
)


@app.callback()
def lab() -> None:
    """Experiments, each on a network of its own: attacks on loopback, a whole network in namespaces."""


@app.command()
def attack(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An attack of docs/attacks.md, or all.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Let a hostile party attack a running network, and tell what happened; exit code 1 if an attack did not hold.

    --json prints {"attacks": [{"name", "party", "tried", "happened", "held"}], "ok"}.

    Example: keyferry lab attack all
    """
    del state  # every attack has a network and a state of its own
    results = asyncio.run(run_attacks(name))
    ok = all(result.held for result in results)
    if as_json:
        show_json({"attacks": [result._asdict() for result in results], "ok": ok})
    else:
        table = Table("attack", "party", "what it tried", "what happened", "held")
        for result in results:
            table.add_row(result.name, result.party, result.tried, result.happened, "yes" if result.held else "NO")
        console.print(table)
        console.print(f"attacks: {len(results)}, {'all held' if ok else 'NOT all held'}")
    if not ok:
        raise typer.Exit(1)


app.command("up")(lab_network.up)
app.command("down")(lab_network.down)
app.command("status")(lab_network.status)
