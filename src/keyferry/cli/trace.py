# SPDX-License-Identifier: Apache-2.0
"""`keyferry trace`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, errors, fail, show_json
from keyferry.errors import ConfigError, ParseError
from keyferry.lab.follow import follow as follow_live
from keyferry.lab.follow import line_of
from keyferry.lab.trace import Progress as Tell
from keyferry.lab.trace import Trace, text_of, trace_capture
from keyferry.protocol.capture.messages import SIP_PORTS
from keyferry.protocol.identity import parse_impi

LARGE = 8_000_000  # octets from which reading takes long enough for a progress bar


def trace(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="pcap or pcapng, also packed with gzip; - is standard input.")] = None,
    impi: Annotated[str | None, typer.Option(metavar="IMPI", help="Only this subscriber.")] = None,
    ports: Annotated[
        str | None, typer.Option(metavar="PORT,…", help="Where SIP is expected, default 5060,5061: what is there and is no SIP is told.")
    ] = None,
    follow: Annotated[
        str | None, typer.Option(metavar="IMPI", help="Follow this subscriber live through a running `keyferry serve`.")
    ] = None,
    admin: Annotated[str, typer.Option(metavar="HOST:PORT", help="With --follow: [admin] listen of that process.")] = "127.0.0.1:8080",
    seconds: Annotated[float | None, typer.Option(min=0.0, help="With --follow: end after so many seconds; else Ctrl-C.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Explain a capture of your own network, or follow a subscriber live: a ladder, what is in the messages, what is wrong.

    SIP (UDP, TCP) and Cx are found by content, in plain IP, VLANs, GTP-U and IPsec with ealg=null. Keys, responses and auts never print.

    --json prints {"ok", "frames", "messages", "subscribers": [{"impi", "impus", "ladder": [{"frame", "at", "phase", "source", "target",
    "source_address", "target_address", "transport", "what", "octets", "size_mark", "note", "retransmission", and where there is one
    "challenge" {"rand", "sqn_xor_ak", "amf", "mac", "server_data", "marker" {"release", "flags", "meaning", "further"}, "keys" (octets),
    …}, "answer" {"qop", "nc", "cnonce" (characters), "problems", …}, "key_block" {"scscf", "as_id", "kid", "octets"}}], "hints":
    [{"frame", "text", "alarm"}]}], "hints", "left_out", "unread", "problems"}. With --follow it prints one step an object a line:
    "at", "source", "target", "transport", "what", "octets", "note", "retransmission"; {"lost": N} where it was too slow.

    Example: keyferry trace lo.pcapng --impi user1_private@home1.net
    """
    del state  # a capture is all there is
    if (file is None) == (follow is None):
        raise ConfigError("keyferry trace", "needs a file or --follow IMPI, and not both")
    if follow is not None:
        asyncio.run(_follow(parse_impi(follow), admin, seconds, as_json=as_json))
    elif file is not None:
        _explain(file, impi, _ports(ports), as_json=as_json)


def _explain(file: Path, impi: str | None, ports: frozenset[int], *, as_json: bool) -> None:
    with _opened(file) as (stream, size), _progress(size) as tell:
        try:
            found = trace_capture(stream, impi=parse_impi(impi) if impi else "", ports=ports, progress=tell)
        except ParseError as problem:
            raise ConfigError(str(file), str(problem)) from problem
    if impi and not found.subscribers:
        raise fail(f"{file}: no message of {impi} in {found.messages:,}", as_json=as_json, status=1)
    if as_json:
        show_json(found.data())
    else:
        _show(found)


def _show(found: Trace) -> None:
    for line in text_of(found):
        console.print(line, markup=False)


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, int]]:
    if str(file) == "-":
        yield sys.stdin.buffer, 0
        return
    try:
        stream = file.open("rb")
    except OSError as problem:
        raise ConfigError(str(file), f"cannot be read: {problem.strerror}") from None
    with stream:
        yield stream, file.stat().st_size


@contextmanager
def _progress(size: int) -> Iterator[Tell | None]:
    if size < LARGE or not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("reading", total=size)
        yield lambda read: bar.update(task, completed=read)


def _ports(text: str | None) -> frozenset[int]:
    if text is None:
        return SIP_PORTS
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word[:6]) < 65_536 for word in words):
        raise ConfigError("--ports", "not port numbers with commas between them, such as 5060,5062")
    return frozenset(map(int, words))


async def _follow(impi: str, admin: str, seconds: float | None, *, as_json: bool) -> None:
    async for step in follow_live(admin, impi, seconds):
        if not step:  # the other side follows; on standard error, so that a script can wait for it
            errors.print(f"keyferry: following {impi} at {admin}", markup=False)
        elif as_json:
            show_json(step)
        else:
            console.print(line_of(step), markup=False)
