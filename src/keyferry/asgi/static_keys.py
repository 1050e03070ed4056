# SPDX-License-Identifier: Apache-2.0
"""A key source of keys that somebody wrote down: for tests of phones, until GBA brings theirs (DESIGN §7). Not for users of a network."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from keyferry.errors import ConfigError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg, parse_impi, parse_impu
from keyferry.protocol.ims.key_record import KeyRecord, Offer

MECHANISM: Final = "static"
PREFIX: Final = "3GPP-bootstrapping"
"""Of realm and PSK identity: without it in the realm a phone does not think of GBA (TS 24.109 §5.2, TS 33.222 §5.4)."""
MAX_FILE: Final = 1_000_000
MIN_KEY: Final = 16
"""Octets."""
FOR_EVER: Final = 253_402_300_799.0


class StaticKey(NamedTuple):
    """One key, as Ks_NAF would be: Digest's password is base64 of it."""

    identifier: str  # what a phone calls its B-TID
    key: Secret
    impi: Impi
    impus: tuple[Impu, ...]  # the default first


class StaticKeys:
    """Keys that never change, the same for every Ua security protocol, offered to phones: alone, and with MD5."""

    def __init__(self, keys: Iterable[StaticKey], *, realm: str = "") -> None:
        """Take the keys, and the realm if it is not `3GPP-bootstrapping@` AS_ID; one with ";" lets a phone choose."""
        self._keys: Mapping[str, StaticKey] = {key.identifier: key for key in keys}
        self._realm = realm

    def offer(self, as_id: AsId) -> Offer:
        """Return what phones are offered."""
        return Offer(MECHANISM, self._realm or f"{PREFIX}@{as_id}", PREFIX, handsets=True)

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Return the record if there is one."""
        return self.lookup_now(identifier, as_id)

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Do the same without waiting."""
        found = self._keys.get(identifier)
        if found is None:
            return None
        return KeyRecord(KeyId(identifier), as_id, found.impi, Reg(MECHANISM), found.impus, found.key, 0.0, FOR_EVER, superseded=False)

    def protocol_key(self, record: KeyRecord, ua_id: bytes) -> Secret:
        """Return the key itself."""
        del ua_id
        return record.k_as

    async def used(self, record: KeyRecord) -> None:
        """Do nothing: no key ends another."""


def load_static_keys(path: Path) -> StaticKeys:
    """Read `realm = "…"` (may be absent) and `[[keys]]` with `identifier`, `key` in hexadecimal, `impi` and `impus`.

    Raises ConfigError, also for a file that others may read.
    """
    where = str(path)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(where, "others may read these keys", f"chmod 600 {path}")
        text = path.read_bytes()
        if len(text) > MAX_FILE:
            raise ConfigError(where, f"is over {MAX_FILE} octets")
        content = tomllib.loads(text.decode())
    except OSError as problem:
        raise ConfigError(where, f"cannot be read: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(where, "is not TOML") from None  # what it says may be a key
    _check_names(where, content, {"realm", "keys"})
    realm, entries = content.get("realm", ""), content.get("keys")
    if not isinstance(realm, str) or not isinstance(entries, list) or not entries:
        raise ConfigError(where, "needs [[keys]], and a realm that is a string if there is one")
    keys = [_key(f"{where}: keys[{place}]", entry) for place, entry in enumerate(entries)]
    if len({key.identifier for key in keys}) < len(keys):
        raise ConfigError(where, "has an identifier twice")
    return StaticKeys(keys, realm=realm)


def _key(where: str, entry: Any) -> StaticKey:
    if not isinstance(entry, dict):
        raise ConfigError(where, "is not a table")
    _check_names(where, entry, {"identifier", "key", "impi", "impus"})
    identifier, impus = entry.get("identifier"), entry.get("impus")
    if not isinstance(identifier, str) or not identifier or not isinstance(impus, list) or not impus:
        raise ConfigError(where, "needs identifier, key, impi and impus")
    try:
        octets = bytes.fromhex(entry.get("key", ""))
        impi, names = parse_impi(entry.get("impi", "")), tuple([parse_impu(impu) for impu in impus])
    except ParseError as problem:
        raise ConfigError(where, str(problem)) from problem
    except (TypeError, ValueError):
        raise ConfigError(where, "key is not hexadecimal, or impi and impus are not strings") from None
    if len(octets) < MIN_KEY:
        raise ConfigError(f"{where}.key", f"has fewer than {MIN_KEY} octets")
    return StaticKey(identifier, Secret(octets), impi, names)


def _check_names(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(table) - known):
        raise ConfigError(where, f"has an unknown key {unknown[0]!r}", f"Known are {', '.join(sorted(known))}")
