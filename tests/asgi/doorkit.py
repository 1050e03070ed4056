# SPDX-License-Identifier: Apache-2.0
"""Fakes and helpers for tests of the HTTP door: a key source, a clock, ASGI calls, a client's answers, a TLS server."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import App, Header, Message, Receive, Scope, Send
from keyferry.errors import StoreError
from keyferry.ports import KeyRecord
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims import keys as ims_keys
from keyferry.protocol.ims.key_record import Offer

AS_ID = AsId("xcap.home1.net")
ALICE = (Impu("sip:alice@home1.net"), Impu("tel:+15551234"))
BOB = (Impu("sip:bob@home1.net"),)


class FakeClock:
    """Tell the time a test sets."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - 1_700_000_000.0


class FakeRandom:
    """Yield octets that never repeat."""

    def __init__(self, name: str = "door") -> None:
        self._name = name
        self._drawn = 0

    def octets(self, count: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_128(f"{self._name}{self._drawn}".encode()).digest(count)


class FakeCounter:
    """Remember what was counted."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def count(self, name: str, reason: str = "") -> None:
        self.seen.append(f"{name} {reason}")


def record(name: str = "alice", impus: tuple[Impu, ...] = ALICE, as_id: AsId = AS_ID, *, superseded: bool = False) -> KeyRecord:
    """Return a key whose octets follow from `name`."""
    k_as = Secret(hashlib.sha256(name.encode()).digest())
    return KeyRecord(
        key_id=ims_keys.key_id(k_as, "home1.net"),
        as_id=as_id,
        impi=Impi(f"{name}@home1.net"),
        reg=Reg("AAAAAAAAAAAA"),
        impus=impus,
        k_as=k_as,
        not_before=1_799_999_000.0,
        not_after=1_900_000_000.0,
        superseded=superseded,
    )


class FakeKeys:
    """A KeySource over a dict, which can fail."""

    def __init__(self, *records: KeyRecord) -> None:
        self.records = {held.key_id: held for held in records}
        self.asked: list[str] = []
        self.told: list[KeyId] = []
        self.lookup_fails = False
        self.used_fails = False
        self.problem: Exception = StoreError("broken")
        self.derived = 0
        self.first: set[KeyId] = set()

    def offer(self, as_id: AsId) -> Offer:
        return Offer("ims-as-key", ims_keys.digest_realm(as_id), "IMS-AS-key", handsets=False)

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        return self.lookup_now(identifier, as_id)

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        assert as_id == AS_ID or as_id == "localhost"
        self.asked.append(identifier)
        if self.lookup_fails:
            raise self.problem
        return self.records.get(KeyId(identifier))

    def protocol_key(self, held: KeyRecord, ua_id: bytes) -> Secret:
        self.derived += 1
        return ims_keys.ua_key(held.k_as, ua_id)

    def user_id_key(self, as_id: AsId) -> Secret:
        return Secret(bytes(32))

    async def claim_first(self, held: KeyRecord) -> bool:
        fresh = held.key_id not in self.first
        self.first.add(held.key_id)
        return fresh

    async def used(self, held: KeyRecord) -> None:
        if self.used_fails:
            raise self.problem
        self.told.append(held.key_id)


class Answer(NamedTuple):
    """A response as ASGI sent it."""

    status: int
    headers: list[Header]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for field, value in self.headers if field == name.encode("latin-1")]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def challenge(self) -> digest.Challenge:
        return digest.parse_challenge(self.all("www-authenticate")[0])


async def call(
    app: App,
    method: str = "GET",
    target: str = "/notes",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | Sequence[bytes] = b"",
    *,
    host: str | None = AS_ID,
    **scope: Any,
) -> Answer:
    """Make one ASGI call; `body` may be the pieces it arrives in."""
    path, _, query = target.partition("?")
    pieces = [body] if isinstance(body, bytes) else list(body)
    incoming: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    incoming[-1]["more_body"] = False
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(dict(message))

    fields = [(b"host", host.encode("latin-1"))] if host is not None else []
    fields += [(name.lower().encode("latin-1"), value.encode("utf-8", "surrogateescape")) for name, value in headers]
    basis = {
        "type": "http",
        "scheme": "https",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode("utf-8", "surrogateescape"),
        "headers": fields,
    }
    await app({**basis, **scope}, receive, send)
    assert [message["type"] for message in sent[:1]] == ["http.response.start"]
    assert not sent[-1].get("more_body", False)
    return Answer(sent[0]["status"], list(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:]))


@dataclass
class Echo:
    """An application that says who came, and remembers the scopes it saw."""

    scopes: list[Mapping[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    pieces: list[bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        self.bodies.append((await receive()).get("body", b""))
        pieces = self.pieces if self.pieces is not None else [scope["keyferry"].user.encode() if "keyferry" in scope else b"nobody"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"echo")]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


class Client:
    """What a Digest client does, each part of which a test may do wrong."""

    def __init__(self, held: KeyRecord, algorithm: str = "SHA-256") -> None:
        self.held = held
        self.algorithm = algorithm
        self.realm = ims_keys.digest_realm(held.as_id)
        self.password = ims_keys.digest_password(ims_keys.ua_key(held.k_as))
        self.ha1 = digest.hash_a1(algorithm, held.key_id, self.realm, self.password)

    def credentials(
        self,
        challenge: digest.Challenge,
        count: int = 1,
        *,
        method: str = "GET",
        uri: str = "/notes",
        cnonce: str = "c" * 16,
        qop: str = "auth",
        body: bytes = b"",
        ha1: Secret | None = None,
    ) -> digest.Credentials:
        nc = f"{count:08x}"
        response = digest.respond(
            self.algorithm, ha1 or self.ha1, method=method, uri=uri, nonce=challenge.nonce, qop=qop, nc=nc, cnonce=cnonce, body=body
        )
        return digest.Credentials(
            self.held.key_id, self.realm, challenge.nonce, uri, response, self.algorithm, cnonce=cnonce, qop=qop, nc=nc
        )

    def answer(self, challenge: digest.Challenge, count: int = 1, **wrong: Any) -> tuple[str, str]:
        return ("Authorization", digest.build_credentials(self.credentials(challenge, count, **wrong)))


@dataclass
class Door:
    """A SimLogin and all that it was given."""

    door: SimLogin
    app: Echo
    keys: FakeKeys
    clock: FakeClock
    counter: FakeCounter

    async def challenge(self) -> digest.Challenge:
        return (await call(self.door)).challenge()


def make_door(*records: KeyRecord, app: Echo | None = None, keys: FakeKeys | None = None, **settings: Any) -> Door:
    """Return a door that knows these keys."""
    app, keys, clock, counter = app or Echo(), keys or FakeKeys(*records), FakeClock(), FakeCounter()
    settings = {"as_id": AS_ID, "random": FakeRandom(), "clock": clock, **settings}
    return Door(SimLogin(app, keys=keys, counter=counter, **settings), app, keys, clock, counter)


# ---- TLS


class Pki:
    """A throw-away CA."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        self.path = directory / "ca.pem"
        builder = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        unused = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        rest = {"key_cert_sign": True, "crl_sign": True, "encipher_only": False, "decipher_only": False}
        builder = builder.add_extension(x509.KeyUsage(**dict.fromkeys(unused, False), **rest), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self.path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str, file: str) -> Certificate:
        """Return a server certificate, in files named `file`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = self._directory / f"{file}.pem"
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
        return Certificate(pem, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest())

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.path))


class Certificate(NamedTuple):
    """A server's certificate and key in one file."""

    pem: Path
    sha256: bytes


@contextlib.asynccontextmanager
async def serving(app: App, certificate: Certificate, port: int = 0) -> AsyncIterator[int]:
    """Serve an application over TLS on the loopback address; yields the port."""
    config = uvicorn.Config(
        app,
        ssl_certfile=certificate.pem,
        ssl_keyfile=certificate.pem,
        lifespan="off",
        log_level="critical",
        access_log=False,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # The protocol is named, else asyncio does not set TCP_NODELAY, and each answer in two parts waits 40 ms for an ACK.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        await server.startup(sockets=[listener])
        try:
            yield listener.getsockname()[1]
        finally:
            await server.shutdown(sockets=[listener])
