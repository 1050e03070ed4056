# SPDX-License-Identifier: Apache-2.0
"""TLS with a ferried key instead of a certificate: the server's side (RFC 8446 §4.2.11, RFC 5489, RFC 7905; DESIGN §7).

OpenSSL asks for a key by calling back with a name that *anybody* may say, and the connection is proven only when its handshake has ended
in a certain way. So the callback yields a candidate, `do_handshake` decides, and nothing reads the candidate before.
The context has no certificate: with one, OpenSSL 3 answers a TLS 1.3 client that holds no key by the certificate, after it has called
back with that client's claim (`PskObject` refuses such a handshake all the same).
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from keyferry.errors import ConfigError, KeyferryError, ParseError
from keyferry.ports import Clock, Counter, KeySource, Log, RandomSource
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.key_record import KeyRecord, PskProof
from keyferry.protocol.ims.keys import UA_TLS13_PSK, parse_psk_identity, ua_key, ua_tls12_psk
from keyferry.protocol.repeats import Repeats
from keyferry.transports.clock import SystemClock, SystemRandom

PskVersion: TypeAlias = Literal["1.2", "1.3"]
DEFAULT_SUITE: Final = "ECDHE-PSK-CHACHA20-POLY1305"
"""Of TLS 1.2: forward secrecy, and no block cipher."""
HASH_13: Final = "_SHA256"
"""How the names of the suites of TLS 1.3 end that an external key goes with (RFC 8446 §4.2.11)."""
FULL: Final = 10
"""Refused handshakes of a minute that are logged one by one."""
VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_NAMES: Final = {"1.2": "TLSv1.2", "1.3": "TLSv1.3"}


def check_psk(where: str, python: tuple[int, ...] = sys.version_info[:3], *, has_psk: bool | None = None) -> None:
    """Refuse a Python whose `ssl` has no pre-shared keys. Raises ConfigError that says what to do."""
    if python < (3, 13):
        this = ".".join(map(str, python))
        remedy = "Run keyferry with Python 3.13 or newer, or leave TLS-PSK out: Digest over TLS with a certificate needs no newer one"
        raise ConfigError(where, f"TLS-PSK needs Python 3.13, and this is {this}", remedy)
    if not (getattr(ssl, "HAS_PSK", False) if has_psk is None else has_psk):
        raise ConfigError(where, f"{ssl.OPENSSL_VERSION} was built without pre-shared keys", "Use a Python with another OpenSSL")


def ua_id_of(version: PskVersion, suite: str) -> bytes:
    """Return the Ua id of a version, and of a suite of 1.2. Raises LocalProtocolError."""
    return UA_TLS13_PSK if version == "1.3" else ua_tls12_psk(suite)


class Found(NamedTuple):
    """A key that a client claims, and where it was found."""

    record: KeyRecord
    source: KeySource
    mechanism: str


class PskObject(ssl.SSLObject):
    """One connection: it notes itself while its handshake runs, so that the callback, which OpenSSL gives no connection, finds it."""

    proof: PskProof | None = None
    """Who is there; None until the handshake has shown it."""
    claimed: str | None = None
    """What the client said; anybody may say anything."""
    _found: Found | None = None
    _claims = 0

    def offered(self, claim: str, found: Found | None) -> None:
        """Take what the client claims, and the key that OpenSSL gets for it.

        A retried ClientHello claims again (RFC 8446 §4.1.2), the same of course; a client that claims several is nobody.
        """
        self._claims += claim != self.claimed
        self.claimed, self._found = claim, found

    def do_handshake(self) -> None:
        """Go on with the handshake; at its end decide who is there.

        Raises ssl.SSLError, also if the handshake ended and proved nothing: the connection is closed then.
        """
        context = self.context
        if not isinstance(context, PskContext):
            raise ssl.SSLError("a context without keys")
        door = context.door
        door.running.handshake = self
        try:
            super().do_handshake()
            self.proof = self._decide(door)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            door.refused(self.claimed)
            raise
        finally:
            door.running.handshake = None
        door.granted()

    def _decide(self, door: PskDoor) -> PskProof:
        found, cipher = self._found, self.cipher()
        suite = cipher[0] if cipher else ""
        if door.version == "1.3":
            used = self.session_reused is True and suite.endswith(HASH_13)  # what OpenSSL calls reused was a key, and there are no tickets
        else:
            used = not self.session_reused and suite == door.suite
        if found is None or not used or self._claims != 1 or self.version() != _NAMES[door.version]:
            raise ssl.SSLError("the handshake ended without a key that we know")
        return PskProof(found.record, found.mechanism, door.ua_id, suite)


class _Running(threading.local):
    """The handshake that this thread is inside of: OpenSSL calls back from there, and from nowhere else."""

    handshake: PskObject | None = None


@dataclass(frozen=True, slots=True)
class PskDoor:
    """What all connections of one listener share: whose keys it takes, and how."""

    as_id: AsId
    sources: Sequence[KeySource]
    random: RandomSource = field(default_factory=SystemRandom)
    counter: Counter = field(default_factory=lambda: _Silence())
    log: Log = field(default_factory=lambda: _Silence())
    version: PskVersion = "1.3"
    suite: str = DEFAULT_SUITE  # of TLS 1.2
    clock: Clock = field(default_factory=SystemClock)
    repeats: Repeats = field(default_factory=lambda: Repeats(full=FULL), repr=False)
    ua_id: bytes = field(init=False)
    by_prefix: Mapping[str, KeySource] = field(init=False, repr=False)
    running: _Running = field(default_factory=_Running, init=False, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the Ua id, and ask each source what its identities begin with."""
        object.__setattr__(self, "ua_id", ua_id_of(self.version, self.suite))
        object.__setattr__(self, "by_prefix", {source.offer(self.as_id).psk_prefix: source for source in self.sources})

    def key_for(self, claim: str | None) -> bytes:
        """Answer OpenSSL: a key for each claim, a useless one for who is unknown, so that he meets what a wrong key meets.

        Raises nothing: OpenSSL could not take it.
        """
        try:
            handshake = self.running.handshake
            found = self._find(claim or "")
            if handshake is not None:
                handshake.offered(claim or "", found)
            if found is None or handshake is None:
                return ua_key(Secret(self.random.octets(32)), self.ua_id).reveal()  # costs what a real one costs
            return found.source.protocol_key(found.record, self.ua_id).reveal()
        except KeyferryError:
            self.counter.count("tls_psk", "store")
        except Exception as problem:  # the shell's last line
            self.log.warning("psk-callback-failed", problem=type(problem).__name__)
        return self.random.octets(32)

    def granted(self) -> None:
        """Note a handshake that proved a key."""
        self.counter.count("tls_psk", "granted")
        self._tell_repeats()

    def refused(self, claim: str | None) -> None:
        """Note a handshake that failed: an unknown key, a wrong one, a wrong suite, and what is no TLS at all, alike.

        Anybody can make it fail, as often as they like, and OpenSSL gives us no address: so the first few of a minute are logged,
        of those that name a key and of those that do not, and later how many came after them.
        """
        self.counter.count("tls_psk", "refused")
        try:
            name = parse_psk_identity(claim or "").name
        except ParseError:
            name = ""
        self._tell_repeats()
        kind = ("named" if name else "nameless",)
        with self.lock:
            in_full = self.repeats.take(kind, kind, self.clock.now(), self.clock.monotonic())
        if in_full:
            self.log.warning("psk-refused", as_id=self.as_id, version=self.version, claimed=name)

    def _tell_repeats(self) -> None:
        """Log how many refusals of a minute that is over were not logged."""
        if self.repeats.next_at > (now := self.clock.monotonic()):
            return
        with self.lock:
            over = self.repeats.over(now)
        for (kind,), count, since, until in over:
            seconds = round(until - since, 1)
            self.log.warning("psk-refused-again", as_id=self.as_id, version=self.version, claims=kind, repeated=count, seconds=seconds)

    def _find(self, claim: str) -> Found | None:
        try:
            prefix, ua_id, name = parse_psk_identity(claim)
        except ParseError:
            return None
        source = self.by_prefix.get(prefix)
        if ua_id != self.ua_id or source is None:
            return None
        record = source.lookup_now(name, self.as_id)
        if record is None or record.as_id != self.as_id or record.key_id != name:
            return None
        return Found(record, source, source.offer(self.as_id).mechanism)


