# SPDX-License-Identifier: Apache-2.0
"""Look for keys in octets: raw, hexadecimal, base64 and base64url at every alignment."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

SHORTEST = 8  # octets; RES. Anything shorter is found by chance


def forms(key: bytes) -> list[bytes]:
    """Return what to look for: a key inside a longer base64 text begins at one of three places of a group of four characters."""
    found = [key, key.hex().encode(), key.hex().upper().encode()]
    for before in range(3):
        text = base64.b64encode(bytes(before) + key)
        head = (0, 2, 3)[before]  # characters that the octets before have a share in
        tail = len(text) - (0, 3, 2)[(before + len(key)) % 3]  # and those that octets behind would have
        found += [text[head:tail], text[head:tail].translate(bytes.maketrans(b"+/", b"-_"))]
    return [form for form in dict.fromkeys(found) if len(form) >= SHORTEST]


class KeySearch:
    """The keys in play, and a search for them."""

    def __init__(self, keys: Iterable[tuple[str, bytes]]) -> None:
        self._forms: list[tuple[str, bytes]] = []
        for name, key in keys:
            if len(key) >= SHORTEST:
                self._forms += [(name, form) for form in forms(key)]

    def __len__(self) -> int:
        return len(self._forms)

    def in_octets(self, where: str, octets: bytes) -> list[str]:
        """Return `where: name` for each key found; never the key."""
        return sorted({f"{where}: {name}" for name, form in self._forms if form in octets})

    def in_files(self, folder: Path, *, leave_out: frozenset[str] = frozenset()) -> list[str]:
        """Search every file below a folder, except those named."""
        found: list[str] = []
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in leave_out:
                found += self.in_octets(name, path.read_bytes())
        return found
