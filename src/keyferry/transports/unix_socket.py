# SPDX-License-Identifier: Apache-2.0
"""A UNIX socket that listens: where it may lie, who may connect to it, and who did (unix(7))."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keyferry.errors import StateError
from keyferry.protocol.identity import AsId

_PEERCRED = struct.Struct("3i")
_SO_PEERGROUPS: Final = 59  # Linux; Python has no name for it
_MAX_GROUPS: Final = 256  # CPython reads options of 1,024 octets at most


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may connect, and to see which AS_IDs; the agent's own user and root could read the store itself and see all."""

    group: int | None = None  # whose members may connect
    users: Mapping[int, Collection[AsId]] = field(default_factory=dict)  # by uid, which of them sees what; empty: no such list

    def allowed(self, uid: int, groups: Collection[int], every: Collection[AsId]) -> frozenset[AsId]:
        """Return the AS_IDs that a peer may see: none, if it may not connect."""
        if uid in self.users:
            return frozenset(self.users[uid]) & frozenset(every)
        if uid in {0, os.geteuid()}:
            return frozenset(every)
        return frozenset(every) if not self.users and self.group is not None and self.group in groups else frozenset()


def peer_of(transport: asyncio.Transport) -> tuple[int, frozenset[int]]:
    """Return the uid and the gids of the process that connected; the kernel says it, and it cannot be forged."""
    # uvloop's socket object has no options; a second one for the same connection has.
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
        _, uid, gid = _PEERCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        try:
            octets = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
        except OSError:
            octets = b""  # before Linux 4.13: the main group alone counts
    return uid, frozenset({gid, *(number for (number,) in struct.iter_unpack("I", octets))})


def bind_unix(path: Path, mode: int, group: int | None) -> socket.socket:
    """Return a socket that is bound beside `path`; it takes that name when it listens, so that nobody meets one that does not."""
    check_folder(path)
    _check_free(path)
    stand_in = stand_in_of(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stand_in.unlink(missing_ok=True)
        sock.bind(os.fspath(stand_in))
        stand_in.chmod(mode)
        if group is not None:
            os.chown(stand_in, -1, group)
        sock.setblocking(False)
    except OSError as problem:
        sock.close()
        raise _unusable(path, problem) from problem
    return sock


def is_taken(path: Path) -> bool:
    """Tell at once whether somebody listens there. Raises StateError: it is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StateError(str(path), "is there, and is no socket", "Choose another path for the agent's socket")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(os.fspath(path)) not in {errno.ECONNREFUSED, errno.ENOENT}


def turn_file(path: Path) -> int:
    """Open the file beside a socket by whose lock processes that share its name take turns. Raises StateError."""
    check_folder(path)
    try:
        return os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise _unusable(path, problem) from problem


def is_our_turn(path: Path, turn: int) -> bool:
    """Take the turn, until the file is closed, if nobody has it or listens there without it. Raises StateError: it is no socket."""
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return not is_taken(path)


def take_name(path: Path) -> int:
    """Let a socket that listens have its own name; return its inode number. Raises StateError."""
    try:
        stand_in_of(path).replace(path)
        return path.stat().st_ino
    except OSError as problem:
        raise _unusable(path, problem) from problem


def drop_name(path: Path, inode: int) -> None:
    """Remove a socket, if it is still the one that had this inode number."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def stand_in_of(path: Path) -> Path:
    """Return the name of a socket that does not listen yet."""
    return path.with_name(f"{path.name}~")


def check_folder(path: Path, who: str = "the agent", *, socket_owner: bool = False) -> None:
    """Refuse a socket in whose place another user could put one, and be `who`; the folder is root's or ours, or of the socket's owner.

    Raises StateError.
    """
    owners = {0, os.geteuid()}
    try:
        status = path.parent.stat()
        if socket_owner and path.exists():
            owners.add(path.stat().st_uid)
    except OSError as problem:
        raise _unusable(path, problem) from problem
    if stat.S_IMODE(status.st_mode) & 0o022 or status.st_uid not in owners:
        remedy = f"Run: chmod go-w {path.parent}, or choose a folder of the user that listens there"
        raise StateError(str(path), f"could be replaced by another user, who would then be {who}", remedy)


def _check_free(path: Path) -> None:
    """Refuse where another agent listens; a socket that a killed one left is replaced."""
    if is_taken(path):
        raise StateError(str(path), "is the socket of another agent that runs", "Stop that one, or choose another path")


def _unusable(path: Path, problem: OSError) -> StateError:
    why = problem.strerror or str(problem)
    return StateError(
        str(path), f"cannot be used as a socket: {why}", "Give a path of under 100 octets in a folder that the agent may write to"
    )


def group_id(name: str) -> int:
    """Return the number of a group. Raises StateError."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError) as problem:
        raise StateError(f"group {name}", "is not known on this machine", "Make it with groupadd") from problem


def user_id(name: str, setting: str = "the configuration") -> int:
    """Return the number of a user; `setting` is where the name comes from. Raises StateError."""
    try:
        return int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError) as problem:
        raise StateError(f"user {name}", "is not known on this machine", f"Make it with useradd, or correct {setting}") from problem


def main_group(user: int) -> int:
    """Return the number of a user's main group. Raises StateError."""
    try:
        return pwd.getpwuid(user).pw_gid
    except KeyError as problem:
        raise StateError(f"user {user}", "is not known on this machine", "Make it with useradd, or name the group") from problem
