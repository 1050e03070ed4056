# SPDX-License-Identifier: Apache-2.0
"""Log in to an application server with a ferried key: Digest for httpx (RFC 7616; DESIGN §7)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias

import httpx

from keyferry.client.names import is_for
from keyferry.errors import DigestRejected, LocalProtocolError, ParseError
from keyferry.protocol import digest
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
BODY: Final = "keyferry.body"
"""Extension of a request whose body is not to be held in memory: REWINDABLE, or ONCE."""
REWINDABLE: Final = "rewindable"
"""The body begins anew each time it is iterated over, as that of a file."""
ONCE: Final = "once"
"""The body is there once, as that of a pipe: a HEAD goes before it, so that nothing of it is sent to be refused."""

QOP: Final = "keyferry.qop"
"""Extension of a response that the server has proved: "auth", or "auth-int" where its body is signed, too."""

BODY_HEADERS = frozenset({"content-length", "content-type", "content-encoding", "transfer-encoding", "expect", "if-match", "if-none-match"})

Traced: TypeAlias = Callable[[str, Any], Any]


class _Session:
    """A nonce, how often it was used, and the certificate of the server that gave it."""

    __slots__ = ("certificate", "count", "first", "nonce", "qop")

    def __init__(self, nonce: str, qop: str, certificate: str | None, *, first: bool = False) -> None:
        self.nonce = nonce
        self.qop = qop
        self.certificate = certificate  # base64url(SHA-256(DER)); None: no TLS of ours, as with an ASGI transport, or not yet seen
        self.first = first  # the nonce that the UE makes itself: good for one request
        self.count = 0


class _Attempt:
    """One request with credentials; the first one of a key is signed when the server has shown its certificate."""

    __slots__ = ("credentials", "request", "session", "traced")

    def __init__(self, request: httpx.Request, session: _Session, credentials: digest.Credentials) -> None:
        self.request = request
        self.session = session
        self.credentials: digest.Credentials | None = credentials  # None: they were taken out again
        self.traced: Traced | None = request.extensions.get("trace")


class _Patience:
    """How often, and after which waits, a request is repeated."""

    def __init__(self, waits: Sequence[float]) -> None:
        self._waits = iter(waits)
        self._stale_before = False

    def after(self, challenge: digest.Challenge | None, response: httpx.Response, *, first: bool) -> float | None:
        """Return the seconds to wait before the next try, None to give up."""
        if challenge is None:
            return None
        if first:
            return 0.0  # the server has not seen, or no longer takes, the nonce that we made: now there is one of its own
        if challenge.stale:
            stale_before, self._stale_before = self._stale_before, True
            return None if stale_before else 0.0
        return next(self._waits, None) if "retry-after" in response.headers else None


class _Read(NamedTuple):
    """Ask the driver to read a body."""

    message: httpx.Request | httpx.Response


class _Wait(NamedTuple):
    """Ask the driver to wait."""

    seconds: float


class _Claim(NamedTuple):
    """Ask the driver whether the first nonce may be used."""


_Step: TypeAlias = httpx.Request | _Read | _Wait | _Claim
_Steps: TypeAlias = Generator[_Step, Any, httpx.Response]
_Watch: TypeAlias = Callable[[_Attempt], Traced]


class SimDigest(httpx.Auth):
    """Prove one AS key in every request to its AS, and demand that the AS proves it too.

    For httpx.AsyncClient and httpx.Client. The key goes to https:// and the AS's own host alone. Each request names the certificate
    that the server showed, so a relay with another one, however valid, is refused by the AS. A redirect cannot be followed, since
    the answer at its end proves nothing.
    """

    def __init__(
        self,
        *,
        key_id: KeyId,
        as_id: AsId,
        k_ua: Secret,
        random: RandomSource,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        pause: Callable[[float], None] = time.sleep,
        waits: Sequence[float] = WAITS,
        claim_first: Callable[[], Awaitable[bool]] | None = None,
        integrity: bool = False,
        proven: bool = True,
    ) -> None:
        """Take the key id, the AS_ID, K_UA for HTTP Digest (32 octets), and the seconds to wait before each new try.

        `claim_first` notes durably that the first nonce of this key is used now, and returns false if it was before; without it, and
        with httpx.Client, the first request asks for a nonce. `integrity` signs the bodies of all requests (qop auth-int), and takes no
        answer whose body is not signed, but those that need no proof; the first nonce, which is of qop auth, is not used. Without `proven`
        nobody has proved this key yet (DESIGN §10): no body goes out until the server has, and a HEAD asks it to.
        """
        self._key_id = key_id
        self._as_id = as_id
        self._realm = ims_keys.digest_realm(as_id)
        self._ha1 = digest.hash_a1(ALGORITHM, key_id, self._realm, ims_keys.digest_password(k_ua))
        self._random = random
        self._sleep = sleep
        self._pause = pause
        self._waits = tuple(waits)
        self._claim_first = claim_first
        self._integrity = integrity
        self._by_scscf = proven
        self._provers: set[str | None] = set()  # certificates of the servers that have proved the key
        self._qops = frozenset({"auth-int"} if integrity else {"auth", "auth-int"})
        self._first_nonce = ims_keys.first_nonce(k_ua) if claim_first is not None and not integrity else None
        self._session: _Session | None = None
        self._certificate: str | None = None  # of the server that last proved the key

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Do for httpx.Client what `async_auth_flow` does, but for the first nonce."""
        first, self._first_nonce = self._first_nonce, None
        steps = self._steps(request, self._watch_now)
        answer: Any = None
        try:
            while (step := _after(steps, answer)) is not None:
                if isinstance(step, httpx.Request):
                    answer = yield step
                elif isinstance(step, _Read):
                    answer = step.message.read()
                elif isinstance(step, _Wait):
                    self._pause(step.seconds)
        finally:
            self._first_nonce = first

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send with credentials as soon as there is a nonce; repeat once if it is stale, three times if the key is not known yet.

        Raises DigestRejected if the server does not prove the key, or shows another certificate than before;
        LocalProtocolError for a URL that the key must not go to.
        """
        steps = self._steps(request, self._watch)
        answer: Any = None
        while (step := _after(steps, answer)) is not None:
            if isinstance(step, httpx.Request):
                answer = yield step
            elif isinstance(step, _Read):
                answer = await step.message.aread()
            elif isinstance(step, _Wait):
                await self._sleep(step.seconds)
            else:
                answer = await self._claim_first() if self._claim_first is not None else False

    def _steps(self, request: httpx.Request, watch: _Watch) -> _Steps:
        self._check_target(request)
        body = request.extensions.get(BODY)
        if body is None:
            yield _Read(request)  # it may have to be sent again
        if body == ONCE or not (self._trusts(self._session) or _is_empty(request)):
            head = _head(request)
            response = yield from self._attempts(head, watch)
            if "authentication-info" not in response.headers or not (self._by_scscf or self._provers):
                return response  # refused; what is proven may be any status, an application need not know HEAD
        return (yield from self._attempts(request, watch))

    def _attempts(self, request: httpx.Request, watch: _Watch) -> _Steps:
        trace = request.extensions.get("trace")
        patience = _Patience(self._waits)
        session = self._session or (yield from self._first())
        if session is None:
            # Credentials and bodies go only to a server that has a challenge for us; others see that we ask, and no more.
            response: httpx.Response = yield _head(request)
            if not self._take(response):
                _check_unsigned(response)
                return response
        while True:
            attempt = yield from self._attempt(request, session or self._session)
            attempt.traced = trace
            request.extensions = {**request.extensions, "trace": watch(attempt)}
            response = yield request
            yield from self._check_answer(response, attempt)
            challenge = self._take(response)
            wait = patience.after(challenge, response, first=attempt.session.first)
            if wait is None or request.extensions.get(BODY) == ONCE:
                return response
            if wait:
                yield _Read(response)
                yield _Wait(wait)
            session = None

    def _attempt(self, request: httpx.Request, session: _Session | None) -> Generator[_Step, Any, _Attempt]:
        if session is None:  # another request of this client has seen another certificate meanwhile
            raise DigestRejected("the server shows another certificate than before; nothing was sent")
        if not (self._trusts(session) or _is_empty(request)):
            raise DigestRejected("the server shows another certificate than the one that proved the key; nothing was sent")
        if session.qop == "auth-int":
            request.headers["Accept-Encoding"] = "identity"  # what is signed is what was sent, and httpx shows what it decodes to
            if BODY in request.extensions:
                yield _Read(request)
        return _Attempt(request, session, self._sign(request, session))

    def _trusts(self, session: _Session | None) -> bool:
        """Tell whether a body may go to the server of a session."""
        return self._by_scscf or (session is not None and session.certificate in self._provers)

    def _first(self) -> Generator[_Step, Any, _Session | None]:
        """Return a session of the first nonce, once."""
        nonce, self._first_nonce = self._first_nonce, None
        if nonce is None or not (yield _Claim()):
            return None
        return _Session(nonce, "auth", self._certificate, first=True)

    def _take(self, response: httpx.Response) -> digest.Challenge | None:
        """Begin to use the challenge of a response, if it has one for us."""
        challenge = self._challenge(response)
        if challenge is not None:
            self._session = self._start(challenge, response)
        return challenge

    def _check_target(self, request: httpx.Request) -> None:
        if not is_for(request.url, self._as_id):
            raise LocalProtocolError(f"this key is for {self._as_id} alone, over https")

    def _sign(self, request: httpx.Request, session: _Session) -> digest.Credentials:
        session.count = 1 if session.first else session.count + 1
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
            body=request.content if session.qop == "auth-int" else b"",
        )
        credentials = digest.Credentials(
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
        request.headers["Authorization"] = digest.build_credentials(credentials)
        return credentials

    def _watch(self, attempt: _Attempt) -> Traced:
        """Return a httpx trace that stops a request on a new connection before any of it is sent to another server."""

        async def watch(event: str, info: Any) -> None:
            if attempt.traced is not None:
                await attempt.traced(event, info)
            stream = self._seen(attempt, event, info)
            if stream is not None:
                await stream.aclose()
                self._distrust("the server shows another certificate than before; nothing was sent")

        return watch

    def _watch_now(self, attempt: _Attempt) -> Traced:
        def watch(event: str, info: Any) -> None:
            if attempt.traced is not None:
                attempt.traced(event, info)
            stream = self._seen(attempt, event, info)
            if stream is not None:
                stream.close()
                self._distrust("the server shows another certificate than before; nothing was sent")

        return watch

    def _seen(self, attempt: _Attempt, event: str, info: Any) -> Any:
        """Bind the first request to the certificate that is shown; return the stream of a server that shows another one than before."""
        session = attempt.session
        if event.endswith("start_tls.complete"):
            shown = _certificate(info["return_value"])
            if session.first and session.certificate is None:
                session.certificate = shown
            elif shown != session.certificate:
                return info["return_value"]
        elif session.first and event.endswith("send_request_headers.started"):
            self._bind(attempt, info["request"])
        return None

    def _bind(self, attempt: _Attempt, sent: Any) -> None:
        """Sign the first request again, with the certificate in it, as httpcore is about to write it.

        On a connection that is older than our view of it, whose certificate we have not seen, a HEAD goes out instead, which asks for a
        challenge and tells nothing; the request itself follows with the answer.
        """
        if sent.method == b"CONNECT":
            return  # to a proxy: what we have to say goes through the tunnel
        left_out = {b"authorization"}
        if attempt.session.certificate is None:
            left_out |= {name.encode("ascii") for name in BODY_HEADERS}
            sent.method, sent.stream = b"HEAD", httpx.ByteStream(b"")
        kept = [(name, value) for name, value in sent.headers if name.lower() not in left_out]
        if attempt.session.certificate is None:
            attempt.credentials = None
        else:
            attempt.credentials = self._sign(attempt.request, attempt.session)
            kept.append((b"Authorization", attempt.request.headers["Authorization"].encode("ascii")))
        sent.headers[:] = kept

    def _check_answer(self, response: httpx.Response, attempt: _Attempt) -> Generator[_Step, Any, None]:
        session, credentials = attempt.session, attempt.credentials
        if credentials is None:
            _check_unsigned(response)
            return
        if _certificate(response.extensions.get("network_stream")) != session.certificate:
            self._distrust("another server answered, with another certificate")
        text = response.headers.get("authentication-info")
        if text is None:
            if _is_unsigned(response):
                return
            raise DigestRejected("the server did not prove that it holds the key")
        try:
            info = digest.parse_authentication_info(text)
        except ParseError as problem:
            raise DigestRejected("Authentication-Info is not understood") from problem
        # RFC 7616 §3.5: the server says with which qop it answers. Where it alone wanted auth-int, an answer that is too long for it is no
        # worse than one of qop auth: TLS brings its body. Nobody but the holder of the key can say so.
        body = (yield _Read(response)) if (session.qop, info.qop) == ("auth-int", "auth-int") else b""
        digest.check_rspauth(info, self._ha1, credentials, algorithm=ALGORITHM, body=body, integrity=self._integrity)
        response.extensions[QOP] = info.qop
        self._provers.add(session.certificate)
        self._certificate = session.certificate
        if info.nextnonce and self._session is (None if session.first else session):
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
            if challenge.algorithm.upper() == ALGORITHM and self._qops & set(challenge.qop):
                return challenge
        if ours:
            raise DigestRejected(f"the server offers no {ALGORITHM} with qop {' or '.join(sorted(self._qops))}")
        return None

    def _start(self, challenge: digest.Challenge, response: httpx.Response) -> _Session:
        qop = "auth" if "auth" in self._qops & set(challenge.qop) else "auth-int"
        return _Session(challenge.nonce, qop, _certificate(response.extensions.get("network_stream")))


def _after(steps: _Steps, answer: Any) -> _Step | None:
    """Return the step that follows an answer, None after the last one."""
    try:
        return steps.send(answer)
    except StopIteration:
        return None


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
    octets = tls.getpeercert(True) if tls else None
    if octets is None:
        raise DigestRejected("the server showed no certificate")
    return _base64url(hashlib.sha256(octets).digest())


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode("ascii").rstrip("=")


def _head(request: httpx.Request) -> httpx.Request:
    """Return a request that learns what the server wants to know, and tells it nothing."""
    extensions = {name: value for name, value in request.extensions.items() if name != BODY}
    return httpx.Request("HEAD", request.url, headers=_without_body(request.headers), extensions=extensions)


def _is_empty(request: httpx.Request) -> bool:
    return BODY not in request.extensions and not request.content


def _without_body(headers: httpx.Headers) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in BODY_HEADERS]


def _is_unsigned(response: httpx.Response) -> bool:
    return response.status_code in UNSIGNED or response.status_code >= 500


def _check_unsigned(response: httpx.Response) -> None:
    """Refuse what only a server that proved the key may say: one that never challenged has proved nothing.

    Raises DigestRejected.
    """
    if not _is_unsigned(response):
        raise DigestRejected("the server answered without asking who we are, so it did not prove the key")
