# SPDX-License-Identifier: Apache-2.0
"""Check what no linter checks: file sizes, names, a test file beside every source file, SPDX lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "keyferry"
MAX_LINES = 800  # mostly 100 to 400; up to this where a cut would tear a concept
BAD_NAMES = re.compile(r"(^|/)(utils?|common|helpers?|misc)(\.py|/)")
MIRRORED = ("protocol", "roles", "stores", "asgi", "transports", "client")


def problems() -> list[str]:
    """Return one line for each thing that is wrong."""
    files = sorted([*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
    return [line for path in files for line in _of_file(path)] + [line for folder in MIRRORED for line in _without_test(folder)]


def _of_file(path: Path) -> list[str]:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text()
    wrong = (
        (text.count("\n") > MAX_LINES, f"{text.count(chr(10))} lines, at most {MAX_LINES}"),
        (not text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), "no SPDX line"),
        (BAD_NAMES.search(name) is not None, "a name that says nothing"),
    )
    return [f"{name}: {problem}" for is_so, problem in wrong if is_so]


def _without_test(folder: str) -> list[str]:
    sources = (path for path in sorted((SOURCE / folder).rglob("*.py")) if path.name != "__init__.py")
    pairs = ((path, ROOT / "tests" / path.relative_to(SOURCE).with_name(f"test_{path.name}")) for path in sources)
    return [f"{path.relative_to(ROOT)}: no {test.relative_to(ROOT)}" for path, test in pairs if not test.is_file()]


if __name__ == "__main__":
    lines = problems()
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.exit(1 if lines else 0)
