# SPDX-License-Identifier: Apache-2.0
"""Ask our HSS for the rspauth of an accepted answer, over its local socket: Kamailio 5.6.3 loses its own (interop notes, DESIGN §10)."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from keyferry.errors import ParseError, TransportError
from keyferry.protocol.digest import Credentials, build_credentials
from keyferry.protocol.identity import Impi, parse_impi

PATIENCE: Final = 0.5
"""Seconds in all; a worker of Kamailio waits meanwhile, and the UE's T1 is as long."""
MAX_LINE: Final = 16_384
"""Octets of a question or an answer: an Authorization has 8,192 at most."""


@dataclass(frozen=True, slots=True)
class RspauthSocket:
    """The HSS's socket."""

    path: str
    patience: float = PATIENCE  # seconds
    monotonic: Callable[[], float] = time.monotonic

    def ask(self, credentials: Credentials) -> str:
        """Return rspauth for these credentials, which the HSS checks itself; it gives one for each nonce. Raises TransportError."""
        said = self._said(credentials)
        rspauth = said.get("rspauth")
        if not isinstance(rspauth, str) or not rspauth.isalnum():
            raise TransportError(self.path, f"the HSS gives no rspauth: {said.get('error')!s:.100}")
        return rspauth

    def check(self, realm: str) -> None:
        """See that the HSS listens there, lets this process ask, and refuses a nonce that it never made. Raises TransportError."""
        nonce = base64.b64encode(os.urandom(36)).decode()
        made_up = Credentials(f"check@{realm}", realm, nonce, f"sip:{realm}", "0" * 32, "AKAv1-MD5", "0" * 32, qop="auth", nc="00000001")
        said = self._said(made_up)
        if not isinstance(said.get("error"), str) or "rspauth" in said:
            raise TransportError(self.path, "whoever listens there is no HSS of ours: it does not refuse what it cannot know")

    def ended(self, scscf: str, since: int) -> list[tuple[int, int, Impi]]:
        """Return whose registrations at an S-CSCF the HSS has ended behind a place: place, milliseconds, IMPI. Raises TransportError."""
        found = self._asked({"ended": scscf, "since": since}).get("ended")
        try:
            return [(int(place), int(at), parse_impi(impi)) for place, at, impi in cast("list[Any]", found)]
        except (TypeError, ValueError, ParseError):
            raise TransportError(self.path, "the HSS does not say who was ended") from None

    def _said(self, credentials: Credentials) -> dict[str, Any]:
        return self._asked({"authorization": build_credentials(credentials)})

    def _asked(self, words: dict[str, object]) -> dict[str, Any]:
        question = json.dumps(words).encode() + b"\n"
        deadline = self.monotonic() + self.patience
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.patience)
                connection.connect(self.path)
                connection.sendall(question)
                return self._line(connection, deadline)
        except (OSError, ValueError) as problem:
            raise TransportError(self.path, f"the HSS's socket does not answer: {self._why(problem)}") from None

    def _why(self, problem: OSError | ValueError) -> str:
        """Say it in words; of a line that cannot be read no octet."""
        if isinstance(problem, TimeoutError):
            return f"nothing in {self.patience:g} s"
        if isinstance(problem, OSError) and problem.strerror:
            return problem.strerror
        return str(problem) if type(problem) is ValueError else type(problem).__name__

    def _line(self, connection: socket.socket, deadline: float) -> dict[str, Any]:
        said = b""
        while not said.endswith(b"\n"):
            left = deadline - self.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            more = connection.recv(4096)
            if not more or len(said) > MAX_LINE:
                raise ValueError("no whole line: this user may not ask" if not said else "no whole line")
            said += more
        found = json.loads(said)
        return found if isinstance(found, dict) else {}
