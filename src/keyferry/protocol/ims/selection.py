# SPDX-License-Identifier: Apache-2.0
"""Which S-CSCF serves a user: what UAR and UAA say of it (TS 29.228 §6.1.1, §6.7, Release 17); rendezvous hashing, *ours*.

Users are spread evenly. Where a server is added or taken away, only the users move whom it gets or had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from keyferry.protocol.identity import Impi


class AuthorizationType(IntEnum):
    """User-Authorization-Type (TS 29.229 §6.3.24)."""

    REGISTRATION = 0
    DE_REGISTRATION = 1
    REGISTRATION_AND_CAPABILITIES = 2


class UserAuthorization(NamedTuple):
    """A UAA: the S-CSCF assigned, or those that the I-CSCF may choose from."""

    server_name: str | None
    candidates: tuple[str, ...] = ()  # Server-Name values of Server-Capabilities, the preferred first; none: the I-CSCF knows one


def ranked(impi: Impi, servers: Sequence[str]) -> tuple[str, ...]:
    """Return the servers, by SIP URI, in this user's order of preference; the order given says nothing."""
    if len(servers) < 2:
        return tuple(servers)
    return tuple(sorted(servers, key=lambda server: hashlib.sha256(f"{server}\0{impi}".encode("utf-8", "surrogateescape")).digest()))
