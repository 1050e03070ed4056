# SPDX-License-Identifier: Apache-2.0
"""`keyferry init`: what it writes can be served, belongs to nobody else, and replaces nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from keyferry.cli import starting
from keyferry.config import load_config, load_ue_config
from keyferry.errors import ConfigError, StateError
from system.serving import EXAMPLES, keyferry


def secrets_of(path: Path) -> list[str]:
    """Return every K, OPc and OP of a file."""
    document = tomllib.loads(path.read_text("utf-8"))
    tables: list[dict[str, Any]] = [*document.get("subscribers", []), document.get("ue", {})]
    return [table[name] for table in tables for name in ("k", "opc", "op") if name in table]


@pytest.mark.parametrize("example", [None, "lab", "kamailio"])
def test_each_network_has_keys_of_its_own_and_its_phone_the_same(tmp_path: Path, example: str | None) -> None:
    """No key of examples/, whose keys everybody knows; and none twice."""
    network = "kamailio.toml" if example == "kamailio" else "lab.toml"
    for name in ("a", "b"):
        starting.write_files(tmp_path / name, example)
    drawn = {name: secrets_of(tmp_path / name / network) for name in ("a", "b")}
    published = {*secrets_of(EXAMPLES / "lab.toml"), "0" * 32, "1" * 32}
    every = [*drawn["a"], *drawn["b"]]
    assert len(set(every)) == len(every) >= 4
    assert not published & set(every)
    assert secrets_of(tmp_path / "a" / "ue.toml") == drawn["a"][:2]


@pytest.mark.parametrize("example", [None, *starting.EXAMPLES])
def test_files_with_keys_are_for_their_owner_alone(tmp_path: Path, example: str | None) -> None:
    for path in starting.write_files(tmp_path, example):
        with_keys = path.suffix == ".toml" and bool(secrets_of(path))
        assert path.stat().st_mode & 0o777 & (0o077 if with_keys else 0) == 0, path
        assert path.stat().st_mode & 0o600 == 0o600


@pytest.mark.parametrize("example", [None, "lab"])
def test_what_is_written_is_a_good_configuration(tmp_path: Path, example: str | None) -> None:
    starting.write_files(tmp_path, example)
    subscriber, phone = load_config(tmp_path / "lab.toml").subscribers[0], load_ue_config(tmp_path / "ue.toml").ue
    assert (subscriber.impi, subscriber.impus[0]) == (phone.impi, phone.impu)
    assert "examples/" not in (tmp_path / "lab.toml").read_text("utf-8") + (tmp_path / "ue.toml").read_text("utf-8")
    assert "published" not in (tmp_path / "lab.toml").read_text("utf-8")


@pytest.mark.parametrize("there", ["lab.toml", "ue.toml"])
def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path: Path, there: str) -> None:
    (tmp_path / there).symlink_to(tmp_path / "nowhere")  # what is dangling is there all the same
    done = keyferry("init", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{there}: is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written: Not a directory"):
        starting.write_files(tmp_path / "file" / "lab", None)


def test_an_unknown_example_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'xcap' is not one of lab, agent, kamailio"):
        starting.write_files(tmp_path, "xcap")
    assert keyferry("init", tmp_path, "--full", "--example", "agent").returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_among_those_that_init_writes() -> None:
    """Whoever has only the wheel has no examples/."""
    shipped = {name for names in starting.EXAMPLES.values() for name in names}
    assert shipped == {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_the_commands_for_another_folder_begin_with_the_way_there(tmp_path: Path) -> None:
    folder = tmp_path / "my lab"
    done = keyferry("init", folder, "--json")
    assert json.loads(done.stdout)["next"][:2] == [f"cd '{folder}'", "keyferry check lab.toml"]


def test_no_key_is_printed(tmp_path: Path) -> None:
    done = keyferry("init", tmp_path, "--full")
    assert done.returncode == 0
    assert not [key for key in secrets_of(tmp_path / "lab.toml") if key in done.stdout + done.stderr]
