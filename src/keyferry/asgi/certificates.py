# SPDX-License-Identifier: Apache-2.0
"""The certificates that users see at a door, as our client names them: SHA-256 over the DER (DESIGN §7).

What ends TLS reloads a renewed certificate by itself, and tells nobody. So a hash that is not known makes us look at the files again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable

from keyferry.errors import ConfigError

MAX_FILE = 1_048_576
"""Octets of a PEM file: a chain of some certificates has 10,000."""
READ_EVERY = 5.0
"""Seconds between two looks at the files, which whoever holds a key can cause: some 50 microseconds each."""
KEPT = 86_400.0
"""Seconds for which a renewed certificate's forerunner is taken, too: connections are older, and a server may load the new one late."""
MAX_KEPT = 32
"""Such forerunners."""

_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


class Certificates:
    """Tell whether a client saw one of our certificates: of files, which may be renewed at any time, and of hashes that stay."""

    def __init__(self, files: Iterable[str | os.PathLike[str]], hashes: Iterable[bytes], monotonic: Callable[[], float]) -> None:
        """Take PEM files, SHA-256 of further certificates, and what tells the time. Raises ConfigError."""
        if isinstance(files, str):
            raise ConfigError("SimLogin certificates", "is one text, not several paths", f'Write certificates=("{files}",)')
        self._files = tuple(files)
        fixed = tuple(hashes)
        if any(len(octets) != 32 for octets in fixed):
            raise ConfigError("SimLogin certificate_hashes", "not SHA-256 of a certificate, 32 octets")
        self._fixed = frozenset(map(_shown, fixed))
        self._current = {file: _shown(hash_of(file)) for file in self._files}
        self._former: dict[str, float] = {}  # until when; in the order of their ends
        self._unread: set[str | os.PathLike[str]] = set()  # of those, what could not be read at the last look
        self._monotonic = monotonic
        self._read = monotonic()

    def holds(self, shown: str) -> bool:
        """Tell whether this, SHA-256 in base64url, is of one of our certificates; an unknown one makes us read the files again."""
        if shown in self._fixed or shown in self._current.values():
            return True
        now = self._monotonic()
        if self._files and now - self._read >= READ_EVERY:
            self.read_again()
            if shown in self._current.values():
                return True
        return now < self._former.get(shown, now)

    def read_again(self) -> None:
        """Read the files; whoever connected before a renewal stays known."""
        now = self._read = self._monotonic()
        for file, before in self._current.items():
            try:
                found = _shown(hash_of(file))
            except ConfigError as problem:  # somebody is writing it: what we know stays, and the next look helps
                if file not in self._unread:
                    self._unread.add(file)
                    logging.getLogger("keyferry.asgi").warning("%s; the certificate that was there is still taken", problem)
                continue
            self._unread.discard(file)
            if found != before:
                self._current[file] = found
                self._former.pop(before, None)
                self._former[before] = now + KEPT
        while len(self._former) > MAX_KEPT or any(end <= now for end in self._former.values()):
            del self._former[next(iter(self._former))]


def hash_of(file: str | os.PathLike[str]) -> bytes:
    """Return the hash of the first certificate of a PEM file, which is the server's own. Raises ConfigError."""
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


def _shown(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=")
