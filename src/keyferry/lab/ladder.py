# SPDX-License-Identifier: Apache-2.0
"""A message ladder: who sent what to whom, over which transport, how large, and what mattered in it. Never a key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.errors import KeyferryError
from keyferry.ports import SipEvent
from keyferry.protocol.digest import parse_aka_nonce, parse_authentication_info, parse_challenge, parse_credentials
from keyferry.protocol.ims.keypush import SealedPush, parse_service_info
from keyferry.protocol.ims.marker import RELEASE_TAG, parse_marker
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.headers import parse_name_addr_list, parse_via_list
from keyferry.protocol.sip.message import Message, Request, Response

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

    @property
    def size_mark(self) -> str:
        """Say which limit the message passes."""
        return "> 1500" if self.octets > MTU else "> 1300" if self.octets > UDP_LIMIT else ""


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
            self.names.setdefault(_sent_by(event.message), _party(event.node))
            target = self.names.get((event.peer.host, event.peer.port), str(event.peer))
            what = event.message.method
        else:
            target = self.names.get(_sent_by(event.message), str(event.peer))
            what = f"{event.message.status} {event.message.reason}"
        self.add(
            event.at, _party(event.node), target, event.peer.transport, what, event.octets, note_of(event.message), event.retransmission
        )

    def add(
        self, at: float, source: str, target: str, transport: str, what: str, octets: int, note: str, retransmission: bool = False
    ) -> None:
        """Add one row; `at` is seconds since the epoch."""
        if self._began is None:
            self._began = at
        self.steps.append(Step(self.phase, at - self._began, source, target, transport, what, octets, note, retransmission))


def draw(steps: list[Step]) -> list[str]:
    """Draw the steps as lifelines and arrows, one line each, with a heading where a phase begins."""
    parties = list(dict.fromkeys(party for step in steps for party in (step.source, step.target)))
    parties.sort(key=_order)
    lines: list[str] = []
    phase = None
    for step in steps:
        if step.phase != phase:
            phase = step.phase
            lines += ["", phase, "".join(f"{party:^{COLUMN}}" for party in parties).rstrip()]
        again = " (again)" if step.retransmission else ""
        arrow = _arrow(parties.index(step.source), parties.index(step.target), len(parties))
        size = f"{step.transport:3} {step.octets:5} {step.size_mark:6}"
        lines.append(f"{arrow} {size} {step.what}{again}  {step.note}".rstrip())
    return lines


def _order(party: str) -> int:
    known = ("UE", "P-CSCF", "I-CSCF", "S-CSCF", "AS")
    return next((place for place, name in enumerate(known) if party.startswith(name)), len(known))


def _arrow(source: int, target: int, count: int) -> str:
    line = [" "] * (COLUMN * count)
    for place in range(count):
        line[COLUMN * place + COLUMN // 2] = "│"
    left, right = sorted((source, target))
    for place in range(COLUMN * left + COLUMN // 2 + 1, COLUMN * right + COLUMN // 2):
        line[place] = "─"
    if source < target:
        line[COLUMN * right + COLUMN // 2 - 1] = ">"
    else:
        line[COLUMN * left + COLUMN // 2 + 1] = "<"
    return "".join(line)


def note_of(message: Message) -> str:
    """Say what matters in a message; what cannot be read is said so."""
    try:
        return _of_request(message) if isinstance(message, Request) else _of_response(message)
    except KeyferryError as problem:
        return f"not readable: {problem}"


def _of_request(request: Request) -> str:
    if request.get("Authorization") is None and request.get("Event") is None and request.body:
        return _of_push(request)
    notes = ["de-registers"] if request.get("Expires") == "0" else []
    contact = request.get("Contact")
    if contact and contact != "*":
        release = parse_name_addr_list(contact)[0].parameter(RELEASE_TAG)
        notes.append(f"states release {release}" if release else "states no release")
    if request.get("Authorization"):
        notes += _of_credentials(request.get("Authorization") or "")
    if request.get("Path"):
        notes.append("Path")
    return "; ".join(notes)


def _of_credentials(text: str) -> list[str]:
    credentials = parse_credentials(text)
    protected = credentials.parameter("integrity-protected")
    notes = [f"integrity-protected={protected}"] if protected else []
    if credentials.auts:
        notes.append("auts: SQN not fresh")
    elif credentials.response:
        notes.append("answers: response" + (f", qop={credentials.qop}" if credentials.qop else ""))
    elif credentials.nonce:
        notes.append("empty response: MAC wrong")
    return notes


def _of_push(request: Request) -> str:
    register = parse_third_party_register(request)
    block = parse_service_info(register.service_info) if register.service_info else None
    ends = "ends the keys: " if register.expires == 0 else ""
    if isinstance(block, SealedPush):
        return f"{ends}key block for {block.as_id}, sealed by {block.scscf}, kid {block.kid}"
    return f"{ends}service-info without a key block" if register.service_info else ends or "no service-info"


def _of_response(response: Response) -> str:
    challenge_text = response.get("WWW-Authenticate")
    if challenge_text:
        challenge = parse_challenge(challenge_text)
        marker = parse_marker(parse_aka_nonce(challenge.nonce).server_data)
        if marker is None:
            shown = "no marker: Release 5"
        else:
            flags = marker.access_keys | marker.as_keys << 1 | marker.rspauth << 2
            shown = f"marker: release {marker.release}, flags {flags}"
        carried = {name.lower() for name, _ in challenge.parameters} & {"ck", "ik"}
        masked = "CK', IK'" if marker and marker.access_keys else "CK, IK"
        return f"{shown}; " + (f"{masked} for the P-CSCF" if carried else "no ck, ik")
    info = response.get("Authentication-Info")
    if info and parse_authentication_info(info).rspauth:
        return "rspauth: the S-CSCF proves itself"
    return ""


def _party(node: str) -> str:
    """Shorten `AS xcap.home1.net` to its first label: the lifelines are narrow."""
    return node.partition(".")[0]


def _sent_by(message: Message) -> tuple[str, int]:
    via = parse_via_list(message.all("Via")[0])[0]
    return via.host.strip("[]"), via.port or 5060
