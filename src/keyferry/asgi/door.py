# SPDX-License-Identifier: Apache-2.0
"""The door of one AS_ID: proves one request by HTTP Digest (RFC 7616; DESIGN §7). What stands around it is in `auth`."""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from keyferry.asgi import pages
from keyferry.asgi.exchange import App, Header, Receive, Scope, Send, headers_named
from keyferry.asgi.ledger import Prepares
from keyferry.asgi.limits import bucket_name
from keyferry.asgi.offers import ALGORITHMS, Offers, Place
from keyferry.asgi.signed_body import NO_ROOM, TOO_LONG, HeldBody, Room, SignedResponse, replayed, take_body
from keyferry.errors import ConfigError, DigestRejected, LocalProtocolError, ParseError, RemoteProtocolError, SecurityError
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys

if TYPE_CHECKING:
    # At run time `ports` would import all that its records are made of, SIP and XML too.
    from keyferry.asgi.certificates import Certificates
    from keyferry.ports import KeySource, RandomSource, UseLedger
    from keyferry.protocol.ims.key_record import KeyRecord

MAX_AUTHORIZATION = 4096
"""Octets of Authorization: a key id and a realm of 255 octets each and a uri of 2,048 leave 1,500 to the rest."""
MAX_CNONCE = 256
"""Characters; ours has 70, and each one is hashed twice."""
MAX_BODY = 16_777_216
"""Octets of a body under auth-int, of the request and of the response; 65,536 of them are held in memory."""
PROVEN_KEYS = 65_536
"""Keys whose HA1 is kept, about 500 octets each; another one costs its derivation again, 10 microseconds."""
BOUND_CNONCE = "cb1."
"""A cnonce that says which certificate the client saw: "cb1." random "." base64url(SHA-256(certificate)) (*ours*)."""

PLAIN = b"A SIM login is never used over plain http.\n"
LATER: tuple[Header, ...] = ((b"retry-after", b"3600"),)
LOGIN = b"Log in with a SIM: HTTP Digest with a key of your IMS registration.\n"
"""The body of every 401: what is wrong with an answer is not told."""

