# SPDX-License-Identifier: Apache-2.0
"""Who a SIM says is here, in the shape that frameworks expect in `scope["user"]` and `scope["auth"]`."""

from __future__ import annotations

import base64
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from keyferry.errors import ConfigError, LocalProtocolError
from keyferry.protocol.crypto.secret import Secret

if TYPE_CHECKING:
    from keyferry.protocol.identity import AsId

SIM_SCOPE = "sim"
"""What `@requires("sim")` asks for: a key of a SIM was proven."""
MIN_USER_ID_KEY = 16
"""Octets: an IMPI made of an IMSI is one of ten thousand million, so an unkeyed or weakly keyed hash of it is as good as the IMPI."""

KNOWN_IDS = 16_384
"""Ids that are not computed again, about 300 octets each: an HMAC takes longer than the whole response's hash."""

_LABEL = b"keyferry-user-1"
_ID_OCTETS = 18  # 24 characters; two of a thousand million users share one with a chance below 10^-25


class SimUser:
    """A user whom a SIM vouches for; without `id` one who did not log in.

    `id` is one string per subscriber and application, the same after every registration and on every device; `identity` is
    Starlette's word for it. `public_identities` are SIP and tel URIs, the default first.
    """

    __slots__ = ("id", "public_identities")

    def __init__(self, id: str = "", public_identities: Sequence[str] = ()) -> None:
        self.id = id
        self.public_identities = list(public_identities)

    @property
    def is_authenticated(self) -> bool:
        """Tell whether somebody logged in."""
        return bool(self.id)

    @property
    def is_anonymous(self) -> bool:
        """Tell whether nobody logged in."""
        return not self.id

    @property
    def display_name(self) -> str:
        """Return the default public identity."""
        return self.public_identities[0] if self.public_identities else ""

    @property
    def identity(self) -> str:
        """Return `id`."""
        return self.id

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, SimUser) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"SimUser({self.id!r})"


class SimAuth:
    """What was proven, as Starlette's AuthCredentials says it."""

    __slots__ = ("scopes",)

    def __init__(self, *scopes: str) -> None:
        self.scopes = list(scopes)

    def __repr__(self) -> str:
        return f"SimAuth({', '.join(map(repr, self.scopes))})"


def user_of(scope: Any) -> SimUser:
    """Return who sent a request. Raises LocalProtocolError where no SimLogin stands in front, or something after it took its place."""
    user = scope.get("user")
    if not isinstance(user, SimUser):
        raise LocalProtocolError('no SimLogin has set scope["user"]: put the application behind it, with no other login in between')
    return user


@runtime_checkable
class NamesUsers(Protocol):
    """A source of keys that also keeps what user ids are made with: all workers share it, and it stays over a restart."""

    def user_id_key(self, as_id: AsId) -> Secret | None:
        """Return the key of the user ids at an AS; None if the source has none. Raises StoreError."""


def user_id(key: Secret, as_id: str, impi: str) -> str:
    """Return the opaque name of a subscriber at an AS: 24 characters of base64url.

    Two ASs get different names, and neither can go back to the IMPI nor see that both mean one subscriber.
    """
    text = b"\0".join((_LABEL, as_id.encode("utf-8"), impi.encode("utf-8")))
    return base64.urlsafe_b64encode(hmac.digest(key.reveal(), text, "sha256")[:_ID_OCTETS]).decode("ascii")


class UserIds:
    """Name the subscribers of one application."""

    def __init__(self, as_id: AsId, sources: Sequence[object], key: Secret | None = None) -> None:
        """Take the application's AS_ID, its sources of keys, and the key of the ids unless a source has it.

        Raises ConfigError where nothing can ever give that key.
        """
        if key is not None and len(key) < MIN_USER_ID_KEY:
            raise ConfigError("SimLogin user_id_key", f"shorter than {MIN_USER_ID_KEY} octets", "Draw 32 random octets once and keep them")
        self._as_id = as_id
        self._sources = [source for source in sources if isinstance(source, NamesUsers)]
        self._key = key
        self._known: OrderedDict[str, str] = OrderedDict()
        if key is None and not self._sources:
            raise ConfigError(
                "SimLogin user_id_key",
                "is needed, as no source of keys keeps one",
                "Draw 32 random octets once, keep them as secretly as the keys, and give them to every worker",
            )

    def of(self, impi: str) -> str:
        """Return the id of a subscriber. Raises ConfigError, StoreError."""
        known = self._known.get(impi)
        if known is not None:
            self._known.move_to_end(impi)
            return known
        key = self._key
        if key is None:
            key = self._key = self._from_sources()
        new = self._known[impi] = user_id(key, self._as_id, impi)
        if len(self._known) > KNOWN_IDS:
            self._known.popitem(last=False)
        return new

    def _from_sources(self) -> Secret:
        for source in self._sources:
            key = source.user_id_key(self._as_id)
            if key is not None and len(key) >= MIN_USER_ID_KEY:
                return key
        raise ConfigError(
            "SimLogin user_id_key", "is needed, as no source of keys has one for this AS_ID", "Give 32 random octets that stay"
        )
