# SPDX-License-Identifier: Apache-2.0
"""HTTP over TLS with a ferried key on both sides and no certificate: a transport for httpx (DESIGN §7).

    async with httpx.AsyncClient(transport=psk_transport(credentials), trust_env=False) as client: ...

The server that answers holds the key, or there is no answer; the client says who it is in the handshake, and no request does.
"""

from __future__ import annotations

import ssl
import sys

import httpx

from keyferry.client.ue import HttpCredentials
from keyferry.errors import ConfigError, LocalProtocolError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims.keys import psk_identity, ua_key
from keyferry.transports.tls_psk import DEFAULT_SUITE, HASH_13, VERSIONS, PskVersion, check_psk, ua_id_of

MAX_IDENTITY = 255
"""Octets that OpenSSL takes."""


class _KeyedObject(ssl.SSLObject):
    """A connection that is none unless its handshake used our key."""

    def do_handshake(self) -> None:
        """Go on with the handshake. Raises ssl.SSLError."""
        super().do_handshake()
        context, cipher = self.context, self.cipher()
        suite = cipher[0] if cipher else ""
        if not isinstance(context, _KeyedContext) or self.getpeercert(binary_form=True) is not None:
            raise ssl.SSLError("the server showed a certificate instead of using the key")
        used = self.session_reused is True and suite.endswith(HASH_13) if context.suite is None else suite == context.suite
        if not used:
            raise ssl.SSLError("the handshake ended without our key")


class _KeyedContext(ssl.SSLContext):
    """A client's context for one key. It trusts no certificate at all, and does not go on without one or the key."""

    sslobject_class = _KeyedObject
    suite: str | None = None  # of TLS 1.2; None: 1.3


class PskTransport(httpx.AsyncBaseTransport):
    """Carry requests to one application server, over connections in which both sides proved the key."""

    def __init__(self, as_id: AsId, context: ssl.SSLContext) -> None:
        self._as_id = as_id
        self._inner = httpx.AsyncHTTPTransport(verify=context, http1=True, retries=0, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises httpx.ConnectError if the server does not know the key, or does not prove it; LocalProtocolError for a URL of another host,
        which must not even learn the name of the key.
        """
        if request.url.scheme != "https":
            raise LocalProtocolError("a ferried key is used over https alone")
        name = request.extensions.get("sni_hostname") or request.url.raw_host.decode("ascii")
        try:
            host = parse_as_id(str(name))
        except ParseError:
            host = None
        if host != self._as_id:
            raise LocalProtocolError(f"this key is for {self._as_id} alone")
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def psk_transport(credentials: HttpCredentials, version: PskVersion = "1.3", *, suite: str = DEFAULT_SUITE) -> PskTransport:
    """Return a transport for the application server of these credentials; `suite` is for TLS 1.2, as OpenSSL names it.

    Raises ConfigError below Python 3.13 and for a key that the S-CSCF did not prove, LocalProtocolError for a suite or a home realm that
    cannot be used so.
    """
    check_psk(f"TLS-PSK to {credentials.as_id}")
    if not credentials.proven:
        remedy = "Let such a key go as Digest over a certificate"
        raise ConfigError(f"TLS-PSK to {credentials.as_id}", "is not for a key that the S-CSCF did not prove (ue.rspauth)", remedy)
    ua_id = ua_id_of(version, suite)
    return PskTransport(
        credentials.as_id, _context(psk_identity(ua_id, credentials.username), ua_key(credentials.k_as, ua_id), version, suite)
    )


def _context(identity: str, key: Secret, version: PskVersion, suite: str) -> ssl.SSLContext:
    if len(identity) > MAX_IDENTITY:
        raise LocalProtocolError(f"the home realm is too long: OpenSSL takes {MAX_IDENTITY} octets of a PSK identity")
    context = _KeyedContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED, and nothing is loaded that could be trusted
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    if version == "1.2":
        context.set_ciphers(suite)
        context.suite = suite
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda _hint: (identity, key.reveal()))
    return context
