# SPDX-License-Identifier: Apache-2.0
"""A cookie instead of Digest for some hours after a login (*ours*; RFC 6265bis names and attributes).

A session is no state of the door. It names a key, says until when, and is signed under that key: so every worker that
finds the key accepts it, and nothing else does. The key is looked for at each request; with the de-registration, or with the
first use of the key of a new registration, it is gone, and so are its sessions.
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from keyferry.asgi.exchange import Header, headers_named
from keyferry.errors import ConfigError

if TYPE_CHECKING:
    from keyferry.protocol.crypto.secret import Secret

NAME = b"__Host-keyferry"
"""A browser takes a cookie of such a name only over TLS, only from this very host, and for all its paths."""
SAME_SITE = ("Strict", "Lax", "None")
LIFETIME = 28_800.0
"""Seconds: a working day. A key lives 24 hours at most, and no session longer than its key."""
MAX_LIFETIME = 86_400.0
MAX_IDENTIFIER = 600
"""Octets of a key's name in a cookie: a key id has at most 278."""
MAX_COOKIES = 16_384
"""Octets of Cookie fields that are looked through."""

_LABEL = b"keyferry-session-1"
_MAC = 24  # octets of HMAC-SHA-256
_TIME = 6  # octets: milliseconds since the epoch
_B64 = r"[A-Za-z0-9_\-]"
_TOKEN = re.compile(
    rf"1\.({_B64}{{1,{4 * MAX_IDENTIFIER // 3}}})\.({_B64}{{{2 * _TIME * 4 // 3}}})\.({_B64}{{{_MAC * 4 // 3}}})".encode("ascii")
)


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """Settings of the session cookie: SimLogin(session=SessionCookie())."""

    lifetime: float = LIFETIME
    """Seconds from the login; the key's end comes first."""
    same_site: str = "Lax"
    """When a browser sends it from pages of other sites: "Strict" never, "Lax" for links, "None" always."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.lifetime <= MAX_LIFETIME:
            raise ConfigError("SessionCookie lifetime", f"not between 1 and {MAX_LIFETIME:.0f} seconds")
        if self.same_site not in SAME_SITE:
            raise ConfigError("SessionCookie same_site", f"{self.same_site!r} is none of {', '.join(SAME_SITE)}")

    def set(self, token: bytes, seconds: float) -> Header:
        """Return the Set-Cookie field that keeps a session for some seconds."""
        text = b"%s=%s; Path=/; Max-Age=%d; Secure; HttpOnly; SameSite=%s"
        return (b"set-cookie", text % (NAME, token, max(0, int(seconds)), self.same_site.encode("ascii")))

    def end(self) -> Header:
        """Return the Set-Cookie field that forgets the session."""
        return self.set(b"", 0.0)


class Session(NamedTuple):
    """What a cookie claims."""

    identifier: str  # of the key
    issued_ms: int
    expires_ms: int
    mac: bytes

    def holds(self, key: Secret, as_id: str, now: float) -> bool:
        """Tell whether the cookie was signed under this key for this AS, and is in its time, `now` in seconds since the epoch."""
        right = hmac.compare_digest(self.mac, _mac(key, as_id, self.identifier, _times(self.issued_ms, self.expires_ms)))
        # Whoever holds the key can sign what they like, but no longer life than a session may ever have.
        short = self.expires_ms - self.issued_ms <= MAX_LIFETIME * 1000
        return right and short and self.issued_ms <= now * 1000 + 60_000 and now * 1000 < self.expires_ms

    def young(self, now: float) -> bool:
        """Tell whether the session is in the first half of its life."""
        return 2 * now * 1000 < self.issued_ms + self.expires_ms


def sign(key: Secret, as_id: str, identifier: str, now: float, until: float) -> bytes:
    """Return the cookie of a session of the key `identifier`, times in seconds since the epoch; empty for a name too long for one."""
    name = identifier.encode("utf-8")
    if len(name) > MAX_IDENTIFIER:
        return b""
    times = _times(int(now * 1000), int(until * 1000))
    return b".".join((b"1", _text(name), _text(times), _text(_mac(key, as_id, identifier, times))))


def read(scope: Any) -> Session | None:
    """Return the session that a request names; None unless there is one alone and of the right form."""
    found: list[bytes] = []
    left = MAX_COOKIES
    for field in headers_named(scope, b"cookie"):
        left -= len(field)
        if left < 0:
            return None
        found += [value for name, _, value in (pair.strip().partition(b"=") for pair in field.split(b";")) if name == NAME]
    if len(found) != 1 or not (match := _TOKEN.fullmatch(found[0])):
        return None
    identifier, times, mac = (_octets(part) for part in match.groups())
    if identifier is None or times is None or mac is None:
        return None
    try:
        name = identifier.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return Session(name, int.from_bytes(times[:_TIME], "big"), int.from_bytes(times[_TIME:], "big"), mac)


def without_session(headers: list[Header]) -> list[Header]:
    """Return a request's fields without the session cookie: whoever sees it, such as a log of the application, could use it."""
    kept: list[Header] = []
    for name, value in headers:
        if name == b"cookie" and NAME in value:
            pairs = [pair.strip() for pair in value.split(b";")]
            value = b"; ".join(pair for pair in pairs if pair.partition(b"=")[0].strip() != NAME)
            if not value:
                continue
        kept.append((name, value))
    return kept


def _mac(key: Secret, as_id: str, identifier: str, times: bytes) -> bytes:
    text = b"\0".join((_LABEL, as_id.encode("utf-8"), identifier.encode("utf-8"), times))
    return hmac.digest(key.reveal(), text, "sha256")[:_MAC]


def _times(issued_ms: int, expires_ms: int) -> bytes:
    return issued_ms.to_bytes(_TIME, "big") + expires_ms.to_bytes(_TIME, "big")


def _text(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


def _octets(text: bytes) -> bytes | None:
    """Return what a text stands for, if it is the one text of it."""
    try:
        octets = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except ValueError:
        return None
    return octets if _text(octets) == text else None
