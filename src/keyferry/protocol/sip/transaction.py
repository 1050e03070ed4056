# SPDX-License-Identifier: Apache-2.0
"""Non-INVITE transactions (RFC 3261 §17.1.2, §17.2.2, with RFC 4320 §4: no 100 sent early, no 408 at all).

A machine takes an input and `now` (seconds, any origin that never goes back) and returns effects for its shell to
carry out; `deadline` says when it wants `tick`. Nothing here sends.
"""

from __future__ import annotations

import hashlib
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import LocalProtocolError
from keyferry.protocol.sip.headers import Via
from keyferry.protocol.sip.message import Request, Response

MAGIC_COOKIE: Final = "z9hG4bK"
"""What the branch of an RFC 3261 element begins with (§8.1.1.7)."""
_RFC2543 = ("To", "From", "Call-ID", "CSeq")


class Timers(NamedTuple):
    """RFC 3261 table 4, seconds."""

    t1: float = 0.5  # round-trip estimate
    t2: float = 4.0  # longest interval between retransmissions
    t4: float = 5.0  # how long a message stays in the network
    f: float = 32.0  # how long a request waits for its answer: 64*T1, and less in a proxy, whose 504 loses the race else (RFC 4321 §1.1)

    @property
    def j(self) -> float:
        """How long a request may come again over UDP."""
        return 64 * self.t1


class State(Enum):
    """The states of figures 6 and 8."""

    TRYING = auto()
    PROCEEDING = auto()
    COMPLETED = auto()
    TERMINATED = auto()


class Input(Enum):
    """What can happen to a transaction."""

    REQUEST = auto()  # the request again, server only
    PROVISIONAL = auto()  # client: received; server: from the transaction user
    FINAL = auto()
    TIMER_E = auto()
    TIMER_F = auto()
    TIMER_J = auto()
    TIMER_K = auto()
    TRANSPORT_ERROR = auto()


CLIENT: Final = {  # RFC 3261 figure 6
    (State.TRYING, Input.TIMER_E): State.TRYING,
    (State.TRYING, Input.TIMER_F): State.TERMINATED,
    (State.TRYING, Input.TRANSPORT_ERROR): State.TERMINATED,
    (State.TRYING, Input.PROVISIONAL): State.PROCEEDING,
    (State.TRYING, Input.FINAL): State.COMPLETED,
    (State.PROCEEDING, Input.TIMER_E): State.PROCEEDING,
    (State.PROCEEDING, Input.TIMER_F): State.TERMINATED,
    (State.PROCEEDING, Input.TRANSPORT_ERROR): State.TERMINATED,
    (State.PROCEEDING, Input.PROVISIONAL): State.PROCEEDING,
    (State.PROCEEDING, Input.FINAL): State.COMPLETED,
    (State.COMPLETED, Input.PROVISIONAL): State.COMPLETED,  # buffered responses are absorbed for T4
    (State.COMPLETED, Input.FINAL): State.COMPLETED,
    (State.COMPLETED, Input.TRANSPORT_ERROR): State.COMPLETED,
    (State.COMPLETED, Input.TIMER_K): State.TERMINATED,
}

SERVER: Final = {  # RFC 3261 figure 8
    (State.TRYING, Input.REQUEST): State.TRYING,
    (State.TRYING, Input.PROVISIONAL): State.PROCEEDING,
    (State.TRYING, Input.FINAL): State.COMPLETED,
    (State.PROCEEDING, Input.REQUEST): State.PROCEEDING,
    (State.PROCEEDING, Input.PROVISIONAL): State.PROCEEDING,
    (State.PROCEEDING, Input.FINAL): State.COMPLETED,
    (State.PROCEEDING, Input.TRANSPORT_ERROR): State.TERMINATED,
    (State.COMPLETED, Input.REQUEST): State.COMPLETED,
    (State.COMPLETED, Input.PROVISIONAL): State.COMPLETED,  # "MUST be discarded while in the Completed state"
    (State.COMPLETED, Input.FINAL): State.COMPLETED,
    (State.COMPLETED, Input.TRANSPORT_ERROR): State.TERMINATED,
    (State.COMPLETED, Input.TIMER_J): State.TERMINATED,
}


class Transmit(NamedTuple):
    """Send the request, or the last response."""

    retransmission: bool


class Deliver(NamedTuple):
    """Pass a response to the transaction user."""

    response: Response


class Failed(NamedTuple):
    """Tell the transaction user that no final response came; `cause` is TIMER_F or TRANSPORT_ERROR."""

    cause: Input


Effect: TypeAlias = Transmit | Deliver | Failed


