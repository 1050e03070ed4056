# SPDX-License-Identifier: Apache-2.0
"""A capture of somebody's own network explained: one ladder per subscriber, what the messages hold, what is wrong. Never a key."""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar, cast

from keyferry.errors import ParseError
from keyferry.lab.ladder import Step, draw
from keyferry.lab.trace_facts import (
    NO_TRAITS,
    Facts,
    diameter_facts,
    explained,
    facts_of,
    lines_of_answer,
    lines_of_block,
    lines_of_challenge,
)
from keyferry.lab.trace_hints import Hint, hints_of
from keyferry.lab.trace_parties import Parties, Row
from keyferry.protocol.capture import diameter
from keyferry.protocol.capture.diameter import DiameterMessage
from keyferry.protocol.capture.messages import SIP_PORTS, Found, MessageFinder, Problem
from keyferry.protocol.capture.packets import PacketDecoder, Payload
from keyferry.protocol.capture.pcap import CaptureReader, Record
from keyferry.protocol.ims.attribution import Attribution, canonical
from keyferry.protocol.ims.notes import plain
from keyferry.wiring.tracing import printable

MAX_ROWS: Final = 50_000
"""Messages kept; about 2 kB each. A larger capture is cut with --impi, or with editcap."""
MAX_RECENT: Final = 20_000
"""Messages compared with later ones, to tell retransmissions; Diameter requests that wait for their answer."""
MAX_SHOWN: Final = 20
"""Subscribers whose ladders are drawn."""
CHUNK: Final = 262_144  # octets read at a time
CX_APPLICATION: Final = 16_777_216

Progress = Callable[[int], None]
"""Takes the octets of the file read so far."""
T = TypeVar("T")


class Readable(Protocol):
    """A file, a pipe."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` octets, none at the end."""


