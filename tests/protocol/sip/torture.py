# SPDX-License-Identifier: Apache-2.0
"""The messages of torture.toml (RFC 4475)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

SENDER = b"127.0.0.1:40404"

_REPEATED = re.compile(r"<([^*<>]+)\*(\d+)>")
_OCTET = re.compile(rb"\\x([0-9a-f]{2})")


class Tortured(NamedTuple):
    """One message and what is to become of it."""

    id: str
    section: str
    title: str
    data: bytes
    parse: int  # the status of the parse error, 0: none
    answer: int  # the status of the answer, 0: none


def messages() -> list[Tortured]:
    """Read them all."""
    found = []
    for row in tomllib.loads((Path(__file__).parent / "torture.toml").read_text(encoding="utf-8"))["message"]:
        text = _REPEATED.sub(lambda found: found[1] * int(found[2]), row["message"])
        data = text.replace("\n", "\r\n").encode()
        if row.get("escaped"):
            data = _OCTET.sub(lambda octet: bytes.fromhex(octet[1].decode()), data)
        found.append(Tortured(row["id"], row["section"], row["title"], data, row.get("parse", 0), row["answer"]))
    return found
