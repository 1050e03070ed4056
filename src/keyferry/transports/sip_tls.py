# SPDX-License-Identifier: Apache-2.0
"""SIP over TLS (RFC 3261 §26.2.1, §26.3.2.2; RFC 5922): a connection is used once its peer's certificate names whom it should.

TLS runs over memory buffers here, not in the event loop's own transport: so a handshake counts as a connection from its first octet, ends
in time, and says why it failed; and every loop does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import ssl
from typing import Final

from keyferry.errors import ParseError, TransportError
from keyferry.ports import SipPeer
from keyferry.transports.deadlines import Deadline
from keyferry.transports.pki import MutualTls, PeerIdentity, peer_identity
from keyferry.transports.sip_context import Receiver, SipContext
from keyferry.transports.sip_tcp import CLOSED, TcpConnection, TcpTransport

RECORD: Final = 64 * 1024
"""Octets deciphered at once; a TLS record holds 16 kB."""
DAY: Final = 86_400.0
"""Seconds."""
MAX_NAME: Final = 253
"""Characters of a host name (RFC 1035 §2.3.4)."""

_NAME = re.compile(r"(?:[a-z0-9_\-]{1,63}\.)*+(?![0-9]+$)[a-z0-9\-]{1,63}")


class TlsConnection(TcpConnection):
    """One connection; `peer.name` and `peer.role` are the verified certificate's."""

    kind = "TLS"
    default_port = 5061

    def __init__(self, owner: TlsTransport, local_host: str, *, outgoing: SipPeer | None = None) -> None:
        super().__init__(owner, local_host, outgoing=outgoing)
        self._context = owner.context
        self._cipher, self._ciphered = ssl.MemoryBIO(), ssl.MemoryBIO()
        context, name = (owner.tls.server, None) if outgoing is None else (owner.tls.client, outgoing.name)
        self._tls = context.wrap_bio(self._cipher, self._ciphered, server_side=outgoing is None, server_hostname=name)
        self._shaken = False
        self._expected = outgoing
        self._ends_at = math.inf  # when the peer's certificate does
        self._deadline: Deadline | None = None
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        """Wait for the handshake. Raises TransportError."""
        try:
            await self._outcome
        except asyncio.CancelledError:
            self.abort("the handshake took too long")
            raise
        if self.given_up or self.closed:
            raise TransportError(str(self.peer), self.problem)

    def stale(self, now: float) -> bool:
        """Tell whether the connection was idle too long, a message is, or the peer's certificate ended and nothing is in progress."""
        return super().stale(now) or (self._in_progress == 0 and not self.closed and self._context.clock.now() >= self._ends_at)

    def close(self) -> None:
        """Say goodbye (close_notify) and close after what is written was sent."""
        if self._shaken and self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(ssl.SSLError):  # the peer's own close_notify is not waited for
                self._tls.unwrap()
            self._flush()
        super().close()

    # ---- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Take octets of the network: the handshake's, then records."""
        self._cipher.write(data)
        if self._shaken or self._shake():
            self._decipher()

    def eof_received(self) -> bool:
        """Take the end of what the peer sends; SIP messages say how long they are, so nothing is cut unseen without close_notify."""
        if not self._shaken:
            self._refuse("tls-handshake", "the peer ended the handshake")
            return False
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, and whoever waits for the handshake."""
        if not self._shaken and not self.given_up:
            self._refuse("tls-handshake", "the peer ended the handshake")
        super().connection_lost(exc)
        self._done()

    # ---- inside

    def _opened(self) -> None:
        if self._expected is None:  # who connects has a deadline of its own, for all of it
            self._deadline = self._context.deadlines.after(
                self._context.limits.handshake, lambda: self._refuse("tls-handshake", "the handshake took too long")
            )
        self._shake()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except OSError as problem:  # ssl.SSLError among them
            self._flush()  # the alert
            self._refuse("tls-handshake", f"TLS: {_said(problem)}", gently=True)
            return False
        self._flush()
        problem_with_peer = self._verify()
        if problem_with_peer:
            self._refuse("tls-peer", problem_with_peer)
            return False
        self._shaken = True
        self._owner.usable(self)
        self._done()
        return True

    def _verify(self) -> str:
        """Compare the peer's certificate, whose chain was verified, with whom we called (RFC 5922 §7.3, §7.4); return what is wrong."""
        der = self._tls.getpeercert(binary_form=True)
        try:
            found = PeerIdentity((), "", math.inf) if der is None else peer_identity(der)
        except ParseError as problem:
            return str(problem)
        self._ends_at = found.not_after
        if self._expected is None:
            if der is not None and not found.names:
                return "its certificate names no SIP domain"
            self.peer = self.peer._replace(name=found.names[0] if found.names else "", role=found.role)
            return ""
        if self._expected.name not in found.names:
            return f"its certificate does not name {self._expected.name}"
        self.peer = self.peer._replace(role=found.role)
        return ""

    def _decipher(self) -> None:
        found: list[bytes] = []
        ended = False
        try:
            while octets := self._tls.read(RECORD):
                found.append(octets)
            ended = True  # close_notify
        except ssl.SSLWantReadError:
            pass
        except OSError as problem:
            self._flush()
            self._context.count("sip_dropped", "tls-record")
            self.abort(f"TLS: {_said(problem)}")
            return
        self._flush()  # an answer to a change of keys
        if found:
            self._octets(b"".join(found))
        if ended:
            self._finish(CLOSED)
            self._take()

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except OSError as problem:
            self.abort(f"TLS: {_said(problem)}")
            return
        self._flush()

    def _flush(self) -> None:
        if self._ciphered.pending and self._transport is not None:
            self._transport.write(self._ciphered.read())

    def _refuse(self, reason: str, problem: str, *, gently: bool = False) -> None:
        if self._shaken or self.given_up:
            return
        self._context.count("sip_dropped", reason)
        if self._expected is not None or reason == "tls-peer":  # a stranger who cannot even shake hands does not fill the log
            self._context.log.warning("sip-tls-refused", node=self._context.name, peer=str(self.peer), problem=problem)
        if gently and self._transport is not None:
            self.problem, self.given_up = problem, True
            self._transport.close()  # after the alert
        else:
            self.abort(problem)
        self._done()

    def _done(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._outcome.done():
            self._outcome.set_result(None)


class TlsTransport(TcpTransport):
    """Every TLS connection of a node."""

    def __init__(self, context: SipContext, receiver: Receiver, tls: MutualTls) -> None:
        super().__init__(context, receiver)
        self.tls = tls
        self.warn()

    def warn(self) -> None:
        """Say once a day that our certificate is about to end; a renewed one ends that."""
        if self._closed:
            return
        left = self.tls.not_after - self.context.clock.now()
        if left < self.context.limits.expiry_warning:
            self.context.count("sip_certificate", "expiring" if left > 0 else "expired")
            self.context.log.warning("sip-certificate-expiring", node=self.context.name, name=self.tls.name, days_left=int(left // DAY))
        self.context.deadlines.after(DAY, self.warn)

    def _connection(self, local_host: str, outgoing: SipPeer | None) -> TlsConnection:
        return TlsConnection(self, local_host, outgoing=outgoing)

    async def _open(self, peer: SipPeer, local_host: str) -> TcpConnection:
        if _NAME.fullmatch(peer.name) is None or len(peer.name) > MAX_NAME:
            raise TransportError(str(peer), "a TLS peer needs a name that its certificate must show; an address is none")
        return await super()._open(peer, local_host)


def _said(problem: OSError) -> str:
    """Return OpenSSL's word for what went wrong; it holds no octets of the peer."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"the peer's certificate: {problem.verify_message}"
    reason = getattr(problem, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else problem.strerror or type(problem).__name__
