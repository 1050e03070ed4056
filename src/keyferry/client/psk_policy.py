# SPDX-License-Identifier: Apache-2.0
"""When a client uses TLS with the pushed key, and what it does where that cannot be (DESIGN §7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import httpx

from keyferry.client.names import by_host, host_of, is_for
from keyferry.client.psk import psk_transport
from keyferry.client.ue import HttpCredentials
from keyferry.errors import ConfigError, LocalProtocolError

PskPolicy: TypeAlias = Literal["off", "prefer", "require"]
PSK: Final = "keyferry.psk"
"""Extension of a request that shall go over TLS-PSK: HttpCredentials; of its answer: True, or a Refusal that says why it did not."""
RETRY: Final = 60.0
"""Seconds after which `prefer` tries TLS-PSK again: one lost packet says nothing of the server, and a key may just have been late."""


class Refusal(NamedTuple):
    """Why a request that asked for TLS-PSK was not sent."""

    problem: str
    lasting: bool
    """It is of our own making, and not to be tried again with this key. What the network says never is: no alert is authentic before the
    handshake's end, and one forged packet would take TLS-PSK away for the life of a key."""


class PskOrCertificate(httpx.AsyncBaseTransport):
    """Send requests that ask for it over TLS-PSK, to the port where an application server has that; all others as ever.

    What cannot go over TLS-PSK has not gone at all: the answer is one of ours, and says why in its extensions.
    """

    def __init__(
        self,
        certificate: httpx.AsyncBaseTransport,
        ports: Mapping[str, int],
        *,
        make: Callable[[HttpCredentials], httpx.AsyncBaseTransport] = psk_transport,
    ) -> None:
        """Take the transport for all others, the ports by host name, and what makes a transport for a key."""
        self._certificate = certificate
        self._ports = by_host(ports)
        self._make = make
        self._keyed: dict[
            str, httpx.AsyncBaseTransport
        ] = {}  # by key id; the last two: requests under way end with the key they began with

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises LocalProtocolError for a URL of another host than the key's, and httpx's errors."""
        credentials = request.extensions.get(PSK)
        if not isinstance(credentials, HttpCredentials):
            return await self._certificate.handle_async_request(request)
        port = self._ports.get(host_of(request.url))
        if port is None:
            return _refused(f"no port for {request.url.host} in [psk_ports]", lasting=True)
        extensions = {name: value for name, value in request.extensions.items() if name != PSK}
        sent = httpx.Request(
            request.method, request.url.copy_with(port=port), headers=request.headers, stream=request.stream, extensions=extensions
        )
        try:
            response = await (await self._transport(credentials)).handle_async_request(sent)
        except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
            return _refused(f"{type(problem).__name__}: {problem}", lasting=False)
        except ConfigError as problem:
            return _refused(str(problem), lasting=True)
        response.extensions[PSK] = True
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        for transport in (*self._keyed.values(), self._certificate):
            await transport.aclose()

    async def _transport(self, credentials: HttpCredentials) -> httpx.AsyncBaseTransport:
        name = credentials.username
        if name not in self._keyed:
            self._keyed[name] = self._make(credentials)
            if len(self._keyed) > 2:
                await self._keyed.pop(next(iter(self._keyed))).aclose()
        return self._keyed[name]


def why_not(response: httpx.Response) -> Refusal | None:
    """Return why a request that asked for TLS-PSK was not sent; None if it was.

    Raises LocalProtocolError if it went somewhere else: nobody has proved anything then.
    """
    told = response.extensions.get(PSK)
    if isinstance(told, Refusal):
        return told
    if told is not True:
        raise LocalProtocolError("the transport of this client knows nothing of TLS-PSK: take it from `Ue.http`")
    return None


def asking(request: httpx.Request, credentials: HttpCredentials) -> httpx.Request:
    """Let a request ask for TLS-PSK. Raises LocalProtocolError for a URL that the key must not go to."""
    if not is_for(request.url, credentials.as_id):
        raise LocalProtocolError(f"this key is for {credentials.as_id} alone, over https")
    request.extensions = {**request.extensions, PSK: credentials}
    return request


def _refused(problem: str, *, lasting: bool) -> httpx.Response:
    return httpx.Response(421, extensions={PSK: Refusal(problem, lasting)})
