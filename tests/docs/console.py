# SPDX-License-Identifier: Apache-2.0
"""Read the commands of a Markdown page and run them, in order, in a copy of what they need, on free ports."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from system.serving import EXAMPLE_PORTS, environment, free_port, patient

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("examples", "tests/interop/sipp")
BLOCK = re.compile(r"(?:^<!-- (needs|file): ([^>]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STAYS = (
    ("keyferry serve ", "out", '"ready": true'),
    ("keyferry agent ", "out", '"ready": true'),
    ("uvicorn ", "log", "Uvicorn running on"),
    ("keyferry ue proxy ", "out", "proxy http"),
    ("keyferry dev ", "out", "keyferry ue get"),
    ("keyferry proxy ", "out", '"ready": true'),
    ("python old.py ", "out", "serving"),
    ("nginx ", "log", "start worker process "),
    ("kamailio -DD ", "out", "Listening on"),
    ("redis-server ", "out", "Ready to accept connections"),
    ("hssService.py", "out", "Initialized Diameter Library"),
    ("diameterService.py", "out", "Serving on"),
    ("apiService.py", "log", "Running on"),
)
"""What a command that stays holds, where it says that it is ready (standard output or standard error), and how."""
LIMIT = 240.0  # seconds for a whole page; its commands take under 20 on an idle machine
READY_LIMIT = 120.0
STOP_LIMIT = 60.0
SIPP_ATTEMPTS = 5  # see tests/interop/test_sipp.py: one run in 32 fails by a fault of sipp's


class Command(NamedTuple):
    """A line after `$ `, and what the page shows below it."""

    text: str
    shown: tuple[str, ...]
    needs: tuple[str, ...]  # programs that are not ours


class Block(NamedTuple):
    """A fenced block, with what the comment above it says."""

    language: str
    body: str
    needs: tuple[str, ...]
    file: str | None


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page."""
    found = []
    for key, value, language, body in BLOCK.findall(page.read_text("utf-8")):
        needs = tuple(value.split()) if key == "needs" else ()
        found.append(Block(language, body, needs, value if key == "file" else None))
    return found


def commands(page: Path) -> list[Command]:
    """Return every command of a page."""
    found: list[Command] = []
    for block in blocks(page):
        if block.language != "console":
            continue
        assert block.body.startswith("$ "), f"{page.name}: a console block begins with a command"
        for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            text, *shown = part.rstrip("\n").split("\n")
            found.append(Command(text, tuple(shown), block.needs))
    return found


@dataclass(slots=True)
class Server:
    """A command that stays until it is ended."""

    process: subprocess.Popen[bytes]
    log: Path


