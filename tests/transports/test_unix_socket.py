# SPDX-License-Identifier: Apache-2.0
"""A UNIX socket: where it lies, whose it is, who is let in."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.transports import unix_socket
from keyferry.transports.http_server import HttpServer
from keyferry.transports.unix_socket import (
    Admission,
    bind_unix,
    check_folder,
    drop_name,
    group_id,
    is_our_turn,
    main_group,
    stand_in_of,
    take_name,
    turn_file,
    user_id,
)  # fmt: skip
from transports.agentkit import MAIL, WIKI, short_folder
from transports.httpkit import length

EVERY = [WIKI, MAIL]
OTHER = 4_000_000_001


def test_the_agents_own_user_and_root_see_all_and_another_nothing() -> None:
    """They could read the store itself."""
    admission = Admission()
    assert admission.allowed(os.geteuid(), [], EVERY) == admission.allowed(0, [], EVERY) == set(EVERY)
    assert admission.allowed(OTHER, [os.getgid()], EVERY) == set()


def test_members_of_the_group_see_all_unless_users_are_listed() -> None:
    assert Admission(group=7).allowed(OTHER, [1, 7], EVERY) == set(EVERY)
    assert Admission(group=7).allowed(OTHER, [1], EVERY) == set()
    listed = Admission(group=7, users={OTHER: [MAIL]})
    assert listed.allowed(OTHER, [7], EVERY) == {MAIL}
    assert listed.allowed(OTHER + 1, [7], EVERY) == set()
    assert Admission(users={0: [MAIL]}).allowed(0, [], EVERY) == {MAIL}


def test_the_kernel_says_all_groups_of_a_peer() -> None:
    """In as many octets as CPython takes at once."""
    one, other = socket.socketpair()
    with one, other:
        octets = one.getsockopt(socket.SOL_SOCKET, unix_socket._SO_PEERGROUPS, 4 * unix_socket._MAX_GROUPS)
    assert {int.from_bytes(octets[at : at + 4], "little") for at in range(0, len(octets), 4)} == set(os.getgroups())


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_it_has_its_mode_and_group_before_it_listens_and_its_name_when_it_does(mode: int) -> None:
    """Whoever finds it finds it listening."""
    with short_folder() as folder:
        path = folder / "a.sock"
        with bind_unix(path, mode, os.getgid()) as sock:
            assert not path.exists()
            sock.listen()
            inode = take_name(path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            with pytest.raises(StateError, match="another agent that runs"):
                bind_unix(path, mode, None)
        bind_unix(path, mode, None).close()  # what a killed one left is replaced
        drop_name(path, inode + 1)
        assert path.exists()
        drop_name(path, inode)
        drop_name(path, inode)
        assert not path.exists()
        assert stand_in_of(path).exists()


@pytest.mark.parametrize("mode", [0o1777, 0o770])
def test_a_folder_where_another_user_could_put_a_socket_is_refused(mode: int) -> None:
    """One of the group, too."""
    with short_folder() as folder:
        folder.chmod(mode)
        with pytest.raises(StateError, match="could be replaced by another user"):
            bind_unix(folder / "a.sock", 0o600, None)


def test_what_cannot_be_a_socket_is_said_plainly() -> None:
    with short_folder() as folder:
        (folder / "file").write_text("x")
        for path, problem in (
            (folder / "file", "is no socket"), (folder / "no" / "a.sock", "No such file"), (folder / ("a" * 120), "under 100 octets"),
        ):  # fmt: skip
            with pytest.raises(StateError, match=problem):
                bind_unix(path, 0o600, None)
        assert (folder / "file").read_text() == "x"
        with pytest.raises(StateError, match="cannot be used"):
            take_name(folder / "b.sock")


def test_users_and_groups_have_names_or_numbers() -> None:
    assert user_id(pwd.getpwuid(0).pw_name) == user_id("0") == 0
    assert group_id(grp.getgrgid(0).gr_name) == group_id("0") == 0
    assert main_group(0) == pwd.getpwuid(0).pw_gid
    with pytest.raises(StateError, match="not known"):
        main_group(4_000_000_000)
    for of in (user_id, group_id):
        with pytest.raises(StateError, match="is not known on this machine"):
            of("no-such-name")


def test_a_relative_path_is_one_of_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        monkeypatch.chdir(folder)
        bind_unix(Path("a.sock"), 0o600, None).close()
        assert stand_in_of(folder / "a.sock").exists()


def test_a_turn_is_one_processs_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, second = turn_file(path), turn_file(path)
    try:
        assert [is_our_turn(path, each) for each in (first, second, first)] == [True, False, True]
    finally:
        os.close(first)
    assert is_our_turn(path, second)
    os.close(second)


def test_a_turn_is_taken_at_no_file_that_others_could_choose(tmp_path: Path) -> None:
    (tmp_path / "s.lock").symlink_to(tmp_path / "other")
    with pytest.raises(StateError, match="cannot be used"):
        turn_file(tmp_path / "s")
    assert not (tmp_path / "other").exists()
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="could be replaced"):
        turn_file(tmp_path / "t")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
async def test_an_http_server_does_not_listen_where_another_user_could_take_its_place(mode: int) -> None:
    with short_folder() as folder:
        folder.chmod(mode)
        server = HttpServer(length)
        with pytest.raises(StateError, match="chmod go-w"):
            await server.listen_unix(folder / "s")
        assert not list(folder.iterdir())
        folder.chmod(0o755)
        await server.listen_unix(folder / "s")
        await server.aclose()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_server_behind_is_not_looked_for_where_another_user_could_take_its_place(mode: int) -> None:
    with short_folder() as folder:
        folder.chmod(mode)
        with pytest.raises(StateError, match="chmod go-w"):
            check_folder(folder / "s", "the server behind")
        folder.chmod(0o755)
        check_folder(folder / "s", "the server behind")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives a folder away")
def test_the_folder_of_a_server_behind_may_be_the_servers_own_and_nobody_elses() -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
        os.chown(folder, OTHER, -1)
        with pytest.raises(StateError, match="another user"):
            check_folder(folder / "s", "the server behind", socket_owner=True)
        os.chown(folder / "s", OTHER, -1)
        check_folder(folder / "s", "the server behind", socket_owner=True)
        with pytest.raises(StateError, match="another user"):
            check_folder(folder / "s", "the agent")
