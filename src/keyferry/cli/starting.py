# SPDX-License-Identifier: Apache-2.0
"""The files that `keyferry init` writes. It needs the standard library alone: whoever has only the wheel begins here."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from keyferry.errors import ConfigError, StateError

MINIMAL: Final = ("lab.toml", "ue.toml")
EXAMPLES: Final = {
    "lab": ("lab.toml", "ue.toml", "simservs.xml"),
    "agent": ("agent.toml",),
    "kamailio": ("kamailio.toml", "ue.toml"),
    "notes": ("notes.py",),
    "flask": ("flask_app.py",),
    "simservs": ("simservs.xml",),
    "nginx": ("nginx/keyferry.conf",),
}
"""What `--example` knows; `--full` is `lab`. Files that share a SIM are written together, as its keys are drawn anew."""
_KEY: Final = re.compile(r'^((?:k|opc|op) *= *)"([0-9a-f]{32})"', re.MULTILINE)
_PUBLISHED: Final = "# K and OPc below are the published test data of TS 35.208; put nothing real in a file that others read."
_DRAWN: Final = "# K, OPc and OP below were drawn by chance for this file: they are the secrets of these SIMs."
_FIRST: Final = {
    "minimal": (
        "echo hello | keyferry ue put --config ue.toml https://notes.home1.net:8444/ -",
        "keyferry ue get --config ue.toml https://notes.home1.net:8444/",
    ),
    "lab": (
        "keyferry ue put --config ue.toml simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml simservs.xml",
        "keyferry ue get --config ue.toml simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml",
    ),
}


def write_files(folder: Path, example: str | None) -> list[Path]:
    """Write an example, or the minimal network, with keys that nobody else has; all files or none.

    Raises ConfigError for an unknown name or a file that is there, StateError where nothing can be written.
    """
    texts = dict(_texts(example))
    there = next((folder / name for name in texts if os.path.lexists(folder / name)), None)
    if there is not None:
        raise ConfigError(str(there), "is there already, and nothing was written", "Give another folder: keyferry init DIR")
    written: list[Path] = []
    with _all_or_none(folder, written):
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o600 if _KEY.search(text) else 0o644
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(path)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    return written


def next_commands(folder: Path, example: str | None) -> list[str]:
    """Return what to run now, each line as it is; after `serve` in another terminal."""
    first = _FIRST.get(example or "minimal")
    if first is None:
        return []
    begin = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    served = ("keyferry check lab.toml", "keyferry serve --config lab.toml", "keyferry ue register --config ue.toml")
    return [*begin, *served, *first]


def told(written: list[Path], commands: list[str]) -> Iterator[str]:
    """Yield the lines that `init` prints."""
    yield from (f"wrote {path}" for path in written)
    if commands:
        yield "Now run, from `keyferry ue` on in a second terminal in the same folder, as `serve` runs until Ctrl-C:"
        yield from (f"  {command}" for command in commands)


def _texts(example: str | None) -> Iterator[tuple[str, str]]:
    if example is not None and example not in EXAMPLES:
        raise ConfigError("--example", f"{example!r} is not one of {', '.join(EXAMPLES)}")
    source = resources.files("keyferry") / ("examples" if example else "cli/templates")
    drawn: dict[str, str] = {}  # the key in the source -> the one here: two files of one SIM keep the same
    for name in EXAMPLES[example] if example else MINIMAL:
        text = source.joinpath(*name.split("/")).read_text("utf-8").replace("examples/", "").replace(_PUBLISHED, _DRAWN)
        yield Path(name).name, _KEY.sub(lambda found: f'{found[1]}"{drawn.setdefault(found[2], secrets.token_hex(16))}"', text)


@contextmanager
def _all_or_none(folder: Path, written: list[Path]) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        for path in written:
            path.unlink(missing_ok=True)
        raise StateError(str(folder), f"cannot be written: {problem.strerror}", "Give a folder that you may write to") from None
