# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: third-party REGISTER and the key push (TS 24.229 §5.4.1.7, Release 17; DESIGN §6)."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter as Counts
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from keyferry.errors import KeyferryError, LocalFailure, ProtectionUnmet, RemoteProtocolError, SealError, StoreError, TransportError
from keyferry.ports import Clock, Counter, Log, PeerCheck, PendingPush, RandomSource, Registration, RegistrationStore, Resolver, SipClient
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.ifc import ApplicationServer
from keyferry.protocol.ims.keypush import Push, PushedKey, seal_push
from keyferry.protocol.ims.keys import as_key, key_id
from keyferry.protocol.ims.registration import key_not_after
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.ims.user_profile import naf_of
from keyferry.protocol.sip.message import Request, Response, build_message
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.scscf.as_gate import RETRY_FIRST, AsGate

_server_uri = lru_cache(maxsize=256)(parse_sip_uri)  # the ServerNames of one network's profiles
TROUBLE_MOST = 30.0  # seconds between attempts at an AS that answers, and takes this push for its own trouble; from RETRY_FIRST, doubled
MAX_UNDER_WAY = 25_000  # deliveries to one AS, 5 kB each; above, an owed push waits in the store for the next sweep
SLICE = 100  # owed pushes that are looked at before other tasks get their turn: 10 ms
MAX_REFUSED = 100_000
"""Refused sets remembered, 30 MB: an AS may refuse whatever a UE makes it hear, under ever new names of its device."""

SetKey: TypeAlias = tuple[Impi, AsId, str, Reg]


ACCESS_HEADERS = ("P-Access-Network-Info", "P-Visited-Network-ID", "P-Charging-Vector")
MAX_COPIED = 1_024  # octets of one of them; a longer one is left out, since a UE may have written it
Access: TypeAlias = tuple[str | None, str | None, str | None]  # their values in the REGISTER, for an AS of the trust domain (RFC 7315)
MAX_TERMINATIONS = 10  # within TERMINATIONS_IN: an AS that is down must not put a whole network out
TERMINATIONS_IN = 60.0  # seconds


class AsTarget(NamedTuple):
    """One AS that gets a third-party REGISTER for a registration; `as_id` is "" for one that takes no keys."""

    server_name: str
    as_id: AsId
    impus: tuple[Impu, ...]  # non-barred, with a matching filter criterion for this AS
    service_info: str | None
    register: bytes | None = None  # the REGISTER, where the criterion asks for it
    response: bytes | None = None  # the 200
    default_handling: int = 0  # 1: an AS that does not answer ends the registration (§5.4.1.7)
    access: Access = (None, None, None)


class AsStanding(NamedTuple):
    """How an AS stands with us."""

    pending: int  # pushes that were begun and have not ended
    refused: int  # pushes that are owed and that it, or we, will not have
    answers: bool


class TransportKey(NamedTuple):
    """What seals the pushes to one AS_ID."""

    kid: str
    siv: Siv  # over 64 octets; kept, since setting it up costs as much as a seal


@dataclass(frozen=True, slots=True)
class PushPolicy:
    """Who gets keys, and how they travel."""

    scscf_uri: str
    scscf_name: str  # the host of scscf_uri: an input of the seal
    as_ids: Mapping[str, tuple[AsId, ...]]  # ServerName → the AS_IDs that our own configuration lists for it
    transport_keys: Mapping[AsId, TransportKey]
    check_peer: PeerCheck  # the protection policy: raises TransportError where no key may go
    protection: Mapping[AsId, PeerCheck] = field(default_factory=dict)  # of an AS that has another
    key_max_age: float = 86_400.0  # seconds
    push_wait: float = 0.25  # seconds that a 200 waits for its pushes; under T1

    def check_of(self, as_id: AsId) -> PeerCheck:
        """Return the protection policy of one AS_ID."""
        return self.protection.get(as_id, self.check_peer)

    def check_for(self, push: PendingPush) -> PeerCheck | None:
        """Return what a third-party REGISTER has to satisfy: one without keys no more than what its server has been given besides."""
        if push.as_id:
            return self.check_of(push.as_id)
        return next((self.protection[as_id] for as_id in self.as_ids.get(push.server_name, ()) if as_id in self.protection), None)


