# SPDX-License-Identifier: Apache-2.0
"""The certificates that users see at a door, as our client names them: SHA-256 over the DER (DESIGN §7)."""

from __future__ import annotations

import binascii
import hashlib
import os
import re
from collections.abc import Iterable

from keyferry.errors import ConfigError

MAX_FILE = 1_048_576
"""Octets of a PEM file: a chain of some certificates has 10,000."""

_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


def hashes_of(files: Iterable[str | os.PathLike[str]]) -> tuple[bytes, ...]:
    """Return the hash of the first certificate of each PEM file, which is the server's own. Raises ConfigError."""
    if isinstance(files, str):
        raise ConfigError("SimLogin certificates", "is one text, not several paths", f'Write certificates=("{files}",)')
    return tuple(_hash_of(file) for file in files)


def _hash_of(file: str | os.PathLike[str]) -> bytes:
    try:
        with open(file, "rb") as opened:
            match = _FIRST.search(opened.read(MAX_FILE))
        der = binascii.a2b_base64(b"".join(match[1].split()), strict_mode=True) if match else b""
    except OSError as problem:
        raise ConfigError("SimLogin certificates", f"{os.fspath(file)} cannot be read: {problem.strerror}") from problem
    except ValueError:
        der = b""
    if not der:
        raise ConfigError("SimLogin certificates", f"{os.fspath(file)} holds no certificate", "Give the file that the server shows, in PEM")
    return hashlib.sha256(der).digest()
