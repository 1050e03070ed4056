# SPDX-License-Identifier: Apache-2.0
"""Run the command `keyferry` and write every key that becomes a Secret, in hexadecimal, to the file named first."""

from __future__ import annotations

import sys

from keyferry.protocol.crypto.secret import Secret


def record(ledger: str) -> None:
    """Let every Secret made from now on leave a line in the ledger."""
    made = Secret.__init__
    file = open(ledger, "a", encoding="ascii", buffering=1)  # noqa: SIM115 - open as long as the process lives

    def noted(self: Secret, octets: bytes) -> None:
        made(self, octets)
        file.write(octets.hex() + "\n")

    Secret.__init__ = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    record(sys.argv.pop(1))
    from keyferry.cli.app import main

    main()
