# SPDX-License-Identifier: Apache-2.0
"""Which sets of security associations exist between UE and P-CSCF, and until when (TS 33.203 §7, Release 17).

A set is two pairs of SAs: UE client port with P-CSCF server port, and UE server port with P-CSCF client port. ESP itself
(`esp.py`) is not in here: a shell makes the SAs of a set that begins and drops those of a set that is returned as gone.

The times are those of TS 24.229 §5.2.2.1 as we know it from memory: a temporary set lives reg-await-auth; a confirmed one
at least the registration and 30 s; the sets before it stay until its first message, and then at most 64*T1 more,
for what is on its way.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Literal, NamedTuple, TypeAlias

from keyferry.errors import EspRejected, LocalProtocolError, RemoteProtocolError
from keyferry.protocol.bounded_groups import Bound, BoundedGroups
from keyferry.protocol.esp import MAX_SPI, MIN_SPI
from keyferry.protocol.ip_packet import InnerDatagram, IpAddress

Side: TypeAlias = Literal["ue", "pcscf"]

REG_AWAIT_AUTH = 240.0
"""Seconds that a challenge may be answered (TS 24.229 §7.7: 4 minutes)."""
OVERLAP = 32.0
"""Seconds: 64*T1, the longest that a transaction begun on the old set lasts (RFC 3261 §17.1.2.2)."""
SLACK = 30.0
"""Seconds that a set outlives its registration, so that the re-REGISTER at the last moment still has one."""
MAX_SETS = 200_000
"""In all; as many devices as a P-CSCF keeps keys of, and a city registering after a power cut is shed before this."""
MAX_SETS_PER_UE = 4
"""Definitive and old ones: one in use, two confirmed, and one old that still drains."""
MAX_TEMPORARY_PER_UE = 4_096
"""Challenges, each of another Call-ID: who names a user from his address needs so many between the user's challenge and his answer."""
MAX_TEMPORARY_PER_ADDRESS = 50_000
"""Challenges of every user behind one address, so that none takes all the room."""


class State(Enum):
    """What a set is good for."""

    TEMPORARY = auto()  # challenged: carries the REGISTER that answers, and what answers that
    ESTABLISHED = auto()  # definitive: the UE is authenticated, and no message has shown yet that it uses this set
    IN_USE = auto()  # definitive: it does
    OLD = auto()  # a newer one is in use; takes what is on its way
    DELETED = auto()


class Input(Enum):
    """What can happen to a set."""

    CONFIRMED = auto()  # the 200 to a REGISTER over it
    FAILED = auto()  # the answer over it was wrong, or the home network said no
    MESSAGE = auto()  # a message came in over it, so its ICV was right
    SUPERSEDED = auto()  # a newer set of the same UE was taken into use
    RECHALLENGED = auto()  # a newer temporary set of the same attempt begins, or another set of the UE was confirmed
    EXPIRED = auto()
    REMOVED = auto()  # de-registered, or room is needed


TRANSITIONS: Final = {  # TS 33.203 §7.2 to §7.4
    (State.TEMPORARY, Input.MESSAGE): State.TEMPORARY,
    (State.TEMPORARY, Input.CONFIRMED): State.ESTABLISHED,
    (State.TEMPORARY, Input.FAILED): State.DELETED,
    (State.TEMPORARY, Input.RECHALLENGED): State.DELETED,
    (State.TEMPORARY, Input.EXPIRED): State.DELETED,
    (State.TEMPORARY, Input.REMOVED): State.DELETED,
    (State.ESTABLISHED, Input.MESSAGE): State.IN_USE,
    (State.ESTABLISHED, Input.CONFIRMED): State.ESTABLISHED,
    (State.ESTABLISHED, Input.SUPERSEDED): State.OLD,
    (State.ESTABLISHED, Input.RECHALLENGED): State.ESTABLISHED,
    (State.ESTABLISHED, Input.EXPIRED): State.DELETED,
    (State.ESTABLISHED, Input.REMOVED): State.DELETED,
    (State.IN_USE, Input.MESSAGE): State.IN_USE,
    (State.IN_USE, Input.CONFIRMED): State.IN_USE,  # a re-REGISTER that was not challenged
    (State.IN_USE, Input.SUPERSEDED): State.OLD,
    (State.IN_USE, Input.RECHALLENGED): State.IN_USE,
    (State.IN_USE, Input.EXPIRED): State.DELETED,
    (State.IN_USE, Input.REMOVED): State.DELETED,
    (State.OLD, Input.MESSAGE): State.OLD,
    (State.OLD, Input.CONFIRMED): State.OLD,  # the 200 to a REGISTER that was on its way; it prolongs nothing
    (State.OLD, Input.SUPERSEDED): State.OLD,
    (State.OLD, Input.RECHALLENGED): State.OLD,
    (State.OLD, Input.EXPIRED): State.DELETED,
    (State.OLD, Input.REMOVED): State.DELETED,
}


