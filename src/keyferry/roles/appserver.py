# SPDX-License-Identifier: Apache-2.0
"""AS: the key agent that takes pushes from the S-CSCF (TS 24.229 §5.7.1, Release 17; DESIGN §6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from keyferry.errors import ParseError, PushRefused, SealError
from keyferry.ports import Clock, Counter, KeyRecord, KeyStore, Log, Offer, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impu, KeyId
from keyferry.protocol.ims.key_store_id import build_store_header
from keyferry.protocol.ims.keypush import Push, SealedPush, check_domains, open_push, parse_service_info
from keyferry.protocol.ims.keys import MECHANISM, PSK_PREFIX, digest_realm, ua_key
from keyferry.protocol.ims.third_party import ThirdPartyRegister, parse_third_party_register
from keyferry.protocol.sip.headers import parse_name_addr
from keyferry.protocol.sip.message import Request, Response, check_request, make_response, refuse_method, unsupported_tags
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.protocol.trusted import TrustedHosts

PUSHER_ROLE: Final = "scscf"
"""Of the certificate of who pushes over TLS."""
_ALLOWED = ("REGISTER", "OPTIONS")
_LOOPBACK: Final = TrustedHosts()


@dataclass(frozen=True, slots=True)
class Pusher:
    """An S-CSCF that may push to us, and with what it seals."""

    name: str
    realm: str  # its home realm: the only one its key ids may carry
    transport_keys: Mapping[tuple[AsId, str], Secret]  # (AS_ID, kid) → 64 octets; two kids during rotation
    domains: frozenset[str]  # the domains whose public identities it may name; a tel URI belongs to every home
    allow_plain: bool = False  # a bare block; never outside one machine
    unsealed_end: bool = False  # a body-less Expires 0 ends keys: for an S-CSCF that cannot seal, such as stock Kamailio


@dataclass(frozen=True, slots=True)
class KeyAgent:
    """Take third-party REGISTERs for one application server; store keys before the 200."""

    as_ids: frozenset[AsId]
    pushers: Mapping[str, Pusher]  # by name
    keys: KeyStore
    clock: Clock
    log: Log
    counter: Counter
    over_tls: bool = False  # the pusher's certificate must name it, and its role
    through_ipsec: bool = False  # the identity that its security association has proven must be its name
    trusted: TrustedHosts = _LOOPBACK  # where neither protects ISC: from there an S-CSCF is believed to be who it says
    registered: Callable[[ThirdPartyRegister], None] | None = None
    """Called with every third-party REGISTER that was taken and is of an S-CSCF that may push; must not wait."""

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer a third-party REGISTER; a push that is refused is counted by its reason and changes nothing.

        Every 200 says which key store we have, so that an S-CSCF sees that we lost it, and pushes again what was in it.
        """
        check_request(request)
        if request.method in _ALLOWED and (unknown := unsupported_tags(request, "Require", ())):  # RFC 3261 §8.2.2.3
            return make_response(request, 420, headers=(("Unsupported", ", ".join(unknown)),))
        if request.method == "OPTIONS":
            return make_response(request, 200, headers=(("Allow", ", ".join(_ALLOWED)), self._store()))
        if request.method != "REGISTER":
            return refuse_method(request, *_ALLOWED)
        try:
            register = parse_third_party_register(request)
            proven = await self._take(register, peer)
        except PushRefused as problem:
            self._refused(problem.reason, peer, request)
            return make_response(request, problem.status)
        except ParseError as problem:
            self._refused("unreadable", peer, request)
            return make_response(request, problem.status)
        if self.registered is not None and self._is_of_pusher(register, peer, proven=proven):
            self.registered(register)
        return make_response(request, 200, headers=(self._store(),))

    def _store(self) -> tuple[str, str]:
        return build_store_header(sorted(self.as_ids), self.keys.store_id)

    async def ended(self, scscf: str, impu: Impu) -> int:
        """Erase the keys of a user whose registration at an S-CSCF has ended, as the reg event package says; return how many."""
        name = _host(scscf)
        if name not in self.pushers:
            return 0
        erased = await self.keys.erase_impu(name, impu, sorted(self.as_ids), self.clock.now())
        if erased:
            self.counter.count("as_keys_erased", "reg-event")
        self.log.info("registration-ended", impu=impu, pusher=name, keys=erased)
        return erased

    async def _take(self, register: ThirdPartyRegister, peer: SipPeer) -> bool:
        """Do what it asks; return whether a push in it shows who sent it."""
        block = parse_service_info(register.service_info) if register.service_info else None
        if block is None:
            await self._keyless(register, peer)
            return False
        pusher, push = self._opened(block, register, peer)
        if push.keys and register.expires == 0:
            if self._ending(register, peer) is not pusher:  # the block may be a copy of what another has sealed
                raise PushRefused("expires")
            await self._end(register, pusher)  # ims_isc copies the profile's ServiceInfo into an end, too
            return True
        outcome = await self.keys.apply(push, pusher=pusher.name, realm=pusher.realm, now=self.clock.now())
        if outcome.stale:
            self.counter.count("as_pushes", "stale")
            self.log.info("push-stale", impi=push.impi, reg=push.reg, seq=push.seq)
            return True
        self.counter.count("as_pushes", "erased" if not push.keys else "stored")
        fingerprints = [key.k_as.fingerprint() for key in push.keys]
        self.log.info("push-taken", impi=push.impi, as_id=push.as_id, reg=push.reg, seq=push.seq, pusher=pusher.name, keys=fingerprints)
        return True

    def _opened(self, block: SealedPush | Push, register: ThirdPartyRegister, peer: SipPeer) -> tuple[Pusher, Push]:
        """Establish who pushed, and for which of our names (DESIGN §6 "who may push")."""
        if isinstance(block, SealedPush):
            pusher = self._pusher(block.scscf, peer)
            if block.as_id not in self.as_ids:
                raise PushRefused("as")
            transport_key = pusher.transport_keys.get((block.as_id, block.kid))
            if transport_key is None:
                raise PushRefused("kid")
            try:
                push = open_push(block, transport_key)
            except SealError:
                raise PushRefused("seal") from None
        else:
            pusher, push = self._pusher(_host(register.scscf), peer), block
            if not (pusher.allow_plain and _LOOPBACK.holds(peer.host)):
                raise PushRefused("plain")
            if push.as_id not in self.as_ids:
                raise PushRefused("as")
        if push.keys and register.impu not in push.impus:
            raise PushRefused("impu")
        check_domains(push, pusher.domains)
        return pusher, push

    async def _keyless(self, register: ThirdPartyRegister, peer: SipPeer) -> None:
        """Take one without a block of ours, as S-CSCFs send it for phones without keys: it changes nothing, unless it may end them."""
        pusher = None if register.expires else self._ending(register, peer)
        if pusher is None:
            self.counter.count("as_pushes", "no-keys" if register.expires else "unproven-end")
        else:
            await self._end(register, pusher)

    async def _end(self, register: ThirdPartyRegister, pusher: Pusher) -> None:
        """End the keys of that pusher whose IMPUs hold To: an Expires 0 of an S-CSCF that cannot seal (DESIGN §6)."""
        erased = await self.keys.erase_impu(pusher.name, register.impu, sorted(self.as_ids), self.clock.now())
        self.counter.count("as_pushes", "erased")
        self.log.info("keys-erased", impu=register.impu, pusher=pusher.name, keys=erased)

    def _ending(self, register: ThirdPartyRegister, peer: SipPeer) -> Pusher | None:
        """Return the S-CSCF that says without a seal that a registration has ended, if that is believed of it.

        From any other nothing proves who sent it; our own S-CSCF seals the end of keys, too. Raises PushRefused over TLS and through
        IPsec, where a certificate or an identity that is not the S-CSCF's is no accident.
        """
        if self.over_tls or self.through_ipsec:
            pusher = self._pusher(_host(register.scscf), peer)
            return pusher if pusher.unsealed_end else None
        try:
            found = self.pushers.get(_host(register.scscf))
        except ParseError:
            return None
        return found if found is not None and found.unsealed_end and self.trusted.holds(peer.host) else None

    def _is_of_pusher(self, register: ThirdPartyRegister, peer: SipPeer, *, proven: bool) -> bool:
        """Tell whether its From may be believed: we ask there what became of the user, and nobody else."""
        try:
            self._pusher(_host(register.scscf), peer)
        except (ParseError, PushRefused):
            return False
        return proven or self.over_tls or self.through_ipsec or self.trusted.holds(peer.host)

    def _pusher(self, name: str, peer: SipPeer) -> Pusher:
        pusher = self.pushers.get(name)
        if pusher is None:
            raise PushRefused("pusher")
        if self.over_tls and (peer.transport, peer.name, peer.role) != ("TLS", name, PUSHER_ROLE):
            raise PushRefused("peer")
        if self.through_ipsec and peer.name != name:
            raise PushRefused("peer")
        return pusher

    def _refused(self, reason: str, peer: SipPeer, request: Request) -> None:
        self.counter.count("as_pushes_refused", reason)
        self.log.warning("push-refused", reason=reason, peer=str(peer), to=parse_name_addr(request.get("To") or "").uri[:255])


