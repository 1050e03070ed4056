# SPDX-License-Identifier: Apache-2.0
"""Run the command `keyferry` and write every key that becomes a Secret, in hexadecimal, to the file named first."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from keyferry.protocol.crypto.secret import Secret

Init = Any  # a method; mypy has no word for the type of one that is assigned


def record(ledger: str) -> None:
    """Let every Secret made from now on leave a line in the ledger."""
    made = Secret.__init__
    file = open(ledger, "a", encoding="ascii", buffering=1)  # noqa: SIM115 - open as long as the process lives

    def noted(self: Secret, octets: bytes) -> None:
        made(self, octets)
        file.write(octets.hex() + "\n")

    Secret.__init__ = noted  # type: ignore[method-assign]
    if sys.argv[1:2] == ["lab"]:
        _leave_out_the_judge(made, noted)


def _leave_out_the_judge(made: Init, noted: Init) -> None:
    """Record nothing while the judge computes what follows from a view: some hundred thousand values that nobody holds."""
    judge: Any = importlib.import_module("keyferry.lab.attacks.judge")
    closed = judge.closure

    def unrecorded(*view: Any, **settings: Any) -> Any:
        Secret.__init__ = made  # type: ignore[method-assign]
        try:
            return closed(*view, **settings)
        finally:
            Secret.__init__ = noted  # type: ignore[method-assign]

    judge.closure = unrecorded


if __name__ == "__main__":
    record(sys.argv.pop(1))
    from keyferry.cli.app import main

    main()