_DEFINITIVE = frozenset({State.ESTABLISHED, State.IN_USE})


class Flow(NamedTuple):
    """What one inbound SA may carry (RFC 4301 §4.4.1: its selectors)."""

    source: IpAddress
    source_port: int
    target: IpAddress
    target_port: int


class Endpoint(NamedTuple):
    """One side of a set: its address inside the tunnel, and what it wrote in its security mechanism."""

    address: IpAddress
    spi_c: int
    spi_s: int
    port_c: int
    port_s: int


@dataclass(slots=True, eq=False)
class AssociationSet:
    """Two pairs of SAs, made of one AKA run. `GmAssociations` alone changes it."""

    user: str  # who it is to the holder: at a P-CSCF the IMPI and the address, so that nobody ends another's
    ue: Endpoint
    pcscf: Endpoint
    expires_at: float  # seconds
    attempt: str = ""  # Call-ID of the REGISTER that was challenged
    state: State = State.TEMPORARY
    ended: bool = False  # its registration is over: it carries what is on its way and the last NOTIFY, and nothing new of the UE

    # Each SA is named by the SPI that its receiver chose.
    @property
    def spi_uc(self) -> int:
        """Of the SA from the P-CSCF's server port to the UE's client port."""
        return self.ue.spi_c

    @property
    def spi_us(self) -> int:
        """Of the SA from the P-CSCF's client port to the UE's server port."""
        return self.ue.spi_s

    @property
    def spi_pc(self) -> int:
        """Of the SA from the UE's server port to the P-CSCF's client port."""
        return self.pcscf.spi_c

    @property
    def spi_ps(self) -> int:
        """Of the SA from the UE's client port to the P-CSCF's server port."""
        return self.pcscf.spi_s

    def flow(self, spi: int) -> Flow:
        """Return what the SA of this SPI carries.

        Raises LocalProtocolError if it is not one of the four.
        """
        for receiver, sender in ((self.ue, self.pcscf), (self.pcscf, self.ue)):
            if spi == receiver.spi_c:
                return Flow(sender.address, sender.port_s, receiver.address, receiver.port_c)
            if spi == receiver.spi_s:
                return Flow(sender.address, sender.port_c, receiver.address, receiver.port_s)
        raise LocalProtocolError("no SA of this set has that SPI")

    def check_inbound(self, spi: int, datagram: InnerDatagram) -> None:
        """Check that a datagram was allowed on the SA that it came over (RFC 4301 §5.2 step 4).

        Without this a UE could send in another's name, under keys of its own. Raises EspRejected.
        """
        if datagram[:4] != self.flow(spi):
            raise EspRejected("selector")


_TEMPORARY: Final = (
    Bound[AssociationSet](lambda each: (each.user, each.attempt), 1),  # a new challenge of the same attempt ends the one before it
    Bound[AssociationSet](lambda each: each.user, MAX_TEMPORARY_PER_UE),
    Bound[AssociationSet](lambda each: each.ue.address, MAX_TEMPORARY_PER_ADDRESS),
)
_OF_USER: Final = 1  # the bound of this place


