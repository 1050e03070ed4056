# SPDX-License-Identifier: Apache-2.0
"""How a request proves who sent it: by its TLS connection, by Digest, or by the cookie of a session, whose key must be there now."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from keyferry.asgi import session as sessions
from keyferry.asgi.door import Refused
from keyferry.asgi.exchange import Header, Receive, Scope, headers_named
from keyferry.asgi.origin import changes
from keyferry.errors import LocalProtocolError
from keyferry.protocol.ims import keys as ims_keys
from keyferry.protocol.ims.key_record import PSK_SCOPE as PSK_SCOPE  # tests and servers find it here, too

if TYPE_CHECKING:
    from keyferry.asgi.door import Claim, Door, Proof
    from keyferry.asgi.limits import Failures
    from keyferry.asgi.origin import Origins
    from keyferry.asgi.session import SessionCookie
    from keyferry.ports import Clock, KeySource
    from keyferry.protocol.crypto.secret import Secret
    from keyferry.protocol.identity import AsId, KeyId
    from keyferry.protocol.ims.key_record import KeyRecord, PskProof

NOTED_KEYS = 65_536
"""Keys of TLS-PSK whose source was told of their use."""

MAX_IN_LINE = 4_096
"""Requests of one address over its limit that are looked into or wait for it, some 10,000 octets each: more than a server has connections;
but those of clients that have left stand in line, too."""

FAILED = frozenset({"response", "unknown-key", "malformed", "realm", "qop", "uri", "scheme-unknown", "session", "body"})
"""Refusals that count against the source: those that an honest client gives no or few occasions for. A client that knows only MD5
fails with every request and guesses nothing: it must not use up what its neighbours behind the same NAT may fail."""

_USERNAME = re.compile(rb'username="([^"]*)"', re.IGNORECASE)
_OTHER_SITE = b"A page of another site made this request; it must not act in your name.\n"
_OVER = b"The key of this connection is over: open another.\n"
_LINE = b"Too many requests of this address wait for their turn.\n"
_TOO_MANY = b"Too many logins from this address have failed.\n"


class Admitted(NamedTuple):
    """Who sent a request."""

    record: KeyRecord
    mechanism: str  # "digest", "first-nonce", "psk", "session"
    source: str  # Offer.mechanism
    proof: Proof | None = None  # of Digest
    cookie: Header | None = None  # begins a session, or renews it
    secure: bool = True  # over TLS; else a phone in a network that may come over plain http


class Admission:
    """Decide who sent a request, for all the names of one application."""

    def __init__(
        self,
        doors: Mapping[AsId, Door],
        sources: Sequence[KeySource],
        *,
        origins: Origins,
        session: SessionCookie | None,
        failures: Failures,
        clock: Clock,
        nobody: Secret,
    ) -> None:
        """Take a door for each name, and what else a login depends on; `nobody` is a key that nobody has."""
        self._doors = doors
        self._sources = sources
        self._by_mechanism = {name: {source.offer(name).mechanism: source for source in sources} for name in doors}
        self._origins = origins
        self._session = session
        self._failures = failures
        self._clock = clock
        self._nobody = nobody
        self._noted: OrderedDict[KeyId, None] = OrderedDict()

    async def admit(self, scope: Scope, receive: Receive, name: AsId, source: str) -> Admitted:
        """Return who sent a request to `name` from the address `source`. Raises Refused, StoreError, SealError."""
        way = self.way(scope)
        if not way:
            raise Refused("challenge")
        if way == "session" and scope["scheme"] != "https":
            raise Refused("challenge")  # whoever reads the network has the cookie, too
        self._check_site(scope, name, way)
        try:
            claim = None
            if way == "digest":
                claim = self._doors[name].claim(scope)
                if claim.credentials.qop == "auth-int":
                    claim = await self._doors[name].hear(claim, scope, receive, source)
            return await self._look_into(way, scope, claim, name, source)
        except Refused as refusal:
            if refusal.reason not in FAILED:
                raise
            raise self._counted(refusal, scope, source) from refusal

    def way(self, scope: Scope, *, required: bool = True) -> str:
        """Return how a request would prove who sent it: "psk", "digest", "session", or "" for not at all.

        The connection comes first: what it proved no request on it can change. Credentials of another scheme are the
        application's where no login is required, or where there is another way.
        """
        if PSK_SCOPE in scope:
            return "psk"
        authorizations = headers_named(scope, b"authorization")
        for value in authorizations:
            if value[:6].lower() == b"digest":
                return "digest"
        if self._session is not None and any(sessions.NAME in value for value in headers_named(scope, b"cookie")):
            return "session"
        return "digest" if required and authorizations else ""

    async def lives(self, record: KeyRecord, name: AsId) -> bool:
        """Tell whether a key is still there, and the same user's. Raises StoreError, SealError."""
        found = await self._find(record.key_id, name)
        return found is not None and _whose(found[0]) == _whose(record) and found[0].k_as == record.k_as

    # ---- ways

    async def _look_into(self, way: str, scope: Scope, claim: Claim | None, name: AsId, source: str) -> Admitted:
        """Check a proof that is here whole, and so takes no longer than the key store: over the limit, a few at a time."""
        lane = self._failures.lane(source, self._clock.monotonic()) if way != "psk" else None  # a handshake is a proof already
        try:
            if lane is None:
                return await _WAYS[way](self, scope, claim, name)
            if lane.used >= MAX_IN_LINE:
                raise Refused("limited", 503, _LINE, headers=((b"retry-after", b"1"),))
            async with lane:
                return await _WAYS[way](self, scope, claim, name)
        except BaseException:
            if claim is not None:
                claim.close()
            raise

    async def _by_digest(self, scope: Scope, claim: Claim | None, name: AsId) -> Admitted:
        if claim is None:
            raise LocalProtocolError("a response to check comes from Door.claim")
        proof = await self._doors[name].prove(claim)
        source = self._by_mechanism[name][proof.source]
        cookie = self._begin(scope, name, proof.record, source)
        return Admitted(proof.record, proof.mechanism, proof.source, proof, cookie, scope["scheme"] == "https")

    async def _by_psk(self, scope: Scope, _claim: Claim | None, name: AsId) -> Admitted:
        """Take what the handshake proved; the connection may be older than the end of its key."""
        proven: PskProof = scope[PSK_SCOPE]
        source = self._by_mechanism[name].get(proven.source)
        if proven.record.as_id != name or source is None:
            raise Refused("psk-host", 421, b"This connection was made with the key of another host.\n")
        record = await source.lookup(proven.record.key_id, name)
        if record is None or not record.impus or _whose(record) != _whose(proven.record) or record.k_as != proven.record.k_as:
            self._noted.pop(proven.record.key_id, None)
            raise Refused("psk-over", 401, _OVER, headers=((b"connection", b"close"),))  # a new handshake, with the new key, helps
        if record.key_id not in self._noted and not record.superseded:
            await source.used(record)
            self._noted[record.key_id] = None
            if len(self._noted) > NOTED_KEYS:
                self._noted.popitem(last=False)
        return Admitted(record, "psk", proven.source, None, self._begin(scope, name, record, source))

    async def _by_session(self, scope: Scope, _claim: Claim | None, name: AsId) -> Admitted:
        session = sessions.read(scope)
        now = self._clock.now()
        found = await self._find(session.identifier, name) if session and session.expires_ms > now * 1000 else None
        # As much work for a key that is not there as for a wrong signature.
        key = found[1].protocol_key(found[0], ims_keys.UA_DIGEST) if found else ims_keys.ua_key(self._nobody, ims_keys.UA_DIGEST)
        if session is None or not session.holds(key, name, now) or found is None:
            raise Refused("session", ends_session=True)
        return Admitted(found[0], "session", found[1].offer(name).mechanism)

    # ---- parts

    def _check_site(self, scope: Scope, name: AsId, way: str) -> None:
        """Let no page of another site act for the user; whoever has but a cookie, and no browser's word, has to prove more."""
        if not changes(scope):
            return
        same = self._origins.same(scope, name)
        if same is False:
            raise Refused("cross-site", 403, _OTHER_SITE)
        if same is None and way == "session":
            raise Refused("challenge")

    async def _find(self, identifier: str, name: AsId) -> tuple[KeyRecord, KeySource] | None:
        for source in self._sources:
            record = await source.lookup(identifier, name)
            if record is not None and record.key_id == identifier and record.as_id == name and record.impus:
                return record, source
        return None

    def _begin(self, scope: Scope, name: AsId, record: KeyRecord, source: KeySource) -> Header | None:
        """Return the field that begins a session under this key, unless the client has one in the first half of its life."""
        if self._session is None or scope["scheme"] != "https":
            return None
        now = self._clock.now()
        key = source.protocol_key(record, ims_keys.UA_DIGEST)
        held = sessions.read(scope)
        if held and held.identifier == record.key_id and held.young(now) and held.holds(key, name, now):
            return None
        until = min(now + self._session.lifetime, record.not_after)
        token = sessions.sign(key, name, record.key_id, now, until)
        return self._session.set(token, until - now) if token else None

    def _counted(self, refusal: Refused, scope: Scope, source: str) -> Refused:
        """Count a failure against its address; return what it comes to.

        Over the limit a client without a valid key or session is still told how to get in: a neighbour behind the same NAT may be in
        that case honestly. Whose body was refused hears why.
        """
        now = self._clock.monotonic()
        left, wait = self._failures.failed(source, now)
        if left or refusal.reason == "body":
            return refusal
        if refusal.ends_session or (refusal.status == 401 and self._failures.may_be_challenged(source, _claimed(scope), now)):
            return Refused("limited", refusal.status, refusal.text, ends_session=refusal.ends_session)
        return Refused("limited", 429, _TOO_MANY, headers=((b"retry-after", b"%d" % max(1, math.ceil(wait))),))


def _claimed(scope: Scope) -> bytes:
    """Return the name that credentials claim, or what tells them from those of others."""
    value = headers_named(scope, b"authorization")[0]
    name = _USERNAME.search(value)
    return name[1] if name else value


def _whose(record: KeyRecord) -> tuple[str, ...]:
    return (record.key_id, record.as_id, record.impi, record.reg)


_WAYS = {"psk": Admission._by_psk, "digest": Admission._by_digest, "session": Admission._by_session}
