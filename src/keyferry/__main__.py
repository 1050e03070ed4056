# SPDX-License-Identifier: Apache-2.0
"""`python -m keyferry`, and the command `keyferry`: which does with few of its parts what it can."""

from __future__ import annotations

import sys

PARTS = frozenset({"h11", "httptools", "httpx", "msgspec", "prometheus_client", "rich", "structlog", "typer", "uvicorn", "uvloop"})
"""What the extra `server` installs."""


def main() -> None:
    """Run the command."""
    try:
        from keyferry.cli.app import main as run

        run()
    except ModuleNotFoundError as problem:
        missing = (problem.name or "").partition(".")[0]
        if missing not in PARTS:
            raise
        from keyferry.cli.plain import run as run_plain

        sys.exit(run_plain(sys.argv[1:], missing))
    except KeyboardInterrupt:  # while the parts are loaded, which takes a second on a slow machine
        sys.exit(130)


if __name__ == "__main__":
    main()
