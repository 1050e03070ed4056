# SPDX-License-Identifier: Apache-2.0
"""A message ladder: who sent what to whom, over which transport, how large, and what mattered in it. Never a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.ports import SipEvent
from keyferry.protocol.ims.notes import note_of
from keyferry.protocol.sip.headers import parse_via_list
from keyferry.protocol.sip.message import Message, Request
from keyferry.wiring.tracing import short_name

__all__ = ["MTU", "UDP_LIMIT", "Ladder", "Step", "draw", "note_of"]

UDP_LIMIT = 1300  # octets: RFC 3261 §18.1.1 demands a congestion-controlled transport above
MTU = 1500  # octets: above, a UDP datagram is cut into fragments


COLUMN = 9  # characters between two lifelines


class Step(NamedTuple):
    """One row."""

    phase: str  # what the row is part of
    at: float  # seconds since the ladder began
    source: str
    target: str
    transport: str
    what: str
    octets: int
    note: str
    retransmission: bool = False
    wire: int = 0  # octets of the ESP packet that carried it; 0 outside a tunnel

    @property
    def size_mark(self) -> str:
        """Say which limit the message passes; one in a tunnel, whose transport nobody chooses by size, only that of fragments."""
        if max(self.octets, self.wire) > MTU:
            return "> 1500"
        return "> 1300" if self.octets > UDP_LIMIT and not self.wire else ""

    @property
    def said(self) -> str:
        """Say what it is."""
        again = " (again)" if self.retransmission else ""
        sealed = f"[in ESP: {self.wire} octets] " if self.wire else ""
        return f"{self.what}{again}  {sealed}{self.note}".rstrip()


@dataclass(slots=True)
class Ladder:
    """Collect what the SIP nodes of one process send; `names` maps their addresses."""

    steps: list[Step] = field(default_factory=list)
    names: dict[tuple[str, int], str] = field(default_factory=dict)
    phase: str = ""
    _began: float | None = None

    def observe(self, event: SipEvent) -> None:
        """Take one event; every message is shown where it is sent."""
        if not event.outgoing:
            return
        if isinstance(event.message, Request):
            self.names.setdefault(_sent_by(event.message), short_name(event.node))
            target = self.names.get((event.peer.host, event.peer.port), str(event.peer))
            what = event.message.method
        else:
            target = self.names.get(_sent_by(event.message), str(event.peer))
            what = f"{event.message.status} {event.message.reason}"
        source, note = short_name(event.node), note_of(event.message)
        self.add(event.at, source, target, event.peer.transport, what, event.octets, note, event.retransmission, event.wire)

    def add(
        self, at: float, source: str, target: str, transport: str, what: str, octets: int, note: str, retransmission: bool = False,
        wire: int = 0,
    ) -> None:  # fmt: skip
        """Add one row; `at` is seconds since the epoch."""
        if self._began is None:
            self._began = at
        self.steps.append(Step(self.phase, at - self._began, source, target, transport, what, octets, note, retransmission, wire))


def draw(steps: Sequence[Step], *, under: Mapping[int, Sequence[str]] | None = None, left: Sequence[str] = ()) -> list[str]:
    """Draw the steps as lifelines and arrows, one line each, with a heading where a phase begins.

    `under` has what is said below a step, by its place; `left` what stands left of each.
    """
    parties = list(dict.fromkeys(party for step in steps for party in (step.source, step.target)))
    parties.sort(key=_order)
    width = max([COLUMN, *(len(party) + 1 for party in parties)])
    margin = max([0, *map(len, left)])
    blank = " " * margin
    lines: list[str] = []
    phase = None
    for place, step in enumerate(steps):
        if step.phase != phase:
            phase = step.phase
            lines += ["", phase, blank + "".join(f"{party:^{width}}" for party in parties).rstrip()]
        arrow = _arrow(parties.index(step.source), parties.index(step.target), len(parties), width)
        size = f"{step.transport:3} {step.octets:5} {step.size_mark:6}"
        before = f"{left[place]:<{margin}}" if left else ""
        lines.append(f"{before}{arrow} {size} {step.said}")
        lines += [f"{blank}{''.join(_lifelines(len(parties), width))}     {line}" for line in (under or {}).get(place, ())]
    return lines


def _order(party: str) -> int:
    known = ("UE", "P-CSCF", "I-CSCF", "I/S-CSCF", "S-CSCF", "HSS", "AS")
    return next((place for place, name in enumerate(known) if party.startswith(name)), len(known))


def _lifelines(count: int, width: int) -> list[str]:
    line = [" "] * (width * count)
    for place in range(count):
        line[width * place + width // 2] = "│"
    return line


def _arrow(source: int, target: int, count: int, width: int) -> str:
    line = _lifelines(count, width)
    left, right = sorted((source, target))
    for place in range(width * left + width // 2 + 1, width * right + width // 2):
        line[place] = "─"
    if source < target:
        line[width * right + width // 2 - 1] = ">"
    else:
        line[width * left + width // 2 + 1] = "<"
    return "".join(line)


def _sent_by(message: Message) -> tuple[str, int]:
    via = parse_via_list(message.all("Via")[0])[0]
    return via.host.strip("[]"), via.port or 5060
