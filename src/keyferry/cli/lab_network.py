# SPDX-License-Identifier: Apache-2.0
"""`keyferry lab up`, `down`, `status`: a whole network in namespaces of its own, over links with delay and loss."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from keyferry.cli.output import JsonOption, console, errors, show_json
from keyferry.lab import topology_run
from keyferry.lab.topology import LabFailed
from keyferry.lab.topology_run import LABS, UpOptions

LabsOption = Annotated[Path, typer.Option("--state", metavar="DIR", help="Where labs are, each in a directory of its own name. Mode 0700.")]
IdArgument = Annotated[str, typer.Argument(metavar="[ID]", help="The lab's name; not needed while there is one.")]


def up(
    lab: Annotated[
        str, typer.Option("--id", metavar="ID", help="Name of the lab: 1 to 8 lower-case letters and digits; default: a new one.")
    ] = "",
    delay: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LINK=]TIME", help="One way: 25ms for all links, access=40ms for one. Default: access 20, interconnect 10, core 2 ms."
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(metavar="[LINK=]PERCENT", help="Of packets, each way: 1%, access=3%. Default: access 1, interconnect 0.1, core 0 %."),
    ] = None,
    shaping: Annotated[
        str, typer.Option(help="What delays and loses: auto, netem (the kernel's), relay (a process of ours, where the kernel has none).")
    ] = "auto",
    isc: Annotated[
        str,
        typer.Option(
            help="What protects key pushes from S-CSCF to AS: tls (mutual), ipsec (strongSwan's). Default: tls, with Kamailio ipsec."
        ),
    ] = "",
    kamailio: Annotated[bool, typer.Option("--kamailio", help="A stock Kamailio as S-CSCF instead of ours.")] = False,
    kamailio_icscf: Annotated[bool, typer.Option("--kamailio-icscf", help="A stock Kamailio as I-CSCF instead of ours.")] = False,
    python: Annotated[
        str, typer.Option("--python", metavar="PATH", help="For --kamailio: a Python of the version that it embeds, with cryptography.")
    ] = "",
    state: LabsOption = LABS,
    as_json: JsonOption = False,
) -> None:
    """Make a network: namespaces for UE, visited network, home network and AS, a process for each function; then log a UE in. Needs root.

    It ends with a UE that is registered and has written its simservs document, over links with delay and loss. The functions go on
    until `keyferry lab down`. What fails, and Ctrl-C, leaves nothing behind. Several labs may be there at once.
    --json prints {"ok", "id", "directory", "shaping", "isc", "links", "namespaces", "parts": [{"name", "namespace", "addresses", "pid",
    "log", "alive", "ready", "reasons"}], "registration", "pushes", "document"}.

    Example: keyferry lab up --delay 25ms --loss 1%
    """
    options = UpOptions(lab, tuple(delay or ()), tuple(loss or ()), shaping, kamailio, isc, python, kamailio_icscf)
    made = topology_run.up(options, state, lambda step: errors.print(f"keyferry: {step}", markup=False))
    _show(made, as_json)
    if not as_json:
        namespace = next(name for name in made["namespaces"] if name.endswith("-ue"))
        folder = Path(made["directory"]).absolute()
        ue = f"--config {shlex.quote(str(folder / 'ue.toml'))} --state {shlex.quote(str(folder / 'state' / 'ue'))}"
        console.print("Be the UE, and end it:", markup=False)
        console.print(f"  ip netns exec {namespace} keyferry ue status {ue}", markup=False)
        elsewhere = "" if state == LABS else f" --state {shlex.quote(str(state.absolute()))}"
        console.print(f"  keyferry lab down {made['id']}{elsewhere}", markup=False)
    if not made["ok"]:
        raise typer.Exit(1)


def down(
    lab: IdArgument = "",
    every: Annotated[bool, typer.Option("--all", help="End every lab that is there.")] = False,
    state: LabsOption = LABS,
    as_json: JsonOption = False,
) -> None:
    """End a lab, also one that was made by half: its own processes, its namespaces, its directory, and nothing else. Needs root.

    What is not there is ended already: exit code 0. --json prints {"ok", "ended": [{"id", "was", "processes", "namespaces"}]}.

    Example: keyferry lab down
    """
    ended = [topology_run.down(name, state) for name in _chosen(lab, state, every=every)]
    if as_json:
        show_json({"ok": True, "ended": ended})
        return
    for one in ended:
        told = f"ended, {one['processes']} processes, {one['namespaces']} namespaces" if one["was"] else "was not there"
        console.print(f"lab {one['id']}: {told}", markup=False)
    if not ended:
        console.print(f"no lab is in {state}", markup=False)


def status(lab: IdArgument = "", state: LabsOption = LABS, as_json: JsonOption = False) -> None:
    """Show what runs in a lab, and what was done in it; exit code 1 if a part does not run or does not answer. Needs root.

    --json prints what `lab up` prints.

    Example: keyferry lab status --json
    """
    names = _chosen(lab, state, every=False)
    if not names:
        raise LabFailed(f"no lab is in {state}", "Make one: keyferry lab up")
    found = topology_run.status(names[0], state)
    _show(found, as_json)
    if not found["ok"]:
        raise typer.Exit(1)


def _chosen(lab: str, state: Path, *, every: bool) -> list[str]:
    """Return the labs that are meant. Raises LabFailed."""
    if lab:
        return [lab]
    there = topology_run.all_labs(state)
    if len(there) > 1 and not every:
        raise LabFailed(f"there are {len(there)} labs: {', '.join(there)}", "Name one; `keyferry lab down --all` ends all")
    return there


def _show(lab: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(lab)
        return
    table = Table(title=f"lab {lab['id']} in {lab['directory']}", title_justify="left")
    for column in ("part", "namespace", "address", "pid", "state", "log"):
        table.add_column(column, overflow="fold")
    for part in lab["parts"]:
        state = "ready" if part["ready"] else ", ".join(part["reasons"]) if part["alive"] else "ENDED"
        table.add_row(
            part["name"], part["namespace"], *part["addresses"][:1] or [""], str(part["pid"]), state, f"log/{Path(part['log']).name}"
        )
    for link in lab["links"]:
        (near, _), (far, _) = link["near"], link["far"]
        ways = f"{link['delay_ms']:g} ms, {link['loss_percent']:g} % lost"
        table.add_row(f"link {link['name']}", f"{near} to {far}", f"{link['near'][1]} {link['far'][1]}", "", ways, f"by {lab['shaping']}")
    for row in _done(lab):
        table.add_row(*row)
    console.print(table)


def _done(lab: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows on what was done."""
    if "registration" not in lab:
        return [("nothing done yet", "", "", "", "", "")]
    registration, document = lab["registration"], lab["document"]
    pushed = ", ".join(f"{count} {what}" for what, count in lab["pushes"].items() if count) or "none"
    return [
        ("registered", registration["impu"], "", "", f"after {registration['seconds']:g} s", f"rspauth {registration['rspauth']}"),
        ("pushes", "", "", "", pushed, f"over {lab['isc']}"),
        ("document", document["url"], "", "", f"after {document['seconds']:g} s", f"status {document['status']}"),
    ]
