# SPDX-License-Identifier: Apache-2.0
"""A UE as a library: open it, register, de-register, ask for HTTP credentials (DESIGN §3, §5)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from keyferry.errors import KeyferryError, RegistrationFailed
from keyferry.ports import Clock, Log, RandomSource, SipHandler, SipObserver, SipPeer, UeState, UeStore
from keyferry.protocol.aka import AkaName, Usim, algorithm_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, KeyId
from keyferry.protocol.ims.autn_trial import explain_autn
from keyferry.protocol.ims.keys import as_key, digest_password, digest_realm, key_id, ua_key
from keyferry.protocol.sip.message import Request, Response, refuse_method
from keyferry.roles.ue import BEGUN, Ue, UeProfile, UeSecurity
from keyferry.transports.pki import MutualTls
from keyferry.transports.sip_node import SipNode

FRESH_SQN = (0,) * 32


class Isim(NamedTuple):
    """The card."""

    algorithm: AkaName
    k: Secret
    opc: Secret
    op: Secret | None = None  # what OPc was made of, if it was: only to explain a wrong MAC


class HttpCredentials(NamedTuple):
    """What an HTTP client needs for one application server (DESIGN §3)."""

    as_id: AsId
    username: KeyId
    password: Secret  # ASCII
    realm: str
    algorithm: str
    k_as: Secret
    k_ua: Secret
    proven: bool = True
    """The S-CSCF has proved itself; else the AS has to, by rspauth over a verified certificate, before a body goes to it (DESIGN §10)."""


def http_credentials(state: UeState, as_id: AsId) -> HttpCredentials:
    """Derive the credentials for one AS. Raises RegistrationFailed with the reason if this registration gave no keys."""
    if state.k_m is None:
        raise RegistrationFailed(f"no AS keys: {state.no_keys_because}")
    k_as = as_key(state.k_m, as_id)
    k_ua = ua_key(k_as)
    username, password = key_id(k_as, state.realm), digest_password(k_ua)
    return HttpCredentials(as_id, username, password, digest_realm(as_id), "SHA-256", k_as, k_ua, state.rspauth)


def registered(state: UeState | None, now: float) -> UeState:
    """Return the state of a registration that is still valid. Raises RegistrationFailed that says what to do."""
    if state is None or not state.expires_at:
        raise RegistrationFailed("this UE is not registered: run `keyferry ue register`")
    if state.expires_at <= now:
        raise RegistrationFailed("this UE's registration has expired: run `keyferry ue register`")
    return state


@dataclass(slots=True)
class UeClient:
    """One UE with its stored state; every procedure saves what the next command needs."""

    ue: Ue
    store: UeStore
    clock: Clock
    notified: SipHandler | None = None
    """Takes the NOTIFYs that the network sends."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a procedure: what is stored meanwhile is neither the old registration nor the new one."""
    renewing: bool = False
    """A registration is under way: the keys of the one before are good until the new ones are used."""

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer a request of the network."""
        if self.notified is None:
            return refuse_method(request)
        return await self.notified(request, peer)

    async def state(self) -> UeState | None:
        """Return the stored state."""
        return await self.store.load(self.ue.profile.impi)

    async def settled(self) -> UeState | None:
        """Return the stored state once no procedure is at it, of whatever process. Raises StateError."""
        async with self.turn:
            state = await self.state()
            if state is None or state.no_keys_because != BEGUN:
                return state
            async with self._alone():  # whoever has begun it goes on, or was killed
                return await self.state()

    async def register(self) -> UeState:
        """Register, or register again. Raises RegistrationFailed, TransportError, StateError."""
        async with self.turn:
            self.renewing = True
            try:
                async with self._alone():
                    return await self._kept(deregister=False)
            finally:
                self.renewing = False

    async def deregister(self, *, every: bool = False) -> UeState:
        """De-register; with `every`, all devices of the subscriber. Raises RegistrationFailed, TransportError, StateError."""
        async with self.turn, self._alone():
            return await self._kept(deregister=True, every=every)

    async def drop_keys(self, reason: str) -> None:
        """Take the end of the registration by the network (TS 24.229 §5.1.1.7): nothing of it is used again.

        What another process has registered since stays. Raises StateError.
        """
        if self.ue.security is not None:
            self.ue.security.released()
        async with self.turn, self._alone():
            await self._dropped(reason)

    def _alone(self) -> AbstractAsyncContextManager[None]:
        return self.store.alone(self.ue.profile.impi)

    async def _dropped(self, reason: str) -> None:
        state = await self.state()
        if state is not None and self.ue.is_of(state):
            await self.store.save(replace(state, k_m=None, gm_keys=None, expires_at=0.0, no_keys_because=reason))

    async def _kept(self, *, deregister: bool, every: bool = False) -> UeState:
        before = await self.state()
        if deregister and before is None:
            raise RegistrationFailed("this UE has never registered with this state directory")
        try:
            after = await (self.ue.deregister(before, every=every) if deregister and before else self.ue.register(before))
        except KeyferryError:
            # Old keys go: the network's may be new by now, and nothing that comes later makes the old ones good again (S2).
            kept = await self.state()
            if kept is not None:
                await self.store.save(replace(kept, k_m=None, no_keys_because="the last registration failed"))
            raise
        await self.store.save(after)
        return after


@asynccontextmanager
async def open_ue(
    profile: UeProfile, isim: Isim, *, pcscf: SipPeer, store: UeStore, clock: Clock, random: RandomSource, log: Log,
    local_host: str = "127.0.0.1", name: str = "UE", observer: SipObserver | None = None, gm: SipPeer | None = None,
    tls: MutualTls | None = None, instance: str | None = None,
) -> AsyncIterator[UeClient]:  # fmt: skip
    """Open a UE on free ports of `local_host`; `gm` is where its P-CSCF takes ESP, None for a Gm without protection.

    Over TLS, `tls` says whose certificates the UE trusts, and `pcscf.name` which name it must read there.
    `instance` is the device's urn:uuid:…; without one it comes from the IMPI, and is that of each such UE of it.
    Raises ParseError (K, OPc), TransportError.
    """
    algorithm = algorithm_of(isim.algorithm, isim.k, isim.opc)
    before = await store.load(profile.impi)
    usim = Usim(algorithm, before.seq_ms if before else FRESH_SQN)
    node = SipNode(
        name=name, clock=clock, random=random, log=log, observer=observer, handler=lambda request, peer: client.handle(request, peer)
    )
    try:
        address = (await node.listen(local_host, 0, tls=tls))[0]
        host = f"[{address.host}]" if ":" in address.host else address.host
        sas = None if gm is None else await node.protect(local_host, 0, pcscf=gm)
        port = address.port if sas is None else sas.ports[1]  # TS 24.229 §5.1.1.2.1: the protected server port
        user = profile.impu.partition(":")[2].partition("@")[0]
        ue = Ue(
            profile=profile, usim=usim, sip=node, pcscf=pcscf, contact_uri=f"sip:{user}@{host}:{port}",
            instance=instance or f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'keyferry:{profile.impi}')}",
            clock=clock, random=random, log=log, keep=store.save, security=None if sas is None else UeSecurity(sas, profile.impi),
            explain=lambda rand, autn: explain_autn(isim.algorithm, isim.k, isim.opc, rand, autn, op=isim.op),
        )  # fmt: skip
        client = UeClient(ue, store, clock)
        yield client
    finally:
        await node.aclose()
