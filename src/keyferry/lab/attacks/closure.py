# SPDX-License-Identifier: Apache-2.0
"""What can be computed from a view: the closure of its octets under every key derivation there is (DESIGN §5, S4; *ours*)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
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


def closure(view: View, world: World, *, depth: int = 1) -> set[bytes]:
    """Return every value that the derivations yield from a view, the view included.

    Any two of its values of 16 octets are tried as CK and IK, with every RAND and IMPI; any value of 32 octets as K_M, K_AS and K_UA.
    With a depth of 2 the halves of what came out are tried as CK and IK too. Guesses (RES by search) are no derivation.
    """
    known = set(view.octets)
    atoms = sorted(one for one in known if len(one) == 16)
    if len(atoms) > MAX_ATOMS:
        raise OverflowError("this view has more values of 16 octets than are tried")
    pairs = set(permutations(atoms, 2)) | _halves(known)
    rands = view.rands or {bytes(16)}
    for level in range(depth):
        made = _from_pairs(pairs, rands, world)
        if level:
            made |= _from_passwords(known, world)
        else:
            made |= _aka_v2(atoms, passwords=depth > 1)
        made -= known
        made |= _from_keys({one for one in known | made if len(one) == 32}, world)
        known |= made
        if len(known) > MAX_KNOWN:
            raise OverflowError("the closure of this view is larger than its bound")
        pairs = _halves(made)
    return known


def _halves(values: Iterable[bytes]) -> set[tuple[bytes, bytes]]:
    pairs = {(one[:16], one[16:]) for one in values if len(one) == 32}
    return pairs | {(right, left) for left, right in pairs}


def _from_pairs(pairs: set[tuple[bytes, bytes]], rands: set[bytes], world: World) -> set[bytes]:
    made: set[bytes] = set()
    for left, right in pairs:
        ck, ik = Secret(left), Secret(right)
        for rand in rands:
            for impi in world.impis:
                masked = access_keys(ck, ik, rand, impi)
                made |= {masked.ck.reveal(), masked.ik.reveal(), masked.ck.reveal() + masked.ik.reveal()}
                made.add(application_master_key(ck, ik, rand, impi).reveal())
    return made


def _from_keys(keys: set[bytes], world: World) -> set[bytes]:
    """Try every value of 32 octets as K_M, as K_AS and as K_UA."""
    made: set[bytes] = set()
    for octets in keys:
        key = Secret(octets)
        as_keys = [as_key(key, as_id) for as_id in world.as_ids]
        made.update(one.reveal() for one in as_keys)
        for k_as in (key, *as_keys):
            made.update(ua_key(k_as, ua_id).reveal() for ua_id in (UA_DIGEST, UA_TLS13_PSK))
        made.add(first_nonce(key).encode())
        made.add(digest_password(key).reveal())
        made.update(key_id(key, realm).encode() for realm in world.realms)
    return made


def _aka_v2(atoms: list[bytes], *, passwords: bool) -> set[bytes]:
    made: set[bytes] = set()
    for algorithm in ("AKAv2-MD5", "AKAv2-SHA-256"):
        for atom in atoms:
            made.update(one.reveal() for one in aka_v2_keys(algorithm, Secret(atom), Secret(atom)))
        for left, right in permutations(atoms, 2) if passwords else ():
            made.add(aka_v2_password(algorithm, Secret(left), Secret(left), Secret(right)).reveal())
    return made


def _from_passwords(known: set[bytes], world: World) -> set[bytes]:
    """Try values as Digest passwords of the users and of key ids: hashes are keys to somebody who confuses them."""
    made: set[bytes] = set()
    realms = (*world.realms, *(digest_realm(as_id) for as_id in world.as_ids))
    for octets in [one for one in known if len(one) in {8, 16, 32, 44}][: 64 * MAX_ATOMS]:
        for algorithm in ("AKAv1-MD5", "SHA-256"):
            for realm in realms:
                for user in world.impis:
                    made.add(bytes.fromhex(hash_a1(algorithm, user, realm, Secret(octets)).reveal().decode()))
    return made
