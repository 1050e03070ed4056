# SPDX-License-Identifier: Apache-2.0
"""Certificates are named by their hash."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import AS_ID, Certificate, Client, Door, FakeClock, Pki, call, make_door, record
from keyferry.asgi.certificates import KEPT, MAX_KEPT, READ_EVERY, Certificates, hash_of
from keyferry.asgi.door import BOUND_CNONCE
from keyferry.asgi.limits import FailureLimits
from keyferry.errors import ConfigError

KEY = record()


def named(certificate: Certificate) -> str:
    """Return what a client says of the certificate that it saw."""
    return base64.urlsafe_b64encode(certificate.sha256).decode().rstrip("=")


async def status(door: Door, certificate: Certificate) -> int:
    """Log in over a connection that showed this certificate."""
    answer = Client(KEY).answer(await door.challenge(), cnonce=f"{BOUND_CNONCE}AAAA.{named(certificate)}")
    return (await call(door.door, headers=[answer])).status


def test_the_hash_is_that_of_the_servers_own_certificate(tmp_path: Path) -> None:
    """The first of a chain; a key in the same file does not matter."""
    pki = Pki(tmp_path)
    one, two = pki.issue("a.example", "one"), pki.issue("b.example", "two")
    (tmp_path / "chain.pem").write_bytes(b"# fullchain\n" + two.pem.read_bytes() + one.pem.read_bytes() + pki.path.read_bytes())
    assert (hash_of(one.pem), hash_of(str(tmp_path / "chain.pem"))) == (one.sha256, two.sha256)
    held = Certificates([one.pem], (two.sha256,), FakeClock().monotonic)
    assert [held.holds(named(certificate)) for certificate in (one, two, pki.issue("c.example", "three"))] == [True, True, False]


async def test_a_renewed_certificate_is_known_without_a_restart(tmp_path: Path) -> None:
    """What ends TLS in front of us loads the new file by itself, and its users must not stay outside until somebody thinks of us."""
    pki = Pki(tmp_path)
    old, new = pki.issue(AS_ID, "old"), pki.issue(AS_ID, "new")
    shown = tmp_path / "shown.pem"
    shown.write_bytes(old.pem.read_bytes())
    door = make_door(KEY, certificates=[shown])
    assert [await status(door, old), await status(door, new)] == [200, 403]
    new.pem.rename(shown)
    door.clock.time += READ_EVERY
    assert await status(door, new) == 200
    assert await status(door, old) == 200  # a connection of before
    door.clock.time += KEPT
    assert [await status(door, old), await status(door, new)] == [403, 200]


def test_the_files_are_read_now_and_then_only_and_nothing_else_is_ever_taken(tmp_path: Path) -> None:
    pki, clock = Pki(tmp_path), FakeClock()
    old, new, strange = (pki.issue(AS_ID, name) for name in ("old", "new", "strange"))
    shown = tmp_path / "shown.pem"
    shown.write_bytes(old.pem.read_bytes())
    held = Certificates([shown], (), clock.monotonic)
    clock.time += READ_EVERY
    assert not held.holds(named(strange))  # a look
    shown.write_bytes(new.pem.read_bytes())
    clock.time += READ_EVERY - 0.1
    assert not held.holds(named(new))
    clock.time += 0.1
    assert held.holds(named(new))
    for text in (named(strange), "", named(new)[:-1], named(new) + "="):
        clock.time += READ_EVERY
        assert not held.holds(text)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nhalf"])
def test_a_file_that_is_being_written_changes_nothing(content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pki, clock = Pki(tmp_path), FakeClock()
    old, new = pki.issue(AS_ID, "old"), pki.issue(AS_ID, "new")
    shown = tmp_path / "shown.pem"
    shown.write_bytes(old.pem.read_bytes())
    held = Certificates([shown], (), clock.monotonic)
    shown.unlink() if content is None else shown.write_bytes(content)
    clock.time += READ_EVERY
    assert not held.holds(named(new))
    assert "still taken" in caplog.text
    clock.time += KEPT
    assert not held.holds(named(new))
    assert caplog.text.count("still taken") == 1  # whoever has a key can make us look
    clock.time += READ_EVERY
    assert held.holds(named(old))
    shown.write_bytes(new.pem.read_bytes())
    assert held.holds(named(new))


def test_forerunners_are_bounded(tmp_path: Path) -> None:
    pki, clock = Pki(tmp_path), FakeClock()
    all_of_them = [pki.issue(AS_ID, str(number)) for number in range(MAX_KEPT + 3)]
    shown = tmp_path / "shown.pem"
    shown.write_bytes(all_of_them[0].pem.read_bytes())
    held = Certificates([shown], (), clock.monotonic)
    for certificate in all_of_them[1:]:
        shown.write_bytes(certificate.pem.read_bytes())
        clock.time += READ_EVERY
        assert held.holds(named(certificate))
    assert [held.holds(named(certificate)) for certificate in all_of_them] == [False, False] + [True] * (MAX_KEPT + 1)


async def test_who_saw_another_certificate_has_not_failed(tmp_path: Path) -> None:
    """The response was right: the server was renewed, or somebody sits between, and neither is the doing of that address."""
    pki = Pki(tmp_path)
    door = make_door(KEY, certificates=[pki.issue(AS_ID, "one").pem], limits=FailureLimits(burst=2, per_second=0.001))
    other = pki.issue(AS_ID, "other")
    assert [await status(door, other) for _ in range(4)] == [403] * 4


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
        hash_of(tmp_path / "x.pem")


@pytest.mark.parametrize(("files", "says"), [(["/nonexistent/x.pem"], "cannot be read"), ("x.pem", "not several")])
def test_what_cannot_be_meant(files: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Certificates(files, (), FakeClock().monotonic)
