# SPDX-License-Identifier: Apache-2.0
"""`keyferry.client.Ue` as a program uses it, against a network that serves in another process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keyferry.client
from keyferry.client import Status, Ue
from keyferry.client.library import LibraryLog
from keyferry.errors import ConfigError, RegistrationFailed, TransportError
from system.serving import Lab, Served, lab_fixture, served_fixture

__all__ = ["lab_fixture", "served_fixture"]


async def test_a_program_registers_and_is_logged_in(lab: Lab, served: Served) -> None:
    """The first request of a key is one request: no challenge before it where the door takes the first nonce."""
    notes = f"https://notes.home1.net:{lab.ports['8444']}/"
    async with Ue.open(lab.ue, state=lab.state) as ue:
        assert await ue.status() is None
        with pytest.raises(RegistrationFailed, match="not registered"):
            async with ue.http(notes) as http:
                await http.get("/")
        status = await ue.register()
        assert (status.registered, status.keys, status.rspauth, status.no_keys_because) == (True, True, True, "")
        async with ue.http(notes) as http:
            assert (await http.put("/", content=b"milk")).status_code == 201
            assert (await http.get(notes)).content == b"milk"
            await ue.register()
            assert (await http.get("/")).content == b"milk"
            await ue.deregister()
            with pytest.raises(RegistrationFailed):
                await http.get("/")
        found = await ue.status()
        assert found is not None
        assert not found.registered


async def test_it_stays_registered_in_the_background_and_leaves_at_the_end(
    lab: Lab, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="keyferry.client")
    async with Ue.open(lab.ue, state=lab.state) as ue:
        async with ue.registered(), ue.http(f"https://notes.home1.net:{lab.ports['8444']}/") as http:
            assert (await http.get("/")).status_code == 404
            assert served.health()["registrations"] == 1
        assert served.health()["registrations"] == 0
        status = await ue.status()
        assert isinstance(status, Status)
        assert not status.registered
    told = [record.args[0] for record in caplog.records if record.name == "keyferry.client" and isinstance(record.args, tuple)]
    assert next(event for event in told if str(event).startswith("ue-")) == "ue-registered"
    assert "ue-deregistered" in told


async def test_a_network_that_is_not_there_is_said(tmp_path: Path, lab: Lab) -> None:
    text = lab.ue.read_text("utf-8").replace('transport = "udp"', 'transport = "tcp"')
    (tmp_path / "tcp.toml").write_text(text, "utf-8")
    async with Ue.open(tmp_path / "tcp.toml", state=tmp_path / "other") as ue:
        with pytest.raises(TransportError):
            async with ue.registered():
                raise AssertionError("nobody is registered")


async def test_a_file_that_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        async with Ue.open(tmp_path / "absent.toml"):
            pass


def test_the_log_is_the_standard_librarys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="keyferry.client")
    LibraryLog().info("registered", seconds=5)
    LibraryLog().warning("downgraded")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "registered {'seconds': 5}"), ("WARNING", "downgraded {}"),
    ]  # fmt: skip


def test_the_package_imports_only_what_is_asked_for() -> None:
    code = (
        "import sys; from keyferry.client import SimDigest; assert not {'sqlite3', 'msgspec', 'lxml', 'keyferry.config'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # which imports sqlite3 itself
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with pytest.raises(AttributeError, match="no attribute"):
        keyferry.client.Uee  # noqa: B018
