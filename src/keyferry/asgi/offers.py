# SPDX-License-Identifier: Apache-2.0
"""What a door offers to whom: challenges composed from its key sources and the client's profile (RFC 7616 §3.3; DESIGN §7)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from keyferry.asgi.exchange import Header, Scope, headers_named
from keyferry.errors import ConfigError
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId, Impi, KeyId, Reg
from keyferry.protocol.ims.key_record import KeyRecord, Offer
from keyferry.protocol.ims.keys import MECHANISM

if TYPE_CHECKING:
    from keyferry.ports import KeySource
    from keyferry.protocol.crypto.secret import Secret

ALGORITHMS = ("SHA-256", "MD5")
PROFILES = ("token", "always", "never")

_GBA_TOKEN = re.compile(rb"(?i)(?<![\w-])3gpp-gba(?!\w)")
_KEY_ID = re.compile(r"[A-Za-z0-9_\-]{24}@[A-Za-z0-9.\-]{1,253}")
_IDENTIFIER = re.compile(r"[!#-\[\]-~]{1,253}")  # a B-TID is base64 "@" host; nothing that needs an escape, no white space
_FORBIDDEN_TO_HANDSETS = re.compile(r"[,\s\x00-\x1f]")


class Place(NamedTuple):
    """A key source at this door, and how its keys are proved by Digest."""

    source: KeySource
    offer: Offer
    algorithms: Mapping[str, str]  # lower case → as offered
    qop: tuple[str, ...]
    identifiers: re.Pattern[str]
    nobody: KeyRecord  # stands in for an unknown key, so that it costs as much as a known one


class Offers:
    """The key sources of one AS_ID by realm, and the challenges to send."""

    def __init__(
        self, as_id: AsId, sources: Sequence[KeySource], *, algorithms: Sequence[str], qop: Sequence[str], nobody: Secret, handsets: str
    ) -> None:
        """Take the sources in the order of their offers. `handsets` says who is taken for a phone: token, always, never.

        Raises ConfigError.
        """
        if handsets not in PROFILES:
            raise ConfigError("SimLogin handsets", f"not one of {', '.join(PROFILES)}")
        self._profile = handsets
        self.places: list[Place] = []
        self._by_realm: dict[str, Place] = {}
        for source in sources:
            offer = source.offer(as_id)
            if offer.handsets:
                _check_handset_realm(offer)
            place = Place(
                source,
                offer,
                {"md5": "MD5"} if offer.handsets else {name.lower(): name for name in algorithms},
                ("auth",) if offer.handsets else tuple(qop),
                _KEY_ID if offer.mechanism == MECHANISM else _IDENTIFIER,
                KeyRecord(KeyId("nobody"), as_id, Impi(""), Reg(""), (), nobody, 0.0, 0.0, superseded=False),
            )
            self.places.append(place)
            for realm in {offer.realm, *filter(None, offer.realm.split(";"))}:  # a phone answers with the list, or with the one it chose
                if self._by_realm.setdefault(realm, place) is not place:
                    raise ConfigError("SimLogin keys", f"two sources have the realm {realm}", "Give each a realm of its own")
        self._ordinary = any(not place.offer.handsets for place in self.places)

    def of_realm(self, realm: str) -> Place | None:
        """Return whose realm this is."""
        return self._by_realm.get(realm)

    def is_handset(self, scope: Scope) -> bool:
        """Tell whether a phone asks: it reads one challenge, and knows MD5 alone."""
        if self._profile == "token" and self._ordinary:
            return any(map(_GBA_TOKEN.search, headers_named(scope, b"user-agent")))
        return self._profile == "always" or not self._ordinary

    def challenges(self, nonce: str, *, handset: bool, stale: bool) -> list[Header]:
        """Return the challenges, the strongest algorithm first; to a phone at most one."""
        found = [
            digest.Challenge(place.offer.realm, nonce, algorithm, place.qop if algorithm != "MD5" else ("auth",), stale=stale)
            for name in ALGORITHMS
            for place in self.places
            if place.offer.handsets is handset and (algorithm := place.algorithms.get(name.lower()))
        ]
        return [(b"www-authenticate", digest.build_challenge(one).encode("ascii")) for one in (found[:1] if handset else found)]

    def serves(self, *, handset: bool) -> bool:
        """Tell whether there is anything to offer."""
        return any(place.offer.handsets is handset for place in self.places)


def _check_handset_realm(offer: Offer) -> None:
    """Phones strip all white space and split at every comma; `IMS-AS-key@` leads them to a password of their own."""
    if _FORBIDDEN_TO_HANDSETS.search(offer.realm) or offer.mechanism == MECHANISM or not offer.realm.isascii():
        raise ConfigError("SimLogin keys", "a realm for phones has a comma or white space, or is the one of pushed keys")
