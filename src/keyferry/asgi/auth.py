# SPDX-License-Identifier: Apache-2.0
"""SIM login: ASGI middleware that admits whoever proves a ferried key by HTTP Digest (RFC 7616; DESIGN §7).

    app = SimLogin(app, as_id="notes.home1.net", keys=keys, clock=clock, random=random)

The application finds who it is in `scope["keyferry"]`. This module needs nothing but the standard library and `cryptography`.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from keyferry.asgi.exchange import App, Message, Receive, Scope, Send, headers_named, read_body, respond
from keyferry.asgi.nonce import CHANCE, Nonces
from keyferry.errors import (
    ConfigError,
    DigestRejected,
    LocalProtocolError,
    ParseError,
    RemoteProtocolError,
    SealError,
    SecurityError,
    StoreError,
)
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impu, KeyId, parse_as_id
from keyferry.protocol.ims import keys as ims_keys

if TYPE_CHECKING:
    # At run time `ports` would import all that its records are made of, SIP and XML too.
    from keyferry.ports import Clock, Counter, KeyRecord, KeySource, RandomSource

MAX_AUTHORIZATION = 4096
"""Octets of Authorization: a key id and a realm of 255 octets each and a uri of 2,048 leave 1,500 to the rest."""
MAX_CNONCE = 256
"""Characters; ours has 70, and each one is hashed twice."""
MAX_BODY = 65_536
"""Octets of a body held in memory for auth-int, of the request and of the response."""
PROVEN_KEYS = 65_536
"""Keys whose HA1 is kept, about 500 octets each; another one costs its derivation again, 10 microseconds."""
NONCE_LIFETIME = 86_400.0
"""Seconds: no ferried key lives longer (`key_max_age`), and phones bootstrap anew for every fresh nonce."""
BOUND_CNONCE = "cb1."
"""A cnonce that says which certificate the client saw: "cb1." random "." base64url(SHA-256(certificate)) (*ours*)."""

ALGORITHMS = ("SHA-256", "MD5")
_KEY_ID = re.compile(r"[A-Za-z0-9_\-]{24}@[A-Za-z0-9.\-]{1,253}")
_CNONCE = re.compile(rf"[\x20\x21\x23-\x5b\x5d-\x7e]{{1,{MAX_CNONCE}}}")  # needs no escape where it is sent back

_LOGIN = b"Log in with a SIM: HTTP Digest with a key of your IMS registration.\n"


class Identity(NamedTuple):
    """Who sent a request, as the application sees it."""

    impus: tuple[Impu, ...]  # the default first
    key_id: KeyId
    mechanism: str

    @property
    def user(self) -> Impu:
        """Return the default public identity."""
        return self.impus[0]


class _Refused(SecurityError):
    """Say no: `reason` is counted, `text` is told, status 401 challenges."""

    def __init__(self, reason: str, status: int = 401, text: bytes = _LOGIN, *, stale: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.text = text
        self.stale = stale


class _Proven(NamedTuple):
    """What need not be derived again for a key that answered rightly."""

    k_as: Secret
    algorithm: str
    ha1: Secret
    noted: bool  # the source was told of the use


class _Proof(NamedTuple):
    """A right answer."""

    record: KeyRecord
    credentials: digest.Credentials
    algorithm: str
    ha1: Secret
    nextnonce: str | None
    body: bytes | None  # of the request, if it had to be read


class SimLogin:
    """Admit requests that prove a key of `as_id`; challenge, or refuse, all others.

    Use one instance per AS_ID and per process: it remembers nonces and counts. Behind a proxy that ends TLS the server must
    be told to trust that proxy's X-Forwarded-Proto, and `certificate_hashes` are of the proxy's certificates.
    """

    def __init__(
        self,
        app: App,
        *,
        as_id: str,
        keys: KeySource,
        clock: Clock,
        random: RandomSource,
        counter: Counter | None = None,
        algorithms: tuple[str, ...] = ("SHA-256",),
        qop: tuple[str, ...] = ("auth",),
        certificate_hashes: tuple[bytes, ...] = (),
        nonce_lifetime: float = NONCE_LIFETIME,
        max_body: int = MAX_BODY,
        proven_keys: int = PROVEN_KEYS,
    ) -> None:
        """Take the application, the host name in its URI, and where keys are found.

        `certificate_hashes` are SHA-256 over the DER of each certificate this door shows (32 octets); without them our own
        client, which names the one it saw, is refused. Raises ConfigError.
        """
        _check_settings(as_id, algorithms, qop, certificate_hashes)
        self.app = app
        self._as_id = AsId(as_id)
        self._plain_host = as_id.encode("ascii")
        self._host = re.compile(rb"(?i:" + re.escape(self._plain_host) + rb")\.?(?::[0-9]{1,5})?")
        self._realm = ims_keys.digest_realm(self._as_id)
        self._keys = keys
        self._clock = clock
        self._random = random
        self._counter = counter
        self._algorithms = {name.lower(): name for name in algorithms}
        self._qop = qop
        self._certificates = frozenset(base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=") for octets in certificate_hashes)
        self._max_body = max_body
        self._nonces = Nonces(key=Secret(random.octets(32)), scope=as_id, lifetime=nonce_lifetime, keys=proven_keys)
        self._proven: OrderedDict[str, _Proven] = OrderedDict()
        self._proven_keys = proven_keys
        self._nobody = Secret(random.octets(32))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await self.app(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
        else:
            raise LocalProtocolError("SimLogin guards http, and refuses what it does not know")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorizations = headers_named(scope, b"authorization")
        try:
            self._check_place(scope)
            proof = await self._prove(scope, receive, authorizations)
        except _Refused as refusal:
            self._count(refusal.reason)
            await self._refuse(send, refusal, tried=bool(authorizations))
            return
        except (StoreError, SealError):  # a row that somebody changed is a store that fails
            self._count("store")
            await respond(send, 503, b"The key store does not answer.\n", headers=[(b"retry-after", b"1")])
            return
        self._count("granted")
        inner = {
            **scope,
            "headers": [field for field in scope["headers"] if field[0] != b"authorization"],
            "keyferry": Identity(proof.record.impus, proof.record.key_id, "digest"),
        }
        if proof.body is None:
            await self.app(inner, receive, _signed(send, self._info(proof, b"")))
            return
        response = _SignedBody(send, lambda body: self._info(proof, body), self._max_body, head=scope["method"] == "HEAD")
        await self.app(inner, _replayed(proof.body, receive), response)

    def _check_place(self, scope: Scope) -> None:
        hosts = headers_named(scope, b"host")
        if scope.get("scheme", "http") != "https":
            raise _Refused("scheme", 403, b"A SIM login is never used over plain http.\n")
        if len(hosts) != 1:
            raise _Refused("malformed", 400, b"One Host field, please.\n")
        if hosts[0] != self._plain_host and not self._host.fullmatch(hosts[0]):
            raise _Refused("host", 421, b"Another host is meant.\n")

    async def _prove(self, scope: Scope, receive: Receive, authorizations: list[bytes]) -> _Proof:
        if not authorizations:
            raise _Refused("challenge")
        credentials = _parse(authorizations)
        algorithm = self._check_form(credentials)
        _check_uri(credentials.uri, scope)
        body = None
        if credentials.qop == "auth-int":
            try:
                body = await read_body(receive, self._max_body)
            except RemoteProtocolError as problem:
                raise _Refused("body", problem.status, problem.problem.encode("ascii") + b"\n") from problem
        record, ha1 = await self._check_response(credentials, algorithm, scope["method"], body or b"")
        nextnonce = self._claim(credentials, record)
        proven = self._proven.get(record.key_id)
        if proven is None or proven.ha1 is not ha1 or not proven.noted:
            await self._note_use(record, algorithm, ha1)
        return _Proof(record, credentials, algorithm, ha1, nextnonce, body)

    def _check_form(self, credentials: digest.Credentials) -> str:
        """Return the algorithm, as offered."""
        if credentials.realm != self._realm:
            raise _Refused("realm")
        algorithm = self._algorithms.get((credentials.algorithm or "MD5").lower())
        if algorithm is None:
            raise _Refused("algorithm")
        if credentials.qop not in self._qop:
            raise _Refused("qop")
        if not _CNONCE.fullmatch(credentials.cnonce or ""):
            raise _Refused("malformed", 400, b"The Digest response lacks a usable cnonce.\n")
        return algorithm

    async def _check_response(self, credentials: digest.Credentials, algorithm: str, method: str, body: bytes) -> tuple[KeyRecord, Secret]:
        """Look the key up and check the response; an unknown key, a retired one, a wrong response all cost one derivation."""
        record = await self._lookup(credentials.username)
        known = self._recall(record, algorithm) if record else None
        ha1 = known or self._derive(record.k_as if record else self._nobody, credentials.username, algorithm)
        try:
            digest.check_response(ha1, credentials, algorithm=algorithm, method=method, body=body)
        except DigestRejected as problem:
            if known:
                self._derive(self._nobody, credentials.username, algorithm)
            raise _Refused("response" if record else "unknown-key") from problem
        if record is None:
            raise _Refused("unknown-key")
        return record, ha1

    async def _lookup(self, name: str) -> KeyRecord | None:
        key_id = KeyId(name)
        record = await self._keys.lookup(key_id, self._as_id) if name in self._proven or _KEY_ID.fullmatch(name) else None
        if record is None or record.key_id != key_id or record.as_id != self._as_id or not record.impus:
            self._proven.pop(name, None)
            return None
        return record

    def _recall(self, record: KeyRecord, algorithm: str) -> Secret | None:
        proven = self._proven.get(record.key_id)
        if proven is None or proven.algorithm != algorithm or (proven.k_as is not record.k_as and proven.k_as != record.k_as):
            return None
        self._proven.move_to_end(record.key_id)
        return proven.ha1

    def _derive(self, k_as: Secret, name: str, algorithm: str) -> Secret:
        password = ims_keys.digest_password(ims_keys.ua_key(k_as, ims_keys.UA_DIGEST))
        return digest.hash_a1(algorithm, name, self._realm, password)

    def _claim(self, credentials: digest.Credentials, record: KeyRecord) -> str | None:
        """Take the count of a right response; return a new nonce if this one grows old."""
        cnonce = credentials.cnonce or ""
        if cnonce.startswith(BOUND_CNONCE) and cnonce.rpartition(".")[2] not in self._certificates:
            raise _Refused("certificate", 403, b"You saw a certificate that is not this server's.\n")
        now = self._clock.monotonic()
        try:
            old = self._nonces.claim(credentials.nonce, record.key_id, int(credentials.nc or "", 16), now)
        except DigestRejected as problem:
            raise _Refused("stale", stale=True) from problem
        return self._nonces.issue(now, self._random.octets(CHANCE)) if old else None

    async def _note_use(self, record: KeyRecord, algorithm: str, ha1: Secret) -> None:
        """Remember the key, and tell the source once that it was used: that ends an older one of the device (DESIGN §6)."""
        if not record.superseded:
            await self._keys.used(record)
        self._proven[record.key_id] = _Proven(record.k_as, algorithm, ha1, not record.superseded)
        if len(self._proven) > self._proven_keys:
            self._proven.popitem(last=False)

    def _info(self, proof: _Proof, body: bytes) -> bytes:
        """Return Authentication-Info; `body` is the response's, and counts with auth-int."""
        credentials = proof.credentials
        rspauth = digest.rspauth_of(proof.ha1, credentials, algorithm=proof.algorithm, body=body)
        # Written out for speed: all five are known to need no escape.
        nextnonce = f', nextnonce="{proof.nextnonce}"' if proof.nextnonce else ""
        text = f'rspauth="{rspauth}", qop={credentials.qop}, cnonce="{credentials.cnonce}", nc={credentials.nc}{nextnonce}'
        return text.encode("ascii")

    async def _refuse(self, send: Send, refusal: _Refused, *, tried: bool) -> None:
        headers = []
        if refusal.status == 401:
            nonce = self._nonces.issue(self._clock.monotonic(), self._random.octets(CHANCE))
            for algorithm in self._algorithms.values():
                challenge = digest.Challenge(self._realm, nonce, algorithm, self._qop, stale=refusal.stale)
                headers.append((b"www-authenticate", digest.build_challenge(challenge).encode("ascii")))
            if tried:
                headers.append((b"retry-after", b"1"))  # the key may be on its way
        await respond(send, refusal.status, refusal.text, headers=headers)

    def _count(self, reason: str) -> None:
        if self._counter is not None:
            self._counter.count("door", reason)


