# SPDX-License-Identifier: Apache-2.0
"""Two HSS processes as an S-CSCF reaches them over Diameter: what it asks is lost, comes late, or twice, and so are the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple

from keyferry.errors import TransportError
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import DiameterIdentity
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.roles.cx_client import DiameterCx
from keyferry.roles.cx_server import CxServer
from keyferry.roles.hss import Hss
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom

REALM = "home1.net"
_REGISTERING = (cx.ServerAssignmentType.REGISTRATION, cx.ServerAssignmentType.RE_REGISTRATION)
HSS = DiameterIdentity("hss.home1.net", REALM)


class Fate(Enum):
    """What becomes of one copy of a request."""

    ANSWERED = auto()
    LOST = auto()  # it never arrives
    UNANSWERED = auto()  # it is carried out, and the answer is lost
    LATE = auto()  # it arrives when the test says so, and its answer comes back
    LATE_UNANSWERED = auto()  # it arrives when the test says so, and its answer is lost


class Peer(NamedTuple):
    """An S-CSCF as its CER names it."""

    origin_host: str
    role: str = ""
    product: str = "keyferry"


class Held(NamedTuple):
    """A copy that is still on its way."""

    server: CxServer
    request: DiameterMessage
    answered: bool


class Faults:
    """Implement ports.DiameterSender: ask the first HSS, and where no answer comes the second, as transports' client does."""

    def __init__(self, servers: Sequence[CxServer], peer: Peer) -> None:
        """Let all go well until told otherwise."""
        self.servers, self.peer = servers, peer
        self.fates: list[Fate] = []  # of the next copies
        self.fates_of_sars: list[Fate] = []  # before the others'
        self.held: list[Held] = []
        self.unheard = False  # whether a registration was carried out of which nobody hears
        self.late: Callable[[DiameterMessage], None] = lambda answer: None

    async def send(self, request: DiameterMessage, *, timeout: float) -> DiameterMessage:
        """Return the first answer. Raises TransportError."""
        for server in self.servers:
            fates = self.fates_of_sars if request.code == cx.SERVER_ASSIGNMENT and self.fates_of_sars else self.fates
            fate = fates.pop(0) if fates else Fate.ANSWERED
            if fate in (Fate.ANSWERED, Fate.UNANSWERED):
                answer = await server.handle(request, self.peer)
                if fate is Fate.ANSWERED:
                    return answer
            elif fate is not Fate.LOST:
                self.held.append(Held(server, request, fate is Fate.LATE))
        raise TransportError("hss", f"no answer in {timeout:g} s")

    async def arrive(self, number: int = 0) -> None:
        """Let a copy that is on its way arrive."""
        server, request, answered = self.held.pop(number)
        answer = await server.handle(request, self.peer)
        if answered:
            self.late(answer)
        elif request.code == cx.SERVER_ASSIGNMENT and cx.parse_sar(request).assignment in _REGISTERING:
            self.unheard = True


def faulty(hsss: Sequence[Hss], host: str, clock: FakeClock, product: str = "keyferry") -> tuple[DiameterCx, Faults]:
    """Return the port of the S-CSCF of this name, and what goes wrong on its way to these HSSs."""
    servers = [CxServer(hss, hss, HSS, RecordingLog(), RecordingCounter()) for hss in hsss]
    faults = Faults(servers, Peer(host, product=product))
    identity = DiameterIdentity(host, REALM, product=product)
    port = DiameterCx(faults, identity, REALM, clock, SeededRandom(host), RecordingLog(), RecordingCounter())
    faults.late = port.late
    return port, faults