NO_PHONES = b"No phone is served here.\n"
"""To a phone where none can log in. Not 403: many phones then give up until they are switched off and on (docs/security.md)."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_FIRST_NONCE = 32  # characters of a first nonce; others have 40
_FIRST_COUNT = "00000001"
_MD5_DIGITS = 32  # of a response by MD5; some clients make one and echo the algorithm that they were offered
_CNONCE = re.compile(rf"[\x20\x21\x23-\x5b\x5d-\x7e]{{1,{MAX_CNONCE}}}")  # needs no escape where it is sent back


class Refused(SecurityError):
    """Say no: `reason` is counted, `text` is told, status 401 challenges, `ends_session` takes the cookie away."""

    def __init__(
        self,
        reason: str,
        status: int = 401,
        text: bytes = LOGIN,
        *,
        stale: bool = False,
        headers: tuple[Header, ...] = (),
        ends_session: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.text = text
        self.stale = stale
        self.headers = headers
        self.ends_session = ends_session


class _Proven(NamedTuple):
    """What need not be derived again for a key that answered rightly."""

    k_as: Secret
    algorithm: str
    realm: str
    ha1: Secret
    noted: bool  # the source was told of the use


class Claim(NamedTuple):
    """An answer of which nothing is proven yet."""

    place: Place
    credentials: digest.Credentials
    algorithm: str
    method: str
    body: HeldBody | None = None  # of the request, read already, where the answer covers it

    def close(self) -> None:
        """Drop the body."""
        if self.body is not None:
            self.body.close()


class Proof(NamedTuple):
    """A right answer."""

    record: KeyRecord
    source: str  # Offer.mechanism
    mechanism: str  # "digest" or "first-nonce"
    credentials: digest.Credentials
    algorithm: str
    ha1: Secret
    nextnonce: str | None
    body: HeldBody | None  # of the request, if it had to be read


class Door:
    """Prove requests to one AS_ID. One instance a process; what workers must agree about is in the ledger."""

    def __init__(
        self,
        *,
        as_id: AsId,
        sources: Sequence[KeySource],
        ledger: UseLedger,
        random: RandomSource,
        algorithms: tuple[str, ...] = ("SHA-256",),
        qop: tuple[str, ...] = ("auth",),
        certificates: Certificates,
        max_body: int = MAX_BODY,
        proven_keys: int = PROVEN_KEYS,
        handsets: str = "token",
        http_networks: tuple[str, ...] = (),
    ) -> None:
        """Take where keys are found. `handsets` says who is taken for a phone: token (of User-Agent), always, never.

        `http_networks` are those of clients (CIDR) that may come over plain http, with keys of phones alone. Raises ConfigError.
        """
        _check_settings(sources, algorithms, qop)
        self._as_id = as_id
        self._nobody = Secret(random.octets(32))
        self._offers = Offers(as_id, sources, algorithms=algorithms, qop=qop, nobody=self._nobody, handsets=handsets)
        self._ledger = ledger
        self._ready = ledger.ready if isinstance(ledger, Prepares) else None
        self._certificates = certificates
        self._max_body = max_body
        self._room = Room(largest=max_body)
        self._answers = Room(largest=max_body)
        self._networks = _parse_networks(http_networks)
        if self._networks and not self._offers.serves(handset=True):
            raise ConfigError("SimLogin http_networks", "only pushed keys are here, and they are never used over plain http")
        self._proven: OrderedDict[str, _Proven] = OrderedDict()
        self._proven_keys = proven_keys

    def claim(self, scope: Scope) -> Claim:
        """Return what a request says of who sent it, whose Host is checked already; where it is signed with its body, `hear` that next.

        Raises Refused; LocalProtocolError if the HTTP server gives no raw path.
        """
        self.check_channel(scope)
        authorizations = headers_named(scope, b"authorization")
        if not authorizations:
            raise Refused("challenge")
        credentials = _parse(authorizations)
        place = self._offers.of_realm(credentials.realm)
        if place is None:
            raise Refused("realm")
        if not place.offer.handsets and scope.get("scheme", "http") != "https":
            raise Refused("scheme", 403, PLAIN)
        algorithm = _check_form(credentials, place)
        _check_uri(credentials.uri, scope)
        return Claim(place, credentials, algorithm, scope["method"])

    async def hear(self, claim: Claim, scope: Scope, receive: Receive, source: str) -> Claim:
        """Read and hash the body before anything is decided: what is behind the door sees it only if it is the one that was signed.

        It counts against the address `source`, and gives way to other bodies, until its sender is proven. Raises Refused.
        """
        body = HeldBody(self._max_body, self._room, digest.body_hasher(claim.algorithm), bucket_name(source), gives_way=True)
        try:
            await take_body(scope, receive, body, self._max_body)
        except RemoteProtocolError as problem:
            body.close()
            raise _without_body(problem, scope) from problem
        except BaseException:
            body.close()
            raise
        return claim._replace(body=body)

    async def prove(self, claim: Claim) -> Proof:
        """Check a claim, the response first, then the nonce, and tell the source; a claim that is refused is for the caller to close.

        Raises Refused, StoreError, SealError.
        """
        place, credentials, algorithm, method, body = claim
        record, ha1 = await self._check_response(place, credentials, algorithm, method, body.hash if body else None)
        cnonce = credentials.cnonce or ""
        if cnonce.startswith(BOUND_CNONCE) and not self._certificates.holds(cnonce.rpartition(".")[2]):
            raise Refused("certificate", 403, b"You saw a certificate that is not this server's.\n")
        if body is not None:
            try:
                body.keep(record.key_id)
            except RemoteProtocolError as problem:
                raise _without_body(problem) from problem
        first = len(credentials.nonce) == _FIRST_NONCE
        nextnonce = await (self._claim_first(place, credentials, algorithm, record) if first else self._claim(credentials, record))
        proven = self._proven.get(record.key_id)
        if proven is None or proven.ha1 is not ha1 or not proven.noted:
            await self._note_use(place, record, credentials.realm, algorithm, ha1)
        mechanism = "first-nonce" if first else "digest"
        return Proof(record, place.offer.mechanism, mechanism, credentials, algorithm, ha1, nextnonce, body)

    async def serve_signed(
        self, proof: Proof, request: HeldBody, watched: Callable[[Receive], Receive], app: App, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the application answer a request whose body was signed, and sign its answer whole; `watched` may end the body early."""
        held = HeldBody(self._max_body, self._answers, digest.body_hasher(proof.algorithm), proof.record.key_id)
        response = SignedResponse(send, lambda body_hash: _info(proof, body_hash), held, head=scope["method"] == "HEAD")
        try:
            # Without the server's extensions: a file that it would send by itself cannot be signed.
            await app({**scope, "extensions": {}}, watched(replayed(request, receive)), response)
        finally:
            request.close()
            held.close()

    def check_channel(self, scope: Scope) -> None:
        """Let in what came over TLS, and what came over plain http from a network that may, for keys of phones. Raises Refused."""
        if scope.get("scheme", "http") == "https":
            return
        client = scope.get("client")
        if not self._networks or not client or not _is_in(self._networks, client[0]):
            if self._offers.is_handset(scope):
                raise Refused("handset", 503, NO_PHONES, headers=LATER)
            raise Refused("scheme", 403, PLAIN)

    def settle(self, refusal: Refused, scope: Scope) -> Refused:
        """Return what a refusal comes to for who asks: where there is nothing to offer, no challenge but a better time to come."""
        if refusal.status == 401 and not self._offers.serves(handset=self._is_handset(scope)):
            return Refused("handset", 503, NO_PHONES, headers=LATER)
        return refusal

    def _is_handset(self, scope: Scope) -> bool:
        return scope.get("scheme", "http") != "https" or self._offers.is_handset(scope)

    async def refuse(self, refusal: Refused, scope: Scope, send: Send) -> None:
        """Answer a request that is not admitted; with status 401, challenge."""
        headers = list(refusal.headers)
        if refusal.status == 401:
            headers += await self.challenges(scope, stale=refusal.stale)
            if headers_named(scope, b"authorization"):
                headers.append((b"retry-after", b"1"))  # the key may be on its way
        await pages.refuse(scope, send, refusal.status, refusal.text, headers)

    async def challenges(self, scope: Scope, *, stale: bool = False) -> list[Header]:
        """Return the WWW-Authenticate fields for a request, with a new nonce. Raises StoreError."""
        return self._offers.challenges(await self._issue(), handset=self._is_handset(scope), stale=stale)

    async def _issue(self) -> str:
        if self._ready is not None:
            await self._ready()
        return self._ledger.issue()

    async def _check_response(
        self, place: Place, credentials: digest.Credentials, algorithm: str, method: str, body_hash: str | None
    ) -> tuple[KeyRecord, Secret]:
        """Look the key up and check the response; an unknown key, a retired one, a wrong response all cost one derivation."""
        record = await self._lookup(place, credentials.username)
        known = self._recall(record, credentials.realm, algorithm) if record else None
        ha1 = known or self._derive(place, record or place.nobody, credentials, algorithm)
        try:
            digest.check_response(ha1, credentials, algorithm=algorithm, method=method, body_hash=body_hash)
        except DigestRejected as problem:
            if known:
                self._derive(place, place.nobody, credentials, algorithm)
            raise Refused("response" if record else "unknown-key") from problem
        if record is None:
            raise Refused("unknown-key")
        return record, ha1

    async def _lookup(self, place: Place, name: str) -> KeyRecord | None:
        record = None
        if name in self._proven or place.identifiers.fullmatch(name):
            record = await place.source.lookup(name, self._as_id)
        if record is None or record.key_id != name or record.as_id != self._as_id or not record.impus:
            proven = self._proven.get(name)
            if proven is not None and self._offers.of_realm(proven.realm) is place:  # else it is of another source, and lives there
                del self._proven[name]
            return None
        return record

    def _recall(self, record: KeyRecord, realm: str, algorithm: str) -> Secret | None:
        proven = self._proven.get(record.key_id)
        if proven is None or proven.algorithm != algorithm or proven.realm != realm:
            return None
        if proven.k_as is not record.k_as and proven.k_as != record.k_as:
            return None
        self._proven.move_to_end(record.key_id)
        return proven.ha1

    def _derive(self, place: Place, record: KeyRecord, credentials: digest.Credentials, algorithm: str) -> Secret:
        password = ims_keys.digest_password(place.source.protocol_key(record, ims_keys.UA_DIGEST))
        return digest.hash_a1(algorithm, credentials.username, credentials.realm, password)

    async def _claim(self, credentials: digest.Credentials, record: KeyRecord) -> str | None:
        """Take the count of a right response; return a new nonce if this one grows old."""
        try:
            old = await self._ledger.claim(credentials.nonce, record, int(credentials.nc or "", 16))
        except DigestRejected as problem:
            raise _gone(problem) from problem
        return await self._issue() if old else None

    async def _claim_first(self, place: Place, credentials: digest.Credentials, algorithm: str, record: KeyRecord) -> str:
        """Take the first nonce, which only this key has and only once; return the nonce to go on with (*ours*, DESIGN §3)."""
        fits = (algorithm, credentials.qop, credentials.nc) == ("SHA-256", "auth", _FIRST_COUNT) and not place.offer.handsets
        if not fits or credentials.nonce != ims_keys.first_nonce(place.source.protocol_key(record, ims_keys.UA_DIGEST)):
            raise Refused("stale", stale=True)
        try:
            claimed = await self._ledger.claim_first(record)
        except DigestRejected as problem:
            raise _gone(problem) from problem
        if not claimed:
            raise Refused("first-nonce", stale=True)
        return await self._issue()

    async def _note_use(self, place: Place, record: KeyRecord, realm: str, algorithm: str, ha1: Secret) -> None:
        """Remember the key, and tell the source once that it was used: that ends an older one of the device (DESIGN §6)."""
        if not record.superseded:
            await place.source.used(record)
        self._proven[record.key_id] = _Proven(record.k_as, algorithm, realm, ha1, not record.superseded)
        if len(self._proven) > self._proven_keys:
            self._proven.popitem(last=False)