def _check_settings(as_id: str, algorithms: tuple[str, ...], qop: tuple[str, ...], certificate_hashes: Iterable[bytes]) -> None:
    try:
        canonical = parse_as_id(as_id)
    except ParseError as problem:
        raise ConfigError("SimLogin as_id", str(problem), "Give the host name in the URI that users open") from problem
    if canonical != as_id:
        raise ConfigError("SimLogin as_id", "not in canonical form", f"Write {canonical}")
    if not algorithms or len(set(algorithms)) != len(algorithms) or not set(algorithms) <= set(ALGORITHMS):
        raise ConfigError("SimLogin algorithms", "not some of SHA-256 and MD5")
    if not qop or not set(qop) <= {"auth", "auth-int"}:
        raise ConfigError("SimLogin qop", "not some of auth and auth-int")
    if any(len(octets) != 32 for octets in certificate_hashes):
        raise ConfigError("SimLogin certificate_hashes", "not SHA-256 of a certificate, 32 octets")


def _parse(authorizations: list[bytes]) -> digest.Credentials:
    if len(authorizations) > 1:
        raise _Refused("malformed", 400, b"One Authorization field, please.\n")
    value = authorizations[0]
    if len(value) > MAX_AUTHORIZATION:
        raise _Refused("malformed", 431, b"The Authorization field is too long.\n")
    if value[:6].lower() != b"digest":
        raise _Refused("scheme-unknown")
    try:
        return digest.parse_credentials(value.decode("utf-8", "surrogateescape"))
    except ParseError as problem:
        raise _Refused("malformed", 400, b"The Authorization field is not understood.\n") from problem


