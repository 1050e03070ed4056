# SPDX-License-Identifier: Apache-2.0
"""The state directory: version, locks, key-encryption keys (KEK), ISC transport keys (DESIGN §3, §6).

version     one line, the layout of the directory
kek         lines `kid-hex base64(64 octets)`, the last is current; every sealed row needs it: back it up apart from the rows
kek.lock    held shared by every process that has read the KEKs, alone by a rotation and by the first start
lock        held by the one process that serves
agent.lock  held by the one key agent
isc/        a file per S-CSCF and AS: lines `kid base64(64 octets)`, the last is the one to seal with
*.db        the stores
ue-*.lock   held by whoever registers or de-registers that UE
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hmac
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from keyferry.errors import StateError
from keyferry.ports import RandomSource
from keyferry.protocol.crypto.secret import Secret
from keyferry.stores.sealing import KEK_OCTETS, KID_OCTETS, Keyring

VERSION = "1"
TRANSPORT_KEY_OCTETS = 64
FIRSTTRANSPORT_KID = "t1"
USER_IDS_OCTETS = 32
MAX_KEY_FILE = 16_384
MAX_START = 2**32 - 1  # the half of a Session-Id that it becomes has 32 bits
"""Octets: a hundred keys of 64 octets in base64; two are in use at most."""

_OWN = {"version", "lock", "agent.lock", "kek.lock", "kek", "user-ids", "isc"}
_CARRIED = {"ca.pem", "pki", "ipsec"}
_NAME = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9._@:\[\]-]{0,99}")
_KEK_KID = re.compile(rf"[0-9a-f]{{{2 * KID_OCTETS}}}")
TRANSPORT_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_USER_IDS_KID = "u1"
_NEW = ".new"  # what a whole file is called until it takes its name


class StateDir:
    """A state directory that this process may use: `open_state` makes one, `close` gives its locks back."""

    def __init__(self, root: Path, *, random: RandomSource, kek_file: Path, locks: list[int]) -> None:
        self.root = root
        self.random = random
        self.kek_file = kek_file
        self._locks = locks  # the first is kek.lock
        self.keks = _read_keks(kek_file, own=kek_file.parent == root)

    def __enter__(self) -> StateDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def keyring(self) -> Keyring:
        """Return a keyring over the KEKs as they are now."""
        return Keyring(self.keks, next(reversed(self.keks)), random=self.random)

    def path(self, name: str) -> Path:
        """Return where the file `name` is or shall be.

        Raises StateError.
        """
        check_file_name(self.root, name)
        return self.root / name

    def next_start(self, name: str, at: int) -> int:
        """Return a number that is higher than at any start of `name` before, `at` (seconds since the epoch) if that is; durably.

        Raises StateError.
        """
        file = self.path(f"{name}.start")
        text = _read_private(file, own=True).strip() if file.exists() else ""
        found = max(at, int(text) + 1 if text.isdecimal() and len(text) <= 10 and int(text) < MAX_START else 0)
        _write_octets(file, b"%d\n" % found, replace=True)
        return found

    def databases(self) -> list[Path]:
        """Return every database file, by name."""
        return sorted(self.root.glob("*.db"))

    def isc_keys(self, scscf: str, as_id: str) -> dict[str, Secret]:
        """Return the ISC transport keys of an S-CSCF and an AS by kid, the one to seal with last; the first is made here.

        Raises StateError.
        """
        file = self.isc_file(scscf, as_id)
        if not file.exists():
            _write(file, {FIRSTTRANSPORT_KID: Secret(self.random.octets(TRANSPORT_KEY_OCTETS))}, replace=False)
        return _read_keys(file, TRANSPORT_KID, TRANSPORT_KEY_OCTETS, own=True)

    def user_id_key(self, as_id: str) -> Secret:
        """Return what the user ids of one AS are made with: 32 octets, always the same, from which no other AS's can be computed.

        Raises StateError.
        """
        file = self.root / "user-ids"
        if not file.exists():
            _write(file, {_USER_IDS_KID: Secret(self.random.octets(USER_IDS_OCTETS))}, replace=False)
        key = _read_keys(file, re.compile(_USER_IDS_KID), USER_IDS_OCTETS, own=True)[_USER_IDS_KID]
        return Secret(hmac.digest(key.reveal(), b"keyferry-user-ids-1\0" + as_id.encode("utf-8"), "sha256"))

    def isc_file(self, scscf: str, as_id: str) -> Path:
        """Return where their transport keys are.

        Raises StateError.
        """
        check_isc_names(self.root / "isc", scscf, as_id)
        return self.root / "isc" / f"{scscf}--{as_id}"

    def isc_pairs(self) -> list[tuple[str, str]]:
        """Return every S-CSCF and AS whose transport keys are here, by name."""
        names = [file.name.split("--") for file in (self.root / "isc").glob("*--*") if not file.name.endswith(_NEW)]
        return sorted((name[0], name[1]) for name in names if len(name) == 2)

    def write_isc_keys(self, scscf: str, as_id: str, keys: Mapping[str, Secret]) -> None:
        """Replace the transport keys of an S-CSCF and an AS, durably and as a whole; the last is the one to seal with.

        Raises StateError.
        """
        _write(self.isc_file(scscf, as_id), keys, replace=True)

    def new_kek(self) -> tuple[bytes, Secret]:
        """Return a kid that is not in use and a KEK; neither is stored yet."""
        kid = self.random.octets(KID_OCTETS)
        while kid in self.keks:
            kid = self.random.octets(KID_OCTETS)
        return kid, Secret(self.random.octets(KEK_OCTETS))

    def write_keks(self, keks: Mapping[bytes, Secret]) -> None:
        """Replace the KEK file, durably and as a whole; the last KEK is current.

        Raises StateError.
        """
        _write(self.kek_file, {kid.hex(): kek for kid, kek in keks.items()}, replace=True)
        self.keks = dict(keks)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process away from the KEKs.

        Raises StateError if one has read them: it would go on sealing under a KEK that is about to go.
        """
        try:
            fcntl.flock(self._locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            fcntl.flock(self._locks[0], fcntl.LOCK_SH)  # the attempt has lost it
            raise StateError(str(self.root), "is in use by another process", "Stop it, then rotate") from problem
        try:
            yield
        finally:
            fcntl.flock(self._locks[0], fcntl.LOCK_SH)

    def close(self) -> None:
        """Give the locks back."""
        while self._locks:
            os.close(self._locks.pop())


def check_file_name(root: Path, name: str) -> None:
    """Refuse what no file of a state directory may be called. Raises StateError."""
    if not _NAME.fullmatch(name) or name in _OWN:
        raise StateError(str(root), f"no file of the state can be called {name!r}", "Use letters, digits, dots and hyphens, 94 at most")


def check_state(path: Path, kek_file: Path | None = None) -> None:
    """Refuse what `open_state` would refuse, and make nothing; a lock that somebody holds is no fault. Raises StateError."""
    kek = kek_file if kek_file is not None else path / "kek"
    try:
        if not path.exists():
            parent = next(each for each in path.absolute().parents if each.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise StateError(str(path), f"cannot be made in {parent}", "Choose another state directory")
            return
        _check_directory(path)
        if (path / "version").exists():
            _check_version(path / "version")
        _check_missing_kek(path, kek)
        if kek.exists():
            _read_keks(kek, own=kek.parent == path)
    except OSError as problem:
        raise _unusable(path, problem) from problem


def check_isc_names(where: Path, scscf: str, as_id: str) -> None:
    """Refuse names of which no file name can be made. Raises StateError."""
    if not _NAME.fullmatch(scscf) or not _NAME.fullmatch(as_id) or "--" in scscf + as_id:
        raise StateError(str(where), "the S-CSCF's or the AS's name cannot be part of a file name", "Use host names")


def open_state(
    path: Path, *, random: RandomSource, exclusive: bool = False, lock_name: str = "lock", kek_file: Path | None = None
) -> StateDir:  # fmt: skip
    """Open a state directory, making it on first use.

    `exclusive` is for the process that serves, and under another name of the lock for the key agent: there is one of each.
    `kek_file` is a KEK kept elsewhere, such as a service manager's credential. Raises StateError, which says what to do.
    """
    kek = kek_file if kek_file is not None else path / "kek"
    try:
        _check_directory(path)
        locks = [_lock_file(path / "kek.lock")]
        try:
            _take(locks[0], fcntl.LOCK_SH, path, "its keys are being rotated", "Wait until that has ended")
            if not (path / "version").exists() or not kek.exists():
                _check_missing_kek(path, kek)  # before waiting: a process that serves without its KEK file holds the lock for long
                fcntl.flock(locks[0], fcntl.LOCK_EX)
                _initialise(path, kek, random)
                fcntl.flock(locks[0], fcntl.LOCK_SH)
            _check_version(path / "version")
            if exclusive:
                locks.append(_lock_file(path / lock_name))
                _take(locks[1], fcntl.LOCK_EX, path, "is being served by another process", "Stop it, or choose another state directory")
            return StateDir(path, random=random, kek_file=kek, locks=locks)
        except BaseException:
            for lock in locks:
                os.close(lock)
            raise
    except OSError as problem:
        raise _unusable(path, problem) from problem


def _check_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StateError(str(path), "is not a directory", "Choose another state directory")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise StateError(str(path), "belongs to another user", "Run keyferry as that user, or choose another state directory")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StateError(str(path), "may be entered by other users", f"Run: chmod 700 {path}")
    if not (path / "version").exists():
        # what a first start that was interrupted may have left is welcome, and what was carried here from another machine
        others = {entry.name.removesuffix(_NEW) for entry in path.iterdir()} - _OWN - _CARRIED
        if others:
            raise StateError(str(path), "holds other files and is no state directory", "Choose a new or an empty directory")


def _check_missing_kek(path: Path, kek: Path) -> None:
    if kek.exists():
        return
    if kek.parent != path:
        raise StateError(str(kek), "is missing", "Write it: 8 hex digits, a space, base64 of 64 random octets; mode 600")
    if any(path.glob("*.db")):
        raise StateError(str(kek), "is missing, and nothing sealed opens without it", "Restore it from its backup")


def _initialise(path: Path, kek: Path, random: RandomSource) -> None:
    _check_missing_kek(path, kek)
    if not kek.exists():
        _write(kek, {random.octets(KID_OCTETS).hex(): Secret(random.octets(KEK_OCTETS))}, replace=True)
    if not (path / "version").exists():
        _write_octets(path / "version", VERSION.encode() + b"\n", replace=True)


def _check_version(file: Path) -> None:
    version = file.read_bytes()[:16].decode("ascii", "replace").strip()
    if version != VERSION:
        raise StateError(
            str(file.parent),
            f"was made by another version of keyferry (layout {version}, this one knows {VERSION})",
            "Use that version, or choose another state directory",
        )


def _lock_file(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _take(lock: int, kind: int, path: Path, problem: str, remedy: str) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StateError(str(path), problem, remedy) from error


# ---- key files


def _read_keks(file: Path, *, own: bool) -> dict[bytes, Secret]:
    keys = _read_keys(file, _KEK_KID, KEK_OCTETS, own=own)
    return {bytes.fromhex(kid): key for kid, key in keys.items()}


def _read_keys(file: Path, kid_form: re.Pattern[str], octets: int, *, own: bool) -> dict[str, Secret]:
    keys: dict[str, Secret] = {}
    for number, line in enumerate(_read_private(file, own=own).splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            key = Secret(binascii.a2b_base64(fields[1].encode("ascii"), strict_mode=True))
        except (ValueError, IndexError):
            key = Secret(b"")
        if len(fields) != 2 or not kid_form.fullmatch(fields[0]) or len(key) != octets or fields[0] in keys:
            raise StateError(str(file), f"line {number} is no new kid and base64 of {octets} octets", "Restore it from its backup")
        keys[fields[0]] = key
    if not keys:
        raise StateError(str(file), "holds no key", "Restore it from its backup")
    return keys


def _read_private(file: Path, *, own: bool) -> str:
    """Read a file that only this user may read; one that a service manager keeps (not `own`) may be its group's."""
    try:
        with open(os.open(file, os.O_RDONLY), "rb") as opened:
            status = os.fstat(opened.fileno())
            octets = opened.read(MAX_KEY_FILE + 1)
    except OSError as problem:
        raise _unusable(file, problem) from problem
    if own and status.st_uid != os.geteuid():
        raise StateError(str(file), "belongs to another user", "Run keyferry as that user")
    if stat.S_IMODE(status.st_mode) & (0o077 if own else 0o007):
        raise StateError(str(file), "may be read by other users", f"Run: chmod 600 {file}; then rotate the keys, they may be known")
    if len(octets) > MAX_KEY_FILE:
        raise StateError(str(file), f"is longer than {MAX_KEY_FILE} octets", "Restore it from its backup")
    return octets.decode("ascii", "replace")


def _write(file: Path, keys: Mapping[str, Secret], *, replace: bool) -> None:
    lines = [f"{kid} {base64.b64encode(key.reveal()).decode('ascii')}\n" for kid, key in keys.items()]
    _write_octets(file, "".join(lines).encode("ascii"), replace=replace)


def _write_octets(file: Path, octets: bytes, *, replace: bool) -> None:
    """Write a file that is there as a whole or not at all; without `replace` the first writer wins.

    Raises StateError.
    """
    new = file.with_name(f"{file.name}{_NEW}" if replace else f".{os.getpid()}{_NEW}")
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as opened:
            opened.write(octets)
            opened.flush()
            os.fsync(descriptor)
        if replace:
            new.replace(file)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(new, file)
            new.unlink()
        _sync_directory(file.parent)
    except OSError as problem:
        raise _unusable(file, problem) from problem


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, problem: OSError) -> StateError:
    return StateError(str(path), f"cannot be used: {problem.strerror}", "Check its owner, its mode and the disk")
