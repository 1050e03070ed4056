# SPDX-License-Identifier: Apache-2.0
"""When a registrar refuses new work, and how it says so for little (RFC 3261 §21.5.4; RFC 6357 §4).

A registration takes two REGISTERs. Once the first is challenged, work was spent that only the second turns into a registration,
so under load the first ones are refused and the second ones never: goodput stays where it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, Generic, NamedTuple, TypeVar

from keyferry.protocol.sip.grammar import MAX_HEADERS, MAX_MESSAGE

MAX_ISSUED: Final = 65_536
"""Nonces remembered, 20 MB: at 1,000 challenges a second, half a minute at least; what is forgotten may be refused under load."""
MAX_ISSUED_NONCE: Final = 256
"""Octets of a nonce that is remembered; those of AKA have 128 (DESIGN §4)."""
MAX_LET_IN: Final = 131_072
"""Messages remembered, 12 MB: at 2,000 a second, half a minute at least."""
RECENT: Final = 64.0
"""Seconds that nonces and messages are remembered at least, twice that at most: a UE answers at once and sends again for 32 s (Timer F)."""

K = TypeVar("K")
V = TypeVar("V")


class OverloadPolicy(NamedTuple):
    """When shedding begins and ends; delay is what a request waits before its handler begins."""

    delay_high: float = 0.05  # seconds; a tenth of T1, so nothing is sent twice because of us
    delay_low: float = 0.01  # seconds
    in_progress_high: int = 500  # requests
    in_progress_low: int = 250
    patience: float = 0.15  # seconds of strain before shedding: a pause of the interpreter, or of a busy machine, is no overload
    ease: float = 0.2  # seconds under the high marks that end shedding, low marks or not: other programs may keep the delay up
    memory: float = 2.0  # seconds after shedding in which it begins again at once
    retry_after: int = 5  # seconds at least, twice that at most: those refused together do not come back together


class Load(Enum):
    """The states of the control."""

    CALM = auto()
    STRAINED = auto()  # over a high mark, but not for long
    SHEDDING = auto()
    WARY = auto()  # shedding has just ended


class Level(Enum):
    """Where the measurements are."""

    LOW = auto()  # all under their low marks
    BETWEEN = auto()
    HIGH = auto()  # one over its high mark


_C, _T, _S, _W = Load.CALM, Load.STRAINED, Load.SHEDDING, Load.WARY
TRANSITIONS: Final[dict[tuple[Load, Level, bool], Load]] = {  # the last part: the state's time is over
    **{(_C, level, over): _C for level in (Level.LOW, Level.BETWEEN) for over in (False, True)},
    **{(_C, Level.HIGH, over): _T for over in (False, True)},
    **{(_T, level, over): _C for level in (Level.LOW, Level.BETWEEN) for over in (False, True)},
    (_T, Level.HIGH, False): _T,
    (_T, Level.HIGH, True): _S,  # after `patience`
    **{(_S, Level.HIGH, over): _S for over in (False, True)},
    (_S, Level.BETWEEN, False): _S,
    (_S, Level.BETWEEN, True): _W,  # after `ease`
    **{(_S, Level.LOW, over): _W for over in (False, True)},
    **{(_W, Level.HIGH, over): _S for over in (False, True)},
    **{(_W, level, False): _W for level in (Level.LOW, Level.BETWEEN)},
    **{(_W, level, True): _C for level in (Level.LOW, Level.BETWEEN)},  # after `memory`
}


class OverloadControl:
    """Decide from measurements whether new work is refused; `now` is in seconds of any origin that never goes back."""

    __slots__ = ("_policy", "_until", "shedding", "state")

    def __init__(self, policy: OverloadPolicy) -> None:
        self._policy = policy
        self._until = 0.0  # when the state's time is over
        self.state = Load.CALM
        self.shedding = False

    def observe(self, delay: float, in_progress: int, now: float) -> Load:
        """Take measurements, seconds and requests; return the state."""
        policy = self._policy
        if delay >= policy.delay_high or in_progress >= policy.in_progress_high:
            level = Level.HIGH
        elif delay <= policy.delay_low and in_progress <= policy.in_progress_low:
            level = Level.LOW
        else:
            level = Level.BETWEEN
        after = TRANSITIONS[self.state, level, now >= self._until]
        if after is not self.state or (after is Load.SHEDDING and level is Level.HIGH):
            self.state = after
            self.shedding = after is Load.SHEDDING
            self._until = now + self._lasting(after)
        return after

    def _lasting(self, state: Load) -> float:
        policy = self._policy
        return {Load.STRAINED: policy.patience, Load.SHEDDING: policy.ease, Load.WARY: policy.memory}.get(state, 0.0)


# ---- what may be refused

# a row of a name that begins as one of _PLACES does, the name, and what is odd after it: the next line goes on with it, or it holds what no
# header field may
_ROW = re.compile(rb"\r\n(((?:[VvFfTtIiAa]|[Cc][AaSs])[A-Za-z\-]*+)[ \t]*+:[^\r\n\0]*+)(\r\n[ \t]|\r(?!\n)|\n|\0)?+")
_FOLDED_AUTHORIZATION = re.compile(rb"\r\n(Authorization[ \t]*+:(?:[^\r]++|\r\n[ \t])*+)", re.IGNORECASE)
_NONCE = re.compile(rb'(?<![A-Za-z0-9\-])nonce\s*+=\s*+"?([^"\s,]++)', re.IGNORECASE)
_PROTECTED = re.compile(rb'(?<![A-Za-z0-9\-])integrity-protected\s*+=\s*+"?yes(?![A-Za-z0-9\-])', re.IGNORECASE)
_CONTACT = re.compile(rb"\r\n(?:Contact|m)[ \t]*+:\s*+([^\r]*+(?:\r\n[ \t][^\r]*+)*+)", re.IGNORECASE)
_CONTACT_EXPIRES = re.compile(rb';\s*+expires\s*+=\s*+"?([0-9]++)', re.IGNORECASE)
_EXPIRES = re.compile(rb"\r\nExpires[ \t]*+:\s*+([0-9]++)", re.IGNORECASE)
_NAMES: Final = (("Via", "v"), ("From", "f"), ("To", "t"), ("Call-ID", "i"), ("CSeq",), ("Authorization",))
_VIA, _FROM, _TO, _CALL_ID, _CSEQ, _AUTHORIZATION = range(len(_NAMES))
_PLACES: Final = {
    spelling: place for place, names in enumerate(_NAMES) for name in names for spelling in (name.encode(), name.lower().encode())
}


class Glance(NamedTuple):
    """What one look at a REGISTER finds, without parsing: its rows that a refusal repeats, and those that say whether it may be refused."""

    data: bytes
    rows: tuple[list[bytes], ...]  # name and value, by _NAMES
    odd: bool  # one of them goes on in the next line, or holds a lone CR or LF, or NUL

    @property
    def initial(self) -> bool:
        """Whether it answers no challenge: no Authorization with a nonce that is not empty. A re-registration with credentials does.

        So does one that reports a synchronisation failure (AUTS).
        """
        for row in self.rows[_AUTHORIZATION]:
            lower = row.lower()
            usual = b'nonce=""' in lower and lower.count(b"nonce") == 1
            if not usual and _NONCE.search(row):
                return False
        return True

    @property
    def protected(self) -> bool:
        """Whether a P-CSCF says that it came over security associations (TS 24.229 §7.2A.2); only a P-CSCF may be believed."""
        return any(_PROTECTED.search(row) for row in self.rows[_AUTHORIZATION])

    def nonces(self) -> Iterator[bytes]:
        """Return those that it answers."""
        return (found.group(1) for found in map(_NONCE.search, self.rows[_AUTHORIZATION]) if found is not None)


def glance(data: bytes) -> Glance | None:
    """Look at a message; return None for what is no REGISTER, or has no end of its header."""
    if not data.startswith(b"REGISTER "):
        return None
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    rows: tuple[list[bytes], ...] = ([], [], [], [], [], [])
    odd = False
    for row, name, after in _ROW.findall(data, 0, end):
        place = _PLACES.get(name)
        if place is None and (place := _PLACES.get(name.lower())) is None:
            continue
        rows[place].append(row)
        if after:
            odd = True
    if odd and rows[_AUTHORIZATION]:
        rows[_AUTHORIZATION][:] = _FOLDED_AUTHORIZATION.findall(data, 0, end)
    return Glance(data, rows, odd)


def deregisters(data: bytes) -> bool:
    """Tell without parsing whether a REGISTER ends registrations: Contact "*", or no seconds asked for (RFC 3261 §10.2.2)."""
    end = data.find(b"\r\n\r\n")
    contacts: list[bytes] = _CONTACT.findall(data, 0, end)
    if not contacts:
        return False
    if contacts[0].strip() == b"*":
        return True
    field = _EXPIRES.search(data, 0, end)
    asked = _CONTACT_EXPIRES.search(contacts[0].rpartition(b">")[2]) or field
    return asked is not None and not asked.group(1).strip(b"0")


class _Recent(Generic[K, V]):
    """What was put in a while ago at most: two generations, the older of which goes as a whole, since a time at each would cost as much."""

    __slots__ = ("_most", "_old", "_since", "_young")

    def __init__(self, most: int) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._since = 0.0  # when the young generation began
        self._most = most

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def put(self, key: K, value: V, now: float) -> None:
        if now - self._since >= RECENT or len(self._young) >= self._most // 2:
            self._old = self._young if now - self._since < 2 * RECENT else {}
            self._young, self._since = {}, now
        self._young[key] = value

    def generation(self, key: K) -> dict[K, V]:
        """Return where a key is, if it is anywhere."""
        return self._young if key in self._young else self._old

    def __contains__(self, key: K) -> bool:
        return key in self._young or key in self._old


class LetIn:
    """The messages that were let in, by hash: what is sent again has the same octets (RFC 3261 §17.1.2.2), so any other is new.

    To find out under load whether a message is new costs a tenth of what its transaction's name would.
    """

    def __init__(self, most: int = MAX_LET_IN) -> None:
        self._messages: _Recent[int, None] = _Recent(most)

    def __len__(self) -> int:
        return len(self._messages)

    def note(self, data: bytes, now: float) -> None:
        """Take a message that goes to its handler; the oldest go first."""
        self._messages.put(hash(data), None, now)

    def __contains__(self, data: bytes) -> bool:
        return hash(data) in self._messages


class IssuedNonces:
    """The nonces of the challenges that this node sent: whoever claims to answer another one answers nothing.

    Without this, a stranger writes some nonce into his first REGISTERs, none of them is refused, and those who were challenged wait
    behind them. Each nonce stands for one message, however often that is sent again.
    """

    def __init__(self, most: int = MAX_ISSUED) -> None:
        self._nonces: _Recent[bytes, int | None] = _Recent(most)  # which message answered it, by hash

    def __len__(self) -> int:
        return len(self._nonces)

    def issued(self, challenge: str, now: float) -> None:
        """Note the nonce of a WWW-Authenticate value that is sent; the oldest go first."""
        found = _NONCE.search(challenge.encode("utf-8", "surrogateescape"))
        if found is not None and len(found.group(1)) <= MAX_ISSUED_NONCE:
            self._nonces.put(found.group(1), None, now)

    def answered_by(self, seen: Glance) -> bool:
        """Tell whether a message is the first to answer a nonce that was issued, or the same octets again."""
        message = hash(seen.data)
        for nonce in seen.nonces():
            generation = self._nonces.generation(nonce)
            if generation.get(nonce, 0) in {None, message}:
                generation[nonce] = message
                return True
        return False


# ---- how it is refused

_TAG = re.compile(rb";\s*+tag\s*+=", re.IGNORECASE)
# sent-protocol and sent-by, then parameters up to rport, which asks for the port, and after it; what the next hop writes is not there
_TOP_VIA = re.compile(
    rb"([ \t]*+SIP/2\.0/[A-Z]++ ([A-Za-z0-9.\-]++|\[[0-9A-Fa-f:.]++\])(?::([0-9]{1,5}))?+(?:;(?!rport|received=)[^,;\"\s]++)*+)"
    rb"(;rport(?=[;,\s]|$))?+((?:;(?!rport|received=)[^,;\"\s]++)*+)(,.*+|[ \t]*+)",
    re.IGNORECASE,
)
_VIA_ROW = re.compile(rb"\r\n(?:Via|v)[ \t]*+:[ \t]*+([^\r\n]*+)", re.IGNORECASE)
_DEFAULT_PORT: Final = 5060


def first_via(data: bytes) -> str | None:
    """Return the first Via row of a message without parsing it, None where there is none."""
    row = _VIA_ROW.search(data)
    return row.group(1).decode("utf-8", "surrogateescape") if row is not None else None


class Refusal(NamedTuple):
    """A 503 and, over UDP, the port of the source address it goes to."""

    data: bytes
    port: int


def refusal(seen: Glance, *, host: str, port: int, retry_after: int, key: bytes) -> Refusal | None:
    """Build the 503 to a REGISTER from `host`:`port` out of its own octets, for a third of what parsing costs.

    The same request always gets the same answer (RFC 3261 §8.2.7). Return None for what is not of the usual form: whoever asks goes the
    long way. `key`, at most 64 octets, makes the To tag unpredictable.
    """
    data, rows, odd = seen
    if odd or not rows[_VIA] or not len(rows[_FROM]) == len(rows[_TO]) == len(rows[_CALL_ID]) == len(rows[_CSEQ]) == 1:
        return None
    if len(rows[_VIA]) > MAX_HEADERS or len(data) > MAX_MESSAGE or not data.startswith(b" SIP/2.0\r\n", data.find(b"\r\n") - 8):
        return None
    via = _routed(rows[_VIA][0], host.encode(), port)
    if via is None:
        return None
    name, to, call_id, cseq = rows[_FROM][0], rows[_TO][0], rows[_CALL_ID][0], rows[_CSEQ][0]
    digest = hashlib.blake2b(b"\n".join((name, call_id, cseq)), digest_size=8, key=key, person=b"shed")
    if _TAG.search(to, to.rfind(b">") + 1) is None:
        to += b";tag=" + digest.hexdigest().encode()
    seconds = retry_after + digest.digest()[0] % (retry_after + 1)
    last = b"Retry-After: %d\r\nContent-Length: 0\r\n\r\n" % seconds
    return Refusal(b"\r\n".join((b"SIP/2.0 503 Service Unavailable", via[0], *rows[_VIA][1:], name, to, call_id, cseq, last)), via[1])


def _routed(row: bytes, host: bytes, port: int) -> tuple[bytes, int] | None:
    """Note the source in the top Via (RFC 3261 §18.2.1; RFC 3581 §4); return it and the port the answer goes to."""
    found = _TOP_VIA.fullmatch(row, row.find(b":") + 1)
    if found is None:
        return None
    sent_by, sent_port, asked = found.group(2, 3, 4)
    back = int(sent_port) if sent_port else _DEFAULT_PORT
    if back > 65_535:
        return None
    if asked:
        begin, rest = found.span(4)
        return b"%b;received=%b;rport=%d%b" % (row[:begin], host, port, row[rest:]), port
    if sent_by.strip(b"[]") == host:
        return row, back
    return b"%b;received=%b%b" % (row[: found.end(5)], host, row[found.end(5) :]), back
