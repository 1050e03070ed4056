# SPDX-License-Identifier: Apache-2.0
"""SIM login: ASGI middleware that admits whoever proves a ferried key (DESIGN §7). docs/simlogin.md has every option.

    app = SimLogin(app, as_id="notes.home1.net")

The application finds who it is in `scope["user"]`; its frameworks call that `request.user`. This module, and what it imports,
needs nothing but the standard library and `cryptography`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from keyferry.asgi import pages
from keyferry.asgi.admission import Admission, Admitted
from keyferry.asgi.answers import PRIVATE, adding, hsts
from keyferry.asgi.audit import Audit, Event, audit_of
from keyferry.asgi.certificates import Certificates
from keyferry.asgi.door import MAX_BODY, PROVEN_KEYS, Door, Refused, proof_of_server
from keyferry.asgi.exchange import Header, Receive, Scope, Send, headers_named
from keyferry.asgi.identity import SIM_SCOPE, SimAuth, SimUser, UserIds
from keyferry.asgi.limits import FailureLimits, Failures
from keyferry.asgi.names import Proxies, PublicNames
from keyferry.asgi.origin import Origins
from keyferry.asgi.paths import PathRules
from keyferry.asgi.routing import Router
from keyferry.asgi.session import SessionCookie, without_session
from keyferry.asgi.sockets import LivingSocket, no_body, refusing
from keyferry.asgi.sources import ledger_of, sources_of
from keyferry.asgi.watch import STORE, Watch, watching
from keyferry.errors import ConfigError, LocalProtocolError, SealError, StoreError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impu, KeyId
from keyferry.transports.clock import SystemClock, SystemRandom

if TYPE_CHECKING:
    # At run time `ports` would import all that its records are made of, SIP and XML too.
    from keyferry.asgi.sources import Keys
    from keyferry.ports import Clock, Counter, RandomSource, UseLedger

NONCE_LIFETIME = 86_400.0
"""Seconds: no ferried key lives longer (`key_max_age`), and phones bootstrap anew for every fresh nonce."""
MAX_HSTS = 63_072_000
"""Seconds: two years, as much as browsers' lists ask for."""
WARNING_EVERY = 60.0
"""Seconds between two warnings that strangers can cause."""

_NOT_AUDITED = frozenset({"challenge", "limited"})
"""What every login begins with, and what a flood consists of: counted, not logged."""
_CLAIMED = re.compile(rb'username="([A-Za-z0-9_\-]{24}@[A-Za-z0-9.\-]{1,253})"')
_SECURE = {"http": "https", "ws": "wss"}
_SPOOFED = frozenset({b"remote-user", b"remote_user"})
"""Fields that frameworks may take for the server's own word about the user; from a client they go no further."""
_HELD_BACK = _SPOOFED | {b"authorization"}


class Identity(NamedTuple):
    """Whose key was proven, and how: `scope["keyferry"]`."""

    impus: tuple[Impu, ...]  # the default first
    key_id: KeyId
    mechanism: str  # "digest", "first-nonce", "psk", "session"

    @property
    def user(self) -> Impu:
        """Return the default public identity."""
        return self.impus[0]


