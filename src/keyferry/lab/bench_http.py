# SPDX-License-Identifier: Apache-2.0
"""What is measured at a GET: the XCAP server behind the SIM login, and the same application behind a door that asks nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from keyferry.asgi.auth import Identity, SimLogin
from keyferry.asgi.exchange import App, Receive, Scope, Send
from keyferry.asgi.xcap import XcapApp
from keyferry.config import ApplicationServer, Config, Network
from keyferry.errors import ConfigError
from keyferry.lab.bench_granian import GranianServer
from keyferry.lab.bench_register import ANY_PORT, BATCH, HOME, answer_usage
from keyferry.lab.bench_worker import Link
from keyferry.ports import Document
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, reg_of
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.protocol.ims.keys import as_key, digest_password, key_id, ua_key
from keyferry.protocol.xcap.conditions import etag_of
from keyferry.roles.appserver import PushedKeys
from keyferry.roles.xcap_server import XcapServer
from keyferry.stores.database import Database
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from keyferry.stores.state_dir import StateDir, open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.http_server import HttpServer, tls_context
from keyferry.transports.tls_psk import check_psk
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Role
from keyferry.wiring.serving import spare_the_collector
from keyferry.wiring.system import System

AS_ID = AsId(f"xcap.{HOME}")
AUID = "simservs.ngn.etsi.org"
DOCUMENT_OCTETS = 2048
KEY_LIFE = 86_400


class HttpUser(NamedTuple):
    """A user that both sides make from a number."""

    impi: Impi
    impu: Impu
    key_id: KeyId
    k_as: Secret
    path: str


class HttpSetup(NamedTuple):
    """What the process that is measured shall be."""

    state: Path
    users: int
    granian: bool = False  # both doors by granian instead of uvicorn
    psk: bool = False  # listeners for TLS with the pushed key too, where Python can


class Doors(NamedTuple):
    """Where the two doors are."""

    login: tuple[str, int]
    open: tuple[str, int]
    certificate: bytes  # SHA-256 of the DER
    ca: str
    psk: Mapping[str, tuple[str, int]] = {}  # "psk13", "psk12"


class OpenDoor:
    """Let everybody in as the user whose document is asked for."""

    def __init__(self, app: XcapApp, users: list[HttpUser]) -> None:
        self._app = app
        self._identities = {user.path.encode(): Identity((user.impu,), user.key_id, "none") for user in users}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        await self._app({**scope, "keyferry": self._identities[scope["raw_path"]]}, receive, send)


def why_no_psk() -> str | None:
    """Say why this Python has no TLS with pre-shared keys; None: it has."""
    try:
        check_psk("bench")
    except ConfigError as problem:
        return str(problem)
    return None


def http_user(number: int) -> HttpUser:
    """Return one user."""
    k_as = as_key(Secret(hashlib.sha256(b"keyferry bench user %d" % number).digest()), AS_ID)
    impu = Impu(f"sip:user{number}_public1@{HOME}")
    path = f"/{AUID}/users/{impu}/simservs.xml"
    return HttpUser(Impi(f"user{number}_private@{HOME}"), impu, key_id(k_as, HOME), k_as, path)


def password_of(user: HttpUser) -> bytes:
    """Return the Digest password."""
    return digest_password(ua_key(user.k_as)).reveal()


def document() -> bytes:
    """Return a simservs document of 2 kB: rules of a communication diversion, and a comment up to the size."""
    head = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap" '
        b'xmlns:cp="urn:ietf:params:xml:ns:common-policy">\n<communication-diversion active="true"><cp:ruleset>\n'
    )
    rules = b"".join(
        b'<cp:rule id="rule%d"><cp:conditions><no-answer/></cp:conditions><cp:actions><forward-to><target>tel:+1555010%04d</target>'
        b"</forward-to></cp:actions></cp:rule>\n" % (number, number)
        for number in range(10)
    )
    tail = b"</cp:ruleset></communication-diversion></simservs>\n"
    comment = b"<!-- -->"
    filling = DOCUMENT_OCTETS - len(head + rules + tail + comment)
    return head + rules + comment.replace(b" ", b"." * (filling + 1)) + tail


async def serve_documents(link: Link, setup: HttpSetup) -> None:
    """Start both doors, store keys and documents, tell the addresses, then tell the usage whenever asked."""
    random, clock = SystemRandom(), SystemClock()
    psk = ANY_PORT if setup.psk and why_no_psk() is None else None
    server = ApplicationServer(
        as_id=AS_ID, sip_uri=f"sip:xcap-as.{HOME}", listen_sip=ANY_PORT, listen_https=ANY_PORT, listen_psk13=psk, listen_psk12=psk
    )
    config = Config(network=Network(home_domain=HOME), application_servers=[server])
    roles: tuple[Role, ...] = ("as",)
    users = [http_user(number) for number in range(setup.users)]
    with open_state(setup.state, random=random, exclusive=True) as state:
        system = System(config, state, clock, random, StructLog("none"), Metrics(), roles)
        try:
            listeners = await system.start()
            minted = int(clock.now()) + 1  # of a whole second that began after the store did: first nonces of older keys are refused
            await store_keys(system, users, link, minted)
            await asyncio.sleep(max(0.0, minted - clock.now()))  # they are not valid before
            await _open_beside(link, setup, system, state, users, {one.proto: (one.host, one.port) for one in listeners})
        finally:
            await system.stop()


async def _open_beside(
    link: Link, setup: HttpSetup, system: System, state: StateDir, users: list[HttpUser], listening: dict[str, tuple[str, int]]
) -> None:
    """Serve the open door, which the system has none of; with granian the login, too."""
    certificate = system.pki.ensure(AS_ID, "as")
    login = listening["https"]
    psk = {proto: address for proto, address in listening.items() if proto in {"psk13", "psk12"}}
    async with AsyncExitStack() as stack:
        documents = SqliteDocumentStore(stack.enter_context(Database(state.path(f"as-{AS_ID}.db"))))
        await _store_documents(documents, users, link)
        app = XcapApp(XcapServer(documents))
        beside = OpenDoor(app, users)
        if setup.granian:
            door = GranianServer(login_of(app, system, certificate.sha256), certificate=certificate.certificate, key=certificate.key)
            stack.push_async_callback(door.aclose)
            login = await door.listen("127.0.0.1")
            other = GranianServer(beside, certificate=certificate.certificate, key=certificate.key)
            stack.push_async_callback(other.aclose)
            address = await other.listen("127.0.0.1")
        else:
            server = HttpServer(beside, tls=tls_context(certificate.certificate, certificate.key))
            stack.push_async_callback(server.aclose)
            address = await server.listen("127.0.0.1", 0)
        spare_the_collector()
        link.send(Doors(login, address, certificate.sha256, str(system.pki.ca_file), psk))
        await answer_usage(link)


def login_of(app: App, system: System, certificate: bytes) -> SimLogin:
    """Return a door as `serve` makes one."""
    clock = SystemClock()
    keys = PushedKeys(system.servers[0].keys, clock)
    return SimLogin(
        app, as_id=AS_ID, keys=keys, clock=clock, random=SystemRandom(), counter=Metrics(), certificate_hashes=(certificate,),
        user_id_key=system.state.user_id_key(AS_ID),
    )  # fmt: skip


async def store_keys(system: System, users: list[HttpUser], link: Link, now: int) -> None:
    """Store a key for each user, valid from `now` on."""
    keys, pusher = system.servers[0].keys, system.config.scscf.name
    for start in range(0, len(users), BATCH):
        batch = [_push(user, now) for user in users[start : start + BATCH]]
        await asyncio.gather(*(keys.apply(push, pusher=pusher, realm=HOME, now=now) for push in batch))
        link.progress("storing keys", start + len(batch), len(users))


def _push(user: HttpUser, now: int) -> Push:
    key = PushedKey(user.key_id, user.k_as, now, now + KEY_LIFE)
    return Push(now * 1000, user.impi, AS_ID, reg_of(user.impi), (key,), (user.impu,))


async def _store_documents(documents: SqliteDocumentStore, users: list[HttpUser], link: Link) -> None:
    body = document()
    stored = Document(body, etag_of(body))
    for start in range(0, len(users), BATCH):
        batch = users[start : start + BATCH]
        puts = (documents.put(AUID, user.impu, "simservs.xml", stored, expect=lambda _: None) for user in batch)
        await asyncio.gather(*puts)
        link.progress("storing documents", start + len(batch), len(users))