@dataclass(slots=True)
class Shell:
    """Run commands as a reader would: what stays in a terminal of its own, ended by its process id, `serve` before the next `serve`."""

    folder: Path
    copied: Sequence[str] = COPIED
    ports: dict[str, int] = field(default_factory=dict)
    _servers: dict[str, Server] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Copy what the commands need, with other ports."""
        self.ports = {port: free_port() for port in (*EXAMPLE_PORTS, "5095", "8445", "8899", "8000", "9000", "3868", "6379", "8081")}
        for name in self.copied:
            shutil.copytree(ROOT / name, self.folder / name)
        for path in (self.folder / "examples").glob("*.toml"):
            path.write_text(self.moved(patient(path.read_text("utf-8"))), "utf-8")

    def moved(self, text: str) -> str:
        """Return a text with the ports of the pages replaced."""
        for old, new in self.ports.items():
            text = text.replace(f":{old}", f":{new}").replace(f"--port {old}", f"--port {new}").replace(f"port: {old}", f"port: {new}")
        return text

    def write(self, page: Path) -> None:
        """Write the files that a page shows."""
        for block in blocks(page):
            if block.file is not None:
                (self.folder / block.file).write_text(self.moved(block.body), "utf-8")

    def run(self, command: Command) -> str:
        """Run one command, which must succeed, and return what it printed."""
        for mark, stream, ready in STAYS:
            if mark in command.text:
                return self._start(mark, command.text, stream, ready)
        attempts = SIPP_ATTEMPTS if command.text.startswith("sipp ") else 1
        for attempt in range(1, attempts + 1):
            done = self._to_its_end(self._line(command.text), LIMIT)
            if done.returncode == 0 or attempt == attempts:
                break
        assert done.returncode == 0, f"{command.text}\n{done.stdout}{done.stderr}{self._logs()}"
        return done.stdout

    def close(self) -> None:
        """End the servers, the last one first; all of them, also when one does not end as it should."""
        with contextlib.ExitStack() as stack:
            for mark in self._servers:
                stack.callback(self._end, mark)

    def _end(self, mark: str) -> None:
        server = self._servers.pop(mark)
        with _ended(server.process):
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(STOP_LIMIT) in {0, -signal.SIGTERM}, server.log.read_text("utf-8", "replace")

    def _start(self, mark: str, text: str, stream: str, ready: str) -> str:
        if mark in self._servers:
            self._end(mark)
        files = {name: self.folder / f"{mark.split()[-1]}.{name}" for name in ("out", "log")}
        with files["out"].open("wb") as output, files["log"].open("wb") as errors:
            line = "exec env " + self._line(text)
            process = subprocess.Popen(
                ["bash", "-c", line], cwd=self.folder, env=self._environment(), stdout=output, stderr=errors, start_new_session=True
            )
        self._servers[mark] = Server(process, files["log"])
        # `tail` waits as long as the server lives, and no longer
        wait = f"tail --pid={process.pid} -n +1 -f {files[stream]} | grep -m 1 '{ready}'"
        found = self._to_its_end(wait, READY_LIMIT)
        assert ready in found.stdout, self._logs()
        return files[stream].read_text("utf-8", "replace")

    def _to_its_end(self, line: str, limit: float) -> subprocess.CompletedProcess[str]:
        """Run a line; nothing that it has started goes on after it, also when it takes too long."""
        with (
            subprocess.Popen(
                ["bash", "-c", line], cwd=self.folder, env=self._environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            ) as process,
            _ended(process),
        ):  # fmt: skip
            out, errors = process.communicate(timeout=limit)
        return subprocess.CompletedProcess(line, process.returncode, out, errors)

    def _line(self, text: str) -> str:
        return self.moved("keyferry demo" if text == "make demo" else text)

    def _logs(self) -> str:
        return "".join(server.log.read_text("utf-8", "replace") for server in self._servers.values())

    def _environment(self) -> dict[str, str]:
        # The plugin by name: a tree that is tested where it lies need not be installed.
        kept = {**environment(), "PYTHONPATH": str(ROOT / "src"), "PYTEST_PLUGINS": "keyferry.testing.plugin"}
        return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill, in the end, a process and all of its session."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


VOLATILE = ((re.compile(r"\b[0-9a-f]{16}\b"), "FINGERPRINT"), (re.compile(r"\b\d{2,}\b"), "N"), (re.compile(r"\s+"), " "))


def same(text: str) -> str:
    """Return a line without what differs from run to run: fingerprints, ports, sizes, widths."""
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return text.strip()


def missing(shown: tuple[str, ...], printed: str) -> list[str]:
    """Return the lines that a page shows and the command did not print; a line may end in an ellipsis."""
    lines = [same(line) for line in printed.splitlines()]
    lost = []
    for line in shown:
        wanted = same(line)
        begins = wanted.removesuffix("…").strip()
        if not any(one == wanted or (begins != wanted and one.startswith(begins)) for one in lines):
            lost.append(line)
    return lost


def run_page(page: Path, folder: Path, *, peers: bool, copied: Sequence[str] = COPIED) -> list[str]:
    """Run the commands of a page, those that need a peer only with `peers`; return what was shown and not printed."""
    shell = Shell(folder, copied)
    shell.write(page)
    lost = []
    try:
        for command in commands(page):
            if command.needs and not peers:
                continue
            lost += missing(command.shown, shell.run(command))
    finally:
        shell.close()
    return lost