@dataclass(slots=True)
class SubscriberTrace:
    """What a capture has of one subscriber."""

    impi: str  # "" if no message tells it
    impus: list[str]
    rows: list[Row]
    steps: list[Step] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call it."""
        return self.impi or f"{', '.join(self.impus)} (no message in the capture tells the IMPI)"


@dataclass(slots=True)
class Trace:
    """What a capture tells."""

    frames: int = 0
    messages: int = 0
    subscribers: list[SubscriberTrace] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return cast(
            "dict[str, Any]",
            _cleaned(
                {
                    "ok": True,
                    "frames": self.frames,
                    "messages": self.messages,
                    "subscribers": [_data_of(one) for one in self.subscribers],
                    "hints": self.hints,
                    "left_out": dict(self.left_out),
                    "unread": dict(self.unread),
                    "problems": [{"frame": one.number, "from": str(one.source), "problem": one.text} for one in self.problems],
                }
            ),
        )


def trace_capture(stream: Readable, *, impi: str = "", ports: Collection[int] = SIP_PORTS, progress: Progress | None = None) -> Trace:
    """Read a capture, packed with gzip or not, and explain it; with `impi` that subscriber alone.

    Raises ParseError if it is no capture; of one that is damaged further on, what stands before is explained.
    """
    tracer = _CaptureTracer(impi, ports)
    reader = CaptureReader()
    damage = ""
    try:
        for data in _chunks(stream, progress):
            tracer.read(reader.feed(data))
        if reader.problem is not None:
            raise reader.problem
    except ParseError as problem:
        if not tracer.trace.frames:
            raise
        damage = f"the file is damaged after frame {tracer.trace.frames}: {problem}; what stands before it is shown."
    if reader.partial and not damage:
        damage = "the file ends within a frame, as when a capture still runs or its disk was full; what stands before it is shown."
    return tracer.finish(damage)


def _chunks(stream: Readable, progress: Progress | None) -> Iterator[bytes]:
    read = 0
    head = stream.read(CHUNK)
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if head[:2] == b"\x1f\x8b" else None
    while head:
        read += len(head)
        if progress is not None:
            progress(read)
        if unpacker is None:
            yield head
        else:
            yield from _unpacked(unpacker, head)
        head = stream.read(CHUNK)


def _unpacked(unpacker: Any, data: bytes) -> Iterator[bytes]:
    """Yield bounded pieces: a file of zeros may unpack to a thousand times its size."""
    try:
        while data and not unpacker.eof:
            yield unpacker.decompress(data, CHUNK)
            data = unpacker.unconsumed_tail
    except zlib.error:
        raise ParseError("capture file", "a gzip file that is damaged") from None


class _CaptureTracer:
    """Collect rows, tell whose they are."""

    def __init__(self, impi: str, ports: Collection[int]) -> None:
        self.trace = Trace()
        self._decoder = PacketDecoder()
        self._finder = MessageFinder(ports)
        self._impi = impi
        self._attribution = Attribution()
        self._rows: list[Row] = []
        self._seen: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._requests: OrderedDict[tuple[object, ...], str] = OrderedDict()
        self._ended_at = 0.0

    def read(self, records: list[Record]) -> None:
        """Take frames."""
        for record in records:
            self.trace.frames += 1
            self._ended_at = max(self._ended_at, record.at)
            for payload in self._decoder.feed(record):
                self._take(payload)

    def _take(self, payload: Payload) -> None:
        for found in self._finder.feed(payload):
            self.trace.messages += 1
            if isinstance(found.content, DiameterMessage):
                self._diameter(found, found.content)
            else:
                facts = facts_of(found.content)
                again = found.transport == "UDP" and _remember(self._seen, (found.source, found.target, found.digest), None)
                self._add(found, facts, self._attribution.of_traits(facts.traits) or "", retransmission=again)

    def finish(self, damage: str) -> Trace:
        """Sort, name, draw, judge."""
        for payload in self._decoder.finish():
            self._take(payload)
        trace = self.trace
        trace.problems = self._finder.problems
        trace.unread = self._decoder.unread + self._finder.unread + self._decoder.lost
        rows = sorted(self._rows, key=lambda row: (row.at, row.number))
        parties = Parties(rows)
        for impi, mine in self._sorted(rows).items():
            known = bool(mine[0].impi)
            impus = dict.fromkeys(row.facts.traits.impu for row in mine if row.facts.traits.impu and row.facts.method == "REGISTER")
            one = SubscriberTrace(impi if known else "", list(impus)[:20], mine)
            _set_phases(mine)
            one.steps = [_step(row, mine[0].at, parties) for row in mine]
            one.hints = hints_of(mine, parties, ended_at=self._ended_at)
            trace.subscribers.append(one)
        trace.hints = [damage] if damage else []
        trace.hints += _general(trace, self._finder.twice)
        return trace

    def _diameter(self, found: Found, message: DiameterMessage) -> None:
        if message.application != CX_APPLICATION:
            self.trace.left_out["Diameter other than Cx"] += 1
            return
        ends = (found.source, found.target) if message.request else (found.target, found.source)
        key = (*ends, message.hop_by_hop)
        if message.request:
            name = message.find(diameter.USER_NAME)
            public = message.find(diameter.PUBLIC_IDENTITY, diameter.VENDOR_3GPP)
            impi = name.text if name else ""
            impu = canonical(public.text) if public else ""
            if impi and impu:
                self._attribution.learn(impi, [impu])
            impi = impi or self._attribution.known(NO_TRAITS._replace(impu=impu)) or ""
            _remember(self._requests, key, impi)
        else:
            name = message.find(diameter.USER_NAME)
            impi = self._requests.get(key) or (name.text if name else "")
        self._add(found, diameter_facts(message, impi), impi, retransmission=False)

    def _add(self, found: Found, facts: Facts, impi: str, *, retransmission: bool) -> None:
        if self._impi and impi and impi != self._impi:
            self.trace.left_out["of other subscribers"] += 1
        elif len(self._rows) >= MAX_ROWS:
            self.trace.left_out[f"after the first {MAX_ROWS:,}"] += 1
        else:
            row = Row(found.number, found.at, found.transport, found.octets, found.source, found.target, facts, retransmission, impi)
            self._rows.append(row)

    def _sorted(self, rows: list[Row]) -> dict[str, list[Row]]:
        """Return the rows of each subscriber; what later messages told of earlier ones is used too."""
        found: dict[str, list[Row]] = {}
        for row in rows:
            row.impi = row.impi or self._attribution.known(row.facts.traits) or ""
            name = row.impi or (row.facts.traits.impu if row.facts.method == "REGISTER" else "")
            if not name:
                self.trace.left_out["of nobody known"] += 1
            elif self._impi and row.impi != self._impi:
                self.trace.left_out["of other subscribers"] += 1
            else:
                found.setdefault(name, []).append(row)
        return found


def _remember(table: OrderedDict[tuple[object, ...], T], key: tuple[object, ...], value: T) -> bool:
    """Note a key; true if it was there."""
    known = key in table
    table[key] = value
    if len(table) > MAX_RECENT:
        table.popitem(last=False)
    return known


# ---- from rows to steps


def _set_phases(rows: list[Row]) -> None:
    """Cut a subscriber's messages into registrations: one begins with the REGISTER after a final answer."""
    count, phase, over, seen = 0, "before the first REGISTER of this capture", True, set()
    pushes = {row.facts.traits.call_id for row in rows if row.facts.traits.third_party}
    for row in rows:
        facts = row.facts
        if facts.method == "REGISTER" and facts.traits.call_id not in pushes:
            key = (facts.traits.call_id, facts.cseq)
            if facts.request and key not in seen and over:
                count += 1
                phase, over = _title(count, row), False
            elif not facts.request and facts.status >= 200 and facts.status != 401:
                over = True
            seen.add(key)
        row.phase = phase


