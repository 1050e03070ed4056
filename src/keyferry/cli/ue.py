# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue`: a phone for the command line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from keyferry.cli import ue_data, ue_proxy
from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, fail, show_json
from keyferry.cli.ue_run import ConfigOption, run, teller
from keyferry.client.session import UeSession
from keyferry.client.ue import HttpCredentials
from keyferry.errors import RegistrationFailed
from keyferry.ports import UeState
from keyferry.protocol.ims.keys import TLS12_PSK_SUITES, UA_TLS13_PSK, psk_identity, ua_key, ua_tls12_psk
from keyferry.protocol.ims.marker import parse_marker

StateOrNone = TypeVar("StateOrNone", UeState, UeState | None)

app = typer.Typer(help="Register a UE and manage its data.", no_args_is_help=True)


@app.command()
def register(config: ConfigOption, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Register (again): every time new keys. The registration stays when the command ends.

    A failure says which input of AKA disagrees, as far as the card can tell, and what to do; with --json in {"ok": false, "error",
    "status", "reasons", "because", "remedy"}. The words are those of docs/errors.md.

    Example: keyferry ue register --config examples/ue.toml
    """
    _show(_procedure(config, state, lambda session: session.client.register(), as_json, make=True), as_json)


@app.command()
def deregister(
    config: ConfigOption,
    every: Annotated[bool, typer.Option("--all", help="End every device of the subscriber, not this one alone.")] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """De-register: the keys end here and at every application server.

    With --all (Contact: *) each device of the subscriber is de-registered, and its keys end; another device learns of it
    if it watches its registration, as `ue stay` does.

    Example: keyferry ue deregister --config examples/ue.toml
    """
    _show(_procedure(config, state, lambda session: session.client.deregister(every=every), as_json), as_json)


@app.command()
def stay(config: ConfigOption, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Stay registered until Ctrl-C: re-register in time, do what the network asks, de-register at the end.

    With --json every event is one line: {"event": "registered", "at": TIME, "seconds": 600000, ...}.

    Example: keyferry ue stay --config examples/ue.toml
    """
    if not run(config, state, lambda session: session.stay(teller(as_json)), quiet=True, make=True):
        raise fail("the network ended the registration and wants no other", as_json=as_json, status=1)


@app.command()
def status(
    config: ConfigOption,
    show_http_password: Annotated[
        str | None, typer.Option(metavar="AS", help="PRINT username and password for this application server, for curl --digest.")
    ] = None,
    show_psk: Annotated[
        str | None, typer.Option(metavar="AS", help="PRINT identities and keys for this application server, for openssl s_client -psk.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show the registration; keys only as fingerprints.

    Example: keyferry ue status --config examples/ue.toml --show-http-password xcap.home1.net --json
    """
    if show_http_password is None and show_psk is None:
        _show(_procedure(config, state, lambda session: session.client.state(), as_json), as_json)
        return

    async def credentials(session: UeSession) -> dict[str, str]:
        found = session.credentials(await session.current(), show_http_password or show_psk or "")
        if show_psk is not None:
            return _psk(found)
        password = found.password.reveal().decode("ascii")
        return {
            "as": found.as_id,
            "username": found.username,
            "password": password,
            "realm": found.realm,
            "algorithm": found.algorithm,
            "fingerprint": found.k_as.fingerprint(),
        }

    data = run(config, state, credentials)
    if as_json:
        show_json(data)
    else:
        width = max(12, *map(len, data))
        for name, value in data.items():
            console.print(f"{name:{width}} {value}", markup=False, soft_wrap=True)


def _procedure(
    config: Path, state: Path, work: Callable[[UeSession], Awaitable[StateOrNone]], as_json: bool, *, make: bool = False
) -> StateOrNone:
    """Run a procedure of registration; with --json, say in the object too why it failed."""
    try:
        return run(config, state, work, make=make)
    except RegistrationFailed as problem:
        if as_json:
            failed = {"ok": False, "error": problem.problem, "status": problem.status}
            show_json({**failed, "reasons": list(problem.reasons), "because": problem.why, "remedy": problem.remedy})
        raise


def _show(state: UeState | None, as_json: bool) -> None:
    if state is None:
        raise fail("this UE has never registered with this state directory", as_json=as_json, status=1)
    marker = parse_marker(state.release_marker)
    data = {
        "registered": state.expires_at > 0,
        "impi": state.impi,
        "impu": state.impu,
        "expires_at": datetime.fromtimestamp(state.expires_at, UTC).isoformat() if state.expires_at else None,
        "release": marker.release if marker else 5,
        "masked": state.masked,
        "rspauth": "verified" if state.rspauth else "left to each server" if state.k_m else "not verified",
        "keys": state.k_m is not None,
        "no_keys_because": state.no_keys_because,
        "gm_fingerprint": state.gm_keys.fingerprint() if state.gm_keys else None,
        "associated": list(state.associated),
    }
    if as_json:
        show_json(data)
        return
    for name, value in data.items():
        console.print(f"{name:16} {', '.join(value) if isinstance(value, list) else value}", markup=False)


def _psk(found: HttpCredentials) -> dict[str, str]:
    """Return what a TLS client needs for each way that a listener may have."""
    ways = {"tls13": UA_TLS13_PSK, **{f"tls12_{suite}": ua_tls12_psk(suite) for suite in TLS12_PSK_SUITES}}
    data = {"as": str(found.as_id), "fingerprint": found.k_as.fingerprint()}
    for way, ua_id in ways.items():
        data[f"{way}_identity"] = psk_identity(ua_id, found.username)
        data[f"{way}_key"] = ua_key(found.k_as, ua_id).reveal().hex()
    return data


app.command("get")(ue_data.get)
app.command("put")(ue_data.put)
app.command("delete")(ue_data.delete)
app.command("proxy")(ue_proxy.proxy)
