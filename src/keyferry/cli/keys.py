# SPDX-License-Identifier: Apache-2.0
"""`keyferry keys`: derive the hierarchy (prints keys: that is its purpose), rotate the key-encryption key and transport keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.cli.plain import derived_keys
from keyferry.protocol.identity import parse_as_id
from keyferry.wiring import administration
from keyferry.wiring.administration import IscPair

app = typer.Typer(help="Derive and rotate keys.", no_args_is_help=True)


@app.command()
def derive(
    ck: Annotated[str, typer.Option(help="CK, 16 octets in hexadecimal.")],
    ik: Annotated[str, typer.Option(help="IK, 16 octets in hexadecimal.")],
    rand: Annotated[str, typer.Option(help="RAND, 16 octets in hexadecimal.")],
    impi: Annotated[str, typer.Option(help="Private identity.")],
    as_: Annotated[str, typer.Option("--as", metavar="HOST", help="AS_ID: host name of the application server.")],
    realm: Annotated[str, typer.Option(help="Realm of the SIP challenge.")],
    ua: Annotated[str, typer.Option(help="Ua id, 5 octets in hexadecimal.")] = "0100000002",
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Derive every key of one AKA run, and PRINT them in clear: for tests and for other implementations.

    Example: keyferry keys derive --ck b40b…f8cb --ik f769…3441 --rand 2355…bf35 --impi user1_private@home1.net
    --as xcap.home1.net --realm home1.net --json
    """
    del state
    derived = derived_keys(ck=ck, ik=ik, rand=rand, impi=impi, as_id=as_, ua_id=ua, realm=realm)
    if as_json:
        show_json(derived)
    else:
        for name, value in derived.items():
            console.print(f"{name:16} {value}", markup=False)


@app.command()
def rotate(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Make a new key-encryption key, seal every row again, drop the old one; `serve` must not run.

    Example: keyferry keys rotate --state .keyferry
    """
    rows = dict(administration.rotate_keys(state))
    if as_json:
        show_json({"ok": True, "rows": rows})
    else:
        console.print(f"sealed {sum(rows.values())} rows again under a new key")


@app.command(name="rotate-isc")
def rotate_isc(
    scscf: Annotated[str | None, typer.Option("--scscf", metavar="HOST", help="Only the keys of this S-CSCF.")] = None,
    as_: Annotated[str | None, typer.Option("--as", metavar="HOST", help="Only the keys of this AS_ID.")] = None,
    retire: Annotated[bool, typer.Option("--retire", help="Drop the older key; a minute after the new one came at the earliest.")] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Make a new transport key for pushes between S-CSCF and AS, also while `serve` runs: it seals at once, the older one still opens.

    Example: keyferry keys rotate-isc; and after a minute: keyferry keys rotate-isc --retire
    """
    found = administration.rotate_isc_keys(state, scscf, parse_as_id(as_) if as_ else None, retire=retire)
    if as_json:
        show_json({"ok": True, "keys": [{"scscf": pair.scscf, "as": pair.as_id, "kids": list(pair.kids)} for pair in found]})
        return
    for pair in found:
        also = f"; {', '.join(pair.kids[:-1])} still opens" if len(pair.kids) > 1 else ""
        console.print(f"{pair.scscf} to {pair.as_id}: {pair.kids[-1]} seals{also}", markup=False)


@app.command(name="export-isc")
def export_isc(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, made with mode 0600; - is standard output.")],
    scscf: Annotated[str | None, typer.Option("--scscf", metavar="HOST", help="Only the keys of this S-CSCF.")] = None,
    as_: Annotated[str | None, typer.Option("--as", metavar="HOST", help="Only the keys of this AS_ID.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Write transport keys between S-CSCF and AS to a file, IN CLEAR, for the other side's machine; with --scscf and --as also new ones.

    Carry it as you would a password, and delete it when it is imported; or pipe it through ssh to `keyferry keys import-isc -`.

    Example: keyferry keys export-isc isc.keys --scscf scscf1.home1.net --as wiki.home1.net
    """
    exported = administration.export_isc_keys(state, file, scscf, parse_as_id(as_) if as_ else None)
    if str(file) != "-":
        _tell(exported, "exported", as_json=as_json)


@app.command(name="import-isc")
def import_isc(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export-isc wrote; - is standard input.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Take transport keys from another machine in place of those that are here; `serve` and `agent` may run.

    Example: keyferry keys import-isc isc.keys
    """
    _tell(administration.import_isc_keys(state, file), "imported", as_json=as_json)


def _tell(found: Sequence[IscPair], what: str, *, as_json: bool) -> None:
    if as_json:
        show_json({"ok": True, "keys": [{"scscf": pair.scscf, "as": pair.as_id, "kids": list(pair.kids)} for pair in found]})
        return
    for pair in found:
        console.print(f"{pair.scscf} to {pair.as_id}: {', '.join(pair.kids)} {what}", markup=False)
