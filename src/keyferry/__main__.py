# SPDX-License-Identifier: Apache-2.0
"""`python -m keyferry`, and the command `keyferry`: says what to install where its parts are missing."""

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
        remedy = 'Install it with the extra "server": pip install "keyferry[server]". An application behind SimLogin needs neither.'
        sys.stderr.write(f"keyferry: the command needs {missing}, which is not installed. {remedy}\n")
        sys.exit(1)
    except KeyboardInterrupt:  # while the parts are loaded, which takes a second on a slow machine
        sys.exit(130)


if __name__ == "__main__":
    main()
