# SPDX-License-Identifier: Apache-2.0
"""Check what no linter checks: file sizes, names, a test file beside every source file, SPDX lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "keyferry"
MAX_LINES = 500
BAD_NAMES = re.compile(r"(^|/)(utils?|common|helpers?|misc)(\.py|/)")
MIRRORED = ("protocol", "roles", "stores", "asgi", "transports", "client")


def problems() -> list[str]:
    """Return one line for each thing that is wrong."""
    found: list[str] = []
    for path in sorted([*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        if text.count("\n") > MAX_LINES:
            found.append(f"{name}: {text.count(chr(10))} lines, at most {MAX_LINES}")
        if not text.startswith("# SPDX-License-Identifier: Apache-2.0\n"):
            found.append(f"{name}: no SPDX line")
        if BAD_NAMES.search(name):
            found.append(f"{name}: a name that says nothing")
    for folder in MIRRORED:
        for path in sorted((SOURCE / folder).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            wanted = ROOT / "tests" / path.relative_to(SOURCE).with_name(f"test_{path.name}")
            if not wanted.is_file():
                found.append(f"{path.relative_to(ROOT)}: no {wanted.relative_to(ROOT)}")
    return found


if __name__ == "__main__":
    lines = problems()
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.exit(1 if lines else 0)
