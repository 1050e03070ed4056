# SPDX-License-Identifier: Apache-2.0
"""Certificates are named by their hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import AS_ID, Pki, make_door, record
from keyferry.asgi.certificates import hashes_of
from keyferry.errors import ConfigError


def test_the_hash_is_that_of_the_servers_own_certificate(tmp_path: Path) -> None:
    """The first of a chain; a key in the same file does not matter."""
    pki = Pki(tmp_path)
    one, two = pki.issue("a.example", "one"), pki.issue("b.example", "two")
    (tmp_path / "chain.pem").write_bytes(b"# fullchain\n" + two.pem.read_bytes() + one.pem.read_bytes() + pki.path.read_bytes())
    assert hashes_of([one.pem, str(tmp_path / "chain.pem")]) == (one.sha256, two.sha256)
    door = make_door(record(), certificates=[one.pem], certificate_hashes=(two.sha256,)).door
    assert len(door._doors[AS_ID]._certificates) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----",
    ],
)
def test_a_file_without_one_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_bytes(content)
    with pytest.raises(ConfigError, match="holds no certificate"):
        hashes_of([tmp_path / "x.pem"])


@pytest.mark.parametrize(("files", "says"), [(["/nonexistent/x.pem"], "cannot be read"), ("x.pem", "not several")])
def test_what_cannot_be_meant(files: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        hashes_of(files)
