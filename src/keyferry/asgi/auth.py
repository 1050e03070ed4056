# SPDX-License-Identifier: Apache-2.0
"""SIM login: ASGI middleware that admits whoever proves a ferried key by HTTP Digest (RFC 7616; DESIGN §7).

    app = SimLogin(app, as_id="notes.home1.net", keys=keys, clock=clock, random=random)

The application finds who it is in `scope["keyferry"]`. This module needs nothing but the standard library and `cryptography`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from keyferry.asgi.door import MAX_BODY, PROVEN_KEYS, Door, Refused
from keyferry.asgi.exchange import App, Receive, Scope, Send, headers_named, respond
from keyferry.asgi.ledger import FirstUses, LocalLedger
from keyferry.errors import ConfigError, LocalProtocolError, ParseError, SealError, StoreError
from keyferry.protocol.identity import Impu, KeyId, parse_as_id

if TYPE_CHECKING:
    # At run time `ports` would import all that its records are made of, SIP and XML too.
    from keyferry.ports import Clock, Counter, KeySource, RandomSource, UseLedger

NONCE_LIFETIME = 86_400.0
"""Seconds: no ferried key lives longer (`key_max_age`), and phones bootstrap anew for every fresh nonce."""


class Identity(NamedTuple):
    """Who sent a request, as the application sees it."""

    impus: tuple[Impu, ...]  # the default first
    key_id: KeyId
    mechanism: str

    @property
    def user(self) -> Impu:
        """Return the default public identity."""
        return self.impus[0]


class SimLogin:
    """Admit requests that prove a key of `as_id`; challenge, or refuse, all others.

    Use one instance per AS_ID and per process: it remembers nonces and counts, unless the ledger is one that workers share. Behind a
    proxy that ends TLS the server must be told to trust that proxy's X-Forwarded-Proto, and `certificate_hashes` are of the proxy's
    certificates.
    """

    def __init__(
        self,
        app: App,
        *,
        as_id: str,
        keys: KeySource | Sequence[KeySource],
        clock: Clock,
        random: RandomSource,
        ledger: UseLedger | None = None,
        counter: Counter | None = None,
        algorithms: tuple[str, ...] = ("SHA-256",),
        qop: tuple[str, ...] = ("auth",),
        certificate_hashes: tuple[bytes, ...] = (),
        nonce_lifetime: float = NONCE_LIFETIME,
        max_body: int = MAX_BODY,
        proven_keys: int = PROVEN_KEYS,
        handsets: str = "token",
    ) -> None:
        """Take the application, the host name in its URI, and where keys are found: one source, or several in the order of their offers.

        `certificate_hashes` are SHA-256 over the DER of each certificate this door shows (32 octets); without them our own
        client, which names the one it saw, is refused. Raises ConfigError.
        """
        try:
            name = parse_as_id(as_id)
        except ParseError as problem:
            raise ConfigError("SimLogin as_id", str(problem), "Give the host name in the URI that users open") from problem
        if name != as_id:
            raise ConfigError("SimLogin as_id", "not in canonical form", f"Write {name}")
        sources = tuple(keys) if isinstance(keys, Sequence) else (keys,)
        if ledger is None:
            first = next((source for source in sources if isinstance(source, FirstUses)), None)
            ledger = LocalLedger(scope=as_id, clock=clock, random=random, lifetime=nonce_lifetime, keys=proven_keys, first=first)
        self.app = app
        self._door = Door(
            as_id=name, sources=sources, ledger=ledger, random=random, algorithms=algorithms, qop=qop,
            certificate_hashes=certificate_hashes, max_body=max_body, proven_keys=proven_keys, handsets=handsets,
        )  # fmt: skip
        self._plain_host = as_id.encode("ascii")
        self._host = re.compile(rb"(?i:" + re.escape(self._plain_host) + rb")\.?(?::[0-9]{1,5})?")
        self._counter = counter

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
        try:
            self._check_host(scope)
            proof = await self._door.prove(scope, receive)
        except Refused as refusal:
            self._count(refusal.reason)
            await self._door.refuse(refusal, scope, send)
            return
        except (StoreError, SealError):  # a row that somebody changed is a store that fails
            self._count("store")
            await respond(send, 503, b"The key store does not answer.\n", headers=[(b"retry-after", b"1")])
            return
        self._count("granted")
        inner = {
            **scope,
            "headers": [field for field in scope["headers"] if field[0] != b"authorization"],
            "keyferry": Identity(proof.record.impus, proof.record.key_id, proof.mechanism),
        }
        await self._door.serve(proof, self.app, inner, receive, send)

    def _check_host(self, scope: Scope) -> None:
        hosts = headers_named(scope, b"host")
        if len(hosts) != 1:
            raise Refused("malformed", 400, b"One Host field, please.\n")
        if hosts[0] != self._plain_host and not self._host.fullmatch(hosts[0]):
            raise Refused("host", 421, b"Another host is meant.\n")

    def _count(self, reason: str) -> None:
        if self._counter is not None:
            self._counter.count("door", reason)
