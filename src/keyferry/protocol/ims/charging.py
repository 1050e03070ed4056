# SPDX-License-Identifier: Apache-2.0
"""P-Charging-Vector, as far as one id goes through all functions (RFC 7315 §4.6, §5.6; TS 24.229 §5.2.2.1, Release 17).

Every REGISTER has an icid-value of its own, as RFC 7315 §4.6 wants it unique. Those of our P-CSCF say, too, which of them are one
registration: what stands before the hyphen is random and the same for the first REGISTER and the answer to its challenge.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

ID_OCTETS: Final = 16
MAX_VECTOR: Final = 1_024
"""Characters of a header field that is looked at; a vector with all its parameters has some 300."""

_ICID = re.compile(r'(?:^|;)[ \t]*icid-value[ \t]*=[ \t]*(?:"([^"\\\x00-\x1f]*)"|([^\s;,"]+))', re.IGNORECASE)
_OUR_VECTOR = re.compile(r'icid-value="([0-9a-f]{32})-[1-9][0-9]{0,5}"')
_OURS = re.compile(r"([0-9a-f]{32})-[1-9][0-9]{0,5}")
_PLAIN = re.compile(r"[A-Za-z0-9._~\-]{1,64}")


class Icid(NamedTuple):
    """The icid-value of one REGISTER."""

    registration: str  # 32 hexadecimal digits: which registration it belongs to
    number: int  # of the REGISTER within it, from 1

    def __str__(self) -> str:
        return f"{self.registration}-{self.number}"

    def following(self) -> Icid:
        """Return the icid-value of the REGISTER that answers this one's challenge."""
        return Icid(self.registration, self.number + 1)


def first_icid(random: bytes) -> Icid:
    """Return the icid-value of a registration's first REGISTER; `random` are ID_OCTETS octets."""
    return Icid(random.hex(), 1)


def build_charging_vector(icid: Icid) -> str:
    """Return the value of P-Charging-Vector."""
    return f'icid-value="{icid}"'


def correlation_of(vector: str | None) -> str:
    """Return what all requests of a registration have in common in their P-Charging-Vector, "" without one.

    It goes into logs: an icid-value of another P-CSCF stays as it is where it is short and plain, else its hash stands for it.
    """
    mine = _OUR_VECTOR.fullmatch(vector) if vector is not None else None
    if mine is not None:  # the usual case, at a third of the time
        return mine[1]
    found = _ICID.search(vector) if vector is not None and len(vector) <= MAX_VECTOR else None
    if found is None:
        return ""
    value = found[1] or found[2] or ""
    ours = _OURS.fullmatch(value)
    if ours is not None:
        return ours[1]
    if not value or _PLAIN.fullmatch(value):
        return value
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:32]
