# SPDX-License-Identifier: Apache-2.0
"""What the commands of `keyferry ue` share: their options, and an open UE to work with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from keyferry.cli.output import console, errors, show_json
from keyferry.client.session import UeSession, ue_session
from keyferry.client.stay import Tell
from keyferry.config import load_ue_config
from keyferry.errors import RegistrationFailed, TransportError
from keyferry.wiring.observability import StructLog

ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file, for example examples/ue.toml.")]

Result = TypeVar("Result")
SIP = frozenset({"udp", "tcp", "tls", "esp"})
"""What the name of a peer begins with that is the P-CSCF."""


def run(config: Path, state: Path, work: Callable[[UeSession], Awaitable[Result]], *, quiet: bool = False, make: bool = False) -> Result:
    """Open the UE and do some work with it; without `make` it must have registered with this state directory, which is not made.

    Raises ConfigError, StateError, TransportError, RegistrationFailed, and what the work raises.
    """
    loaded = load_ue_config(config)
    if not make and not _has_ue(state):
        remedy = "Run `keyferry ue register` first, or name the right one with --state"
        raise RegistrationFailed(f"no UE has ever registered with the state directory {state}", remedy=remedy)

    async def opened() -> Result:
        async with ue_session(loaded, state, StructLog("text")) as session:
            return await work(session)

    try:
        with (
            nullcontext() if quiet else errors.status("waiting for the network")
        ):  # shown on a terminal only; a dead network takes 32 s to be sure of
            return asyncio.run(opened())
    except RegistrationFailed as problem:
        if problem.status >= 500 and not problem.remedy:
            problem.remedy = f"the network knows why: `keyferry failures --impi {loaded.ue.impi}` and /ready there"
        raise
    except TransportError as problem:
        if problem.peer.startswith("proxy:"):
            raise  # the user's own door: nothing of the network is amiss
        if "CERTIFICATE_VERIFY_FAILED" in problem.problem:
            hint = (
                "`keyferry pki show` there says until when it is valid, `pki issue` makes it anew; else compare clocks, and the CA (ue.ca)"
            )
            raise TransportError(problem.peer, f"{problem.problem}: {hint}") from problem
        where = "ue.pcscf" if problem.peer.partition(":")[0] in SIP else "its line in [hosts]"
        hint = f"does it run (`keyferry serve`), and what is behind it (/ready says so), and is {where} right?"
        raise TransportError(problem.peer, f"{problem.problem}: {hint}") from problem


def _has_ue(state: Path) -> bool:
    try:
        return (state / "ue.db").exists()
    except OSError:
        return True  # and whoever opens it is told what is wrong with it


def teller(as_json: bool) -> Tell:
    """Return what shows the events of a UE that stays registered, one a line."""

    def tell(event: str, seconds: float, details: Mapping[str, Any]) -> None:
        at = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
        if as_json:
            show_json({"event": event, "at": at, **details})
        else:
            shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items() if value not in (None, ""))
            console.print(f"{at[11:19]} {event}{': ' if shown else ''}{shown}", markup=False)
        sys.stdout.flush()  # whoever reads this through a pipe waits for it

    return tell
