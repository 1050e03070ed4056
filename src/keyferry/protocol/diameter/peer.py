# SPDX-License-Identifier: Apache-2.0
"""One connection to a Diameter peer: capabilities, watchdog, disconnection (RFC 6733 §5.3 to §5.6; RFC 3539 §3.4.1).

There is no election (RFC 6733 §5.6.4): it settles which of two connections stays when both peers dial each other, and here one side
dials only, the S-CSCF and I-CSCF, and the HSS listens. So a connection that is accepted waits for a CER, one that was dialled sends it.

    RFC 6733 §5.6                  RFC 3539 §3.4.1     here
    Wait-I-CEA                     INITIAL             WAIT_CEA
    (R-Conn-CER awaited)           INITIAL             WAIT_CER
    I-Open, R-Open                 OKAY                OPEN
    I-Open, R-Open                 SUSPECT, REOPEN     SUSPECT, REOPEN
    Closing                                            CLOSING
    Closed                         DOWN                CLOSED
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import DiameterIdentity, DisconnectCause, Identifiers, PeerCapabilities, ResultCode
from keyferry.protocol.diameter.message import Avp, AvpFault, DiameterMessage

MIN_WATCHDOG: Final = 6.0
"""Seconds; RFC 3539 §3.4.1: Twinit MUST NOT be under six."""
MAX_JITTER: Final = 2.0
"""Seconds, either way (RFC 3539 §3.4.1)."""
REOPEN_ANSWERS: Final = 3
"""Watchdogs that a peer has to answer before it is trusted again (RFC 3539 §3.4.1)."""


class State(Enum):
    """Of one connection."""

    WAIT_CEA = auto()
    WAIT_CER = auto()
    OPEN = auto()
    SUSPECT = auto()
    REOPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class Input(Enum):
    """What changes the state."""

    CAPABLE = auto()  # a CER or CEA that we take
    CAPABLE_AFTER_FAILURE = auto()  # the same, where the last connection ended with a watchdog unanswered
    SILENT = auto()  # Tw passed with a watchdog unanswered, or a request went unanswered for as long as it may
    HEARD = auto()  # a message, whichever
    TRUSTED = auto()  # the third watchdog answered, or nobody else left to ask
    DISCONNECT = auto()  # a DPR, of whom ever
    END = auto()  # refused, out of time, out of step, disconnected, or the transport is gone


TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.WAIT_CEA, Input.CAPABLE): State.OPEN,
    (State.WAIT_CER, Input.CAPABLE): State.OPEN,
    (State.WAIT_CEA, Input.CAPABLE_AFTER_FAILURE): State.REOPEN,
    (State.WAIT_CER, Input.CAPABLE_AFTER_FAILURE): State.REOPEN,
    (State.OPEN, Input.SILENT): State.SUSPECT,
    (State.SUSPECT, Input.HEARD): State.OPEN,
    (State.REOPEN, Input.TRUSTED): State.OPEN,
    (State.OPEN, Input.DISCONNECT): State.CLOSING,
    (State.SUSPECT, Input.DISCONNECT): State.CLOSING,
    (State.REOPEN, Input.DISCONNECT): State.CLOSING,
    **{(state, Input.END): State.CLOSED for state in State if state is not State.CLOSED},
}


class EndReason(Enum):
    """Why a connection ended."""

    REFUSED = "refused"  # by the peer's CEA; `code` is its result
    REFUSED_BY_US = "refused-by-us"  # by our CEA; `code` is the result
    NO_COMMON_APPLICATION = "no-common-application"
    WRONG_PEER = "wrong-peer"  # a CEA of one that we do not talk to
    TIMEOUT = "timeout"  # no CER or CEA
    WATCHDOG = "watchdog"  # SUSPECT, and still silent
    OUT_OF_STEP = "out-of-step"  # not what this state takes
    DISCONNECTED = "disconnected"  # by a DPR; `cause` says why, where the peer sent it
    LOST = "lost"  # the transport


class Send(NamedTuple):
    """Write this."""

    message: DiameterMessage


class Deliver(NamedTuple):
    """Hand this on: a request to who serves its application, an answer to who waits for it, if anybody still does."""

    message: DiameterMessage


class Opened(NamedTuple):
    """The peer has been heard; requests may be sent if `usable`, else after Resumed."""

    peer: PeerCapabilities
    applications: frozenset[int]
    usable: bool


class Suspended(NamedTuple):
    """Send nothing new here; what waits for an answer may be sent to another peer (failover)."""


class Resumed(NamedTuple):
    """The peer answers again (failback)."""


class Ended(NamedTuple):
    """Write what is still to be written, then close the transport; no answer comes any more."""

    reason: EndReason
    code: int = 0
    cause: DisconnectCause | None = None


Action: TypeAlias = Send | Deliver | Opened | Suspended | Resumed | Ended


@dataclass(frozen=True, slots=True)
class PeerTimers:
    """How long a connection waits for what, in seconds.

    Raises LocalProtocolError.
    """

    watchdog: float = 30.0  # Twinit
    capabilities: float = 10.0  # for the CER or CEA
    disconnect: float = 5.0  # for the DPA, or for the peer to close

    def __post_init__(self) -> None:
        if self.watchdog < MIN_WATCHDOG or min(self.capabilities, self.disconnect) <= 0:
            raise LocalProtocolError(f"the watchdog's time is {MIN_WATCHDOG} seconds at least, the others are more than none")


def _anyone(peer: PeerCapabilities) -> bool:
    del peer
    return True


class PeerMachine:
    """Speak the base protocol on one connection: events in, actions out, in the order in which they are to be carried out.

    `now` is monotonic. After each call `deadline` says when to call `tick`, whose `jitter`, drawn evenly from -2 to 2 seconds,
    keeps peers from falling into step. `admit` says whom we talk to: by name, and by the certificate that the connection showed.
    """

    def __init__(
        self,
        identity: DiameterIdentity,
        identifiers: Identifiers,
        *,
        dials: bool,
        addresses: Sequence[str],
        admit: Callable[[PeerCapabilities], bool] = _anyone,
        timers: PeerTimers = PeerTimers(),
        after_failure: bool = False,
    ) -> None:
        """Begin on a transport that is up; `after_failure` if the last connection to this peer ended with EndReason.WATCHDOG."""
        self._identity = identity
        self._identifiers = identifiers
        self._addresses = tuple(addresses)
        self._admit = admit
        self._timers = timers
        self._after_failure = after_failure
        self._dials = dials
        self._cause: DisconnectCause | None = None
        self._pending = False  # a DWR waits for its DWA
        self._answers = 0  # of watchdogs, in REOPEN; -1: one was missed
        self._tw = timers.watchdog
        self.state = State.WAIT_CEA if dials else State.WAIT_CER
        self.peer: PeerCapabilities | None = None
        self.applications: frozenset[int] = frozenset()
        self.deadline: float | None = None

    @property
    def usable(self) -> bool:
        """Whether a request may be sent."""
        return self.state is State.OPEN

    def start(self, now: float) -> list[Action]:
        """Begin: the transport is up."""
        self.deadline = now + self._timers.capabilities
        return [self._numbered(base.build_cer(self._identity, self._addresses))] if self._dials else []

    def received(self, message: DiameterMessage, now: float) -> list[Action]:
        """Take a message."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.WAIT_CEA:
            return self._capabilities_answer(message, now)
        if self.state is State.WAIT_CER:
            return self._capabilities_request(message, now)
        actions = self._heard(now)
        handle = _BASE_COMMANDS.get((message.code, message.request)) if message.application == base.BASE else None
        return actions + (handle(self, message, now) if handle else self._application(message))

    def tick(self, now: float, jitter: float = 0.0) -> list[Action]:
        """Act on the time, if it is time."""
        if self.deadline is None or now < self.deadline:
            return []
        if self.state in (State.WAIT_CEA, State.WAIT_CER):
            return self._end(EndReason.TIMEOUT)
        if self.state is State.CLOSING:
            return self._end(EndReason.DISCONNECTED, cause=self._cause)
        self._tw = self._timers.watchdog + max(-MAX_JITTER, min(MAX_JITTER, jitter))
        self.deadline = now + self._tw
        if not self._pending:
            return self._watchdog()
        return self._silent()

    def suspect(self, now: float) -> list[Action]:
        """Suspect a peer that answers no requests: a watchdog asks whether it lives, and what it says ends that, as RFC 3539 has it."""
        if self.state is not State.OPEN:
            return []
        self._move(Input.SILENT)
        self.deadline = now + self._tw
        return [Suspended(), *([] if self._pending else self._watchdog())]

    def trust(self, now: float) -> list[Action]:
        """Use a peer that is still to prove itself by watchdogs, since there is nobody else (*ours*; RFC 3539 says nothing of that)."""
        if self.state is not State.REOPEN:
            return []
        self._move(Input.TRUSTED)
        self.deadline = now + self._tw
        return [Resumed()]

    def disconnect(self, cause: DisconnectCause, now: float) -> list[Action]:
        """Leave, of our own will (§5.4): send a DPR and wait for its DPA."""
        if self.state in (State.WAIT_CEA, State.WAIT_CER):
            return self._end(EndReason.DISCONNECTED)
        if self.state in (State.CLOSING, State.CLOSED):
            return []
        return [self._numbered(base.build_dpr(self._identity, cause)), *self._closing(now)]

    def lost(self) -> list[Action]:
        """Take note that the transport is gone."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.CLOSING:
            return self._end(EndReason.DISCONNECTED, cause=self._cause)
        return self._end(EndReason.LOST)

    # ---- capabilities

    def _capabilities_answer(self, message: DiameterMessage, now: float) -> list[Action]:
        if message.code != base.CAPABILITIES_EXCHANGE or message.request:
            return self._end(EndReason.OUT_OF_STEP)
        try:
            result = base.result_of(message)
            if not result.success:
                return self._end(EndReason.REFUSED, result.code)
            peer = base.parse_capabilities(message)
        except ParseError:
            return self._end(EndReason.OUT_OF_STEP)
        if not self._admit(peer):
            return self._end(EndReason.WRONG_PEER)
        common = base.common_applications(self._identity, peer)
        return self._open(peer, common, now) if common else self._end(EndReason.NO_COMMON_APPLICATION)

    def _capabilities_request(self, message: DiameterMessage, now: float) -> list[Action]:
        if message.code != base.CAPABILITIES_EXCHANGE or not message.request:
            return self._end(EndReason.OUT_OF_STEP)
        try:
            peer = base.parse_capabilities(message)
        except AvpFault as fault:
            return self._refuse(message, fault.code)
        common = base.common_applications(self._identity, peer)
        if not self._admit(peer):
            return self._refuse(message, ResultCode.UNKNOWN_PEER)
        if not common:
            return self._refuse(message, ResultCode.NO_COMMON_APPLICATION)
        return [Send(base.build_cea(message, self._identity, self._addresses)), *self._open(peer, common, now)]

    def _refuse(self, request: DiameterMessage, code: int) -> list[Action]:
        return [Send(base.build_cea(request, self._identity, self._addresses, code)), *self._end(EndReason.REFUSED_BY_US, code)]

    def _open(self, peer: PeerCapabilities, common: frozenset[int], now: float) -> list[Action]:
        self.peer, self.applications = peer, common
        self.deadline = now + self._tw
        self._move(Input.CAPABLE_AFTER_FAILURE if self._after_failure else Input.CAPABLE)
        opened = Opened(peer, common, self.usable)
        return [opened] if self.usable else [opened, *self._watchdog()]

    def _again(self, message: DiameterMessage, now: float) -> list[Action]:
        """Answer a CER on a connection that is open (§5.6, I-Open); one of another name would be another peer."""
        del now
        try:
            same = self.peer is not None and base.parse_capabilities(message).origin_host == self.peer.origin_host
        except AvpFault:
            same = False
        return [Send(base.build_cea(message, self._identity, self._addresses))] if same else self._end(EndReason.OUT_OF_STEP)

    # ---- watchdog

    def _watchdog(self) -> list[Action]:
        self._pending = True
        return [self._numbered(base.build_dwr(self._identity))]

    def _silent(self) -> list[Action]:
        if self.state is State.REOPEN and self._answers >= 0:
            self._answers = -1  # RFC 3539: the first that is missed costs the count, the second the connection
            return []
        if self.state is State.OPEN:
            self._move(Input.SILENT)
            return [Suspended()]
        return self._end(EndReason.WATCHDOG)

    def _heard(self, now: float) -> list[Action]:
        if self.state is State.OPEN:
            self.deadline = now + self._tw
        elif self.state is State.SUSPECT:
            self._move(Input.HEARD)
            self.deadline = now + self._tw
            return [Resumed()]
        return []

    def _watchdog_request(self, message: DiameterMessage, now: float) -> list[Action]:
        del now
        return [Send(base.build_dwa(message, self._identity))]

    def _watchdog_answer(self, message: DiameterMessage, now: float) -> list[Action]:
        # Whatever its result and identifiers: that it came is all that counts, and a late one says as much.
        del message
        if not self._pending:
            return []
        self._pending = False
        if self.state is State.REOPEN:
            self._answers += 1
            if self._answers >= REOPEN_ANSWERS:
                self._move(Input.TRUSTED)
                self.deadline = now + self._tw
                return [Resumed()]
        return []

    # ---- disconnection

    def _disconnect_request(self, message: DiameterMessage, now: float) -> list[Action]:
        answer = Send(base.build_dpa(message, self._identity))
        if self.state is State.CLOSING:
            return [answer]  # both leave; our DPA, or the time, ends it
        self._cause = base.parse_dpr(message)
        return [answer, *self._closing(now)]

    def _disconnect_answer(self, message: DiameterMessage, now: float) -> list[Action]:
        del message, now
        # Only ours is answered: after the peer's DPR it is the peer who closes.
        return self._end(EndReason.DISCONNECTED) if self.state is State.CLOSING and self._cause is None else []

    def _closing(self, now: float) -> list[Action]:
        usable = self.usable
        self._move(Input.DISCONNECT)
        self.deadline = now + self._timers.disconnect
        return [Suspended()] if usable else []

    # ---- all else

    def _ignore(self, message: DiameterMessage, now: float) -> list[Action]:
        del message, now
        return []

    def _application(self, message: DiameterMessage) -> list[Action]:
        if not message.request:
            return [Deliver(message)] if message.application != base.BASE else []
        code = self._refusal(message)
        return [Send(base.error_answer(message, code, self._identity))] if code else [Deliver(message)]

    def _refusal(self, request: DiameterMessage) -> int:
        """Return why a request is not for us (§7.1.3), 0 if it is."""
        if request.error:
            return ResultCode.INVALID_HDR_BITS
        if request.application == base.BASE:
            return ResultCode.COMMAND_UNSUPPORTED
        if request.application not in self.applications:
            return ResultCode.APPLICATION_UNSUPPORTED
        # It is for another host or realm, and we are no relay (§6.1.4); or it crossed a DPR: so answered, the peer tries another at once.
        if not _is_for(self._identity.origin_realm, request.first(base.DESTINATION_REALM)):
            return ResultCode.REALM_NOT_SERVED
        ours = _is_for(self._identity.origin_host, request.first(base.DESTINATION_HOST))
        return 0 if ours and self.state is not State.CLOSING else ResultCode.UNABLE_TO_DELIVER

    def _numbered(self, request: DiameterMessage) -> Send:
        return Send(request.with_ids(self._identifiers.hop_by_hop(), self._identifiers.end_to_end()))

    def _end(self, reason: EndReason, code: int = 0, cause: DisconnectCause | None = None) -> list[Action]:
        self._move(Input.END)
        self.deadline = None
        return [Ended(reason, code, cause)]

    def _move(self, what: Input) -> None:
        try:
            self.state = TRANSITIONS[self.state, what]
        except KeyError:
            raise LocalProtocolError(f"{what.name} in {self.state.name}") from None


def _is_for(identity: str, destination: Avp | None) -> bool:
    """Tell whether a Destination-Host or -Realm names us, or nobody: identities are names of the DNS (§4.3.1)."""
    return destination is None or destination.data.lower().removesuffix(b".") == identity.lower().removesuffix(".").encode()


_BASE_COMMANDS: Final[dict[tuple[int, bool], Callable[[PeerMachine, DiameterMessage, float], list[Action]]]] = {
    (base.CAPABILITIES_EXCHANGE, True): PeerMachine._again,
    (base.CAPABILITIES_EXCHANGE, False): PeerMachine._ignore,
    (base.DEVICE_WATCHDOG, True): PeerMachine._watchdog_request,
    (base.DEVICE_WATCHDOG, False): PeerMachine._watchdog_answer,
    (base.DISCONNECT_PEER, True): PeerMachine._disconnect_request,
    (base.DISCONNECT_PEER, False): PeerMachine._disconnect_answer,
}
