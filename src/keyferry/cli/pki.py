# SPDX-License-Identifier: Apache-2.0
"""`keyferry pki`: the private CA and the certificates of roles."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json, whole
from keyferry.protocol.identity import parse_as_id
from keyferry.wiring import administration

app = typer.Typer(help="The private CA and role certificates.", no_args_is_help=True)


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="Host name, for example xcap.home1.net.")],
    role: Annotated[str, typer.Option(help="as, scscf, icscf, pcscf, hss or proxy.")] = "as",
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Make the certificate of a role, and the CA if there is none; an unexpired one is kept.

    Example: keyferry pki issue xcap.home1.net --role as
    """
    if role not in {"as", "scscf", "icscf", "pcscf", "hss", "proxy"}:
        raise typer.BadParameter(f"{role!r} is not as, scscf, icscf, pcscf, hss or proxy", param_hint="--role")
    store = administration.open_pki(state)
    made = store.ensure(parse_as_id(name), role)
    data = {"certificate": str(made.certificate), "key": str(made.key), "ca": str(store.ca_file), "not_after": made.not_after.isoformat()}
    if as_json:
        show_json(data)
    else:
        for field, value in data.items():
            console.print(f"{field:12} {value}", markup=False)


@app.command()
def show(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the certificates and when they end; those of `serve` are renewed at its start and once a day.

    --json prints {"ca", "certificates": [{"name", "role", "not_after", "days", "sha256"}]}; "days" under 0 is expired.

    Example: keyferry pki show
    """
    store = administration.open_pki(state, make=False)
    found: list[dict[str, Any]] = [
        {
            "name": one.name, "role": one.role, "not_after": one.not_after.isoformat(), "days": store.days_left(one),
            "sha256": one.sha256.hex(),
        }
        for one in store.all()
    ]  # fmt: skip
    if as_json:
        show_json({"ca": str(store.ca_file), "certificates": found})
        return
    table = Table(whole("name"), "role", "valid until", "days left")
    for one in found:
        table.add_row(one["name"], one["role"], one["not_after"], "EXPIRED" if one["days"] < 0 else str(one["days"]))
    console.print(table)