def select_targets(
    servers: Sequence[tuple[ApplicationServer, tuple[Impu, ...]]], policy: PushPolicy, register: Request | None, response: Response | None
) -> list[AsTarget]:
    """Turn matched application servers, each with its IMPUs, into one target per AS_ID; `naf=` in ServiceInfo selects among them."""
    found: list[AsTarget] = []
    for server, impus in servers:
        listed = policy.as_ids.get(server.server_name, ())
        wanted = naf_of(server.service_info) if server.service_info else ()
        as_ids = tuple(as_id for as_id in listed if not wanted or as_id in wanted) or (AsId(""),)
        for as_id in as_ids:
            target = AsTarget(
                server_name=server.server_name,
                as_id=as_id,
                impus=impus,
                service_info=server.service_info,
                register=build_message(register) if register and server.include_register_request else None,
                response=build_message(response) if response and server.include_register_response else None,
                default_handling=server.default_handling,
                access=_access(register) if register and listed else (None, None, None),
            )
            found.append(target)
    return found


def _access(register: Request) -> Access:
    network, visited, charging = (_copied(register, name) for name in ACCESS_HEADERS)
    return network, visited, charging


def _copied(register: Request, name: str) -> str | None:
    value = ", ".join(register.all(name))
    return value if value and len(value.encode("utf-8", "surrogateescape")) <= MAX_COPIED else None


