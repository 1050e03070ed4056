# SPDX-License-Identifier: Apache-2.0
"""`keyferry dev`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from keyferry.cli.output import JsonOption, console, show_json
from keyferry.client.session import until_signal
from keyferry.lab.dev import DevNetwork, DevOptions, dev_network
from keyferry.lab.scratch import scratch
from keyferry.wiring.observability import StructLog


def dev(
    app: Annotated[
        str,
        typer.Option(
            metavar="MODULE:ATTRIBUTE", help="Your ASGI or WSGI application, with a SimLogin of its own or without; or `notes`, ours."
        ),
    ] = "notes",
    as_id: Annotated[
        str, typer.Option(metavar="HOST", help="The host name that users open; default: that of your SimLogin, else app.test.")
    ] = "",
    sim: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A SIM; give it again for another one. Default: alice, bob.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTPS port of the application; 0 takes a free one.")] = 0,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Keep SIMs, keys and data here; default: a temporary directory.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole network on this machine for the one who writes an application: it is served behind SIM login, until Ctrl-C.

    Two SIMs register and stay registered. Each has a proxy that logs its clients in: a browser is alice through one and bob through the
    other. Nothing of it is to be configured, and nothing of it is for anybody else: all addresses are loopback ones.
    With --json one line says that all is there: {"ready": true, "app": URL, "ca": FILE, "sims": {"alice": {"proxy": URL, ...}, ...}, ...}.

    Example: keyferry dev --app main:app
    """
    sys.path.insert(0, str(Path.cwd()))  # where the application is, as with uvicorn
    options = DevOptions(app=app, as_id=as_id, sims=tuple(sim) if sim else DevOptions().sims, port=port)
    with _folder(state) as folder:
        asyncio.run(_run(options, folder, as_json))


async def _run(options: DevOptions, folder: Path, as_json: bool) -> None:
    ended = until_signal()
    async with dev_network(options, folder, StructLog("none" if as_json else "text")) as network:
        if as_json:
            show_json(network.data())
        else:
            _show(network)
        sys.stdout.flush()
        await ended.wait()


@contextmanager
def _folder(state: Path | None) -> Iterator[Path]:
    if state is not None:
        yield state.absolute()
        return
    with scratch("dev") as folder:
        yield folder


def _show(network: DevNetwork) -> None:
    table = Table("who", "proxy", "in a browser: proxy configuration at", title=f"Your application is {network.url}", title_justify="left")
    for sim in network.sims:
        table.add_row(f"{sim.name}, {sim.impu}", sim.proxy, sim.pac)
    console.print(table)
    first = network.sims[0]
    console.print(f"Let a browser trust {network.ca}; it is good for this application alone. Or:", markup=False)
    console.print(f"  curl --proxy {first.proxy} --cacert {network.ca} {network.url}", markup=False)
    console.print(f"  keyferry ue get --config {first.config} --state {first.state} {network.url}", markup=False)
