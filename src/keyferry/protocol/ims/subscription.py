# SPDX-License-Identifier: Apache-2.0
"""Subscriptions to an event package: dialog and machines (RFC 6665 §4; RFC 3261 §12), who may have one (TS 24.229 §5.4.2.1.1, Release 17).

Nothing here sends or reads a clock; `now` and lifetimes are seconds. Messages are in `subscribe.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Literal, NamedTuple, TypeAlias

from keyferry.errors import LocalProtocolError, ParseError, RemoteProtocolError
from keyferry.protocol.identity import Impu, parse_impu
from keyferry.protocol.sip.headers import parse_name_addr, parse_name_addr_list
from keyferry.protocol.sip.uri import SipUri, parse_sip_uri

TIMER_N: Final = 32.0
"""Seconds that a subscriber waits for the first NOTIFY: 64*T1 (RFC 6665 §4.1.2.4)."""
ENDING_STATUSES: Final = frozenset({404, 405, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604})
"""Answers inside the dialog that end the subscription (RFC 6665 §4.1.2.2, §4.2.2; RFC 5057 §5.1); 408 does too."""
DEFAULT_RETRY: Final = 60.0
"""Seconds before a new try where the notifier says "later" and not when."""


class State(Enum):
    """The states of RFC 6665 figures 1 and 2."""

    NOTIFY_WAIT = auto()  # subscriber: no NOTIFY yet
    PENDING = auto()  # subscriber: the notifier has not decided; ours decides at once
    ACTIVE = auto()
    TERMINATED = auto()


class Input(Enum):
    """What can happen to a subscription."""

    REFRESHED = auto()  # a SUBSCRIBE in the dialog, accepted; for the subscriber its 2xx
    UNSUBSCRIBED = auto()  # notifier: Expires 0
    EXPIRED = auto()
    RESOURCE_GONE = auto()  # notifier: there is nothing left to tell of
    NOTIFY_TAKEN = auto()  # notifier: 2xx
    NOTIFY_FAILED = auto()  # notifier: another answer, the subscription stays
    NOTIFY_REFUSED = auto()  # notifier: 481 and its like
    NOTIFY_TIMEOUT = auto()  # notifier: no answer, or 408
    NOTIFIED_PENDING = auto()  # subscriber: Subscription-State of a NOTIFY
    NOTIFIED_ACTIVE = auto()
    NOTIFIED_TERMINATED = auto()
    SUBSCRIBE_FAILED = auto()  # subscriber: an answer, or none, that leaves the subscription as it is
    SUBSCRIBE_REFUSED = auto()  # subscriber: 481 and its like
    TIMER_N = auto()  # subscriber


Transitions: TypeAlias = dict[tuple[State, Input], State]

NOTIFIER: Final[Transitions] = {  # RFC 6665 figure 2, without the wait for a decision
    (State.ACTIVE, Input.REFRESHED): State.ACTIVE,
    (State.ACTIVE, Input.UNSUBSCRIBED): State.TERMINATED,
    (State.ACTIVE, Input.EXPIRED): State.TERMINATED,
    (State.ACTIVE, Input.RESOURCE_GONE): State.TERMINATED,
    (State.ACTIVE, Input.NOTIFY_TAKEN): State.ACTIVE,
    (State.ACTIVE, Input.NOTIFY_FAILED): State.ACTIVE,
    (State.ACTIVE, Input.NOTIFY_REFUSED): State.TERMINATED,
    (State.ACTIVE, Input.NOTIFY_TIMEOUT): State.TERMINATED,
    (State.TERMINATED, Input.NOTIFY_TAKEN): State.TERMINATED,  # the last NOTIFY is answered after the end
    (State.TERMINATED, Input.NOTIFY_FAILED): State.TERMINATED,
    (State.TERMINATED, Input.NOTIFY_REFUSED): State.TERMINATED,
    (State.TERMINATED, Input.NOTIFY_TIMEOUT): State.TERMINATED,
}


def _subscriber() -> Iterator[tuple[tuple[State, Input], State]]:
    for state in (State.NOTIFY_WAIT, State.PENDING, State.ACTIVE):
        yield (state, Input.REFRESHED), state
        yield (state, Input.SUBSCRIBE_FAILED), state
        yield (state, Input.NOTIFIED_PENDING), State.PENDING
        yield (state, Input.NOTIFIED_ACTIVE), State.ACTIVE
        yield (state, Input.NOTIFIED_TERMINATED), State.TERMINATED
        yield (state, Input.SUBSCRIBE_REFUSED), State.TERMINATED
        yield (state, Input.EXPIRED), State.TERMINATED
    yield (State.NOTIFY_WAIT, Input.TIMER_N), State.TERMINATED


SUBSCRIBER: Final[Transitions] = dict(_subscriber())  # RFC 6665 figure 1


@dataclass(frozen=True, slots=True)
class Subscription:
    """One side's view of a subscription and its dialog.

    Before the dialog is there, `remote_tag` is "", `remote_target` the resource and `route_set` the preloaded Route.
    """

    state: State
    call_id: str
    local_uri: str
    local_tag: str
    remote_uri: str
    remote_tag: str
    remote_target: str  # a SIP URI
    route_set: tuple[str, ...]  # name-addrs, the next hop first; each is taken for a loose router
    cseq: int  # of our last request
    remote_cseq: int  # of the peer's last request, -1 if there was none
    event_id: str | None  # the `id` of Event
    expires_at: float
    version: int  # of the last document sent or taken, -1 for none

    @property
    def next_hop(self) -> str:
        """The SIP URI that a request in the dialog goes to (RFC 3261 §12.2.1.1)."""
        return parse_name_addr(self.route_set[0]).uri if self.route_set else self.remote_target


def advance(table: Transitions, subscription: Subscription, what: Input) -> Subscription:
    """Return the subscription after an input; a pair that is not in the table is our bug. Raises LocalProtocolError."""
    after = table.get((subscription.state, what))
    if after is None:
        raise LocalProtocolError(f"{what.name} cannot happen to a subscription in {subscription.state.name}")
    return subscription if after is subscription.state else replace(subscription, state=after)


def check_order(subscription: Subscription, cseq: int) -> bool:
    """Tell whether a request in the dialog is new; false for the last one again.

    Raises RemoteProtocolError 500 for one that was overtaken (RFC 3261 §12.2.2).
    """
    if cseq < subscription.remote_cseq:
        raise RemoteProtocolError("a request that a later one has overtaken", status=500)
    return cseq > subscription.remote_cseq


# ---- what answers mean


def notify_outcome(status: int) -> Input:
    """Judge the answer to a NOTIFY (RFC 6665 §4.2.2)."""
    if 200 <= status < 300:
        return Input.NOTIFY_TAKEN
    if status == 408:
        return Input.NOTIFY_TIMEOUT
    return Input.NOTIFY_REFUSED if status in ENDING_STATUSES else Input.NOTIFY_FAILED


def refresh_outcome(status: int) -> Input:
    """Judge the answer to a SUBSCRIBE in the dialog (RFC 6665 §4.1.2.2)."""
    if 200 <= status < 300:
        return Input.REFRESHED
    return Input.SUBSCRIBE_REFUSED if status in ENDING_STATUSES else Input.SUBSCRIBE_FAILED


def may_come_back(status: int) -> bool:
    """Tell whether a refused SUBSCRIBE is worth another try: the S-CSCF lost its memory, or has trouble of its own."""
    return status in {408, 481} or 500 <= status < 600


def resubscribe_after(reason: str | None, retry_after: int | None) -> float | None:
    """Return the seconds after which a subscriber may ask again, None for never (RFC 6665 §4.1.3)."""
    if reason in {"rejected", "noresource", "invariant"}:
        return None
    if reason in {"deactivated", "timeout"}:
        return 0.0
    return DEFAULT_RETRY if retry_after is None else float(retry_after)


def refresh_after(granted: float) -> float:
    """Return the seconds to the refresh: 600 before the end, or at half the time where under 1,200 were granted (TS 24.229 §5.1.1.3)."""
    return granted - 600 if granted > 1200 else granted / 2


# ---- who may subscribe


class Watcher(NamedTuple):
    """Who subscribes, in which capacity."""

    kind: Literal["user", "pcscf", "as"]
    name: str  # "" for the user, else a SIP URI out of Path or of the filter criteria


def authorised(asserted: Sequence[str], *, impus: Collection[Impu], paths: Sequence[str], servers: Collection[str]) -> Watcher | None:
    """Decide who may subscribe to a user's registration state, None for nobody (TS 24.229 §5.4.2.1.1 step 1).

    `asserted` are the URIs of P-Asserted-Identity, from a peer in the trust domain; `impus` the user's that are not barred, `paths` the
    Path values of the registrations, `servers` the ServerNames of the filter criteria.
    """
    known = [Watcher("pcscf", hop) for path in paths for hop in _path(path)] + [Watcher("as", server) for server in servers]
    for text in asserted:
        if _impu(text) in impus:
            return Watcher("user", "")
        claimed = _sip_uri(text)
        found = None if claimed is None else next((watcher for watcher in known if _same_element(claimed, watcher.name)), None)
        if found is not None:
            return found
    return None


def _impu(text: str) -> Impu | None:
    try:
        return parse_impu(text)
    except ParseError:
        return None


def _sip_uri(text: str) -> SipUri | None:
    try:
        return parse_sip_uri(text)
    except ParseError:
        return None


def _path(text: str) -> list[str]:
    try:
        return [address.uri for address in parse_name_addr_list(text)]
    except ParseError:
        return []


def _same_element(claimed: SipUri, listed: str) -> bool:
    """Compare what names an element; a Path may carry a token as its user, which the element itself does not state."""
    uri = _sip_uri(listed)
    if uri is None or claimed.host != uri.host or claimed.user not in {None, uri.user}:
        return False
    return claimed.port is None or claimed.port == uri.port
