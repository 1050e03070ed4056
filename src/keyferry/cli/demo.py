# SPDX-License-Identifier: Apache-2.0
"""`keyferry demo`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.errors import ConfigError
from keyferry.lab.demo import HOME, DemoResult, Names, run_demo
from keyferry.lab.ladder import draw


def demo(
    names: Annotated[
        str, typer.Option(help="short: home1.net; 3gpp: names as in real networks, which make the messages longer.")
    ] = "short",
    capture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a pcap of all SIP and ESP, and a Wireshark profile beside it whose keys open Gm."),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show the whole scheme on loopback in a temporary state: register, ferry keys, manage data over HTTPS, de-register.

    Example: keyferry demo --names 3gpp
    """
    del state  # the demonstration keeps nothing
    if names not in HOME:
        raise ConfigError("--names", f"{names!r} is neither short nor 3gpp")
    result = asyncio.run(run_demo(cast("Names", names), capture=capture))
    if as_json:
        show_json(result.data())
        return
    _show(result)
    if result.capture:
        packets, profile = result.capture["packets"], result.capture["profile"]
        console.print(f"capture: {packets}; the keys in {profile} open its Gm:", markup=False, soft_wrap=True)
        console.print(f"  WIRESHARK_CONFIG_DIR={profile} tshark -r {packets}", markup=False, soft_wrap=True)
    console.print("demo: ok")


def _show(result: DemoResult) -> None:
    console.print("Every line is a message on a real socket; octets over 1,300 (SIP must leave UDP) and 1,500 (fragments) are marked.")
    console.print("Over ESP a message is shown as P-CSCF and UE see it; on the wire nobody else can read it.")
    for line in draw(result.ladder.steps):
        console.print(line, markup=False)
    table = Table("what", "result", show_header=False, title="Outcome", title_justify="left")
    registration = result.registration
    table.add_row("registered", f"{registration['impu']} as {registration['impi']}")
    table.add_row("S-CSCF", f"release {registration['release']}, rspauth {registration['rspauth']}")
    agree = registration["gm_fingerprint_ue"] == registration["gm_fingerprint_pcscf"]
    table.add_row("Gm keys", f"{'CK, IK masked' if registration['masked'] else 'raw'}, UE and P-CSCF {'agree' if agree else 'DIFFER'}")
    table.add_row("Gm", f"protected by ESP in UDP: {result.gm['ealg']}, {result.gm['alg']}")
    table.add_row("Gm, a UE with CK, IK", result.gm["raw_keys"])
    for key in result.keys:
        first = "before the 200" if key["pushed_before_200"] else "after the 200"
        table.add_row(f"key at {key['as']}", f"fingerprint {key['fingerprint']}, pushed {first}")
    for request in result.http:
        table.add_row(
            f"{request['who']}: {request['method']} at {request['as']}",
            ", ".join(each for each in (str(request["status"]), request["because"]) if each),
        )
    console.print()
    console.print(table)
