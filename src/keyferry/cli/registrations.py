# SPDX-License-Identifier: Apache-2.0
"""`keyferry registrations`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json, whole
from keyferry.client.admin import ask
from keyferry.protocol.identity import parse_impi


def registrations(
    impi: Annotated[str | None, typer.Option(metavar="IMPI", help="Only this subscriber, with what waits for it.")] = None,
    after: Annotated[str | None, typer.Option(metavar="IMPI", help="Go on after this subscriber.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most; one subscriber's devices are never parted.")] = 100,
    admin: Annotated[str, typer.Option(metavar="HOST:PORT", help="[admin] listen of the running `keyferry serve`.")] = "127.0.0.1:8080",
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Say who is registered at the S-CSCFs of a running `keyferry serve`, sorted by IMPI, a page at a time. No key.

    --json prints {"registrations": [{"impi", "impu", "identities", "reg", "contact", "release", "keys", "authenticated", "expires",
    "server"}], "next", "unreadable"}: with `next`, unless it is null, --after goes on; `unreadable` are IMPIs whose rows were
    changed. With --impi, "challenges", "owed" and "failures" instead of those two, as in `keyferry failures`.

    Example: keyferry registrations --limit 20
    """
    del state  # the running process is asked
    if impi is not None and after is not None:
        raise typer.BadParameter("goes with no --impi", param_hint="--after")
    query = {"impi": parse_impi(impi)} if impi else {"limit": str(limit), **({"after": parse_impi(after)} if after else {})}
    found = asyncio.run(ask(admin, "/registrations", query))
    if as_json:
        show_json(found)
    else:
        _show(found)


def _show(found: Mapping[str, Any]) -> None:
    table = Table(whole("IMPI"), whole("contact"), "keys", "release", "until", whole("S-CSCF"))
    for one in found["registrations"]:
        keys, release = "yes" if one["keys"] else "no", "-" if one["release"] is None else one["release"]
        row = (one["impi"], one["contact"].partition(";")[0], keys, release, one["expires"][:19], one["server"])
        table.add_row(*(Text(str(each)) for each in row))
    if found["registrations"]:
        console.print(table)
    else:
        console.print("nobody is registered")
    for impi in found.get("unreadable", ()):
        console.print(f"CANNOT BE READ: {impi}: its row was changed, or sealed with another key", markup=False)
    if found.get("next"):
        console.print(f"more: --after {found['next']}", markup=False)
