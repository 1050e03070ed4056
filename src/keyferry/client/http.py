# SPDX-License-Identifier: Apache-2.0
"""HTTP with a ferried key (DESIGN §7): an httpx client that authenticates as this registration."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from keyferry.client.http_auth import WAITS, SimDigest
from keyferry.client.names import as_id_of, by_host, host_of
from keyferry.client.psk import psk_transport
from keyferry.client.psk_policy import PskOrCertificate
from keyferry.client.ue import http_credentials
from keyferry.errors import ConfigError
from keyferry.ports import RandomSource, UeState

TIMEOUT = 10.0  # seconds


class HostsTransport(httpx.AsyncBaseTransport):
    """Send to the addresses of a table, and keep the names in Host, SNI and the certificate check."""

    def __init__(self, inner: httpx.AsyncBaseTransport, hosts: Mapping[str, str]) -> None:
        self._inner = inner
        self._hosts = by_host(hosts)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response stands under the name that was asked for."""
        address = self._hosts.get(host_of(request.url))
        if address is None:
            return await self._inner.handle_async_request(request)
        extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")}
        sent = httpx.Request(
            request.method, request.url.copy_with(host=address), headers=request.headers, stream=request.stream, extensions=extensions
        )
        return await self._inner.handle_async_request(sent)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def trust(ca: Path) -> ssl.SSLContext:
    """Return a client context that trusts one CA file and nothing else. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError):
        raise ConfigError(
            str(ca), "is not a readable CA certificate", "Run `keyferry serve` or `keyferry pki` once, or name it with `ca`"
        ) from None
    return context


def open_client(
    auth: httpx.Auth | None, *, hosts: Mapping[str, str], tls: ssl.SSLContext, base_url: str = "", timeout: float = TIMEOUT,
    psk_ports: Mapping[str, int] | None = None,
) -> httpx.AsyncClient:  # fmt: skip
    """Return a client that goes to the addresses of a table, follows no redirect, and takes nothing from the environment.

    `psk_ports` are where hosts have TLS-PSK; None: nobody will ask for it.
    """
    transport: httpx.AsyncBaseTransport = HostsTransport(httpx.AsyncHTTPTransport(verify=tls, http1=True, retries=0), hosts)
    if psk_ports is not None:
        transport = PskOrCertificate(transport, psk_ports, make=lambda found: HostsTransport(psk_transport(found), hosts))
    return httpx.AsyncClient(transport=transport, auth=auth, timeout=timeout, trust_env=False, follow_redirects=False, base_url=base_url)


def open_http(
    state: UeState | None, url: str, *, ca: Path, hosts: Mapping[str, str], random: RandomSource, waits: Sequence[float] = WAITS
) -> httpx.AsyncClient:
    """Return a client for one application server, authenticated if `state` is given.

    `waits` are the seconds before each new try while the server does not know the key.

    Raises ConfigError (a URL that is not https), ParseError (host), RegistrationFailed (no AS keys).
    """
    target = httpx.URL(url)
    if target.scheme != "https" or not target.host:
        raise ConfigError(url, "is not an https URL", "AS keys are used over TLS only")
    auth = None
    if state is not None:
        credentials = http_credentials(state, as_id_of(target))
        auth = SimDigest(
            key_id=credentials.username, as_id=credentials.as_id, k_ua=credentials.k_ua, random=random, waits=waits,
            proven=credentials.proven,
        )  # fmt: skip
    return open_client(auth, hosts=hosts, tls=trust(ca))
