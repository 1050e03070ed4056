# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue get`, `put`, `delete`: data of a user, of any size, streamed from and to files and pipes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, errors, show_json
from keyferry.cli.ue_run import ConfigOption, run
from keyferry.client.session import UeSession
from keyferry.client.transfer import FileBody, PipeBody, Progress, body_request, receive, replacing
from keyferry.errors import ConfigError, TransportError

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="An https URL, or a path under the XCAP root.")]
IfMatch = Annotated[str | None, typer.Option("--if-match", metavar="ETAG", help="Only if what is stored has this ETag; * if there is any.")]
IfNoneMatch = Annotated[
    str | None, typer.Option("--if-none-match", metavar="ETAG", help="Only if what is stored has another ETag; * if there is none.")
]
SHOWN_FROM: Final = 1_000_000
"""Octets from which a progress bar is worth its lines."""
MAX_SHOWN: Final = 8_000_000
"""Octets of a body that goes into one JSON object, or of an error."""
STDIN: Final = 0
HINTS: Final = {
    304: "what is stored has this ETag still",
    401: "the server does not take the key of this registration: run `keyferry ue register`",
    403: "this user may not do that, or the URL names another user's data",
    404: "nothing is stored there",
    412: "it changed meanwhile, or is (not) there: get it again, then repeat with its ETag",
    413: "the server takes no body of this size",
    415: "the server takes another media type: give --content-type",
    421: "the server is not the one that the URL names: is its port right?",
    429: "too many requests: try again later",
    503: "the server is busy: try again later",
}


@dataclass(slots=True)
class Done:
    """What became of a request."""

    status: int
    phrase: str
    etag: str | None
    octets: int = 0
    body: bytes | None = None  # what was not streamed elsewhere

    @property
    def ok(self) -> bool:
        """Tell whether it is what was wanted."""
        return 200 <= self.status < 300 or self.status == 304


def get(
    config: ConfigOption,
    url: UrlArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the document here, as a whole or not at all.")
    ] = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """GET a document with the ferried key; large ones are streamed, with a progress bar on a terminal.

    Example: keyferry ue get --config examples/ue.toml simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml
    """
    target = None if output is None or str(output) == "-" else output
    headers = {**_conditions(if_match, if_none_match), "Accept-Encoding": "identity"}  # what is stored, octet for octet

    async def work(session: UeSession) -> Done:
        with ExitStack() as stack:
            return await _exchange(session, "GET", url, None, headers, _Sink(stack, target, whole=as_json and target is None))

    done = run(config, state, work, quiet=True)
    _show(done, as_json, shown=target is None)


