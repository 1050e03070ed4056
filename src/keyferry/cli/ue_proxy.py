# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue proxy`: any browser, httpx or curl is logged in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, fail, show_json
from keyferry.cli.ue_run import ConfigOption, run, teller
from keyferry.client.session import UeSession, until_signal
from keyferry.config import split_address


def proxy(
    config: ConfigOption,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="A loopback address; port 0 takes a free one.")] = "127.0.0.1:8899",
    at: Annotated[
        list[str] | None, typer.Option("--as", metavar="HOST", help="Log in at this application server too, besides those of the file.")
    ] = None,
    register: Annotated[bool, typer.Option(help="Register and stay registered; else use the registration that is there.")] = True,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Be a forward proxy on this machine that logs its clients in with the ferried keys, until Ctrl-C.

    It serves the host of ue.xcap_root, the names in [hosts] and those given with --as, as http:// (it goes on over https) and, with
    CONNECT, as https:// with certificates of STATE/proxy-ca.pem, a CA good for these names alone. It refuses all other hosts, clients
    of other machines, and pages of other origins. Whoever can open a port of this machine is logged in: use it where you are alone.

    Example: keyferry ue proxy --config examples/ue.toml
    """
    host, port = split_address(listen, "--listen")

    async def work(session: UeSession) -> bool:
        served, ca = session.proxy(at or ())
        try:
            address = await served.listen(host, port)
            ready = {"proxy": f"http://{_shown(*address)}", "pac": f"http://{_shown(*address)}/proxy.pac", "ca": str(ca)}
            if register:
                return await session.stay(_announcing(ready, as_json))
            _announce(ready, as_json)
            await until_signal().wait()
            return True
        finally:
            await served.aclose()

    if not run(config, state, work, quiet=True, make=register):
        raise fail("the network ended the registration and wants no other", as_json=as_json, status=1)


def _announcing(ready: Mapping[str, str], as_json: bool) -> Any:
    tell = teller(as_json)
    told: list[str] = []

    def say(event: str, seconds: float, details: Mapping[str, Any]) -> None:
        if event == "registered" and not told:
            told.append(event)
            _announce(ready, as_json)
        tell(event, seconds, details)

    return say


def _announce(ready: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        show_json({"ready": True, **ready})
    else:
        console.print(f"proxy {ready['proxy']}, or in a browser {ready['pac']}; it must trust {ready['ca']}", markup=False)
        console.print(f"  curl --proxy {ready['proxy']} --cacert {ready['ca']} https://…", markup=False)
    sys.stdout.flush()


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