def _check_settings(sources: Sequence[KeySource], algorithms: tuple[str, ...], qop: tuple[str, ...]) -> None:
    if not sources:
        raise ConfigError("SimLogin keys", "no source of keys")
    if not algorithms or len(set(algorithms)) != len(algorithms) or not set(algorithms) <= set(ALGORITHMS):
        raise ConfigError("SimLogin algorithms", "not some of SHA-256 and MD5")
    if not qop or not set(qop) <= {"auth", "auth-int"}:
        raise ConfigError("SimLogin qop", "not some of auth and auth-int")
    if "MD5" in algorithms and "auth" not in qop:
        raise ConfigError("SimLogin qop", "auth-int goes with SHA-256 alone", "Add auth, or leave MD5 out")


def _parse(authorizations: list[bytes]) -> digest.Credentials:
    if len(authorizations) > 1:
        raise Refused("malformed", 400, b"One Authorization field, please.\n")
    value = authorizations[0]
    if len(value) > MAX_AUTHORIZATION:
        raise Refused("malformed", 431, b"The Authorization field is too long.\n")
    if value[:6].lower() != b"digest":
        raise Refused("scheme-unknown")
    try:
        return digest.parse_credentials(value.decode("utf-8", "surrogateescape"))
    except ParseError as problem:
        raise Refused("malformed", 400, b"The Authorization field is not understood.\n") from problem


