# SPDX-License-Identifier: Apache-2.0
"""One end of a TLS connection over memory buffers: octets in, octets out, and whom the peer's certificate names.

So a handshake is bounded and counted like any connection, ends in time by the clock port, says why it failed, and every event loop
does the same.
"""

from __future__ import annotations

import contextlib
import math
import ssl
from typing import Final

from keyferry.errors import ParseError, TransportError
from keyferry.transports.pki import MutualTls, PeerIdentity, peer_identity

RECORD: Final = 64 * 1024
"""Octets deciphered at once; a TLS record holds 16 kB."""


class TlsStream:
    """Cipher and decipher one connection; the peer's chain is verified, its name is for the caller to compare."""

    def __init__(self, tls: MutualTls, *, calls: bool, name: str = "") -> None:
        """Begin as client if `calls`; `name` is sent as SNI."""
        self._cipher, self._ciphered = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = tls.client if calls else tls.server
        self._tls = context.wrap_bio(self._cipher, self._ciphered, server_side=not calls, server_hostname=name if calls and name else None)
        self.identity = PeerIdentity((), "", math.inf)
        self.shaken = False
        self.ended = False  # the peer sent close_notify

    def begin(self) -> None:
        """Say hello, as the client."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()

    def feed(self, data: bytes) -> bytes:
        """Take octets of the network and return what was in them; `outgoing` may have something to send in any case.

        Raises TransportError: the handshake failed, or a record is wrong.
        """
        self._cipher.write(data)
        try:
            return self._read() if self.shaken or self._shake() else b""
        except OSError as problem:  # ssl.SSLError among them
            raise TransportError("TLS", said(problem)) from problem

    def write(self, data: bytes) -> None:
        """Cipher octets, after the handshake. Raises TransportError."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except OSError as problem:
            raise TransportError("TLS", said(problem)) from problem

    def outgoing(self) -> bytes:
        """Return, once, what is to be sent."""
        return self._ciphered.read() if self._ciphered.pending else b""

    def close(self) -> None:
        """Say goodbye; the peer's own close_notify is not waited for."""
        if self.shaken:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        der = self._tls.getpeercert(binary_form=True)
        try:
            self.identity = self.identity if der is None else peer_identity(der)
        except ParseError as problem:
            raise TransportError("TLS", str(problem)) from problem
        self.shaken = True
        return True

    def _read(self) -> bytes:
        found = []
        try:
            while octets := self._tls.read(RECORD):
                found.append(octets)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        return b"".join(found)


def said(problem: OSError) -> str:
    """Return OpenSSL's word for what went wrong; it holds no octets of the peer."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the peer's certificate: {problem.verify_message}"
    reason = getattr(problem, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else problem.strerror or type(problem).__name__
