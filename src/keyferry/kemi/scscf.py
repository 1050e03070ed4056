# SPDX-License-Identifier: Apache-2.0
"""What the script decides at each step of a registration, without Kamailio: octets in, octets out (DESIGN §5, §6, §10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from keyferry.errors import KeyferryError, ParseError, TransportError
from keyferry.kemi.challenge import NotMaskable, mask, read_challenge, refusal
from keyferry.kemi.push import Owner, Seal, ThirdParty, chosen, erase_body, key_body, read_third_party
from keyferry.kemi.requests import Registering, origin_of, read_registering, transaction_of
from keyferry.kemi.store import Challenged, KemiStore, State
from keyferry.protocol.digest import AuthenticationInfo, Credentials, build_authentication_info
from keyferry.protocol.identity import AsId, Reg
from keyferry.protocol.ims.registration import AKA_ALGORITHM, MIN_CNONCE
from keyferry.protocol.sip.message import Response, build_message, parse_message

NOTHING: Final = b"\r\n\r\n"
"""What leaves in place of a message that must not: octets that every SIP stack takes for a keep-alive (RFC 5626 §3.5.1)."""


class RspauthSource(Protocol):
    """Our HSS, if there is one."""

    def ask(self, credentials: Credentials) -> str:
        """Return rspauth. Raises TransportError."""


@dataclass(frozen=True, slots=True)
class KemiPolicy:
    """What is configured."""

    realm: str
    servers: dict[str, tuple[AsId, ...]]  # by ServerName
    seal_of: Callable[[AsId], Seal]
    max_expires: int  # seconds
    key_max_age: float  # seconds


@dataclass(slots=True)
class KemiScscf:
    """One process of Kamailio."""

    policy: KemiPolicy
    store: KemiStore
    now: Callable[[], float]
    warn: Callable[[str], None]  # takes words without secrets
    rspauth: RspauthSource | None = None
    _pushing: Registering | None = field(default=None)
    _devices: list[Reg | None] = field(default_factory=list)  # whose third-party REGISTERs are still to be made; None: all of them
    _reg: Reg | None = field(default=None)  # whose are being made

    def asked(self, data: bytes) -> bool:
        """Take a REGISTER; false if it must be refused, before any module of Kamailio reads it."""
        try:
            found = read_registering(data, self.policy.realm)
        except KeyferryError as problem:
            self.warn(f"REGISTER refused: {problem}")
            return False
        if self.store.ask(found.transaction, found.impi, found.impu):
            return True
        self.warn("REGISTER refused: its transaction is another user's")
        return False

    def challenge(self, data: bytes) -> bytes:
        """Return what leaves in place of a 401: itself where its nonce has no marker, CK', IK' in it, or a 500."""
        try:
            found = read_challenge(data)
            if found is None:
                return data
            response = found.response
            owner = self.store.asker(transaction_of(response))
            if owner is None:
                known = self.store.challenged(found.challenge.nonce)
                owner = None if known is None else (known.impi, known.impu)
            if owner is None:
                raise NotMaskable("nobody asked for it")
            masked = mask(found, owner[0])
            if not self.store.keep(found.challenge.nonce, *owner, found.challenge.realm, masked.k_m, *origin_of(response)):
                raise NotMaskable("its nonce is another's already")
        except KeyferryError as problem:
            self.warn(f"challenge held back: {problem}")
            return refusal(data) or NOTHING
        return masked.message

    def accepted(self, data: bytes) -> bool:
        """Take a REGISTER whose answer ims_www_authenticate has accepted; false where no key may come of it."""
        try:
            found = read_registering(data, self.policy.realm)
            if found.credentials is None:
                return False
            known = self.store.challenged(found.credentials.nonce)
            if known is None:
                return False  # Release 5, or too late
            if not _proves(found.credentials):
                self.warn("answer to a masked challenge without qop=auth, nc=00000001 and a cnonce of 16 characters: no keys")
                return False
            expires_at = self.now() + self.policy.key_max_age
            if self.store.authenticated(known.nonce, found.impi, found.impu, found.reg, expires_at) is None:
                self.warn("answer accepted for another user or device than was challenged: no keys")
                return False
            self._keep_rspauth(found, found.credentials)
        except KeyferryError as problem:
            self.warn(f"no keys: {problem}")
            return False
        return True

    def leaving(self, data: bytes) -> bool:
        """Tell whether a REGISTER ends a registration."""
        return read_registering(data, self.policy.realm).expires == 0

    def answered(self, data: bytes) -> bytes | None:
        """Return the 200 of a REGISTER with its Authentication-Info; None for one that goes as it is."""
        try:
            response = parse_message(data)
            if not isinstance(response, Response) or "REGISTER" not in (response.get("CSeq") or ""):
                return None
            info = self.store.answer_of(transaction_of(response))
            if info is None:
                return None
            return build_message(response.replacing("Authentication-Info", info))
        except KeyferryError as problem:
            self.warn(f"200 without Authentication-Info: {problem}")
            return None

    def pushing(self, data: bytes) -> bool:
        """Say which REGISTER the third-party REGISTERs belong to that are made until `pushed`; false if it cannot be read."""
        self._pushing, self._devices, self._reg = None, [], None
        try:
            found = read_registering(data, self.policy.realm)
            # Asked for in any case: a file that is locked shows here, before Kamailio ends a registration whose key could not be erased.
            known = self.store.devices(found.impi)
            # of a user of whose devices nothing is known the AS hears the end all the same, without a block
            self._devices = ([*known] or [None]) if found.every_contact else [found.reg]
            self._pushing = found
        except KeyferryError as problem:
            self.warn(f"no push: {problem}")
        return self._pushing is not None

    def next_device(self) -> bool:
        """Go on to the next device whose third-party REGISTERs shall be made: one, or for Contact: * each; false after the last."""
        there = bool(self._devices)
        self._reg = self._devices.pop(0) if there else None
        return there

    def pushed(self) -> bool:
        """Say that they are made; what has ended is forgotten."""
        found, self._pushing, self._devices, self._reg = self._pushing, None, [], None
        if found is not None and found.expires == 0:
            self.store.forget(found.impi, None if found.every_contact else found.reg)
        return True

    def third_party(self, data: bytes) -> bytes | None:
        """Return the body of a third-party REGISTER that ims_isc has made; None to leave it as it is."""
        try:
            return self._third_party(read_third_party(data))
        except KeyferryError as problem:
            self.warn(f"no push: {problem}")
            return None

    def as_answered(self, data: bytes) -> bool:
        """Take a message that came in; true for the 2xx of an application server to a third-party REGISTER. Raises StoreError."""
        try:
            response = parse_message(data)
            if not isinstance(response, Response) or not 200 <= response.status < 300 or "REGISTER" not in (response.get("CSeq") or ""):
                return False
            transaction = transaction_of(response)
        except ParseError:
            return False  # from anybody; Kamailio says what it thinks of it
        self.store.answered(transaction)
        return True

    def _third_party(self, request: ThirdParty) -> bytes | None:
        found, listed = self._pushing, self.policy.servers.get(request.server, ())
        as_ids = chosen(listed, request.service_info)
        if found is None or found.credentials is None or self._reg is None or not as_ids:
            return None
        known = self.store.challenged(found.credentials.nonce)
        if known is None or not _is_of(known, found, request):
            return None
        if found.expires == 0 and request.expires > 0:
            return None  # who leaves gets no key, whatever ims_isc makes of the times
        owner = Owner(known.impi, self._reg, (known.impu,), known.realm, known.aka_time, self._expires_at(found, request))
        return self._body(owner, known, as_ids[0], request)

    def _body(self, owner: Owner, known: Challenged, as_id: AsId, request: ThirdParty) -> bytes:
        seal, ends = self.policy.seal_of(as_id), request.expires == 0
        # ims_isc sends it once and looks at no answer; what stays owed the timer sends again (ended.py)
        seq = self.store.owe(
            owner.impi, as_id, owner.reg, known.impu, request.transaction, known.expires_at if ends else owner.expires_at,
            nonce="" if ends else known.nonce, service_info=None if ends else request.service_info,
        )  # fmt: skip
        if ends:
            return erase_body(owner, as_id, seq, seal)
        return key_body(owner, known.k_m, as_id, seq, request.service_info, seal, self.policy.key_max_age)

    def _expires_at(self, found: Registering, request: ThirdParty) -> float:
        return self.now() + min(found.expires, request.expires, self.policy.max_expires)

    def _keep_rspauth(self, found: Registering, credentials: Credentials) -> None:
        if self.rspauth is None:
            return
        try:
            rspauth = self.rspauth.ask(credentials)
        except TransportError as problem:
            self.warn(f"200 without rspauth, so the UE uses no AS keys: {problem}")
            return
        info = AuthenticationInfo(rspauth=rspauth, qop=credentials.qop, cnonce=credentials.cnonce, nc=credentials.nc)
        self.store.answer(found.transaction, build_authentication_info(info))


def _proves(credentials: Credentials) -> bool:
    """DESIGN §5 step 4: every one of these is an input of rspauth."""
    algorithm = (credentials.algorithm or "").lower()
    return (credentials.qop, credentials.nc, algorithm) == ("auth", "00000001", AKA_ALGORITHM.lower()) and (
        len(credentials.cnonce or "") >= MIN_CNONCE
    )


def _is_of(known: Challenged, found: Registering, request: ThirdParty) -> bool:
    """Tell whether a push is of the very registration whose answer was accepted, and not of the user's latest challenge."""
    accepted = known.state is State.AUTHENTICATED and (known.impi, known.impu, known.reg) == (found.impi, found.impu, found.reg)
    return accepted and request.impu == known.impu