def _check_form(credentials: digest.Credentials, place: Place) -> str:
    """Return the algorithm, as offered."""
    if credentials.qop is None:
        raise Refused("rfc-2069", 400, b"The Digest response has no qop, as in RFC 2069. Use a client of RFC 7616 or RFC 2617.\n")
    algorithm = place.algorithms.get((credentials.algorithm or "MD5").lower())
    if algorithm is None or (algorithm != "MD5" and len(credentials.response) == _MD5_DIGITS):
        raise Refused("algorithm")
    if credentials.qop not in place.qop or (credentials.qop == "auth-int" and algorithm == "MD5"):
        raise Refused("qop")
    if credentials.parameters and any(name in {"userhash", "username*"} and value != "false" for name, value in credentials.parameters):
        raise Refused("malformed", 400, b"The Digest username must be plain: no userhash, no username*.\n")
    if not _CNONCE.fullmatch(credentials.cnonce or ""):
        raise Refused("malformed", 400, b"The Digest response lacks a usable cnonce.\n")
    return algorithm


def _check_uri(uri: str, scope: Scope) -> None:
    """Compare octet for octet: whatever else `path` may be decoded to, the client signed this request target.

    The target comes from the server as `raw_path` and `query_string`, without scheme and authority, whichever form it had, and an empty
    query cannot be told from none. Where a proxy took `root_path` away, a server may give it in front of `raw_path`, or apart.
    """
    raw_path = scope.get("raw_path")
    if raw_path is None:
        raise LocalProtocolError("the HTTP server gives no raw_path: use uvicorn, hypercorn or granian")
    query = scope.get("query_string", b"")
    target = raw_path + b"?" + query if query else raw_path
    signed_uri = uri.encode("utf-8", "surrogateescape")
    if raw_path[:1] != b"/" or (signed_uri != target and not _is_same_target(signed_uri, target, query, scope)):
        raise Refused("uri", 400, b"The Digest uri is not the target of the request.\n")


