# SPDX-License-Identifier: Apache-2.0
"""What a lab has made, written down before it is made, and its end: its own processes and namespaces, and nobody else's.

Every process of a lab has a random token in its environment that stands in the lab's record, and every namespace has it as the alias of
its `lo`. A process id alone would not do, nor a name: it may be another's by the time somebody looks, and one that was made just before
a crash is not written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

from keyferry.errors import StateError
from keyferry.lab.topology import Command, LabFailed
from keyferry.lab.topology_files import LabFiles, write_private

MARK: Final = "KEYFERRY_LAB"
"""The environment variable with the lab's token."""
LAYOUT: Final = 2
PATIENCE: Final = 10.0
"""Seconds between SIGTERM and SIGKILL."""
LIMIT: Final = 30.0
"""Seconds that a command of iproute2 may take."""
_SBIN: Final = ":/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(slots=True)
class Record:
    """What `lab.json` holds."""

    id: str
    token: str
    shaping: str = ""
    isc: str = "tls"
    links: list[dict[str, Any]] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    layout: int = LAYOUT

    @property
    def ready(self) -> bool:
        """Tell whether `lab up` has come to its end."""
        return bool(self.done)

    def keep(self, files: LabFiles) -> None:
        """Write it down. Raises StateError."""
        try:
            write_private(files.record, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")
        except OSError as problem:
            raise StateError(str(files.record), f"cannot be written: {problem.strerror}", "Check the disk") from problem


def read_record(files: LabFiles) -> Record:
    """Read a lab's record. Raises LabFailed."""
    try:
        if files.record.is_symlink() or files.record.stat().st_uid != os.geteuid():
            raise LabFailed(f"{files.record} is not ours", "Look who made it")
        found = json.loads(files.record.read_text("utf-8"))
        if found["layout"] != LAYOUT:
            raise LabFailed(f"{files.record} was made by another version of keyferry", "End the lab with that version")
        return Record(**found)
    except (OSError, ValueError, TypeError, KeyError) as problem:
        raise LabFailed(f"{files.record} cannot be read ({type(problem).__name__})", "Is it the directory of a lab?") from problem


def search_path() -> str:
    """Return where programs are looked for: root's may lack those of administrators."""
    return os.environ.get("PATH", os.defpath) + _SBIN


def environment(token: str) -> dict[str, str]:
    """Return the environment of a lab's process: no setting of the caller's own, and the token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYFERRY_")}
    return {**kept, "PATH": search_path(), MARK: token}


def command(words: Command, *, env: Mapping[str, str] | None = None, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises LabFailed where it cannot be run at all."""
    program = shutil.which(words[0], path=search_path())
    if program is None:
        raise LabFailed(f"{words[0]} is not installed", "On Debian: apt install iproute2 util-linux")
    try:
        return subprocess.run(  # noqa: S603 no shell, and the words are ours
            [program, *words[1:]], capture_output=True, text=True, timeout=limit, check=False, env=env, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise LabFailed(f"`{' '.join(words)}` does not end", "Look what keeps it") from None


def must(words: Command, env: Mapping[str, str] | None = None) -> None:
    """Run a command that must succeed. Raises LabFailed."""
    done = command(words, env=env)
    if done.returncode:
        raise LabFailed(f"`{' '.join(words)}` failed: {done.stderr.strip()[:300]}")


def namespaces_of_all() -> set[str]:
    """Return the names of every network namespace of this machine. Raises LabFailed."""
    done = command(("ip", "netns", "list"))
    if done.returncode:
        raise LabFailed(f"`ip netns list` failed: {done.stderr.strip()[:300]}")
    return {line.split()[0] for line in done.stdout.splitlines() if line.strip()}


def is_own_namespace(name: str, token: str) -> bool:
    """Tell whether a namespace has the token, and not the name alone. Raises LabFailed."""
    done = command(("ip", "-n", name, "-j", "link", "show", "lo"))
    return done.returncode == 0 and any(link.get("ifalias") == token for link in json.loads(done.stdout))


def marked(pid: int, token: str) -> bool:
    """Tell whether a process has the token."""
    with contextlib.suppress(OSError):
        return f"{MARK}={token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def own_processes(token: str) -> list[int]:
    """Return the process ids of everything that this lab has started."""
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and marked(int(each.name), token)]


def end_processes(token: str, patience: float = PATIENCE) -> int:
    """End them, with SIGTERM and, after some patience, SIGKILL; return how many there were. Raises LabFailed if one stays."""
    ended: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with _held(token) as held:
            ended |= set(held)
            for descriptor in held.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            _wait(list(held.values()), patience)
        if not own_processes(token):
            return len(ended)
    raise LabFailed(f"processes {own_processes(token)} do not end", "Run it again")


@contextlib.contextmanager
def _held(token: str) -> Iterator[dict[int, int]]:
    """Hold each process by a descriptor, so that no signal goes to one that has got its id since."""
    held: dict[int, int] = {}
    try:
        for pid in own_processes(token):
            with contextlib.suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
        yield {pid: descriptor for pid, descriptor in held.items() if marked(pid, token)}
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def _wait(descriptors: Sequence[int], seconds: float) -> None:
    """Wait until all processes have ended, or for so long."""
    poll, left, until = select.poll(), set(descriptors), monotonic() + seconds
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    while left and (rest := until - monotonic()) > 0:
        for descriptor, _ in poll.poll(rest * 1000):
            poll.unregister(descriptor)
            left.discard(descriptor)


def end_lab(files: LabFiles, record: Record) -> dict[str, int]:
    """End a lab, whole or half made: processes, namespaces, and last its directory. Raises LabFailed."""
    processes = end_processes(record.token)
    there = namespaces_of_all()
    ended = 0
    for name in record.namespaces:
        # Looked at just before it is deleted: the name may be another's since, and iproute2 deletes by name alone.
        if name in there and is_own_namespace(name, record.token):
            must(("ip", "netns", "delete", name))
            ended += 1
    if not files.root.is_symlink():
        shutil.rmtree(files.root)
    return {"processes": processes, "namespaces": ended}
