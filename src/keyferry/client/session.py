# SPDX-License-Identifier: Apache-2.0
"""A UE from its configuration and its state directory."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpx

from keyferry.client.http import open_client, trust
from keyferry.client.login import UeLogin
from keyferry.client.names import as_id_of
from keyferry.client.proxy import UeProxy
from keyferry.client.stay import Stay, Tell
from keyferry.client.ue import HttpCredentials, Isim, UeClient, http_credentials, open_ue, registered
from keyferry.config import UeConfig, split_address
from keyferry.errors import ConfigError, RegistrationFailed
from keyferry.ports import Log, RandomSource, SipObserver, SipPeer, UeState
from keyferry.protocol.aka import opc_of
from keyferry.protocol.identity import AsId, parse_as_id, parse_impi, parse_impu
from keyferry.roles.ue import UeProfile
from keyferry.stores.database import Database
from keyferry.stores.sqlite.ue import SqliteUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.pki import Pki, client_tls
from keyferry.transports.sip_udp import address_towards


@dataclass(frozen=True, slots=True)
class UeSession:
    """An open UE."""

    config: UeConfig
    client: UeClient
    random: RandomSource
    ca: Path
    log: Log
    state: Path

    async def current(self) -> UeState:
        """Return the state of a registration that is still valid. Raises RegistrationFailed, StateError."""
        return registered(await self.client.settled(), self.client.clock.now())

    async def stay(self, tell: Tell) -> bool:
        """Stay registered until SIGINT or SIGTERM; false if the network wants us no more. Raises RegistrationFailed, TransportError."""
        loop, ended = asyncio.get_running_loop(), until_signal()
        stay = Stay(self.client, tell, self.random, self.log)
        running, asked = loop.create_task(stay.run()), loop.create_task(ended.wait())
        try:
            await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            return not running.done()
        finally:
            running.cancel()
            asked.cancel()
            await asyncio.gather(running, asked, return_exceptions=True)
            await stay.leave()

    def credentials(self, state: UeState, as_id: str) -> HttpCredentials:
        """Derive the HTTP credentials for an AS, for a client that is not ours. Raises ParseError, RegistrationFailed."""
        found = http_credentials(state, parse_as_id(as_id))
        if not found.proven:
            raise RegistrationFailed(
                "only clients that check the server's rspauth may have these keys: take `keyferry ue get`, or its proxy"
            )
        return found

    def url(self, target: str) -> str:
        """Return a URL; a path is relative to the XCAP root. Raises ConfigError."""
        url = target if "://" in target else urljoin(self.config.ue.xcap_root, target.lstrip("/"))
        if not url.startswith("https://"):
            raise ConfigError(target, "is not an https URL", "AS keys are used over TLS only")
        return url

    def login(self, host: str, *, integrity: bool = False) -> UeLogin:
        """Return what authenticates requests to one host by Digest, with the key of the registration of the moment.

        Raises ConfigError where TLS-PSK is required, ParseError.
        """
        if self.config.ue.psk == "require":
            raise ConfigError(
                "ue.psk", "is `require`, and a client of your own has no TLS-PSK", "Take the client of Ue.http, or set `prefer`"
            )
        return UeLogin(self.client, parse_as_id(host), self.random, integrity=integrity)

    def http(self, url: str, *, base: bool = False) -> httpx.AsyncClient:
        """Return an HTTP client for the host of a URL, which with `base` is what paths are relative to.

        Raises ConfigError (no https), ParseError (the host).
        """
        target = httpx.URL(url)
        if target.scheme != "https" or not target.host:
            raise ConfigError(url, "is not an https URL", "AS keys are used over TLS only")
        login = UeLogin(self.client, as_id_of(target), self.random, psk=self.config.ue.psk, log=self.log)
        ports = self.config.psk_ports if self.config.ue.psk != "off" else None
        return open_client(login, hosts=self.config.hosts, tls=trust(self.ca), base_url=url if base else "", psk_ports=ports)

    def proxy(self, also: Collection[str] = (), *, authority: Path | None = None) -> tuple[UeProxy, Path]:
        """Return a proxy that logs browsers in, and the CA that they must trust, which is in `authority`, else in the state directory.

        It does so at the host of `xcap_root`, at those of [hosts], and at those in `also`. Raises ConfigError, ParseError, StateError.
        """
        from keyferry.transports.http_server import tls_context  # needs uvicorn, which the extra `client` does not bring

        root = as_id_of(httpx.URL(self.config.ue.xcap_root))
        hosts = {root, *map(parse_as_id, (*self.config.hosts, *also))}
        pki = Pki(authority or self.state, self.client.clock, folder="proxy", ca="proxy-ca.pem", permitted=sorted(hosts))
        shown: dict[AsId, ssl.SSLContext] = {}
        for host in hosts:
            certificate = pki.ensure(host, "proxy")
            shown[host] = tls_context(certificate.certificate, certificate.key)
            shown[host].set_alpn_protocols(["http/1.1"])
        return UeProxy(hosts, client_of=lambda host: self.http(f"https://{host}/"), tls_of=shown.__getitem__, log=self.log), pki.ca_file


def until_signal() -> asyncio.Event:
    """Return what SIGINT and SIGTERM set, from now on; and SIGHUP, by which a terminal is closed, unless it is ignored as under nohup."""
    ended = asyncio.Event()
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return ended


@asynccontextmanager
async def ue_session(config: UeConfig, state_path: Path, log: Log, *, observer: SipObserver | None = None) -> AsyncIterator[UeSession]:
    """Open the UE; another process may have it open too: their procedures take turns. Raises ConfigError, StateError, ParseError."""
    settings = config.ue
    clock, random = SystemClock(), SystemRandom()
    opc = settings.opc if settings.opc is not None else opc_of(settings.algorithm, settings.k, settings.op or settings.k)
    profile = UeProfile(
        impi=parse_impi(settings.impi), impu=parse_impu(settings.impu), home_domain=settings.home_domain, expires=settings.expires,
        release=settings.release if settings.release >= 6 else None, require_keys=settings.require_keys, amf_bit=settings.amf_bit,
        rspauth=settings.rspauth,
    )  # fmt: skip
    host, port = split_address(settings.pcscf, "ue.pcscf")
    gm = split_address(settings.pcscf_gm, "ue.pcscf_gm")
    with open_state(state_path, random=random) as state, Database(state.path("ue.db")) as database:
        store = SqliteUeStore(database, state.keyring)
        isim = Isim(settings.algorithm, settings.k, opc, None if settings.opc is not None else settings.op)
        local = await address_towards(host, port)  # also that of its Contact
        ca = Path(settings.ca) if settings.ca else state_path / "ca.pem"
        over_tls = settings.transport == "tls"
        pcscf = SipPeer(settings.transport.upper(), host, port, settings.pcscf_name or "" if over_tls else "")
        async with open_ue(
            profile, isim, pcscf=pcscf, store=store, clock=clock, random=random, log=log,
            local_host=local, observer=observer, gm=SipPeer("UDP", *gm) if settings.gm == "required" else None,
            tls=client_tls(ca) if over_tls else None, instance=settings.instance,
        ) as client:  # fmt: skip
            yield UeSession(config, client, random, ca, log, state_path)
