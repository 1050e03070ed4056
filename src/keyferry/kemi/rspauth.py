# SPDX-License-Identifier: Apache-2.0
"""Ask our HSS for the rspauth of an accepted answer, over its local socket: Kamailio 5.6.3 loses its own (interop notes, DESIGN §10)."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any, Final

from keyferry.errors import TransportError
from keyferry.protocol.digest import Credentials, build_credentials

PATIENCE: Final = 0.5
"""Seconds; a worker of Kamailio waits meanwhile, and the UE's T1 is as long."""
MAX_LINE: Final = 16_384
"""Octets of a question or an answer: an Authorization has 8,192 at most."""


@dataclass(frozen=True, slots=True)
class RspauthSocket:
    """The HSS's socket."""

    path: str
    patience: float = PATIENCE  # seconds

    def ask(self, credentials: Credentials) -> str:
        """Return rspauth for these credentials, which the HSS checks itself; it gives one for each nonce. Raises TransportError."""
        question = json.dumps({"authorization": build_credentials(credentials)}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.patience)
                connection.connect(self.path)
                connection.sendall(question)
                said = _line(connection)
        except (OSError, ValueError) as problem:
            raise TransportError(self.path, f"the HSS's socket does not answer: {type(problem).__name__}") from None
        rspauth = said.get("rspauth")
        if not isinstance(rspauth, str) or not rspauth.isalnum():
            raise TransportError(self.path, f"the HSS gives no rspauth: {said.get('error')!s:.100}")
        return rspauth


def _line(connection: socket.socket) -> dict[str, Any]:
    said = b""
    while not said.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(said) > MAX_LINE:
            raise ValueError("no whole line")
        said += more
    found = json.loads(said)
    return found if isinstance(found, dict) else {}
