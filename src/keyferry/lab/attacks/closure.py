# SPDX-License-Identifier: Apache-2.0
"""What can be computed from a view: the closure of its octets under every key derivation there is (DESIGN §5, S4; *ours*)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import permutations
from typing import NamedTuple

from keyferry.errors import KeyferryError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import aka_v2_keys, aka_v2_password, hash_a1, parse_aka_nonce
from keyferry.protocol.identity import AsId, Impi
from keyferry.protocol.ims.keys import (
    UA_DIGEST,
    UA_TLS13_PSK,
    access_keys,
    application_master_key,
    as_key,
    digest_password,
    digest_realm,
    first_nonce,
    key_id,
    ua_key,
)
from keyferry.protocol.sip.message import Message

AUTHENTICATION = ("Authorization", "WWW-Authenticate", "Proxy-Authenticate", "Authentication-Info")
PARAMETER = re.compile(r'([A-Za-z]+)=(?:"([^"]{1,512})"|([^",\s]{1,512}))')
HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
MAX_KNOWN = 2_000_000  # values; a view of one registration yields some ten thousand
MAX_ATOMS = 64  # values of 16 octets that are tried as CK and IK, each with each


class World(NamedTuple):
    """The names that everybody knows."""

    impis: tuple[Impi, ...]
    as_ids: tuple[AsId, ...]
    realms: tuple[str, ...]


@dataclass(slots=True)
class View:
    """Everything that one party, or several together, saw or hold."""

    name: str
    octets: set[bytes] = field(default_factory=set)
    rands: set[bytes] = field(default_factory=set)

    def add(self, octets: bytes) -> None:
        """Add key material, and its parts of 16 and 32 octets."""
        self.octets.add(octets)
        for size in (16, 32):
            self.octets.update(octets[start : start + size] for start in range(0, len(octets) - size + 1, size))

    def add_value(self, value: str) -> None:
        """Add the value of a header parameter as text, and as what it may be the hex or the base64 of."""
        self.octets.add(value.encode())
        with suppress(ValueError, binascii.Error):  # text that encodes nothing
            self.add(bytes.fromhex(value) if HEX.fullmatch(value) else base64.b64decode(value, altchars=b"-_", validate=True))
        try:
            self.rands.add(parse_aka_nonce(value).rand)
        except KeyferryError:
            return

    def add_header(self, value: str) -> None:
        """Add every parameter of a header field value."""
        for _, quoted, bare in PARAMETER.findall(value):
            self.add_value(quoted or bare)

    def add_message(self, message: Message) -> None:
        """Add what a SIP message in clear tells about keys."""
        for name in AUTHENTICATION:
            for value in message.all(name):
                self.add_header(value)

    def __or__(self, other: View) -> View:
        return View(f"{self.name} + {other.name}", self.octets | other.octets, self.rands | other.rands)


def closure(view: View, world: World, *, depth: int = 1, keys_only: bool = False) -> set[bytes]:
    """Return every value that the derivations yield from a view, the view included.

    It is closed under the table: whatever follows from a value by a chain of derivations, each given the kind of key that it
    takes, is there. Of the view nobody knows what is what: any two of its values of 16 octets are tried as CK and IK, with every
    RAND and IMPI, any of 32 octets as every kind of key; so is what follows from CK, IK. A `depth` of n takes, n - 1 times,
    every result for a key of another kind too, its halves as CK and IK. Without that bound no closure ends: there is always
    the KDF of the last result. Halves of two results are not tried together. Guesses (RES by search) are no derivation.

    With `keys_only`, names, nonces and passwords, from which nothing follows, are left out: they are most of it.
    Raises OverflowError above MAX_ATOMS and MAX_KNOWN.
    """
    known = set(view.octets)
    atoms = sorted(one for one in known if len(one) == 16)
    if len(atoms) > MAX_ATOMS:
        raise OverflowError("this view has more values of 16 octets than are tried")
    closed = _Closed(world, view.rands or {bytes(16)}, known, keys_only)
    known |= _aka_v2(atoms, passwords=depth > 1)
    closed.close([*_confused(known), *((Kind.CK_IK, left + right) for left, right in permutations(atoms, 2))])
    known |= _from_passwords(view.octets, world)
    for _ in range(depth - 1):
        before = len(known)
        closed.close(list(_confused(known)))
        if len(known) == before:
            break
    return known


class Kind(Enum):
    """What a value is taken for; the rows of the table of keys (DESIGN §3)."""

    CK_IK = auto()
    K_M = auto()
    K_AS = auto()
    K_UA = auto()
    HALF = auto()  # CK' or IK' alone
    END = auto()  # a name, a nonce, a password: no key is derived from it


KEYS = (Kind.K_M, Kind.K_AS, Kind.K_UA)
Taken = tuple[Kind, bytes]


@dataclass(slots=True)
class _Closed:
    """A set of values, closed again after each addition."""

    world: World
    rands: set[bytes]
    known: set[bytes]
    keys_only: bool
    _taken: set[Taken] = field(default_factory=set)

    def close(self, waiting: list[Taken]) -> None:
        """Take values as what they are said to be, and all that follows."""
        while waiting:
            taken = waiting.pop()
            kind, octets = taken
            if kind is Kind.END and self.keys_only:
                continue
            self.known.add(octets)
            if len(self.known) > MAX_KNOWN:
                raise OverflowError("the closure of this view is larger than its bound")
            if kind in DERIVATIONS and taken not in self._taken and not (kind is Kind.K_UA and self.keys_only):
                self._taken.add(taken)
                waiting += DERIVATIONS[kind](octets, self.world, self.rands)


def _confused(values: Iterable[bytes]) -> Iterator[Taken]:
    for octets in values:
        if len(octets) == 32:
            yield from ((kind, octets) for kind in KEYS)
            yield from ((Kind.CK_IK, octets), (Kind.CK_IK, octets[16:] + octets[:16]))


def _of_ck_ik(octets: bytes, world: World, rands: set[bytes]) -> Iterator[Taken]:
    ck, ik = Secret(octets[:16]), Secret(octets[16:])
    for rand in rands:
        for impi in world.impis:
            masked = access_keys(ck, ik, rand, impi)
            yield from ((Kind.HALF, masked.ck.reveal()), (Kind.HALF, masked.ik.reveal()))
            both = masked.ck.reveal() + masked.ik.reveal()
            master = application_master_key(ck, ik, rand, impi).reveal()
            yield from ((kind, one) for kind in KEYS for one in (both, master))


def _of_k_m(octets: bytes, world: World, rands: set[bytes]) -> Iterator[Taken]:
    del rands
    return ((Kind.K_AS, as_key(Secret(octets), as_id).reveal()) for as_id in world.as_ids)


def _of_k_as(octets: bytes, world: World, rands: set[bytes]) -> Iterator[Taken]:
    del rands
    yield from ((Kind.K_UA, ua_key(Secret(octets), ua_id).reveal()) for ua_id in (UA_DIGEST, UA_TLS13_PSK))
    yield from ((Kind.END, key_id(Secret(octets), realm).encode()) for realm in world.realms)


def _of_k_ua(octets: bytes, world: World, rands: set[bytes]) -> Iterator[Taken]:
    del world, rands
    yield Kind.END, first_nonce(Secret(octets)).encode()
    yield Kind.END, digest_password(Secret(octets)).reveal()


DERIVATIONS = {Kind.CK_IK: _of_ck_ik, Kind.K_M: _of_k_m, Kind.K_AS: _of_k_as, Kind.K_UA: _of_k_ua}
"""The KDF table: what each kind of key yields."""


def _aka_v2(atoms: list[bytes], *, passwords: bool) -> set[bytes]:
    made: set[bytes] = set()
    for algorithm in ("AKAv2-MD5", "AKAv2-SHA-256"):
        for atom in atoms:
            made.update(one.reveal() for one in aka_v2_keys(algorithm, Secret(atom), Secret(atom)))
        for left, right in permutations(atoms, 2) if passwords else ():
            made.add(aka_v2_password(algorithm, Secret(left), Secret(left), Secret(right)).reveal())
    return made


def _from_passwords(known: set[bytes], world: World) -> set[bytes]:
    """Try the values of a view as Digest passwords of the users: hashes are keys to somebody who confuses them."""
    made: set[bytes] = set()
    realms = (*world.realms, *(digest_realm(as_id) for as_id in world.as_ids))
    for octets in [one for one in known if len(one) in {8, 16, 32, 44}][: 4 * MAX_ATOMS]:
        for algorithm in ("AKAv1-MD5", "SHA-256"):
            for realm in realms:
                for user in world.impis:
                    made.add(bytes.fromhex(hash_a1(algorithm, user, realm, Secret(octets)).reveal().decode()))
    return made
