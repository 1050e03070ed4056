# SPDX-License-Identifier: Apache-2.0
"""`keyferry subscriber`: provision the HSS; no command prints K or OPc."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from keyferry.cli import subscriber_served
from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, fail, show_json, whole
from keyferry.cli.subscriber_served import ImpiArgument
from keyferry.config import Subscriber, decode_secret
from keyferry.errors import ConfigError, StoreError
from keyferry.ports import Subscriber as StoredSubscriber
from keyferry.protocol.identity import parse_impi
from keyferry.wiring import administration

app = typer.Typer(help="Provision subscribers.", epilog="Begin with: keyferry subscriber list", no_args_is_help=True)


@app.command()
def add(
    impi: Annotated[str, typer.Option(help="Private identity.")],
    impu: Annotated[list[str], typer.Option(help="Public identity, the default first. Repeatable.")],
    k: Annotated[
        str | None, typer.Option(help="K in hexadecimal. Other users of this machine can see arguments: better --keys-file.")
    ] = None,
    opc: Annotated[str | None, typer.Option(help="OPc (TUAK: TOPc) in hexadecimal.")] = None,
    op: Annotated[str | None, typer.Option(help="OP (TUAK: TOP) instead of OPc.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="File with lines `k = HEX` and `opc = HEX` or `op = HEX`; - is standard input.")
    ] = None,
    amf: Annotated[str, typer.Option(help="AMF, 2 octets in hexadecimal.")] = "8000",
    algorithm: Annotated[str, typer.Option(help="milenage or tuak.")] = "milenage",
    release: Annotated[int | None, typer.Option(help="3GPP release of the UE, for S-CSCFs of `hss.marker_for`.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Add a subscriber; works while `serve` runs.

    Example: keyferry subscriber add --impi user3_private@home1.net --impu sip:user3_public1@home1.net --keys-file card.txt
    """
    secrets = {name: value for name, value in (("k", k), ("opc", opc), ("op", op)) if value is not None}
    if keys_file is not None:
        secrets |= _keys(keys_file)
    fields: dict[str, Any] = {"impi": impi, "impus": impu, "amf": amf, "algorithm": algorithm, "release": release, **secrets}
    try:
        settings = msgspec.convert(fields, Subscriber, dec_hook=decode_secret)
    except msgspec.ValidationError as problem:
        raise ConfigError("subscriber add", str(problem).replace("Object missing required field", "missing")) from None
    try:
        subscriber = asyncio.run(administration.add_subscriber(state, settings))
    except StoreError as problem:
        raise fail(str(problem), as_json=as_json, status=1) from None
    if as_json:
        show_json({"ok": True, **_public(subscriber)})
    else:
        console.print(f"added {subscriber.impi}")


@app.command("list")
def list_(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List subscribers.

    Example: keyferry subscriber list --json
    """
    found = asyncio.run(administration.list_subscribers(state))
    if as_json:
        show_json({"subscribers": [_public(subscriber) for subscriber in found]})
        return
    table = Table(whole("IMPI"), whole("public identities"), "AKA", "AMF", "profile")
    for subscriber in found:
        table.add_row(
            subscriber.impi, "\n".join(one.impu for one in subscriber.impus), subscriber.algorithm, subscriber.amf.hex(), subscriber.profile
        )
    console.print(table)


@app.command()
def show(impi: ImpiArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Show one subscriber, without keys.

    Example: keyferry subscriber show user1_private@home1.net
    """
    found = asyncio.run(administration.show_subscriber(state, parse_impi(impi)))
    if found is None:
        raise fail(f"{impi} is not a subscriber; `keyferry subscriber list` shows them", as_json=as_json, status=1)
    subscriber, seq, server_name = found
    data = {**_public(subscriber), "seq_reserved": seq, "s_cscf": server_name}
    if as_json:
        show_json(data)
    else:
        for name, value in data.items():
            console.print(f"{name:14} {value}", markup=False)


@app.command()
def remove(impi: ImpiArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Remove a subscriber; a registration that is there ends with its time, unless `keyferry subscriber terminate` ended it before.

    Example: keyferry subscriber remove user3_private@home1.net
    """
    if not asyncio.run(administration.remove_subscriber(state, parse_impi(impi))):
        raise fail(f"{impi} is not a subscriber; `keyferry subscriber list` shows them", as_json=as_json, status=1)
    show_json({"ok": True, "impi": impi}) if as_json else console.print(f"removed {impi}", markup=False)


app.command()(subscriber_served.profile)
app.command()(subscriber_served.terminate)
app.command()(subscriber_served.prune)


def _public(subscriber: StoredSubscriber) -> dict[str, object]:
    return {
        "impi": subscriber.impi,
        "impus": [one.impu for one in subscriber.impus],
        "barred": [one.impu for one in subscriber.impus if one.barred],
        "algorithm": subscriber.algorithm,
        "amf": subscriber.amf.hex(),
        "profile": subscriber.profile,
        "release": subscriber.release,
    }


def _keys(path: Path) -> dict[str, str]:
    try:
        text = sys.stdin.read(4096) if str(path) == "-" else path.read_text("ascii")[:4096]
    except (OSError, UnicodeDecodeError):
        raise ConfigError(str(path), "cannot be read as ASCII text") from None
    pairs = [line.partition("=") for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    keys = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    if unknown := keys.keys() - {"k", "opc", "op"}:
        raise ConfigError(str(path), f"has an unknown line {sorted(unknown)[0]!r}", "Write `k = HEX` and `opc = HEX` or `op = HEX`")
    return keys