def put(
    config: ConfigOption,
    url: UrlArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to store; - is standard input.")],
    content_type: Annotated[str | None, typer.Option(help="Media type; known for XCAP documents.")] = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """PUT a document with the ferried key; it is streamed, with a progress bar on a terminal.

    Example: keyferry ue put --config examples/ue.toml
    simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml examples/simservs.xml
    """
    with ExitStack() as stack:
        progress = _bar(stack, f"PUT {file.name}")
        body = PipeBody(STDIN, progress) if str(file) == "-" else FileBody(file, progress)

        async def work(session: UeSession) -> Done:
            headers = {"Content-Type": content_type or _media_type(session.url(url)), **_conditions(if_match, if_none_match)}
            return await _exchange(session, "PUT", url, body, headers, _Sink(stack, None, whole=True))

        done = run(config, state, work, quiet=True)
    _show(done, as_json)


def delete(
    config: ConfigOption, url: UrlArgument, if_match: IfMatch = None, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False
) -> None:
    """DELETE a document with the ferried key.

    Example: keyferry ue delete --config examples/ue.toml simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml
    """

    async def work(session: UeSession) -> Done:
        with ExitStack() as stack:
            return await _exchange(session, "DELETE", url, None, _conditions(if_match, None), _Sink(stack, None, whole=True))

    _show(run(config, state, work), as_json)


@dataclass(slots=True)
class _Sink:
    """Where the body of a good answer goes: a file, memory (`whole`), else standard output. That of a bad one goes to memory."""

    stack: ExitStack
    target: Path | None
    whole: bool

    async def take(self, response: httpx.Response, done: Done) -> None:
        """Take the body."""
        if self.whole or not response.is_success:
            done.body = await _bounded(response)
            done.octets = len(done.body)
            return
        progress = _bar(self.stack, f"GET {Path(response.request.url.path).name}")
        if self.target is None:
            done.octets = await receive(response, sys.stdout.buffer.write, progress)
            sys.stdout.buffer.flush()
        else:
            with replacing(self.target) as file:
                done.octets = await receive(response, file.write, progress)


async def _exchange(
    session: UeSession, method: str, target: str, body: FileBody | PipeBody | None, headers: Mapping[str, str], sink: _Sink
) -> Done:
    url = session.url(target)
    async with session.http(url) as client:
        try:
            response = await client.send(body_request(client, method, url, body, headers), stream=True)
        except httpx.HTTPError as problem:
            raise TransportError(httpx.URL(url).host, f"{type(problem).__name__}: {problem}") from problem
        try:
            done = Done(response.status_code, response.reason_phrase, response.headers.get("etag"))
            await sink.take(response, done)
        finally:
            await response.aclose()
    return done


async def _bounded(response: httpx.Response) -> bytes:
    kept = bytearray()

    def keep(block: bytes) -> None:
        if len(kept) + len(block) > MAX_SHOWN:
            raise ConfigError("--json", f"the document is over {MAX_SHOWN} octets", "Write it to a file: --output FILE")
        kept.extend(block)

    await receive(response, keep)
    return bytes(kept)


def _bar(stack: ExitStack, what: str) -> Progress:
    """Return what shows how far a large body is, on a terminal."""
    if not errors.is_terminal:
        return lambda _done, _whole: None
    bar = Bar(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=errors, transient=True,
    )  # fmt: skip
    tasks: list[Any] = []

    def show(done: int, whole: int | None) -> None:
        if not tasks:
            if (whole if whole is not None else done) < SHOWN_FROM:
                return
            stack.enter_context(bar)
            tasks.append(bar.add_task(what, total=whole))
        bar.update(tasks[0], completed=done)

    return show


def _conditions(if_match: str | None, if_none_match: str | None) -> dict[str, str]:
    given = {"If-Match": if_match, "If-None-Match": if_none_match}
    return {name: _etag(value) for name, value in given.items() if value is not None}


def _etag(value: str) -> str:
    """Return an entity tag as it goes into a header; the quotes may be left out, as shells take them (RFC 9110 §8.8.3)."""
    if not value.isascii() or not value.isprintable():
        raise ConfigError("ETAG", "is no entity tag", "Copy it from an answer's ETag")
    return value if value == "*" or value.startswith(('"', "W/")) else f'"{value}"'


def _media_type(url: str) -> str:
    known = {
        "simservs.ngn.etsi.org": "application/vnd.etsi.simservs+xml",
        "resource-lists": "application/resource-lists+xml",
    }
    return next((media for auid, media in known.items() if f"/{auid}/" in url), "application/octet-stream")


def _show(done: Done, as_json: bool, *, shown: bool = True) -> None:
    hint = HINTS.get(done.status, "")
    if as_json:
        text = (done.body or b"").decode("utf-8", "replace") if shown or not done.ok else None
        found: dict[str, Any] = {"ok": done.ok, "status": done.status, "etag": done.etag, "octets": done.octets, "body": text}
        show_json({**found, **({"hint": hint} if hint else {})})
    elif not shown or not done.ok or done.body is not None or not done.octets:
        _show_text(done, hint)
    if not done.ok:
        raise typer.Exit(1)


def _show_text(done: Done, hint: str) -> None:
    if done.ok and done.body:
        sys.stdout.buffer.write(done.body)
        sys.stdout.buffer.flush()
        return
    console.print(f"{done.status} {done.phrase}", markup=False)
    if done.body and not done.ok:
        console.print(done.body[:2000].decode("utf-8", "replace"), markup=False)
    if hint:
        errors.print(f"keyferry: {hint}", markup=False)