@dataclass(slots=True)
class AsNotifier:
    """Deliver third-party REGISTERs at least once; keys leave sealed, and only towards listed application servers."""

    sip: SipClient
    resolver: Resolver
    registrations: RegistrationStore
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    policy: PushPolicy
    targets_of: Callable[[Registration], Sequence[AsTarget]]  # for a delivery that was interrupted
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    max_under_way: int = MAX_UNDER_WAY
    max_refused: int = MAX_REFUSED
    terminate: Callable[[Impi, Reg], Awaitable[object]] | None = None  # ends a registration where DefaultHandling wants it
    heard: Callable[[str, Sequence[AsId], Response], None] | None = None  # the re-push: what an AS answered where keys for it may go
    told: Callable[[PendingPush, str], None] | None = None  # the book of failures: what was not delivered and why; "" that it was
    _latest: dict[SetKey, int] = field(default_factory=dict)
    _refused: dict[SetKey, int] = field(default_factory=dict)  # what an AS, or we, will not have: tried again after a restart or a rotation
    _kids: dict[AsId, str] = field(default_factory=dict)  # under which transport key was sealed when we looked last
    _given: dict[tuple[Impi, AsId, Reg], int] = field(default_factory=dict)  # seqs that are not yet in the store
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _idle: dict[SetKey, asyncio.Task[None]] = field(default_factory=dict)  # deliveries between two attempts
    _gates: dict[str, AsGate] = field(default_factory=dict)  # by ServerName
    _terminations: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_TERMINATIONS))  # when
    _left_owed: bool = True  # the store may hold pushes that nobody is delivering
    _full: set[str] = field(default_factory=set)  # ServerNames for which it does, since too many are under way there

    async def next_seq(self, impi: Impi, as_id: AsId, reg: Reg) -> int:
        """Return max(last + 1, milliseconds): strictly rising across restarts (DESIGN §6)."""
        stored = await self.registrations.last_seq(impi, as_id, reg)
        seq = max(stored + 1, self._given.get((impi, as_id, reg), 0) + 1, int(self.clock.now() * 1000))
        self._given[impi, as_id, reg] = seq  # two registrations of one device may be under way
        return seq

    async def notify(self, owed: Sequence[tuple[PendingPush, AsTarget]], registration: Registration | None, *, wait: bool = True) -> None:
        """Start the deliveries of a committed registration, or of its end; `wait` for them at most `push_wait` ("key first")."""
        began = self.clock.monotonic()
        begun = self.begin(owed, registration)
        if wait:
            await self.wait_for(begun, began)

    async def wait_for(self, begun: Sequence[tuple[asyncio.Task[None], PendingPush]], began: float) -> None:
        """Wait at most `push_wait` for deliveries that were begun then (monotonic seconds)."""
        if not begun:
            return
        gates = {task: self.gate(push.server_name) for task, push in begun if not task.done()}
        waited = [task for task, gate in gates.items() if gate.is_open and not gate.silent]
        late: set[asyncio.Task[None]] = set()
        if waited:
            _, late = await asyncio.wait(waited, timeout=self.policy.push_wait)
            for task, push in begun:
                if task in late and self._idle.get(set_key(push)) is not task:  # else it asks nobody just now, for a reason of our own
                    gates[task].waited_in_vain(began)
        self.counter.count("scscf_key_first", "late" if late else "not-waited" if len(waited) < len(gates) else "first")

    def begin(
        self, owed: Sequence[tuple[PendingPush, AsTarget]], registration: Registration | None
    ) -> list[tuple[asyncio.Task[None], PendingPush]]:
        """Start deliveries that are in the store; one for which there is no room waits there."""
        return [(self.start(push, target, registration), push) for push, target in owed if self._has_room(push)]

    async def resume(self) -> int:
        """Take up what is owed and not under way, if there may be any: after a restart, or after MAX_UNDER_WAY; return how many."""
        self._try_under_new_keys()
        if not (self._left_owed or any(self.gate(name).under_way < self.max_under_way for name in self._full)):
            return 0
        self._left_owed = False
        self._full.clear()
        started = 0
        for place, push in enumerate(await self.registrations.pending(), 1):
            if place % SLICE == 0:
                await asyncio.sleep(0)
            if self._is_under_way(push) or self._is_refused(push) or not self._has_room(push):
                continue
            try:
                registration = await self.registrations.get(push.impi, push.reg)
            except (SealError, StoreError) as problem:
                self._refuse(push)
                self._alarm(push, str(problem))
                continue
            if self._is_under_way(push):
                continue  # begun meanwhile
            if (registration is None and not push.erase) or not self._is_listed(push):
                await self.registrations.delivered(push)
                continue
            self.start(push, self._target_again(push, registration), registration)
            started += 1
        return started

    async def aclose(self) -> None:
        """Stop; what is not delivered stays owed in the store."""
        for gate in self._gates.values():
            gate.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def owed_to(self, impi: Impi) -> list[SetKey]:
        """Return the sets of a user that an AS has not taken, under way or refused, for an operator who looks."""
        return sorted(key for key in {*self._latest, *self._refused} if key[0] == impi)

    def standings(self) -> dict[str, AsStanding]:
        """Return by ServerName how an AS stands, for an operator who looks."""
        refused = Counts(key[2] for key in self._refused)
        return {
            name: AsStanding(gate.under_way, refused[name], gate.is_open)
            for name, gate in {**dict.fromkeys(refused, AsGate(self.clock, self.sleep)), **self._gates}.items()
        }

    def _try_under_new_keys(self) -> None:
        """Owe again what an AS refused before its transport key changed: it may have dropped the one that we sealed with."""
        for as_id, key in self.policy.transport_keys.items():
            if self._kids.setdefault(as_id, key.kid) != key.kid:
                self._kids[as_id] = key.kid
                for refused in [each for each in self._refused if each[1] == as_id]:
                    del self._refused[refused]
                    self._left_owed = True

    def _is_under_way(self, push: PendingPush) -> bool:
        """Tell whether a push or a newer one of its set is being delivered; an older one ends when this one is begun."""
        return self._latest.get(set_key(push), 0) >= push.seq

    def _has_room(self, push: PendingPush) -> bool:
        """Tell whether one more may be under way to this AS: what one of them leaves unanswered is nothing to the others."""
        if self.gate(push.server_name).under_way < self.max_under_way:
            return True
        self._full.add(push.server_name)
        return False

    def _is_refused(self, push: PendingPush) -> bool:
        return self._refused.get(set_key(push)) == push.seq and self.clock.now() <= push.give_up_at

    def _is_listed(self, push: PendingPush) -> bool:
        """Tell whether our configuration still lists the AS for keys: it may have changed since the push was stored."""
        return not push.as_id or (push.as_id in self.policy.as_ids.get(push.server_name, ()) and push.as_id in self.policy.transport_keys)

    def gate(self, server_name: str) -> AsGate:
        """Return what is known of an AS, and who may send to it."""
        found = self._gates.get(server_name)
        if found is None:
            found = self._gates[server_name] = AsGate(self.clock, self.sleep)
        return found

    def start(self, push: PendingPush, target: AsTarget, registration: Registration | None) -> asyncio.Task[None]:
        """Begin to deliver a push that is in the store; an older one of its set ends."""
        key = set_key(push)
        idle = self._idle.pop(key, None) if self._latest.get(key, 0) < push.seq else None
        if idle is not None:
            idle.cancel()
        self._latest[key] = max(push.seq, self._latest.get(key, 0))
        self._refused.pop(key, None)
        of_set = (push.impi, push.as_id, push.reg)
        if self._given.get(of_set, 0) <= push.seq:
            self._given.pop(of_set, None)
        work = self._deliver(push, target, registration)
        loop = asyncio.get_running_loop()
        # begun now where Python can (3.12): a turn of the loop less before the key is on its way
        if sys.version_info >= (3, 12):
            task = asyncio.Task(work, loop=loop, eager_start=True)
        else:
            task = loop.create_task(work)
        if not task.done():
            gate = self.gate(push.server_name)
            gate.under_way += 1
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._ended(done, gate))
        return task

    def _ended(self, task: asyncio.Task[None], gate: AsGate) -> None:
        gate.under_way -= 1
        self._tasks.discard(task)

    def _target_again(self, push: PendingPush, registration: Registration | None) -> AsTarget:
        targets = self.targets_of(registration) if registration else ()
        same = (target for target in targets if (target.server_name, target.as_id) == (push.server_name, push.as_id))
        return next(same, AsTarget(push.server_name, push.as_id, (), None))

    async def _deliver(self, push: PendingPush, target: AsTarget, registration: Registration | None) -> None:
        key = set_key(push)
        try:
            await self._try_until_done(push, target, registration)
        except KeyferryError as problem:  # a store that failed, or a push that no receiver would take, as a UE made it too large
            if isinstance(problem, RemoteProtocolError):
                self.counter.count("scscf_push_failed", "unsendable")
            if self._latest.get(key) == push.seq:
                self._refuse(push)
            self._alarm(push, str(problem))
        finally:
            if self._latest.get(key) == push.seq:
                del self._latest[key]

    async def _try_until_done(self, push: PendingPush, target: AsTarget, registration: Registration | None) -> None:
        key, gate, call_id = set_key(push), self.gate(push.server_name), f"{self.random.octets(12).hex()}@{self.policy.scscf_name}"
        # Where its failure ends a registration the AS is asked, known down or not.
        at_once = gate.is_open or target.default_handling == 1
        if not at_once:
            self.counter.count("scscf_push_failed", "held")
            self._alarm(push, "the AS is known not to answer")
        pause = 0.0
        for cseq in itertools.count(1):
            if at_once:
                done = await self._once(push, target, registration, call_id, cseq)
            else:
                async with self._turn(key, gate, pause):
                    done = await self._once(push, target, registration, call_id, cseq)
            if done:
                return
            if cseq == 1 and target.default_handling == 1 and registration is not None:
                await self._terminate(push)
            at_once = False
            pause = min(max(RETRY_FIRST, 2 * pause), TROUBLE_MOST) if gate.is_open else 0.0

    async def _once(self, push: PendingPush, target: AsTarget, registration: Registration | None, call_id: str, cseq: int) -> bool:
        if await self._is_over(push):
            return True
        return await self._attempt(push, self._request(push, target, registration, call_id, cseq), self.gate(push.server_name))

    async def _is_over(self, push: PendingPush) -> bool:
        """Tell whether a push has no more use: a newer one is there, or its keys are past their time."""
        if self._latest.get(set_key(push)) != push.seq:
            return True
        if self.clock.now() <= push.give_up_at:
            return False
        self._alarm(push, "given up: its keys are past their time")
        await self.registrations.delivered(push)
        return True

    @asynccontextmanager
    async def _turn(self, key: SetKey, gate: AsGate, pause: float) -> AsyncIterator[None]:
        """Wait for `pause` seconds and for a turn; a newer push of the same set ends the wait, and the older with it."""
        task = asyncio.current_task()
        if task is not None:
            self._idle[key] = task
        async with AsyncExitStack() as stack:
            try:
                if pause:
                    await self.sleep(pause)
                await stack.enter_async_context(gate.turn())
            finally:
                if self._idle.get(key) is task:
                    del self._idle[key]
            yield

    async def _attempt(self, push: PendingPush, request: Request, gate: AsGate) -> bool:
        """Send once; true when there is nothing more to do."""
        try:
            # Checked at every transmission by the sender: no key follows a change of route or transport (DESIGN §6).
            hop = self.resolver.resolve(_server_uri(push.server_name))
            response = await self.sip.send(request, hop, check=self.policy.check_for(push))
        except LocalFailure as problem:  # says nothing of the AS: this push alone is tried again
            self.counter.count("scscf_push_failed", "unsendable")
            self._alarm(push, str(problem))
            return False
        except TransportError as problem:
            gate.failed()
            self.counter.count("scscf_push_failed", "unprotected" if isinstance(problem, ProtectionUnmet) else "unreachable")
            self._alarm(push, str(problem))
            return False
        if response.status == 503:
            gate.failed(_retry_after(response))
        else:
            gate.answered()
        if 200 <= response.status < 300:
            self.counter.count("scscf_third_party_registers", "delivered")
            await self.registrations.delivered(push)
            if self.told is not None:
                self.told(push, "")
            if self.heard is not None and push.as_id:
                self.heard(push.server_name, (push.as_id,), response)
            return True
        self.counter.count("scscf_push_failed", "refused")
        self._alarm(push, f"the AS answered {response.status}")
        final = 300 <= response.status < 500 and response.status not in {408, 480}
        if final and self._latest.get(set_key(push)) == push.seq:
            # A 4xx is the AS's word (§5.4.1.7): asking again changes nothing; it stays owed for the next start, authentication or rotation.
            self._refuse(push)
        return final

    def _refuse(self, push: PendingPush) -> None:
        self._refused[set_key(push)] = push.seq
        if len(self._refused) > self.max_refused:
            del self._refused[next(iter(self._refused))]  # it may be asked once more, no worse

    async def _terminate(self, push: PendingPush) -> None:
        """§5.4.1.7: no answer, 408 or 5xx, and DefaultHandling is SESSION_TERMINATED."""
        if push.erase or self._latest.get(set_key(push)) != push.seq:
            return  # what is registered now has a push of its own, and the AS may have taken it
        now = self.clock.now()
        if self.terminate is None or (len(self._terminations) == MAX_TERMINATIONS and self._terminations[0] > now - TERMINATIONS_IN):
            self.counter.count("scscf_terminations", "spared")
            return
        self._terminations.append(now)
        self.counter.count("scscf_terminations", "ended")
        await self.terminate(push.impi, push.reg)

    def _alarm(self, push: PendingPush, problem: str) -> None:
        self.log.warning("third-party-register-not-delivered", impi=push.impi, server=push.server_name, as_id=push.as_id, problem=problem)
        if self.told is not None:
            self.told(push, problem)

    def _request(self, push: PendingPush, target: AsTarget, registration: Registration | None, call_id: str, cseq: int) -> Request:
        expires = 0 if push.erase or registration is None else max(1, round(registration.expires_at - self.clock.now()))
        register, response = (None, None) if push.erase else (target.register, target.response)
        info = self._sealed(push, target, registration) if push.as_id else (None if push.erase else target.service_info)
        return build_third_party_register(
            server_name=push.server_name,
            scscf_uri=self.policy.scscf_uri,
            impu=push.impu,
            expires=expires,
            call_id=call_id,
            cseq=cseq,
            from_tag=self.random.octets(6).hex(),
            service_info=info,
            register=register,
            response=response,
            p_associated_uri=target.impus,
            p_access_network_info=target.access[0],
            p_visited_network_id=target.access[1],
            p_charging_vector=target.access[2],
            boundary=self.random.octets(12).hex() if register or response else None,
        )

    def _sealed(self, push: PendingPush, target: AsTarget, registration: Registration | None) -> str:
        keys: tuple[PushedKey, ...] = ()
        # Where every identity is barred there is nobody to name as the owner of a key.
        if registration is not None and registration.k_m is not None and target.impus and not push.erase:
            k_as = as_key(registration.k_m, push.as_id)
            not_after = key_not_after(
                expires_at=registration.expires_at, aka_time=registration.aka_time, key_max_age=self.policy.key_max_age
            )
            keys = (PushedKey(key_id(k_as, registration.realm), k_as, int(registration.aka_time), not_after),)
        block = Push(
            seq=push.seq,
            impi=push.impi,
            as_id=push.as_id,
            reg=push.reg,
            keys=keys,
            impus=target.impus if keys else (),
            service_info=target.service_info if keys else None,
        )
        transport_key = self.policy.transport_keys[push.as_id]
        return seal_push(block, transport_key=transport_key.siv, scscf=self.policy.scscf_name, kid=transport_key.kid)


def _retry_after(response: Response) -> float | None:
    """Return the seconds of Retry-After, None if it says nothing that can be read (RFC 3261 §20.33)."""
    digits = (response.get("Retry-After") or "").partition(";")[0].partition("(")[0].strip()
    return float(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def set_key(push: PendingPush) -> SetKey:
    """Return what a push replaces: the set of one AS for one device."""
    return push.impi, push.as_id, push.server_name, push.reg