class _Silence:
    """Where nobody counts or logs."""

    def count(self, name: str, reason: str = "") -> None:
        """Count nothing."""

    def info(self, event: str, **fields: object) -> None:
        """Log nothing."""

    warning = info


class PskContext(ssl.SSLContext):
    """A server's context for one `PskDoor`: no certificate, no tickets, one version. Made by `psk_context`."""

    sslobject_class = PskObject
    door: PskDoor

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Begin a connection.

        In TLS 1.2 each has a context of its own (14 kB, some 100 µs): with its connection it is gone, and so is the session that OpenSSL
        would let a client resume without asking us who that is. Python can turn tickets off, and not that; in 1.3 there are tickets alone.
        """
        context = self if self.door.version == "1.3" else psk_context(self.door)
        return super(PskContext, context).wrap_bio(*arguments, **named)


def psk_context(door: PskDoor) -> PskContext:
    """Return a context for a listener that takes keys alone. Raises ConfigError where Python cannot."""
    check_psk(f"listen_psk{door.version.replace('.', '')} of {door.as_id}")
    context = PskContext(ssl.PROTOCOL_TLS_SERVER)
    context.door = door
    context.minimum_version = context.maximum_version = VERSIONS[door.version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    if door.version == "1.2":
        context.set_ciphers(door.suite)
    if sys.version_info >= (3, 13):  # written out: mypy reads it
        context.set_psk_server_callback(door.key_for, ";".join(door.by_prefix))
    return context
