# SPDX-License-Identifier: Apache-2.0
"""The login of another proxy: nginx asks by `auth_request` whether a request may pass (examples/nginx/keyferry.conf, docs/how-to/nginx.md).

nginx sends a GET without a body, and says in fields of its own what the user's request was. It passes on one challenge only, takes
nothing but 2xx, 401 and 403 for an answer, and drops its body: so this endpoint answers 204, 401 or 403, qop auth, SHA-256.
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from keyferry.asgi.exchange import App, Header, Message, Receive, Scope, Send, headers_named, respond
from keyferry.asgi.origin import Origins
from keyferry.asgi.proxy.fields import INTENDED, SECRET, asserted_field, asserted_identities, one
from keyferry.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from keyferry.ports import Clock, Counter
    from keyferry.protocol.crypto.secret import Secret

ORIGINAL = (b"x-original-method", b"x-original-uri", b"x-original-host", b"x-original-scheme")
REQUEST_ID = b"x-original-id"
SAME_REQUEST = 5.0
"""Seconds in which nginx may ask again about one request: `index`, `try_files` and `error_page` go through its phases once more."""
MAX_SAME = 4_096
"""Requests remembered for that, 2 kB each."""
USER = b"x-keyferry-user"
PUBLIC_IDENTITY = b"x-keyferry-public-identity"

_METHOD = re.compile(rb"[A-Z][A-Z\-]{0,30}")
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]{0,8191}")
_HOST = re.compile(rb"([A-Za-z0-9_.\-]{1,253}?)\.?(?::[0-9]{1,5})?")
_PASSED = frozenset({b"www-authenticate", b"authentication-info", b"retry-after", USER, PUBLIC_IDENTITY, b"x-3gpp-asserted-identity"})


async def granted(scope: Scope, receive: Receive, send: Send) -> None:
    """Say who logged in: the application that stands behind SimLogin here."""
    del receive
    identity = scope["keyferry"]
    try:
        impus = asserted_identities(identity.impus, headers_named(scope, INTENDED))
    except RemoteProtocolError as problem:
        await respond(send, 403, f"{problem}\n".encode())
        return
    fields = [asserted_field(impus), (USER, scope["user"].id.encode("ascii")), (PUBLIC_IDENTITY, impus[0].encode("ascii"))]
    await send({"type": "http.response.start", "status": 204, "headers": fields})
    await send({"type": "http.response.body", "body": b""})


class _Answer(NamedTuple):
    status: int
    headers: list[Header]


class AuthRequest:
    """Answer whether the request that nginx describes may pass, for one or several host names."""

    def __init__(
        self,
        doors: Mapping[str, App],
        *,
        clock: Clock,
        secret: Secret | None = None,
        counter: Counter | None = None,
        origins: Origins | None = None,
    ) -> None:
        """Take SimLogin around `granted` for each AS_ID; with `secret` whoever asks must show it, as on a TCP listener."""
        self._doors = {name.encode("ascii"): door for name, door in doors.items()}
        self._clock = clock
        self._secret = secret
        self._counter = counter
        self._origins = origins or Origins()
        self._same: OrderedDict[tuple[bytes, ...], tuple[float, _Answer]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope; its body, if nginx was told to send one, is not read."""
        del receive
        if scope["type"] != "http":
            raise LocalProtocolError("auth_request is HTTP")
        try:
            answer = await self._answer(scope)
        except RemoteProtocolError as problem:
            self._count("refused" if problem.status == 403 else "malformed")
            await respond(send, problem.status, f"{problem}\n".encode())
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, (b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, scope: Scope) -> _Answer:
        self._check_secret(scope)
        method, target, host, scheme = (_said(scope, name) for name in ORIGINAL)
        door = self._doors.get(_name_of(host))
        if door is None:
            raise RemoteProtocolError(f"no door is for the host of that request; those here: {b', '.join(self._doors).decode()}", 403)
        if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target) or scheme != b"https":
            raise RemoteProtocolError("the request is not of a form, or over a scheme, that a login is for", 403)
        if headers_named(scope, b"sec-websocket-key") and self._origins.same(scope, _name_of(host).decode("ascii")) is False:
            raise RemoteProtocolError("a page of another site opens no WebSocket in the user's name", 403)
        authorization = headers_named(scope, b"authorization")
        request_id = one(scope["headers"], REQUEST_ID)
        same = (request_id or b"", host, method, target, *authorization)
        if request_id and (before := self._before(same)):
            return before
        path, _, query = target.partition(b"?")
        asked = {
            "type": "http", "asgi": scope.get("asgi", {}), "http_version": "1.1", "scheme": "https", "method": method.decode("ascii"),
            "path": unquote(path.decode("ascii")), "raw_path": path, "query_string": query, "root_path": "",
            "headers": [*_of_user(scope), (b"host", host)], "client": _client(scope), "server": None,
        }  # fmt: skip
        answer = await _asked(door, asked)
        if request_id and answer.status == 204:
            self._remember(same, answer)
        return answer

    def _check_secret(self, scope: Scope) -> None:
        if self._secret is not None:
            shown = headers_named(scope, SECRET)
            if len(shown) != 1 or not hmac.compare_digest(shown[0], self._secret.reveal()):
                raise RemoteProtocolError("the shared secret is missing or wrong", 403)

    def _before(self, same: tuple[bytes, ...]) -> _Answer | None:
        at, answer = self._same.get(same, (0.0, None))
        return answer if self._clock.monotonic() - at < SAME_REQUEST else None

    def _remember(self, same: tuple[bytes, ...], answer: _Answer) -> None:
        self._same[same] = self._clock.monotonic(), answer
        if len(self._same) > MAX_SAME:
            self._same.popitem(last=False)

    def _count(self, reason: str) -> None:
        if self._counter is not None:
            self._counter.count("proxy", reason)


def _said(scope: Scope, name: bytes) -> bytes:
    """Return what nginx says of the request; status 500 tells its operator, in its error log, that the configuration lacks something."""
    value = one(scope["headers"], name)
    if not value:
        raise RemoteProtocolError(f"nginx does not say {name.decode('ascii')}: see examples/nginx/keyferry.conf", 500)
    return value


def _name_of(host: bytes) -> bytes:
    name = _HOST.fullmatch(host)
    return name[1].lower() if name else b""


def _of_user(scope: Scope) -> list[Header]:
    """Return the fields of the user's request that a login looks at."""
    wanted = {b"authorization", b"user-agent", b"origin", b"sec-fetch-site", INTENDED}
    return [field for field in scope["headers"] if field[0] in wanted]


def _client(scope: Scope) -> tuple[str, int] | None:
    """Return the user's address: limits on failures count against it, not against nginx."""
    address = one(scope["headers"], b"x-original-address")
    return (address.decode("latin-1"), 0) if address else scope.get("client")


async def _asked(door: App, scope: Scope) -> _Answer:
    """Let a door judge a request; a refusal that nginx has no word for is 403."""
    start: list[Message] = []
    body: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return body.pop() if body else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)

    await door(scope, receive, send)
    status = start[0]["status"]
    headers = [field for field in start[0].get("headers", ()) if field[0] in _PASSED]
    return _Answer(status if status in {204, 401} or status >= 500 else 403, [*headers, (b"x-keyferry-status", b"%d" % status)])