class SimLogin:
    """Let an application know who sent a request, and let nobody else near the paths that need a login."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],  # of ASGI: frameworks differ in how they write it
        *,
        as_id: str,
        keys: Keys = None,
        open: Iterable[str] = (),
        required: Iterable[str] = ("/",),
        public_names: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        trusted_origins: Iterable[str] = (),
        session: SessionCookie | None = None,
        audit: str | os.PathLike[str] | Audit | None = None,
        limits: FailureLimits | None = None,
        hsts_seconds: int = 0,
        user_id_key: Secret | bytes | None = None,
        clock: Clock | None = None,
        random: RandomSource | None = None,
        ledger: UseLedger | None = None,
        counter: Counter | None = None,
        algorithms: tuple[str, ...] = ("SHA-256",),
        qop: tuple[str, ...] = ("auth",),
        certificates: Iterable[str | os.PathLike[str]] = (),
        certificate_hashes: tuple[bytes, ...] = (),
        nonce_lifetime: float = NONCE_LIFETIME,
        max_body: int = MAX_BODY,
        proven_keys: int = PROVEN_KEYS,
        handsets: str = "token",
        http_networks: tuple[str, ...] = (),
    ) -> None:
        """Take the application, the host name in the URIs that users open, and where keys are found; docs/simlogin.md has the rest.

        `certificates` are PEM files of the certificates that users see at this name, read again as they are renewed, or
        `certificate_hashes` SHA-256 over the DER of each; without them our own client, which names the one it saw, is refused.
        Raises ConfigError, which says what to write.
        """
        self._given = {name: value for name, value in locals().items() if name != "self"}  # for `with_keys`
        self.app = app
        self._clock: Clock = clock or SystemClock()
        random = random or SystemRandom()
        self._names = PublicNames(as_id, public_names)
        self._rules = PathRules(open, required, Router(app))
        self._proxies = Proxies(trusted_proxies)
        self._session = _session_of(session)
        self._audit = audit_of(audit, self._clock)
        self._counter = counter
        self._next_warning = 0.0
        self._hsts = hsts(_seconds(hsts_seconds))
        self._private: tuple[Header, ...] = PRIVATE + self._hsts
        sources = sources_of(keys, self._clock, random)
        shown = self._shown = Certificates(certificates, certificate_hashes, self._clock.monotonic)
        key = Secret(user_id_key) if isinstance(user_id_key, bytes) else user_id_key
        self._ids = UserIds(self._names.names[0], sources, key)
        self._doors = {
            name: Door(
                as_id=name, sources=sources, random=random, algorithms=algorithms, qop=qop, certificates=shown,
                max_body=max_body, proven_keys=proven_keys, handsets=handsets, http_networks=http_networks,
                ledger=ledger or ledger_of(
                    sources, name, clock=self._clock, random=random, lifetime=nonce_lifetime, keys=proven_keys
                ),
            )
            for name in self._names.names
        }  # fmt: skip
        self._admission = Admission(
            self._doors, sources, origins=Origins(trusted_origins), session=self._session, clock=self._clock,
            failures=Failures(limits or FailureLimits()), nobody=Secret(random.octets(32)),
        )  # fmt: skip

    @property
    def as_id(self) -> AsId:
        """Return the host name in the URIs that users open."""
        return self._names.names[0]

    def certificates_renewed(self) -> None:
        """Read the files of `certificates` again: what ends TLS for this door shows other ones from now on."""
        self._shown.read_again()

    def with_keys(self, keys: Keys, **settings: Any) -> SimLogin:
        """Return the same door with keys from elsewhere, for who serves it, such as `keyferry dev`; `settings` replace those given.

        Raises ConfigError.
        """
        if any(isinstance(value, Iterator) for value in self._given.values()):
            raise ConfigError("SimLogin", "was given an iterator, which is used up", "Write lists or tuples")
        return SimLogin(**{**self._given, "keys": keys, **settings})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] not in {"http", "websocket"}:
            raise LocalProtocolError("SimLogin guards http and websocket, and refuses what it does not know")
        elif self._rules.needs_login(scope):
            await self._guard(scope, receive, send)
        else:
            await self._welcome(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit only who logs in."""
        request, source = self._seen(scope), self._proxies.source(scope)
        try:
            login = await self._login(request, receive, source)
        except Refused as problem:
            refusal = self._door_of(request).settle(problem, request)
            self._tell(request, source, refusal.reason)
            await self._refuse(refusal, scope, request, receive, send)
            return
        except (StoreError, SealError):  # a row that somebody changed is a store that fails
            self._tell(request, source, "store")
            await self._unavailable(scope, receive, send)
            return
        self._tell(request, source, "", login)
        await self._serve(login, scope, receive, send)

    async def _welcome(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit everybody to an open path, under their name if they have one; a wrong Digest, or connection, is refused here, too."""
        request = self._seen(scope)
        way = self._admission.way(request, required=False)
        if way in {"digest", "psk"}:
            await self._guard(scope, receive, send)
            return
        login, reason, ended = None, "", False
        if way:
            source = self._proxies.source(scope)
            try:
                login = await self._login(request, receive, source)
            except Refused as refusal:
                reason, ended = refusal.reason, refusal.ends_session
            except (StoreError, SealError):
                reason = "store"
            self._tell(request, source, reason, login)
        if login is not None:
            await self._serve(login, scope, receive, send)
        else:
            await self._serve_nobody(request, scope, receive, send, ended=ended)

    # ---- who it is

    def _seen(self, scope: Scope) -> Scope:
        """Return a request as the client sent it: over TLS, if a trusted proxy says so; a websocket as the GET that it began as."""
        if scope["type"] == "http" and scope.get("scheme") == "https":
            return scope
        scheme = "https" if self._proxies.secure(scope) else "http"
        return {**scope, "scheme": scheme, "method": scope.get("method", "GET")}

    async def _login(self, request: Scope, receive: Receive, source: str) -> _Login:
        name = self._place(request)
        admitted = await self._admission.admit(request, receive if request["type"] == "http" else no_body, name, source)
        record = admitted.record
        return _Login(admitted, SimUser(self._ids.of(record.impi), record.impus), name)

    def _place(self, request: Scope) -> AsId:
        if request["scheme"] != "https":
            self._hint(request)
            self._door_of(request).check_channel(request)
        hosts = headers_named(request, b"host")
        if len(hosts) != 1:
            raise Refused("malformed", 400, b"One Host field, please.\n")
        name = self._names.of(hosts[0])
        if name is None:
            text = self._names.wrong(hosts[0])
            self._warn(f"{text} Give SimLogin(public_names=...) every name; a proxy in front has to pass the Host field on.")
            raise Refused("host", 421, text.encode("ascii") + b"\n")
        return name

    # ---- answers

    async def _serve(self, login: _Login, scope: Scope, receive: Receive, send: Send) -> None:
        admitted, user, name = login
        record = admitted.record
        inner = self._inner(scope, secure=admitted.secure)
        inner["user"] = user
        inner["auth"] = SimAuth(SIM_SCOPE)
        inner["keyferry"] = Identity(record.impus, record.key_id, admitted.mechanism)
        added = [admitted.cookie] if admitted.cookie else []
        watch = Watch(lambda: self._admission.lives(record, name), self._clock.monotonic)
        if "extensions" in scope:  # some let a connection outlive its request
            inner["keyferry.lives"] = watch.lives
        try:
            if scope["type"] == "websocket":
                socket = LivingSocket(receive, adding(send, self._private, added), watch)
                await self.app(inner, socket.receive, socket.send)
            elif admitted.proof is None:
                await self.app(inner, watching(receive, watch), adding(send, self._private, added, watch=watch))
            elif admitted.proof.body is None:
                added.append(proof_of_server(admitted.proof))
                await self.app(inner, watching(receive, watch), adding(send, self._private, added, watch=watch))
            else:
                answer = adding(send, self._private, added, watch=watch)
                await self._doors[name].serve_signed(
                    admitted.proof, admitted.proof.body, lambda held: watching(held, watch), self.app, inner, receive, answer
                )
        except Exception:
            if not watch.ended:
                raise
            # else what the application made of its LoginEnded
        if watch.ended:
            await self._end(login, scope, send, watch)

    async def _end(self, login: _Login, scope: Scope, send: Send, watch: Watch) -> None:
        """Tell that a login ended while it was served. The client sees an answer that is cut off: nothing makes it whole any more."""
        self._tell_end(login, scope, watch.ended)
        if scope["type"] == "http" and not watch.begun:
            answer = adding(send, self._private)
            await pages.refuse(scope, answer, 503, b"The login ended before the answer began.\n", [(b"connection", b"close")])

    async def _serve_nobody(self, request: Scope, scope: Scope, receive: Receive, send: Send, *, ended: bool) -> None:
        """Let nobody in particular in; should the application want to know who it is, its 401 becomes a challenge."""
        secure = request["scheme"] == "https"
        inner = self._inner(scope, secure=secure)
        inner.pop("keyferry", None)
        inner["user"] = SimUser()
        inner["auth"] = SimAuth()
        hosts = headers_named(request, b"host")
        name = self._names.of(hosts[0]) if secure and len(hosts) == 1 else None
        challenge = (lambda: _challenges(self._doors[name], request)) if name else None
        if ended and self._session:
            answer = adding(send, self._private, (self._session.end(),), challenge)
        else:
            answer = adding(send, self._hsts if name else (), (), challenge)
        await self.app(inner, receive, answer)

    async def _refuse(self, refusal: Refused, scope: Scope, request: Scope, receive: Receive, send: Send) -> None:
        ended = (self._session.end(),) if self._session and refusal.ends_session else ()
        defaults = PRIVATE if refusal.status == 421 else self._private  # no promise about TLS for a name that is not ours
        answer = adding(refusing(scope, receive, send) if scope["type"] == "websocket" else send, defaults, ended)
        try:
            await self._door_of(request).refuse(refusal, request, answer)
        except StoreError:  # no nonce to challenge with; nothing is sent yet
            await self._unavailable(scope, receive, send)

    async def _unavailable(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = adding(refusing(scope, receive, send) if scope["type"] == "websocket" else send, self._private)
        await pages.refuse(scope, answer, 503, b"The key store does not answer.\n", [(b"retry-after", b"1")])

    def _door_of(self, request: Scope) -> Door:
        """Return the door of a name, or the first one where the name is wrong."""
        hosts = headers_named(request, b"host")
        return self._doors[(self._names.of(hosts[0]) if hosts else None) or self._names.names[0]]

    def _inner(self, scope: Scope, *, secure: bool) -> Scope:
        """Return a scope for the application, without what is ours and what a client may not say."""
        headers = [field for field in scope["headers"] if field[0] not in _HELD_BACK or _is_passed_on(*field)]
        if self._session is not None:
            headers = without_session(headers)
        inner = {**scope, "headers": headers}
        if secure and (scheme := _SECURE.get(scope.get("scheme", ""))):
            inner["scheme"] = scheme
        return inner

    # ---- what is told to whom

    def _tell(self, request: Scope, source: str, reason: str, login: _Login | None = None) -> None:
        if self._counter is not None:
            self._counter.count("door", reason or "granted")
        if self._audit is None or reason in _NOT_AUDITED:
            return
        way = self._admission.way(request)
        mechanism = login.admitted.mechanism if login else way
        event = Event(
            self._clock.now(), login.name if login else self._names.names[0], "granted" if login else "refused", reason, mechanism,
            login.user.id if login else "", login.user.display_name if login else "",
            login.admitted.record.key_id if login else _claimed(request, way), source,
            request["method"] if request["type"] == "http" else "WEBSOCKET",
        )  # fmt: skip
        self._audit_safely(event)

    def _tell_end(self, login: _Login, scope: Scope, reason: str) -> None:
        if self._counter is not None:
            self._counter.count("door_ended", reason)
        if reason == STORE:
            self._warn("The key store has not answered for minutes: websockets and long answers of logged-in users are cut off.")
        record, method = login.admitted.record, scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        self._audit_safely(Event(
            self._clock.now(), login.name, "ended", reason, login.admitted.mechanism, login.user.id, login.user.display_name,
            record.key_id, self._proxies.source(scope), method,
        ))  # fmt: skip

    def _audit_safely(self, event: Event) -> None:
        with contextlib.suppress(Exception):  # whatever the audit is, it fails no request
            if self._audit is not None:
                self._audit(event)

    def _hint(self, request: Scope) -> None:
        if headers_named(request, b"x-forwarded-proto") == [b"https"]:
            client = request.get("client") or ("unix",)
            self._warn(f'{client[0]} says that TLS ended there: if it is your proxy, give SimLogin(trusted_proxies=("{client[0]}",))')

    def _warn(self, text: str) -> None:
        """Tell the operator, once a minute at most, as anybody can cause it."""
        now = self._clock.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + WARNING_EVERY
            logging.getLogger("keyferry.asgi").warning("%s", text)


class _Login(NamedTuple):
    admitted: Admitted
    user: SimUser
    name: AsId


async def _challenges(door: Door, request: Scope) -> list[Header]:
    try:
        return await door.challenges(request)
    except StoreError:  # no nonce to be had: the application's 401 goes out as it is
        return []


def _is_passed_on(name: bytes, value: bytes) -> bool:
    """Tell whether the application sees a field of _HELD_BACK: credentials of other schemes than ours are its own."""
    return name == b"authorization" and value[:6].lower() != b"digest"


def _claimed(request: Scope, way: str) -> str:
    """Return the key id that a refused request names, if it has the form of one."""
    fields = headers_named(request, b"authorization") if way == "digest" else ()
    match = _CLAIMED.search(fields[0]) if len(fields) == 1 else None
    return match[1].decode("ascii") if match else ""


def _session_of(session: object) -> SessionCookie | None:
    if session is None or isinstance(session, SessionCookie):
        return session
    raise ConfigError("SimLogin session", f"is a {type(session).__name__}", "Give SessionCookie(), or nothing")


def _seconds(value: int) -> int:
    if isinstance(value, bool) or not 0 <= value <= MAX_HSTS:
        raise ConfigError("SimLogin hsts_seconds", f"not between 0 and {MAX_HSTS}")
    return int(value)