def _check_uri(uri: str, scope: Scope) -> None:
    """Compare octet for octet: whatever else `path` may be decoded to, the client signed this request target."""
    raw_path = scope.get("raw_path")
    if raw_path is None:
        raise LocalProtocolError("the HTTP server gives no raw_path: use uvicorn, hypercorn or granian")
    query = scope.get("query_string", b"")
    signed = uri.encode("utf-8", "surrogateescape")
    target = raw_path + b"?" + query if query else raw_path
    # An empty query cannot be told from none in ASGI.
    if raw_path[:1] != b"/" or (signed != target and (query or signed != raw_path + b"?")):
        raise _Refused("uri", 400, b"The Digest uri is not the target of the request.\n")


def _signed(send: Send, info: bytes) -> Send:
    async def sign(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"authentication-info", info)]}
        await send(message)

    return sign


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class _SignedBody:
    """Hold a response back until its body can be signed (auth-int); one over the limit goes out unsigned."""

    def __init__(self, send: Send, info: Callable[[bytes], bytes], limit: int, *, head: bool) -> None:
        self._send = send
        self._info = info
        self._limit = limit
        self._head = head
        self._held: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if self._limit < 0:
            await self._send(message)
            return
        self._held.append(message)
        self._limit -= len(message.get("body", b""))
        complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        if complete and self._limit >= 0:
            body = b"" if self._head else b"".join(part.get("body", b"") for part in self._held)
            send = _signed(self._send, self._info(body))
        elif self._limit < 0:
            send = self._send
        else:
            return
        self._limit = -1
        for held in self._held:
            await send(held)
        self._held.clear()
