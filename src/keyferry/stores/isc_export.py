# SPDX-License-Identifier: Apache-2.0
"""A file that carries ISC transport keys to another machine: lines `S-CSCF AS_ID kid base64(64 octets)`, the last of a pair seals."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from keyferry.errors import StateError
from keyferry.protocol.crypto.secret import Secret
from keyferry.stores.state_dir import TRANSPORT_KEY_OCTETS, TRANSPORT_KID, check_isc_names

MAX_FILE: Final = 262_144
"""Octets: five S-CSCFs with 64 AS_IDs each, two keys a pair."""
STREAM: Final = Path("-")
"""Standard output, or input: keys that go through a pipe lie on no disk."""
_HEAD: Final = "# ISC transport keys of keyferry, in clear: who has this file reads and makes pushes. Import it, then delete it.\n"

Exported: TypeAlias = Mapping[tuple[str, str], Mapping[str, Secret]]


def write_export(file: Path, exported: Exported) -> None:
    """Write a new file that this user alone may read, or to standard output. Raises StateError."""
    lines = [
        f"{scscf} {as_id} {kid} {base64.b64encode(key.reveal()).decode('ascii')}\n"
        for (scscf, as_id), keys in exported.items()
        for kid, key in keys.items()
    ]
    try:
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.dup(1) if file == STREAM else os.open(file, new, 0o600)
        with open(descriptor, "w", encoding="ascii") as opened:
            opened.write(_HEAD + "".join(lines))
            opened.flush()
            if file != STREAM:
                os.fsync(descriptor)
    except OSError as problem:
        raise StateError(str(file), f"cannot be written: {problem.strerror}", "Name a new file in a folder of your own") from problem


def read_export(file: Path) -> dict[tuple[str, str], dict[str, Secret]]:
    """Read such a file, or standard input. Raises StateError."""
    found: dict[tuple[str, str], dict[str, Secret]] = {}
    for number, line in enumerate(_read(file).splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        key = _key(fields[3]) if len(fields) == 4 else None
        if key is None or not TRANSPORT_KID.fullmatch(fields[2]) or fields[2] in found.get((fields[0], fields[1]), {}):
            raise StateError(str(file), f"line {number} is not S-CSCF, AS_ID, a new kid and base64 of 64 octets", "Export it again")
        check_isc_names(file, fields[0], fields[1])
        found.setdefault((fields[0], fields[1]), {})[fields[2]] = key
    if not found:
        raise StateError(str(file), "holds no key", "Export it again")
    return found


def _read(file: Path) -> str:
    try:
        with open(os.dup(0) if file == STREAM else os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
            mode = 0 if file == STREAM else stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            octets = opened.read(MAX_FILE + 1)
    except OSError as problem:
        raise StateError(str(file), f"cannot be read: {problem.strerror}", "Check its path, its owner and its mode") from problem
    if mode & 0o077:
        raise StateError(
            str(file), "may be read by other users", "Its keys may be known: delete it, rotate-isc, export again with umask 077"
        )
    if len(octets) > MAX_FILE:
        raise StateError(str(file), f"is longer than {MAX_FILE} octets", "Export fewer keys at once")
    return octets.decode("ascii", "replace")


def _key(text: str) -> Secret | None:
    try:
        key = Secret(binascii.a2b_base64(text.encode("ascii"), strict_mode=True))
    except ValueError:
        return None
    return key if len(key) == TRANSPORT_KEY_OCTETS else None
