# SPDX-License-Identifier: Apache-2.0
"""What both sides of Cx over Diameter have in common: Session-Ids, outcomes, metrics (RFC 6733 §8.8; TS 29.229 §6.2, Release 17)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from keyferry.errors import CxError, ParseError, TransportError
from keyferry.ports import Clock, Counter, Log, RandomSource
from keyferry.ports.correlation import correlation
from keyferry.ports.diameter import DiameterRemote
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import PRODUCT, SESSION_ID, ResultCode, session_id
from keyferry.protocol.diameter.message import AvpFault, DiameterMessage

T = TypeVar("T")

NAMES: Final = {
    cx.USER_AUTHORIZATION: "UAR", cx.SERVER_ASSIGNMENT: "SAR", cx.LOCATION_INFO: "LIR", cx.MULTIMEDIA_AUTH: "MAR",
    cx.REGISTRATION_TERMINATION: "RTR", cx.PUSH_PROFILE: "PPR",
}  # fmt: skip
"""Commands, as metrics and log name them."""
SUCCEEDED: Final = "SUCCESS"
CANCELLED: Final = "cancelled"
"""Who asked waits no longer."""
UNREADABLE: Final = "unreadable"
"""An answer that cannot be read, or is that of another user."""
_OF: Final = "icid="
_CORRELATED: Final = re.compile(rb"[^;]*;[0-9]+;[0-9]+;icid=([A-Za-z0-9._~\-]{1,64})")
_NUMBERED: Final = re.compile(rb"([^;]*);([0-9]{1,10});([0-9]{1,10})(?:;.*)?", re.DOTALL)
_KNOWN: Final = frozenset(code.name for codes in (ResultCode, cx.CxResult) for code in codes)


class Sessions:
    """Session-Ids of one node, rising: also after a restart, whose time is another, so that none comes again."""

    __slots__ = ("_number", "_origin_host")

    def __init__(self, origin_host: str, clock: Clock, random: RandomSource, start: int = 0) -> None:
        """Begin; `start` is higher at every start, whatever the clock says; 0: the clock's seconds."""
        self._origin_host = origin_host
        self._number = (start or int(clock.now())) << 32 | int.from_bytes(random.octets(4), "big")  # two starts in one second

    def next(self) -> str:
        """Return one; it says which registration the request belongs to, so that the HSS's log can."""
        self._number += 1
        known = correlation()
        return session_id(self._origin_host, self._number >> 32, self._number, f"{_OF}{known}" if known else "")


def order_of(request: DiameterMessage, peer: DiameterRemote) -> int:
    """Return a number that is higher in a later request of one node of ours; 0 for others' requests.

    RFC 6733 §8.8 only recommends Session-Ids that rise: those of stock Kamailio begin with chance at each start.
    """
    session = request.first(SESSION_ID)
    found = _NUMBERED.fullmatch(session.data) if session is not None and peer.product == PRODUCT else None
    if found is None or found[1].lower() != peer.origin_host.encode("ascii", "replace"):
        return 0
    return int(found[2]) << 32 | int(found[3])


def correlation_of(request: DiameterMessage) -> str:
    """Return which registration a request belongs to, "" if that is not said: how others' Session-Ids end is their affair."""
    session = request.first(SESSION_ID)
    found = _CORRELATED.fullmatch(session.data) if session is not None else None
    return found[1].decode("ascii") if found is not None else ""


def count_request(counter: Counter, command: str, outcome: str) -> None:
    """Count a request of Cx over Diameter, at either end."""
    counter.count("cx_requests", f"{command} {outcome}")


def outcome_of(problem: CxError | AvpFault) -> str:
    """Return the word for a refusal, out of a fixed set."""
    name = problem.name.removeprefix("DIAMETER_") if isinstance(problem, CxError) else _name_of(problem.code)
    return name if name in _KNOWN else "other"


async def exchanged(
    sending: Awaitable[DiameterMessage], read: Callable[[DiameterMessage], T], command: str, log: Log, counter: Counter
) -> T:
    """Wait for the answer to a request, read it, and count what came of it.

    Raises CxError: what the peer answered; UNABLE_TO_DELIVER where nobody did: it has not judged, and asking again may help;
    UNABLE_TO_COMPLY for an answer that `read` refuses with ParseError.
    """
    outcome = CANCELLED
    try:
        found = read(await sending)
        outcome = SUCCEEDED
        return found
    except TransportError as problem:
        log.warning("cx-unreachable", command=command, peer=problem.peer, problem=problem.problem)
        error = cx.error_for(ResultCode.UNABLE_TO_DELIVER)
        outcome = outcome_of(error)
        raise error from problem
    except CxError as problem:
        outcome = outcome_of(problem)
        raise
    except ParseError as problem:
        outcome = UNREADABLE
        log.warning("cx-answer-unreadable", command=command, problem=problem.problem)
        raise cx.error_for(ResultCode.UNABLE_TO_COMPLY) from problem
    finally:
        count_request(counter, command, outcome)


def _name_of(code: int) -> str:
    try:
        return ResultCode(code).name
    except ValueError:
        return "other"