class ClientTransaction:
    """Send one request until a final response comes (RFC 3261 §17.1.2.2)."""

    __slots__ = ("_e", "_f", "_interval", "_k", "_timers", "reliable", "state")

    def __init__(self, *, reliable: bool, timers: Timers) -> None:
        self.reliable = reliable
        self.state = State.TRYING
        self._timers = timers
        self._interval = timers.t1
        self._e: float | None = None
        self._f: float | None = None
        self._k: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `tick` is wanted next."""
        if self._k is not None:
            return self._k
        if self._e is None or self._f is None:
            return self._f
        return min(self._e, self._f)

    def start(self, now: float) -> list[Effect]:
        """Send the request for the first time."""
        self._f = now + self._timers.f
        self._e = None if self.reliable else now + self._interval
        return [Transmit(retransmission=False)]

    def receive(self, response: Response, now: float) -> list[Effect]:
        """Take a response that matched (§17.1.3)."""
        before = self.state
        self._enter(Input.PROVISIONAL if response.status < 200 else Input.FINAL, now)
        return [] if before is State.COMPLETED else [Deliver(response)]

    def transport_failed(self, now: float) -> list[Effect]:
        """Take the report that the request could not be sent (§17.1.4)."""
        before = self.state
        self._enter(Input.TRANSPORT_ERROR, now)
        return [] if before is State.COMPLETED else [Failed(Input.TRANSPORT_ERROR)]

    def tick(self, now: float) -> list[Effect]:
        """Let the timers that are due fire."""
        if self._k is not None:
            if now >= self._k:
                self._enter(Input.TIMER_K, now)
            return []
        if self._f is not None and now >= self._f:
            self._enter(Input.TIMER_F, now)
            return [Failed(Input.TIMER_F)]
        if self._e is not None and now >= self._e:
            self._enter(Input.TIMER_E, now)
            return [Transmit(retransmission=True)]
        return []

    def _enter(self, what: Input, now: float) -> None:
        before, self.state = self.state, _next(CLIENT, self.state, what)
        if what is Input.TIMER_E:
            # doubling up to T2 in "Trying", always T2 in "Proceeding"
            t2 = self._timers.t2
            self._interval = t2 if self.state is State.PROCEEDING else min(2 * self._interval, t2)
            self._e = now + self._interval
        elif self.state is State.COMPLETED and before is not State.COMPLETED:
            self._e = self._f = None
            if self.reliable:
                self.state = State.TERMINATED  # timer K is 0
            else:
                self._k = now + self._timers.t4
        elif self.state is State.TERMINATED:
            self._e = self._f = self._k = None


class ServerTransaction:
    """Answer one request, and its retransmissions with the same octets (RFC 3261 §17.2.2)."""

    __slots__ = ("_j", "_timers", "last", "reliable", "state")

    def __init__(self, *, reliable: bool, timers: Timers) -> None:
        self.reliable = reliable
        self.state = State.TRYING
        self.last = b""  # the response to send, encoded
        self._timers = timers
        self._j: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `tick` is wanted next."""
        return self._j

    def retransmitted(self, now: float) -> list[Effect]:
        """Take the request again: silence while nothing was sent, else the last response."""
        self._enter(Input.REQUEST, now)
        return [] if self.state is State.TRYING else [Transmit(retransmission=True)]

    def respond(self, status: int, data: bytes, now: float) -> list[Effect]:
        """Send a response; `data` is the whole encoded message. After a final one, nothing more is sent."""
        before = self.state
        self._enter(Input.PROVISIONAL if status < 200 else Input.FINAL, now)
        if before is State.COMPLETED:
            return []
        self.last = data
        return [Transmit(retransmission=False)]

    def transport_failed(self, now: float) -> list[Effect]:
        """Take the report that the response could not be sent (§17.2.4)."""
        self._enter(Input.TRANSPORT_ERROR, now)
        return [Failed(Input.TRANSPORT_ERROR)]

    def tick(self, now: float) -> list[Effect]:
        """Let timer J fire if it is due."""
        if self._j is not None and now >= self._j:
            self._enter(Input.TIMER_J, now)
        return []

    def _enter(self, what: Input, now: float) -> None:
        before, self.state = self.state, _next(SERVER, self.state, what)
        if self.state is State.COMPLETED and before is not State.COMPLETED:
            if self.reliable:
                self.state = State.TERMINATED  # timer J is 0
            else:
                self._j = now + self._timers.j
        elif self.state is State.TERMINATED:
            self._j = None


def server_key(request: Request, via: Via, source: str, secret: bytes) -> int:
    """Return the 64-bit name of the server transaction a request belongs to (RFC 3261 §17.2.3).

    Branch, sent-by, method and the source address; for a branch without the magic cookie, or with nothing after it (RFC 4475 §3.2.1),
    what RFC 2543 compared instead. `secret` (at most 64 octets) makes the name unpredictable, so nobody can aim at another's.
    """
    if is_unique(via.branch):
        return key_of_branch(request.method, via, source, secret)
    return _key([*_parts(request.method, via, source), request.uri, *(request.get(name) or "" for name in _RFC2543)], secret)


def is_unique(branch: str) -> bool:
    """Tell whether a branch alone names a transaction."""
    return branch.startswith(MAGIC_COOKIE) and branch != MAGIC_COOKIE


def key_of_branch(method: str, via: Via, source: str, secret: bytes) -> int:
    """Return what `server_key` does for a request whose branch is unique."""
    return _key(_parts(method, via, source), secret)


def _parts(method: str, via: Via, source: str) -> list[str]:
    return [via.branch, via.host if via.port is None else f"{via.host}:{via.port}", method, source]


def _key(parts: list[str], secret: bytes) -> int:
    text = "\n".join(parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=secret).digest())


def _next(table: dict[tuple[State, Input], State], state: State, what: Input) -> State:
    after = table.get((state, what))
    if after is None:
        raise LocalProtocolError(f"{what.name} cannot happen to a transaction in {state.name}")
    return after
