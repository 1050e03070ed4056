# SPDX-License-Identifier: Apache-2.0
"""Whose folder a Kamailio's configuration, and the transport keys in it, go to."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.wiring.kamailio import write_kamailio
from keyferry.wiring.kamailio_check import check_kamailio
from keyferry.wiring.kamailio_files import as_owner
from wiring.test_kamailio import example, modules_fixture, share_fixture  # noqa: F401 - fixtures

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away, and write into those of others")
STRANGER = 12_345


@pytest.fixture(name="place")
def place_fixture() -> Iterator[Path]:
    """A folder that others can reach, as they can /tmp."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@ROOT
def test_a_stranger_who_made_the_folder_first_gets_no_transport_key(place: Path, tmp_path: Path, modules: Path, share: Path) -> None:
    directory, link = place / "k", place / "link"
    directory.mkdir()
    link.symlink_to(directory)
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(StateError, match=f"belongs to the user {STRANGER}"):  # it may lead elsewhere in a moment
        write_kamailio(example(), tmp_path / "state", link, python=sys.executable, modules=modules, share=share)
    os.chown(directory, STRANGER, STRANGER)
    with pytest.raises(StateError, match=f"belongs to the user {STRANGER}"):
        write_kamailio(example(), tmp_path / "state", directory, python=sys.executable, modules=modules, share=share)
    with pytest.raises(StateError, match=f"belongs to the user {STRANGER}"):
        check_kamailio(example(), directory)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_nothing_is_run_that_others_could_have_put_into_the_folder(
    place: Path, tmp_path: Path, modules: Path, share: Path, mode: int
) -> None:
    directory = place / "k"
    program = directory / "venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntouch {place}/ran\n")
    program.chmod(0o755)
    directory.chmod(mode)
    with pytest.raises(StateError, match="chmod go-w"):
        write_kamailio(example(), tmp_path / "state", directory, modules=modules, share=share)
    assert not (place / "ran").exists()


@ROOT
def test_root_has_none_of_its_groups_where_it_writes_as_kamailios_user(place: Path) -> None:
    """A name in that user's folder may lead to what root's group may read or write."""
    directory, of_root = place / "k", place / "of-root"
    directory.mkdir()
    os.chown(directory, STRANGER, STRANGER)
    of_root.write_text("secret")
    of_root.chmod(0o060)
    before = os.getgroups()
    os.setgroups([0])
    try:
        with as_owner(directory), pytest.raises(PermissionError):
            of_root.read_text()
        assert os.getgroups() == [0]
    finally:
        os.setgroups(before)
    assert of_root.read_text() == "secret"
