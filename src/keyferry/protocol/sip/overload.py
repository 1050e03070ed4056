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
from keyferry.protocol.sip.names import KNOWN

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

_AUTHORIZATION = re.compile(rb"\r\nAuthorization[ \t]*+:((?:[^\r]++|\r\n[ \t])*+)", re.IGNORECASE)
_NONCE = re.compile(rb'(?<![A-Za-z0-9\-])nonce\s*+=\s*+"?([^"\s,]++)', re.IGNORECASE)
_PROTECTED = re.compile(rb'(?<![A-Za-z0-9\-])integrity-protected\s*+=\s*+"?yes(?![A-Za-z0-9\-])', re.IGNORECASE)


def is_initial_register(data: bytes) -> bool:
    """Tell whether a message is a REGISTER that answers no challenge: no Authorization with a nonce that is not empty.

    A re-registration with credentials, and one that reports a synchronisation failure (AUTS), is none. Looks at the header only, without
    parsing; what is not of the usual form counts as no initial REGISTER.
    """
    if not data.startswith(b"REGISTER "):
        return False
    end = data.find(b"\r\n\r\n") + 2
    return end > 1 and not any(_NONCE.search(row) for row in _authorizations(data, end))


def is_protected(data: bytes) -> bool:
    """Tell whether a P-CSCF says that a REGISTER came over security associations (TS 24.229 §7.2A.2); only a P-CSCF may be believed."""
    return any(_PROTECTED.search(row) for row in _authorizations(data, data.find(b"\r\n\r\n") + 2))


def _authorizations(data: bytes, end: int) -> Iterator[bytes]:
    rows = data[:end].lower().count(b"\r\nauthorization")
    start = data.find(b"\r\nAuthorization:", 0, end)
    usual = _AUTHORIZATION.match(data, start, end) if rows == 1 and start >= 0 else None
    for row in (usual,) if usual is not None else _AUTHORIZATION.finditer(data, 0, end) if rows else ():
        yield row.group(1)


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

    def answered_by(self, data: bytes) -> bool:
        """Tell whether a message is the first to answer a nonce that was issued, or the same octets again."""
        message = hash(data)
        for row in _authorizations(data, data.find(b"\r\n\r\n") + 2):
            found = _NONCE.search(row)
            if found is None:
                continue
            generation = self._nonces.generation(found.group(1))
            if generation.get(found.group(1), 0) in {None, message}:
                generation[found.group(1)] = message
                return True
        return False


# ---- how it is refused

_ECHOED: Final = {
    spelling: place
    for place, names in enumerate((("Via", "v"), ("From", "f"), ("To", "t"), ("Call-ID", "i"), ("CSeq",)))
    for name in names
    for spelling in (name.encode(), name.lower().encode())
}
_FOLDED: Final = (b" ", b"\t")
_USUAL: Final = frozenset(
    name.encode() for name in KNOWN if name.lower().encode() not in _ECHOED
)  # known not to be one of them, without looking
_TAG = re.compile(rb";\s*+tag\s*+=", re.IGNORECASE)
_TOP_VIA = re.compile(rb'SIP/2\.0/[A-Z]++ ([A-Za-z0-9.\-]++|\[[0-9A-Fa-f:.]++\])(?::([0-9]{1,5}))?+((?:;[^,;"\s]++)*+)(,.*+)?')
_VIA_ROW = re.compile(rb"\r\n(?:Via|v)[ \t]*+:[ \t]*+([^\r\n]*+)", re.IGNORECASE)
_RPORT = re.compile(rb";rport(?=;|$)", re.IGNORECASE)
_SET_BY_US = re.compile(rb";(?:received|rport)=", re.IGNORECASE)
_DEFAULT_PORT: Final = 5060


def first_via(data: bytes) -> str | None:
    """Return the first Via row of a message without parsing it, None where there is none."""
    row = _VIA_ROW.search(data)
    return row.group(1).decode("utf-8", "surrogateescape") if row is not None else None


class Refusal(NamedTuple):
    """A 503 and, over UDP, the port of the source address it goes to."""

    data: bytes
    port: int


def refusal(data: bytes, *, host: str, port: int, retry_after: int, key: bytes) -> Refusal | None:
    """Build the 503 to a REGISTER from `host`:`port` out of its own octets, for a third of what parsing costs.

    The same request always gets the same answer (RFC 3261 §8.2.7). Return None for what is not of the usual form: whoever asks goes the
    long way. `key`, at most 64 octets, makes the To tag unpredictable.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or len(data) > MAX_MESSAGE:
        return None
    head = data[:end]
    lines = head.split(b"\r\n")
    breaks = len(lines) - 1
    if breaks > MAX_HEADERS or head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head:
        return None
    if not head.startswith(b"REGISTER ") or not lines[0].endswith(b" SIP/2.0"):
        return None
    rows = _echoed(lines)
    if rows is None or not rows[0] or not len(rows[1]) == len(rows[2]) == len(rows[3]) == len(rows[4]) == 1:
        return None
    via = _routed(rows[0][0], host.encode(), port)
    if via is None:
        return None
    digest = hashlib.blake2b(b"\n".join((rows[1][0], rows[3][0], rows[4][0])), digest_size=8, key=key, person=b"shed")
    to = rows[2][0]
    if _TAG.search(to.rpartition(b">")[2]) is None:
        to += b";tag=" + digest.hexdigest().encode()
    seconds = retry_after + digest.digest()[0] % (retry_after + 1)
    last = b"Retry-After: %d\r\nContent-Length: 0\r\n\r\n" % seconds
    return Refusal(
        b"\r\n".join((b"SIP/2.0 503 Service Unavailable", via[0], *rows[0][1:], rows[1][0], to, rows[3][0], rows[4][0], last)), via[1]
    )


def _echoed(lines: list[bytes]) -> tuple[list[bytes], ...] | None:
    """Return the rows that a response repeats, Via first; None where a row is folded."""
    rows: tuple[list[bytes], ...] = ([], [], [], [], [])
    for line in lines:
        name = line.partition(b":")[0]
        place = _ECHOED.get(name)
        if place is None and name not in _USUAL:
            if name.startswith(_FOLDED):
                return None
            place = _ECHOED.get(name.rstrip(b" \t").lower())
        if place is not None:
            rows[place].append(line)
    return rows


def _routed(row: bytes, host: bytes, port: int) -> tuple[bytes, int] | None:
    """Note the source in the top Via (RFC 3261 §18.2.1; RFC 3581 §4); return it and the port the answer goes to."""
    name, _, value = row.partition(b":")
    found = _TOP_VIA.fullmatch(value.strip(b" \t"))
    if found is None:
        return None
    sent_by, sent_port, parameters, rest = found.groups()
    back = int(sent_port) if sent_port else _DEFAULT_PORT
    if _SET_BY_US.search(parameters) or back > 65_535:
        return None
    noted = _RPORT.sub(b";received=%b;rport=%d" % (host, port), parameters, count=1)
    if noted != parameters:
        back = port
    elif sent_by.strip(b"[]") != host:
        noted += b";received=" + host
    begin = value[: len(value) - len(value.lstrip(b" \t")) + found.start(3)]
    return name + b":" + begin + noted + (rest or b""), back
