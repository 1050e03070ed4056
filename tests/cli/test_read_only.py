# SPDX-License-Identifier: Apache-2.0
"""Commands that only look at a state directory, or change what is in it: a name that is wrong by a letter makes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from typer.testing import CliRunner

from keyferry.cli.app import application
from keyferry.errors import StateError

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
UE: Final = ("--config", EXAMPLES / "ue.toml")
NOWHERE: Final = ("--admin", "127.0.0.1:1")
DOCUMENT: Final = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
OCTETS: Final = "00" * 16
MAKE: Final = {
    "demo", "init", "dev", "serve", "proxy", "agent", "kamailio", "bench", "subscriber add", "ue register", "ue stay", "keys import-isc",
    "pki issue", "ipsec write", "lab attack", "lab up",
}  # fmt: skip
"""Commands that start something, or provision it, and so make what is not there."""
MAKE_NOTHING: Final[dict[str, tuple[str | Path, ...]]] = {
    "check": (EXAMPLES / "lab.toml",),
    "backup": ("copy",),
    "trace": ("capture.pcapng",),
    "failures": NOWHERE,
    "registrations": NOWHERE,
    "subscriber list": (),
    "subscriber show": ("a@home1.net",),
    "subscriber remove": ("a@home1.net",),
    "subscriber prune": ("--config", EXAMPLES / "lab.toml"),
    "subscriber profile": ("a@home1.net", "gold", *NOWHERE),
    "subscriber terminate": ("a@home1.net", *NOWHERE),
    "ue deregister": UE,
    "ue status": UE,
    "ue status --show-http-password xcap.home1.net": UE,
    "ue status --show-psk xcap.home1.net --json": UE,
    "ue get": (*UE, DOCUMENT),
    "ue put": (*UE, DOCUMENT, EXAMPLES / "simservs.xml"),
    "ue delete": (*UE, DOCUMENT),
    "ue proxy --no-register": UE,
    "keys derive": (
        "--ck",
        OCTETS,
        "--ik",
        OCTETS,
        "--rand",
        OCTETS,
        "--impi",
        "a@home1.net",
        "--as",
        "xcap.home1.net",
        "--realm",
        "home1.net",
    ),
    "keys rotate": (),
    "keys rotate-isc": (),
    "keys export-isc": ("keys",),
    "pki show": (),
    "ipsec check": ("--config", EXAMPLES / "lab.toml"),
    "lab down": (),
    "lab status": (),
}
WITHOUT_STATE: Final = {"bench", "ipsec check"}


def commands(of: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Walk over all commands: the name, and whether it takes --state."""
    if hasattr(of, "commands"):
        for name, below in of.commands.items():
            yield from commands(below, (*path, name))
    else:
        yield " ".join(path), any("--state" in option.opts for option in of.params)


def test_every_command_is_of_one_kind() -> None:
    """A new one is held to it, or is said to make something."""
    found = dict(commands(typer.main.get_command(application())))
    held = {name.partition(" --")[0] for name in MAKE_NOTHING}
    assert set(found) == held | MAKE
    assert not held & MAKE
    assert {name for name, takes in found.items() if not takes} == WITHOUT_STATE


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("command", MAKE_NOTHING)
def test_a_state_that_is_mistyped_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, there: bool) -> None:
    """Neither it, nor what belongs in it where somebody made the folder."""
    monkeypatch.chdir(tmp_path)
    if there:
        Path("sate").mkdir(0o700)
    words = command.split()
    state = () if command in WITHOUT_STATE else ("--state", "sate")
    done = CliRunner().invoke(application(words[0]), [*words, *map(str, MAKE_NOTHING[command]), *state])
    assert (done.exit_code == 0) == (command in {"check", "keys derive", "lab down"}), (done.output, done.exception)
    assert done.exit_code != 2, done.output
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "sate"] * there


@pytest.mark.parametrize("text", [None, "no key\n"], ids=["missing", "no export"])
def test_an_import_of_keys_that_are_not_there_makes_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """The one command that makes a state directory for another's file: it reads that first."""
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("isc.keys").write_text(text)
        Path("isc.keys").chmod(0o600)
    done = CliRunner().invoke(application("keys"), ["keys", "import-isc", "isc.keys", "--state", "state"])
    assert isinstance(done.exception, StateError), done.output
    assert str(done.exception).startswith("isc.keys: ")
    assert not Path("state").exists()