@dataclass(frozen=True, slots=True)
class PushedKeys:
    """The first KeySource: keys that the S-CSCF pushed (DESIGN §7)."""

    keys: KeyStore
    clock: Clock
    user_ids: Callable[[AsId], Secret] | None = None
    """Returns what the opaque user ids of an AS are made with: the same for ever, and for every process."""

    def offer(self, as_id: AsId) -> Offer:
        """Return the realm and the PSK prefix of pushed keys."""
        return Offer(MECHANISM, digest_realm(as_id), PSK_PREFIX, handsets=False)

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Return the record if the key is valid now."""
        return await self.keys.lookup(KeyId(identifier), as_id, self.clock.now())

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Do the same without waiting."""
        return self.keys.lookup_now(KeyId(identifier), as_id, self.clock.now())

    def protocol_key(self, record: KeyRecord, ua_id: bytes) -> Secret:
        """Derive K_UA from K_AS (DESIGN §3)."""
        return ua_key(record.k_as, ua_id)

    async def used(self, record: KeyRecord) -> None:
        """Note that a request proved this key."""
        await self.keys.used(record, self.clock.now())

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, for a ledger of one process."""
        return await self.keys.claim_first(record)

    def user_id_key(self, as_id: AsId) -> Secret | None:
        """Return what the opaque user ids of an AS are made with, if somebody keeps it."""
        return self.user_ids(as_id) if self.user_ids else None


def _host(uri: str) -> str:
    return parse_sip_uri(uri).host
