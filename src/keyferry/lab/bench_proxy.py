# SPDX-License-Identifier: Apache-2.0
"""What the authentication proxy costs: the same application behind the SIM login, in the measured process and in another one behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from keyferry.asgi.exchange import App, Receive, Scope, Send, headers_named, respond
from keyferry.asgi.proxy.fields import Route
from keyferry.asgi.proxy.forward import Forward
from keyferry.asgi.proxy.front import Front
from keyferry.client.upstream import Address, HttpUpstream
from keyferry.config import ApplicationServer, Config, Network
from keyferry.lab.bench_http import AS_ID, Doors, document, http_user, login_of, store_keys
from keyferry.lab.bench_register import ANY_PORT, HOME, answer_usage
from keyferry.lab.bench_worker import Link
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.http_server import HttpServer, tls_context
from keyferry.transports.http_upgrade import UpgradingHttp
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Role
from keyferry.wiring.serving import spare_the_collector
from keyferry.wiring.system import System

ASSERTED = b"x-3gpp-asserted-identity"


class ProxySetup(NamedTuple):
    """What the process that is measured shall be."""

    state: Path
    users: int
    upstream: tuple[str, int]


class OneDocument:
    """Give everybody the same 2 kB, if it knows who that is: from the login in front, or from the proxy's word."""

    def __init__(self) -> None:
        self._body = document()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        del receive
        known = "keyferry" in scope or headers_named(scope, ASSERTED)
        await respond(send, 200 if known else 403, self._body, "application/xml")


async def serve_behind(link: Link) -> None:
    """Serve the application without a login, for the proxy alone; tell the address."""
    server = HttpServer(OneDocument())
    try:
        link.send(await server.listen("127.0.0.1", 0))
        await answer_usage(link)
    finally:
        await server.aclose()


async def serve_proxied(link: Link, setup: ProxySetup) -> None:
    """Serve the login with the application behind it, here and by the proxy; `Doors.open` is the one without a proxy."""
    async with _keys(link, setup) as system, AsyncExitStack() as stack:
        certificate = system.pki.ensure(AS_ID, "as")
        upstream = HttpUpstream(Address(*setup.upstream))
        stack.push_async_callback(upstream.aclose)
        forward = Forward(upstream, Route(AS_ID), log=StructLog("none"), counter=Metrics())
        proxied: App = Front({AS_ID: login_of(forward, system, certificate.sha256)}, clock=SystemClock(), counter=Metrics())
        addresses = []
        for app, protocol in ((proxied, UpgradingHttp), (login_of(OneDocument(), system, certificate.sha256), None)):
            tls = tls_context(certificate.certificate, certificate.key)
            server = HttpServer(app, tls=tls, protocol=protocol, date=False) if protocol else HttpServer(app, tls=tls)
            stack.push_async_callback(server.aclose)
            addresses.append(await server.listen("127.0.0.1", 0))
        spare_the_collector()
        link.send(Doors(addresses[0], addresses[1], certificate.sha256, str(system.pki.ca_file)))
        await answer_usage(link)


@asynccontextmanager
async def _keys(link: Link, setup: ProxySetup) -> AsyncIterator[System]:
    """Run an application server that holds the users' keys."""
    server = ApplicationServer(as_id=AS_ID, sip_uri=f"sip:xcap-as.{HOME}", listen_sip=ANY_PORT, listen_https=ANY_PORT)
    config = Config(network=Network(home_domain=HOME), application_servers=[server])
    clock, random = SystemClock(), SystemRandom()
    roles: tuple[Role, ...] = ("as",)
    with open_state(setup.state, random=random, exclusive=True) as state:
        system = System(config, state, clock, random, StructLog("none"), Metrics(), roles)
        try:
            await system.start()
            await store_keys(system, [http_user(number) for number in range(setup.users)], link, int(clock.now()))
            yield system
        finally:
            await system.stop()
