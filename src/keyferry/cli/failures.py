# SPDX-License-Identifier: Apache-2.0
"""`keyferry failures`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json, whole
from keyferry.client.admin import ask
from keyferry.protocol.identity import parse_impi

Objects = Sequence[Mapping[str, Any]]


def failures(
    impi: Annotated[str | None, typer.Option(metavar="IMPI", help="Only this subscriber, with its registrations and what is owed.")] = None,
    last: Annotated[int, typer.Option(min=1, max=1000, help="How many failures at most, the newest first.")] = 20,
    admin: Annotated[str, typer.Option(metavar="HOST:PORT", help="[admin] listen of the running `keyferry serve`.")] = "127.0.0.1:8080",
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Say why registrations failed in a running `keyferry serve`: which input disagrees, and what to do. No key, no response.

    --json prints {"failures": [{"at", "count", "function", "impi", "reg", "source", "status", "server", "reasons", "because", "remedy",
    "problem"}]}, and with --impi also "registrations", "challenges" (that wait for an answer) and "owed" (keys not delivered).
    The words of "reasons" are those of docs/errors.md.

    Example: keyferry failures --impi user1_private@home1.net
    """
    del state  # the running process is asked
    found = asyncio.run(_found(admin, parse_impi(impi) if impi else None, last))
    if as_json:
        show_json(found)
        return
    if impi:
        _show_registrations(impi, found)
    _show_failures(found["failures"])


async def _found(admin: str, impi: str | None, last: int) -> dict[str, Any]:
    failed = await ask(admin, "/failures", {"limit": str(last), **({"impi": impi} if impi else {})})
    about = await ask(admin, "/registrations", {"impi": impi}) if impi else {}
    return {"failures": failed.get("failures", []), **{key: about[key] for key in ("registrations", "challenges", "owed") if key in about}}


def _show_registrations(impi: str, found: Mapping[str, Any]) -> None:
    devices: Objects = found.get("registrations", [])
    console.print(f"{impi}: {len(devices)} registered, {found.get('challenges', 0)} challenged and not answered", markup=False)
    for device in devices:
        keys = "with AS keys" if device["keys"] else "without AS keys"
        console.print(f"  {device['contact']}\n    {keys}, until {device['expires']}", markup=False)
    for owed in found.get("owed", []):
        console.print(f"  NOT DELIVERED: {owed['as_id'] or 'the registration'} at {owed['server']}", markup=False)


def _show_failures(found: Objects) -> None:
    if not found:
        console.print("no failure is remembered")
        return
    table = Table("last", "times", whole("IMPI"), "reason", whole("what, and what to do"))
    for one in found:
        what = f"{one['because']}{f' ({_told(one)})' if _told(one) else ''}\nto do: {one['remedy']}"
        table.add_row(*(Text(str(each)) for each in (one["at"][:19], one["count"], one["impi"], "\n".join(one["reasons"]), what)))
    console.print(table)


def _told(failure: Mapping[str, Any]) -> str:
    told = (str(failure[name]) for name in ("server", "problem") if failure[name])
    return ", ".join(each for each in told if each not in failure["because"])