def _is_same_target(signed_uri: bytes, target: bytes, query: bytes, scope: Scope) -> bool:
    """Tell whether another text is the same target: absolute-form (RFC 9112 §3.2.2), an empty query, a `root_path` kept apart."""
    if signed_uri[:1] != b"/":
        scheme, found, rest = signed_uri.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        hosts = headers_named(scope, b"host")
        if (
            not found
            or scheme.lower() != scope.get("scheme", "http").encode("latin-1")
            or [authority.lower()] != [h.lower() for h in hosts]
        ):
            return False
        signed_uri = slash + path
    if not query and signed_uri[-1:] == b"?":
        signed_uri = signed_uri[:-1]
    if signed_uri == target:
        return True
    root = scope.get("root_path", "").encode("utf-8").rstrip(b"/")
    return bool(root) and target != root and not target.startswith((root + b"/", root + b"?")) and signed_uri == root + target


def _without_body(problem: RemoteProtocolError, unread: Scope | None = None) -> Refused:
    """Return the refusal of a body, `unread` perhaps to its end; where there is no room for it, that is nobody's failure."""
    full = problem.status == NO_ROOM
    headers: tuple[Header, ...] = ((b"retry-after", b"1"),) if full else ()
    # Else the server reads on, to find the next request behind it; HTTP/2 has no such field (RFC 9113 §8.2.2). Of 413 `respond` says it.
    if unread is not None and problem.status != TOO_LONG and unread.get("http_version", "1.1")[:1] == "1":
        headers += ((b"connection", b"close"),)
    return Refused("room" if full else "body", problem.status, problem.problem.encode("ascii") + b"\n", headers=headers)


def _gone(problem: DigestRejected) -> Refused:
    """Return the refusal of a right response that the ledger does not take: the nonce is used up, or the key went meanwhile."""
    return Refused("stale", stale=True) if problem.stale else Refused("unknown-key")


def proof_of_server(proof: Proof) -> Header:
    """Return the field of an answer that proves the server to the client; it does not sign the body."""
    return (b"authentication-info", _info(proof, None))


def _info(proof: Proof, body_hash: str | None) -> bytes:
    """Return Authentication-Info; `body_hash` is of the response's body, None: the body is not signed."""
    credentials = proof.credentials
    if body_hash is None and credentials.qop == "auth-int":
        credentials = replace(credentials, qop="auth")
    rspauth = digest.rspauth_of(proof.ha1, credentials, algorithm=proof.algorithm, body_hash=body_hash)
    # Written out for speed: all five are known to need no escape.
    nextnonce = f', nextnonce="{proof.nextnonce}"' if proof.nextnonce else ""
    text = f'rspauth="{rspauth}", qop={credentials.qop}, cnonce="{credentials.cnonce}", nc={credentials.nc}{nextnonce}'
    return text.encode("ascii")


def _parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    try:
        return tuple([ipaddress.ip_network(text) for text in texts])
    except ValueError as problem:
        raise ConfigError("SimLogin http_networks", str(problem), "Write each as 10.46.0.0/16 or fd00:46::/32") from problem


def _is_in(networks: Iterable[Network], text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)
