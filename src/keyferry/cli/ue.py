# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue`: a phone for the command line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, errors, fail, show_json
from keyferry.config import load_ue_config
from keyferry.errors import ConfigError, RegistrationFailed, TransportError
from keyferry.ports import UeState
from keyferry.protocol.ims.marker import parse_marker
from keyferry.wiring.observability import StructLog
from keyferry.wiring.ue_session import UeSession, ue_session

app = typer.Typer(help="Register a UE and manage its data.", no_args_is_help=True)
ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file, for example examples/ue.toml.")]
UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="An https URL, or a path under the XCAP root.")]
MAX_DOCUMENT = 1_000_000  # octets, as the server

Result = TypeVar("Result")


@app.command()
def register(config: ConfigOption, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Register (again): every time new keys. The registration stays when the command ends.

    A failure says which input of AKA disagrees, as far as the card can tell, and what to do; with --json in {"ok": false, "error",
    "status", "reasons", "because", "remedy"}. The words are those of docs/errors.md.

    Example: keyferry ue register --config examples/ue.toml
    """
    _show(_procedure(config, state, lambda session: session.client.register(), as_json), as_json)


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

    def tell(event: str, seconds: float, details: Mapping[str, Any]) -> None:
        at = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
        if as_json:
            show_json({"event": event, "at": at, **details})
        else:
            shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items() if value not in (None, ""))
            console.print(f"{at[11:19]} {event}{': ' if shown else ''}{shown}", markup=False)
        sys.stdout.flush()  # whoever reads this through a pipe waits for it

    if not _run(config, state, lambda session: session.stay(tell), quiet=True):
        raise fail("the network ended the registration and wants no other", as_json=as_json, status=1)


@app.command()
def status(
    config: ConfigOption,
    show_http_password: Annotated[
        str | None, typer.Option(metavar="AS", help="PRINT username and password for this application server, for curl --digest.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show the registration; keys only as fingerprints.

    Example: keyferry ue status --config examples/ue.toml --show-http-password xcap.home1.net --json
    """
    if show_http_password is None:
        _show(_run(config, state, lambda session: session.client.state()), as_json)
        return

    async def credentials(session: UeSession) -> dict[str, str]:
        found = session.credentials(await session.current(), show_http_password)
        password = found.password.reveal().decode("ascii")
        return {
            "as": found.as_id,
            "username": found.username,
            "password": password,
            "realm": found.realm,
            "algorithm": found.algorithm,
            "fingerprint": found.k_as.fingerprint(),
        }

    data = _run(config, state, credentials)
    if as_json:
        show_json(data)
    else:
        for name, value in data.items():
            console.print(f"{name:12} {value}", markup=False)


@app.command()
def get(
    config: ConfigOption,
    url: UrlArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the document here.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """GET a document with the ferried key.

    Example: keyferry ue get --config examples/ue.toml simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml
    """
    response = _run(config, state, lambda session: _request(session, "GET", url, None, None))
    if response.is_success and output is not None:
        output.write_bytes(response.content)
    _show_response(response, as_json, body=output is None)


@app.command()
def put(
    config: ConfigOption,
    url: UrlArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to store; - is standard input.")],
    content_type: Annotated[str | None, typer.Option(help="Media type; known for XCAP documents.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """PUT a document with the ferried key.

    Example: keyferry ue put --config examples/ue.toml
    simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml examples/simservs.xml
    """
    body = _read(file)
    _show_response(_run(config, state, lambda session: _request(session, "PUT", url, body, content_type)), as_json)


@app.command()
def delete(config: ConfigOption, url: UrlArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """DELETE a document with the ferried key.

    Example: keyferry ue delete --config examples/ue.toml simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml
    """
    _show_response(_run(config, state, lambda session: _request(session, "DELETE", url, None, None)), as_json)


def _run(config: Path, state: Path, work: Callable[[UeSession], Awaitable[Result]], *, quiet: bool = False) -> Result:
    loaded = load_ue_config(config)

    async def run() -> Result:
        async with ue_session(loaded, state, StructLog("text")) as session:
            return await work(session)

    try:
        with (
            nullcontext() if quiet else errors.status("waiting for the network")
        ):  # shown on a terminal only; a dead network takes 32 s to be sure of
            return asyncio.run(run())
    except TransportError as problem:
        hint = "is it running (`keyferry serve`), and are ue.pcscf and [hosts] right?"
        raise TransportError(problem.peer, f"{problem.problem}: {hint}") from problem


def _procedure(config: Path, state: Path, work: Callable[[UeSession], Awaitable[UeState]], as_json: bool) -> UeState:
    """Run a procedure of registration; with --json, say in the object too why it failed."""
    try:
        return _run(config, state, work)
    except RegistrationFailed as problem:
        if as_json:
            failed = {"ok": False, "error": problem.problem, "status": problem.status}
            show_json({**failed, "reasons": list(problem.reasons), "because": problem.why, "remedy": problem.remedy})
        raise


async def _request(session: UeSession, method: str, target: str, body: bytes | None, content_type: str | None) -> httpx.Response:
    url = session.url(target)
    state = await session.current()
    headers = {"Content-Type": content_type or _media_type(url)} if body is not None else {}
    async with session.http(state, url) as client:
        try:
            return await client.request(method, url, content=body, headers=headers)
        except httpx.HTTPError as problem:
            raise TransportError(httpx.URL(url).host, f"{type(problem).__name__}: {problem}") from problem


def _media_type(url: str) -> str:
    known = {
        "simservs.ngn.etsi.org": "application/vnd.etsi.simservs+xml",
        "resource-lists": "application/resource-lists+xml",
    }
    return next((media for auid, media in known.items() if f"/{auid}/" in url), "application/octet-stream")


def _read(file: Path) -> bytes:
    try:
        data = sys.stdin.buffer.read(MAX_DOCUMENT + 1) if str(file) == "-" else file.read_bytes()
    except OSError as problem:
        raise ConfigError(str(file), f"cannot be read: {problem.strerror}") from None
    if len(data) > MAX_DOCUMENT:
        raise ConfigError(str(file), f"is over {MAX_DOCUMENT} octets")
    return data


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
        "rspauth": "verified" if state.rspauth else "not verified",
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


def _show_response(response: httpx.Response, as_json: bool, *, body: bool = True) -> None:
    if as_json:
        text = response.text if body else None
        show_json({"ok": response.is_success, "status": response.status_code, "etag": response.headers.get("etag"), "body": text})
    elif response.is_success and response.content and body:
        sys.stdout.buffer.write(response.content)
        sys.stdout.buffer.flush()
    else:
        console.print(f"{response.status_code} {response.reason_phrase}", markup=False)
    if not response.is_success:
        if not as_json and response.content:
            console.print(response.text[:2000], markup=False)
        raise typer.Exit(1)