def _title(count: int, row: Row) -> str:
    kind = "de-registration" if row.facts.expires == "0" else "registration"
    when = datetime.fromtimestamp(row.at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
    return f"{count}. {kind}, {when}, Call-ID {printable(row.facts.traits.call_id)[:60]}"


def _step(row: Row, began: float, parties: Parties) -> Step:
    source, target, what = parties.of(row.source), parties.of(row.target), printable(row.facts.what)
    return Step(row.phase, row.at - began, source, target, row.transport, what, row.octets, printable(row.facts.note), row.retransmission)


# ---- as data, as text


def _data_of(one: SubscriberTrace) -> dict[str, Any]:
    ladder = [
        {
            **step._asdict(),
            "at": round(row.at, 6),
            "size_mark": step.size_mark,
            "frame": row.number,
            "source_address": str(row.source),
            "target_address": str(row.target),
            **explained(row.facts),
        }
        for row, step in zip(one.rows, one.steps, strict=True)
    ]
    return {
        "impi": plain(one.impi) or None,
        "impus": [plain(impu) for impu in one.impus],
        "ladder": ladder,
        "hints": [hint._asdict() for hint in one.hints],
    }


def _cleaned(value: Any) -> Any:
    """Return data whose texts hold no octet that is no text: a peer may have sent anything."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)
    if isinstance(value, dict):
        return {_cleaned(name): _cleaned(inner) for name, inner in value.items()}
    return [_cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value


def text_of(trace: Trace, shown: int = MAX_SHOWN) -> Iterator[str]:
    """Yield the lines of a trace, with the ladders of the first `shown` subscribers."""
    yield f"{trace.frames:,} frames, {trace.messages:,} SIP and Diameter messages, {len(trace.subscribers):,} subscribers"
    for one in trace.subscribers[:shown]:
        yield ""
        yield printable(plain(one.name))
        left = [f"{row.number:>7} {step.at:>9.3f}" for row, step in zip(one.rows, one.steps, strict=True)]
        yield from draw(one.steps, under=dict(_details(one.rows)), left=left)
        if one.hints:
            yield ""
            yield f"What to look at ({len(one.hints)}):"
        for hint in one.hints:
            yield f"  {'!!' if hint.alarm else '! '} frame {hint.frame}: {hint.text}"
    yield ""
    if len(trace.subscribers) > shown:
        yield f"{len(trace.subscribers) - shown:,} subscribers are not shown: name one with --impi, or use --json"
    yield from (f"! {hint}" for hint in trace.hints)
    yield from (f"! frame {one.number}, from {one.source}: {one.text}" for one in trace.problems)
    for name, counts in (("Left out", trace.left_out), ("Not read", trace.unread)):
        if counts:
            yield f"{name}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}"


def _details(rows: list[Row]) -> Iterator[tuple[int, list[str]]]:
    """Yield what is said below a step: every nonce, answer and key block once."""
    told: set[tuple[str, ...]] = set()

    def new(*key: str) -> bool:
        return key not in told and not told.add(key)  # type: ignore[func-returns-value]

    for place, row in enumerate(rows):
        facts = row.facts
        lines: list[str] = []
        if facts.challenge is not None and new("challenge", facts.challenge.rand, facts.challenge.nonce):
            lines += lines_of_challenge(facts.challenge)
        if facts.answer is not None and new("answer", facts.answer.nonce, facts.traits.call_id):
            lines += lines_of_answer(facts.answer)
        if facts.block is not None and not row.retransmission:
            lines += lines_of_block(facts.block)
        if lines:
            yield place, lines


_GENERAL = {
    "ESP encrypted": "packets of IPsec are encrypted: what they carry on Gm cannot be read. Capture behind the P-CSCF, or let the lab's "
    "P-CSCF take ealg=null, which this command reads.",
    "TLS, encrypted": "TCP connections carry TLS and cannot be read: capture on the other side of it, or use SIP without TLS in the lab.",
    "cut by the capture": "packets were cut by the capture: let it keep whole frames (tcpdump -s 0).",
    "gaps in TCP": "gaps in TCP streams: the capture lost packets; messages in them are not shown.",
    "datagrams with a fragment missing": "datagrams lack a fragment: lost on the way, or not captured.",
    "on a SIP port, but no SIP": "datagrams or connections at a SIP port are no SIP: encrypted, or another protocol. --ports says where "
    "SIP is.",
}


def _general(trace: Trace, twice: int) -> list[str]:
    hints = [f"{trace.unread[name]:,} {text}" for name, text in _GENERAL.items() if trace.unread[name]]
    if twice:
        hints.append(f"{twice:,} datagrams were captured twice, as on the interface `any`; each is shown once.")
    if not trace.messages:
        hints.append("no SIP and no Cx in it: was it captured on the right interface (loopback: lo), with the right filter?")
    return hints