@dataclass(slots=True)
class GmAssociations:
    """Hold the sets of one P-CSCF, or of one UE, by user and by the SPIs that this side chose."""

    side: Side
    reg_await_auth: float = REG_AWAIT_AUTH  # seconds
    overlap: float = OVERLAP  # seconds
    slack: float = SLACK  # seconds
    max_sets: int = MAX_SETS
    _by_spi: dict[int, AssociationSet] = field(default_factory=dict)
    _definitive: dict[str, list[AssociationSet]] = field(default_factory=dict)  # by user, with the old ones, the oldest first
    _temporary: BoundedGroups[int, AssociationSet] = field(default_factory=lambda: BoundedGroups(_TEMPORARY))  # by our spi_s
    _deadlines: list[tuple[float, int, AssociationSet]] = field(default_factory=list)  # a heap; some are out of date
    _count: int = 0  # of entries ever made: no two of the heap compare by their sets

    def __len__(self) -> int:
        return len(self._by_spi) // 2

    @property
    def deadline(self) -> float | None:
        """When `expire` is wanted next, possibly too early."""
        return self._deadlines[0][0] if self._deadlines else None

    def allocate(self, chance: int, avoid: Collection[int] = ()) -> tuple[int, int]:
        """Return two SPIs (client, server) that no set here has, and that are not in `avoid`: those the UE chose.

        `chance` is a random number of 64 bits: SPIs that follow each other would tell how many register.
        """
        client = self._free(chance >> 32 & MAX_SPI, avoid)
        return client, self._free(chance & MAX_SPI, (client, *avoid))

    def begin(self, user: str, ue: Endpoint, pcscf: Endpoint, now: float, attempt: str = "") -> tuple[AssociationSet, list[AssociationSet]]:
        """Make a temporary set as a challenge passes; return it and the sets that had to go.

        A new challenge ends the temporary set before it of the same `attempt`, the Call-ID. Those of other attempts stay until one of
        the user's is confirmed: whoever names the user from his address gets one. Where there is no room the oldest temporary set
        goes first. Raises LocalProtocolError for an SPI in use, RemoteProtocolError with
        status 503 where all sets are definitive.
        """
        own = ue if self.side == "ue" else pcscf
        if own.spi_c in self._by_spi or own.spi_s in self._by_spi or len({ue.spi_c, ue.spi_s, pcscf.spi_c, pcscf.spi_s}) < 4:
            raise LocalProtocolError("an SPI is in use")
        made = AssociationSet(user, ue, pcscf, now + self.reg_await_auth, attempt)
        gone = self._temporary.add(own.spi_s, made)
        for each in gone:
            self._enter(each, Input.RECHALLENGED)
        gone += self._make_room(made)
        self._by_spi[own.spi_c] = self._by_spi[own.spi_s] = made
        self._schedule(made)
        return made, gone

    def confirmed(self, association: AssociationSet, now: float, registration: float) -> list[AssociationSet]:
        """Take the 200 to a REGISTER over this set; `registration` is its Expires in seconds, over 0. Return the sets that had to go.

        The set lives as long as the registration or as any definitive set before it, whichever is longer. A UE takes
        it into use at once: the 200 came over it. With a temporary set that is confirmed the user's other temporary ones go.
        """
        gone = []
        if association.state is State.TEMPORARY:
            gone = [each for each in self._temporary.group(_OF_USER, association.user) if each is not association]
            for each in gone:
                self._enter(each, Input.RECHALLENGED)
            self._temporary.pop(self._own(association).spi_s)
            self._definitive.setdefault(association.user, []).append(association)
        definitive = [each.expires_at for each in self._definitive.get(association.user, ()) if each.state in _DEFINITIVE]
        if self._enter(association, Input.CONFIRMED) is State.OLD:
            return gone
        association.ended = False
        self._until(association, max([now + registration + self.slack, *definitive]))
        if self.side == "ue":
            self.received(association, now)
        return gone

    def failed(self, association: AssociationSet) -> None:
        """Take the refusal of the answer over a temporary set: it goes, those before it stay (TS 33.203 §7.3.1)."""
        self._enter(association, Input.FAILED)

    def received(self, association: AssociationSet, now: float) -> None:
        """Take a message whose ICV was right; the first on an established set takes it into use.

        Then all sets before it are old, and live `overlap` seconds at most.
        """
        before = association.state
        if self._enter(association, Input.MESSAGE) is before:
            return
        mine = self._definitive[association.user]
        for other in mine[: mine.index(association)]:
            self._enter(other, Input.SUPERSEDED)
            self._until(other, min(other.expires_at, now + self.overlap))

    def end(self, user: str, now: float) -> None:
        """End the sets of a registration that is over; they live `overlap` seconds at most, since the last response may be lost.

        A temporary set may be the next registration's: it is given the same time, and may be confirmed in it.
        """
        for association in self.sets(user):
            association.ended = association.state is not State.TEMPORARY
            self._until(association, min(association.expires_at, now + self.overlap))

    def remove(self, user: str) -> list[AssociationSet]:
        """Take the end of a registration; return the sets that were dropped."""
        gone = self.sets(user)
        for association in gone:
            self._enter(association, Input.REMOVED)
        return gone

    def expire(self, now: float) -> list[AssociationSet]:
        """Drop and return the sets whose time is over."""
        gone = []
        while self._deadlines and self._deadlines[0][0] <= now:
            at, _, association = heapq.heappop(self._deadlines)
            if association.state is not State.DELETED and association.expires_at == at:
                self._enter(association, Input.EXPIRED)
                gone.append(association)
        return gone

    def sets(self, user: str) -> list[AssociationSet]:
        """Return the sets of a user: the definitive and old ones, then the temporary ones, the oldest first."""
        return [*self._definitive.get(user, ()), *self._temporary.group(_OF_USER, user)]

    def of_spi(self, spi: int) -> AssociationSet:
        """Return the set of an SPI that came in.

        Raises EspRejected.
        """
        association = self._by_spi.get(spi)
        if association is None:
            raise EspRejected("spi")
        return association

    def sending(self, user: str, now: float) -> AssociationSet | None:
        """Return the set for a new request to the other side; an answer goes back over the set of its request.

        The one in use, as long as it lasts another `overlap`; else the newest established one, which the other side
        has too; None if there is neither.
        """
        usable = [each for each in self._definitive.get(user, ()) if each.state in _DEFINITIVE and each.expires_at > now]
        lasting = [each for each in usable if each.state is State.IN_USE and each.expires_at > now + self.overlap]
        best = lasting or usable
        return best[-1] if best else None

    def _free(self, spi: int, avoid: Collection[int]) -> int:
        while spi < MIN_SPI or spi in self._by_spi or spi in avoid:  # at most as often as there are SPIs in use
            spi = spi + 1 if MIN_SPI <= spi < MAX_SPI else MIN_SPI
        return spi

    def _own(self, association: AssociationSet) -> Endpoint:
        return association.ue if self.side == "ue" else association.pcscf

    def _make_room(self, made: AssociationSet) -> list[AssociationSet]:
        mine = self._definitive.get(made.user, [])
        if len(mine) >= MAX_SETS_PER_UE:  # then three newer ones were confirmed
            oldest = mine[0]
        elif len(self) >= self.max_sets:
            oldest = next(iter(self._temporary))
        else:
            return []
        if oldest is made:
            self._temporary.pop(self._own(made).spi_s)
            raise RemoteProtocolError("no room for another set of security associations", 503)
        self._enter(oldest, Input.REMOVED)
        return [oldest]

    def _until(self, association: AssociationSet, when: float) -> None:
        association.expires_at = when
        self._schedule(association)

    def _schedule(self, association: AssociationSet) -> None:
        if len(self._deadlines) > 4 * len(self) + 64:  # mostly out of date: refreshes leave one each
            self._deadlines = [each for each in self._deadlines if each[2].state is not State.DELETED and each[2].expires_at == each[0]]
            heapq.heapify(self._deadlines)
        self._count += 1
        heapq.heappush(self._deadlines, (association.expires_at, self._count, association))

    def _enter(self, association: AssociationSet, what: Input) -> State:
        after = TRANSITIONS.get((association.state, what))
        if after is None:
            raise LocalProtocolError(f"{what.name} cannot happen to a set in {association.state.name}")
        association.state = after
        if after is State.DELETED:
            self._forget(association)
        return after

    def _forget(self, association: AssociationSet) -> None:
        own = self._own(association)
        del self._by_spi[own.spi_c], self._by_spi[own.spi_s]
        self._temporary.pop(own.spi_s)
        mine = self._definitive.get(association.user, [])
        if association in mine:
            mine.remove(association)
            if not mine:
                del self._definitive[association.user]
