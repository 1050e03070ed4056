# SPDX-License-Identifier: Apache-2.0
"""A forward proxy on this machine that logs any browser, httpx or curl in with a UE's keys (DESIGN §7).

It ends TLS for the application servers that it was told of, with certificates of a CA of its own, and goes on to them over TLS of its
own. It is nobody's way to anywhere else, and no page of another origin can use the login through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final

import h11
import httpx

from keyferry.client.http_auth import BODY, ONCE
from keyferry.client.origin import Target, inside, is_forged, parse_absolute, parse_authority
from keyferry.client.wire import Wire
from keyferry.errors import ConfigError, DigestRejected, KeyferryError, RemoteProtocolError, TransportError
from keyferry.ports import Log
from keyferry.protocol.identity import AsId

MAX_CONNECTIONS: Final = 256
"""Connections at once; a browser opens six to a host."""
AHEAD: Final = 65_536
"""Octets of a body that are kept, so that the request can be sent again after a challenge; a longer one is streamed."""
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
"""Seconds that an application server may be silent."""
PAC: Final = "/proxy.pac"
_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
_OURS: Final = frozenset({b"authorization", b"host", b"content-length", b"expect"})
"""Fields of a request that are made anew."""
_LOGIN: Final = frozenset({b"authentication-info", b"strict-transport-security"})
"""Fields of a response that were for us."""


class UeProxy:
    """Serve clients of this machine; `aclose` ends it."""

    def __init__(
        self, hosts: Collection[AsId], *, client_of: Callable[[AsId], httpx.AsyncClient], tls_of: Callable[[AsId], ssl.SSLContext], log: Log
    ) -> None:
        """Take the application servers, who logs in at each, and what to show a client that asks for one over TLS."""
        self._hosts = frozenset(hosts)
        self._client_of = client_of
        self._tls_of = tls_of
        self._log = log
        self._clients: dict[AsId, httpx.AsyncClient] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._address = ("", 0)

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Listen, on a loopback address alone, and return the address. Raises ConfigError, TransportError."""
        if not _is_loopback(host):
            raise ConfigError("--listen", f"{host} is no loopback address", "Others would be logged in as you; write 127.0.0.1:PORT")
        try:
            self._server = await asyncio.start_server(self._accept, host, port)
        except OSError as problem:
            raise TransportError(f"proxy:{host}:{port}", f"cannot listen: {problem.strerror}; choose another port") from None
        self._address = self._server.sockets[0].getsockname()[:2]
        return self._address

    async def aclose(self) -> None:
        """End every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS or not _is_loopback(writer.get_extra_info("peername")[0]):
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._connection(Wire(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, wire: Wire) -> None:
        open_wires = [wire]
        try:
            tunnel: tuple[AsId, int] | None = None
            while (request := await open_wires[-1].request()) is not None:
                if request.method == b"CONNECT" and tunnel is None:
                    tunnel = parse_authority(request.target.decode("ascii"), "https")
                    self._check_host(tunnel[0])
                    open_wires.append(await wire.tunnel(self._tls_of(tunnel[0])))
                    continue
                await self._serve(open_wires[-1], request, tunnel)
                if not open_wires[-1].goes_on():
                    return
        except (RemoteProtocolError, UnicodeDecodeError) as problem:
            await _say(open_wires[-1], problem)
        except (OSError, TimeoutError):  # the client's matter: gone, silent, or it does not trust our CA
            pass
        except Exception as problem:  # the shell's last line
            self._log.warning("proxy-failed", problem=type(problem).__name__)
        finally:
            for each in reversed(open_wires):
                each.close()

    def _check_host(self, as_id: AsId) -> None:
        if as_id not in self._hosts:
            raise RemoteProtocolError(f"{as_id} is no application server that this proxy logs in at: name it with --as", 403)

    async def _serve(self, wire: Wire, request: h11.Request, tunnel: tuple[AsId, int] | None) -> None:
        headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers]
        host = next((value for name, value in headers if name == "host"), "")
        text = request.target.decode("ascii")
        if tunnel is None and text == PAC and host in _names(*self._address):
            await wire.answer(200, self._pac(), [(b"Cache-Control", b"no-store")])
            return
        target = parse_absolute(text) if tunnel is None else inside(*tunnel, text, host)
        self._check_host(target.as_id)
        if is_forged(request.method.decode("ascii"), headers, target.origin):
            problem = f"a page of another origin may not use your login at {target.as_id}; in a browser, open it as https://"
            raise RemoteProtocolError(problem, 403)
        if any(name == "upgrade" and value.lower() == "websocket" for name, value in headers):
            raise RemoteProtocolError("WebSockets do not go through this proxy", 501)
        await self._forward(wire, request, target)

    def _pac(self) -> str:
        """Return what a browser is configured with, so that nothing else comes here."""
        hosts = ", ".join(f'"{host}": 1' for host in sorted(self._hosts))
        host, port = self._address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f'function FindProxyForURL(url, host) {{ return ({{{hosts}}})[host.toLowerCase()] ? "PROXY {shown}" : "DIRECT"; }}\n'

    async def _forward(self, wire: Wire, request: h11.Request, target: Target) -> None:
        client = self._clients.get(target.as_id)
        if client is None:
            client = self._clients[target.as_id] = self._client_of(target.as_id)
        try:
            response = await client.send(await _outgoing(wire, request, target), stream=True)
        except httpx.TimeoutException as problem:
            raise RemoteProtocolError(f"{target.as_id} does not answer", 504) from problem
        except httpx.HTTPError as problem:
            raise RemoteProtocolError(f"{target.as_id}: {type(problem).__name__}: {problem}", 502) from problem
        except DigestRejected as problem:
            raise RemoteProtocolError(f"{target.as_id} is not to be trusted: {problem.problem}", 502) from problem
        except RemoteProtocolError:
            raise  # of the client
        except KeyferryError as problem:
            raise RemoteProtocolError(f"no login at {target.as_id}: {problem}", 502) from problem
        try:
            self._log.info("proxied", method=request.method.decode("ascii"), host=target.as_id, status=response.status_code)
            await _return(wire, response, target)
        finally:
            await response.aclose()


async def _outgoing(wire: Wire, request: h11.Request, target: Target) -> httpx.Request:
    """Return the request as it goes on; one whose body is longer than what is kept can be sent once."""
    named = _named_by_connection(request.headers)
    headers = [(name, value) for name, value in request.headers if name not in _HOP_BY_HOP | _OURS | named]
    method = request.method.decode("ascii")
    body = wire.body()
    kept = b""
    async for block in body:
        kept += block
        if len(kept) > AHEAD:
            break
    else:
        content = kept or None
        return httpx.Request(method, target.url, headers=headers, content=content, extensions={"timeout": TIMEOUT.as_dict()})
    length = [(name, value) for name, value in request.headers if name == b"content-length"]
    extensions = {"timeout": TIMEOUT.as_dict(), BODY: ONCE}
    return httpx.Request(method, target.url, headers=[*headers, *length], content=_Rest(kept, body), extensions=extensions)


class _Rest:
    """The body that has begun to come, and what follows."""

    def __init__(self, begun: bytes, following: AsyncIterator[bytes]) -> None:
        self._begun = begun
        self._following = following

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._begun
        async for block in self._following:
            yield block


async def _return(wire: Wire, response: httpx.Response, target: Target) -> None:
    """Send the response on as it comes."""
    if response.status_code == 401 and f"@{target.as_id}" in response.headers.get("www-authenticate", ""):
        raise RemoteProtocolError(f"{target.as_id} does not take the key of this registration: register again", 502)
    raw = [(name.lower(), value) for name, value in response.headers.raw]
    left_out = _HOP_BY_HOP | _LOGIN | _named_by_connection(raw)
    headers = [(name, value) for name, value in raw if name not in left_out]
    reason = response.extensions.get("reason_phrase", b"")
    await wire.send(h11.Response(status_code=response.status_code, headers=headers, reason=reason))
    try:
        async for block in response.aiter_raw():
            await wire.send(h11.Data(data=block))
    except httpx.HTTPError as problem:
        raise RemoteProtocolError(f"{target.as_id} broke off", 502) from problem
    await wire.send(h11.EndOfMessage())


def _named_by_connection(headers: Collection[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the fields that Connection says are for this hop alone (RFC 9110 §7.6.1)."""
    values = (value for name, value in headers if name == b"connection")
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


async def _say(wire: Wire, problem: Exception) -> None:
    """Tell the client what is wrong, if it can still be told."""
    if not wire.answerable():
        return
    status = problem.status if isinstance(problem, RemoteProtocolError) else 400
    text = str(problem) if isinstance(problem, RemoteProtocolError) else "the request target is not ASCII"
    with contextlib.suppress(OSError, h11.LocalProtocolError):
        await wire.answer(status, f"keyferry ue proxy: {text}\n", [(b"Connection", b"close")])


def _names(host: str, port: int) -> tuple[str, ...]:
    shown = f"[{host}]" if ":" in host else host
    return (f"{shown}:{port}", f"localhost:{port}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
