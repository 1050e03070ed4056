# SPDX-License-Identifier: Apache-2.0
"""Log in to an application server with a ferried key: Digest for httpx (RFC 7616; DESIGN §7)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import httpx

from keyferry.errors import DigestRejected, LocalProtocolError, ParseError
from keyferry.protocol import digest
from keyferry.protocol.identity import parse_as_id
from keyferry.protocol.ims import keys as ims_keys

if TYPE_CHECKING:
    from keyferry.ports import RandomSource
    from keyferry.protocol.crypto.secret import Secret
    from keyferry.protocol.identity import AsId, KeyId

ALGORITHM = "SHA-256"
WAITS = (1.0, 2.0, 4.0)
"""Seconds before each new try while the server does not know the key: the push may still be on its way."""
UNSIGNED = frozenset({400, 401, 403, 408, 413, 414, 421, 429, 431})
"""Answers, beside 5xx, that a server gives before it knows who asks, and so without rspauth."""

BODY_HEADERS = frozenset({"content-length", "content-type", "content-encoding", "transfer-encoding", "expect", "if-match", "if-none-match"})


class _Session:
    """A nonce, how often it was used, and the certificate of the server that gave it."""

    __slots__ = ("certificate", "count", "nonce", "qop")

    def __init__(self, nonce: str, qop: str, certificate: str | None) -> None:
        self.nonce = nonce
        self.qop = qop
        self.certificate = certificate  # base64url(SHA-256(DER)); None: no TLS of ours, as with an ASGI transport
        self.count = 0


class SimDigest(httpx.Auth):
    """Prove one AS key in every request to its AS, and demand that the AS proves it too.

    For httpx.AsyncClient. The key goes to https:// and the AS's own host alone. Each request names the certificate that the
    server showed, so a relay with another one, however valid, is refused by the AS. A redirect cannot be followed, since the
    answer at its end proves nothing.
    """

    def __init__(
        self,
        *,
        key_id: KeyId,
        as_id: AsId,
        k_ua: Secret,
        random: RandomSource,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        waits: Sequence[float] = WAITS,
    ) -> None:
        """Take the key id, the AS_ID, K_UA for HTTP Digest (32 octets), and the seconds to wait before each new try."""
        self._key_id = key_id
        self._as_id = as_id
        self._realm = ims_keys.digest_realm(as_id)
        self._ha1 = digest.hash_a1(ALGORITHM, key_id, self._realm, ims_keys.digest_password(k_ua))
        self._random = random
        self._sleep = sleep
        self._waits = tuple(waits)
        self._session: _Session | None = None

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:  # noqa: ARG002 - httpx's signature
        """Refuse httpx.Client.

        Raises LocalProtocolError.
        """
        raise LocalProtocolError("SimDigest needs httpx.AsyncClient")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send with credentials as soon as there is a nonce; repeat once if it is stale, three times if the key is not known yet.

        Raises DigestRejected if the server does not prove the key, or shows another certificate than before;
        LocalProtocolError for a URL that the key must not go to.
        """
        self._check_target(request)
        await request.aread()  # it may have to be sent again
        trace = request.extensions.get("trace")
        waits = iter(self._waits)
        stale_before = False
        if self._session is None:
            # Credentials and bodies go only to a server that has a challenge for us; others see that we ask, and no more.
            response = yield httpx.Request("HEAD", request.url, headers=_without_body(request.headers), extensions=request.extensions)
            if not self._take(response):
                _check_unsigned(response)
                return
        while self._session is not None:
            session = self._session
            credentials = self._sign(request, session)
            request.headers["Authorization"] = digest.build_credentials(credentials)
            request.extensions = {**request.extensions, "trace": self._watch(session, trace)}
            response = yield request
            await self._check_answer(response, session, credentials)
            challenge = self._take(response)
            if challenge is None:
                return
            if challenge.stale and not stale_before:
                stale_before = True
                continue
            wait = next(waits, None) if "retry-after" in response.headers and not challenge.stale else None
            if wait is None:
                return
            await response.aread()
            await self._sleep(wait)

    def _take(self, response: httpx.Response) -> digest.Challenge | None:
        """Begin to use the challenge of a response, if it has one for us."""
        challenge = self._challenge(response)
        if challenge is not None:
            self._session = self._start(challenge, response)
        return challenge

    def _check_target(self, request: httpx.Request) -> None:
        if request.url.scheme != "https":
            raise LocalProtocolError("a ferried key is used over https alone")
        try:
            host = parse_as_id(request.url.host)
        except ParseError:
            host = None
        if host != self._as_id:
            raise LocalProtocolError(f"this key is for {self._as_id} alone")

    def _sign(self, request: httpx.Request, session: _Session) -> digest.Credentials:
        session.count += 1
        nc = f"{session.count:08x}"
        cnonce = _base64url(self._random.octets(16))
        if session.certificate is not None:
            cnonce = f"cb1.{cnonce}.{session.certificate}"
        uri = request.url.raw_path.decode("ascii")
        response = digest.respond(
            ALGORITHM,
            self._ha1,
            method=request.method,
            uri=uri,
            nonce=session.nonce,
            qop=session.qop,
            nc=nc,
            cnonce=cnonce,
            body=request.content,
        )
        return digest.Credentials(
            username=self._key_id,
            realm=self._realm,
            nonce=session.nonce,
            uri=uri,
            response=response,
            algorithm=ALGORITHM,
            cnonce=cnonce,
            qop=session.qop,
            nc=nc,
        )

    def _watch(self, session: _Session, trace: Callable[[str, Any], Awaitable[None]] | None) -> Callable[[str, Any], Awaitable[None]]:
        """Return a httpx trace that stops a request on a new connection before any of it is sent to another server."""

        async def watch(event: str, info: Any) -> None:
            if trace is not None:
                await trace(event, info)
            if event.endswith("start_tls.complete") and _certificate(info["return_value"]) != session.certificate:
                await info["return_value"].aclose()
                self._distrust("the server shows another certificate than before; nothing was sent")

        return watch

    async def _check_answer(self, response: httpx.Response, session: _Session, credentials: digest.Credentials) -> None:
        if _certificate(response.extensions.get("network_stream")) != session.certificate:
            self._distrust("another server answered, with another certificate")
        text = response.headers.get("authentication-info")
        if text is None:
            if response.status_code in UNSIGNED or response.status_code >= 500:
                return
            raise DigestRejected("the server did not prove that it holds the key")
        body = await response.aread() if session.qop == "auth-int" else b""
        try:
            info = digest.parse_authentication_info(text)
        except ParseError as problem:
            raise DigestRejected("Authentication-Info is not understood") from problem
        digest.check_rspauth(info, self._ha1, credentials, algorithm=ALGORITHM, body=body)
        if info.nextnonce and self._session is session:
            self._session = _Session(info.nextnonce, session.qop, session.certificate)

    def _distrust(self, problem: str) -> NoReturn:
        self._session = None
        raise DigestRejected(problem)

    def _challenge(self, response: httpx.Response) -> digest.Challenge | None:
        """Return the challenge to answer, None if the response is not for us to handle."""
        if response.status_code != 401:
            return None
        ours = [challenge for challenge in _challenges(response) if challenge.realm == self._realm]
        for challenge in ours:
            if challenge.algorithm.upper() == ALGORITHM and {"auth", "auth-int"} & set(challenge.qop):
                return challenge
        if ours:
            raise DigestRejected(f"the server offers no {ALGORITHM} with qop")
        return None

    def _start(self, challenge: digest.Challenge, response: httpx.Response) -> _Session:
        qop = "auth" if "auth" in challenge.qop else "auth-int"
        return _Session(challenge.nonce, qop, _certificate(response.extensions.get("network_stream")))


def _challenges(response: httpx.Response) -> list[digest.Challenge]:
    found = []
    for text in response.headers.get_list("www-authenticate"):
        try:
            found.append(digest.parse_challenge(text))
        except ParseError:
            continue  # another scheme, or one that nobody can read
    return found


def _certificate(stream: Any) -> str | None:
    """Return the hash of the certificate at the other end, None if the transport is not a network's."""
    if stream is None:
        return None
    tls = stream.get_extra_info("ssl_object")
    octets = tls.getpeercert(binary_form=True) if tls else None
    if octets is None:
        raise DigestRejected("the server showed no certificate")
    return _base64url(hashlib.sha256(octets).digest())


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=")


def _without_body(headers: httpx.Headers) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in BODY_HEADERS]


def _check_unsigned(response: httpx.Response) -> None:
    """Refuse what only a server that proved the key may say: one that never challenged has proved nothing.

    Raises DigestRejected.
    """
    if response.status_code not in UNSIGNED and response.status_code < 500:
        raise DigestRejected("the server answered without asking who we are, so it did not prove the key")
