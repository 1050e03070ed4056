# SPDX-License-Identifier: Apache-2.0
"""Every store in dictionaries: what the SQLite ones do, without a disk (tests, the demo)."""

from __future__ import annotations

import asyncio
import heapq
import math
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from keyferry.errors import StoreError
from keyferry.ports import (
    Assignment,
    AsStore,
    Document,
    KeyRecord,
    OwedEnd,
    OwedTermination,
    PendingPush,
    Registration,
    Subscriber,
    Subscription,
    UeState,
)
from keyferry.protocol.aka import highest_seq_ms
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims.keypush import MAX_KEY_LIFE, SKEW, HeldKey, HeldSet, Owner, Push, PushOutcome, after_use, erased, receive, valid
from keyferry.protocol.ims.user_profile import identities_of


class MemorySubscriberStore:
    """Implement ports.SubscriberStore."""

    def __init__(self) -> None:
        self._subscribers: dict[Impi, Subscriber] = {}
        self._seqs: dict[Impi, int] = {}
        self._assignments: dict[Impi, Assignment] = {}
        self._owners: dict[Impu, Impi] = {}
        self._from_file: set[Impi] = set()

    async def add(self, subscriber: Subscriber) -> None:
        """Store a new subscriber.

        Raises StoreError if the IMPI or an IMPU is taken.
        """
        if subscriber.impi in self._subscribers:
            raise _taken(subscriber.impi)
        await self.replace(subscriber)

    async def replace(self, subscriber: Subscriber) -> None:
        """Store, new or not; SEQ and the S-CSCF's name are kept.

        Raises StoreError if an IMPU is another subscriber's.
        """
        impi = subscriber.impi
        impus = [subscribed.impu for subscribed in subscriber.impus]
        if len(set(impus)) < len(impus) or any(self._owners.get(impu, impi) != impi for impu in impus):
            raise _taken(impi)
        self._free_impus(impi)
        self._owners.update(dict.fromkeys(impus, impi))
        self._subscribers[impi] = subscriber

    async def get(self, impi: Impi) -> Subscriber | None:
        """Return a subscriber."""
        return self._subscribers.get(impi)

    async def for_vector(self, impi: Impi) -> tuple[Subscriber, str | None, int] | None:
        """Return a subscriber, the SIP URI of the S-CSCF assigned and SEQ."""
        subscriber = self._subscribers.get(impi)
        return None if subscriber is None else (subscriber, self._assignment(impi).server_name, self._seqs.get(impi, 0))

    async def subscription(self, impi: Impi) -> Subscription | None:
        """Return what is not secret of a subscriber."""
        subscriber = self._subscribers.get(impi)
        if subscriber is None:
            return None
        found = self._assignment(impi)
        return Subscription(subscriber.impus, subscriber.profile, found.server_name, subscriber.release, found.serving)

    async def all(self) -> Sequence[Subscriber]:
        """Return every subscriber, by IMPI."""
        return [self._subscribers[impi] for impi in sorted(self._subscribers)]

    async def remove(self, impi: Impi) -> bool:
        """Forget a subscriber; false if there was none."""
        self._free_impus(impi)
        self._seqs.pop(impi, None)
        self._assignments.pop(impi, None)
        self._from_file.discard(impi)
        return self._subscribers.pop(impi, None) is not None

    async def note_from_file(self, impis: Sequence[Impi]) -> None:
        """Note that these subscribers come from the configuration file."""
        self._from_file.update(self._subscribers.keys() & set(impis))

    async def from_file(self) -> Collection[Impi]:
        """Return the subscribers that come from the configuration file."""
        return frozenset(self._from_file)

    async def of_impu(self, impu: Impu) -> Impi | None:
        """Return whose public identity this is."""
        return self._owners.get(impu)

    async def seq(self, impi: Impi) -> int:
        """Return the SEQ up to which values may have been used; 0 for a new subscriber."""
        return self._seqs.get(impi, 0)

    async def reserve_seq(self, impi: Impi, seq: int, count: int, *, anew: bool = False) -> int:
        """Reserve `count` SEQ values and return the first.

        Raises StoreError if there is no such subscriber.
        """
        self._check(impi)
        first = seq if anew else max(seq, self._seqs.get(impi, 0) + 1)
        self._seqs[impi] = first + count - 1
        return first

    async def server_name(self, impi: Impi) -> str | None:
        """Return the SIP URI of the S-CSCF assigned, if any."""
        return self._assignment(impi).server_name

    async def set_server_name(self, impi: Impi, name: str | None) -> None:
        """Assign or clear the S-CSCF.

        Raises StoreError if there is no such subscriber.
        """
        await self.reassign(impi, lambda found: found._replace(server_name=name))

    async def assignment(self, impi: Impi) -> Assignment:
        """Return which S-CSCFs have to do with a user."""
        return self._assignment(impi)

    async def reassign(self, impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
        """Change that, and return what it was and what it is.

        Raises StoreError if there is no such subscriber.
        """
        self._check(impi)
        before = self._assignment(impi)
        self._assignments[impi] = after = change(before)
        return before, after

    async def owing(self) -> Mapping[str, float]:
        """Return the S-CSCFs for which there are RTRs, each with the time of the oldest."""
        found: dict[str, float] = {}
        for _, owed in self._owed():
            found[owed.server_name] = min(owed.since, found.get(owed.server_name, math.inf))
        return found

    async def owed_to(self, server_name: str, limit: int) -> Sequence[tuple[Impi, OwedTermination]]:
        """Return the oldest RTRs for an S-CSCF."""
        found = sorted((each for each in self._owed() if each[1].server_name == server_name), key=lambda each: each[1].since)
        return found[:limit]

    async def forget_owed(self, until: float) -> int:
        """Drop the RTRs that are from before; return how many."""
        count = 0
        for impi, found in self._assignments.items():
            kept = tuple([each for each in found.owed if each.since >= until])
            count += len(found.owed) - len(kept)
            self._assignments[impi] = found._replace(owed=kept)
        return count

    def _owed(self) -> list[tuple[Impi, OwedTermination]]:
        return [(impi, owed) for impi, found in self._assignments.items() for owed in found.owed]

    def _assignment(self, impi: Impi) -> Assignment:
        return self._assignments.get(impi, Assignment())

    def _check(self, impi: Impi) -> None:
        if impi not in self._subscribers:
            raise StoreError(f"{impi}: no such subscriber")

    def _free_impus(self, impi: Impi) -> None:
        old = self._subscribers.get(impi)
        for subscribed in old.impus if old is not None else ():
            self._owners.pop(subscribed.impu, None)


def _taken(impi: Impi) -> StoreError:
    return StoreError(f"{impi}: the IMPI, or one of its IMPUs, is there already")


class MemoryRegistrationStore:
    """Implement ports.RegistrationStore."""

    def __init__(self) -> None:
        self._registrations: dict[Impi, dict[Reg, Registration]] = {}
        self._pushes: dict[tuple[Impi, AsId, str, Reg], PendingPush] = {}
        self._seqs: dict[tuple[Impi, AsId, Reg], int] = {}
        self._places: dict[tuple[Impi, Reg], int] = {}
        self._last_place = 0
        self._as_stores: dict[tuple[str, AsId], AsStore] = {}
        self._ends: dict[Impi, OwedEnd] = {}

    async def commit(self, registration: Registration, pushes: Sequence[PendingPush]) -> None:
        """Replace the registration of (impi, reg) and, per (impi, as_id, server_name, reg), the push owed."""
        self._keep(registration)
        self._owe(pushes)

    async def commit_all(self, registrations: Sequence[Registration], pushes: Sequence[PendingPush]) -> None:
        """Do so with several registrations and all that they owe."""
        for registration in registrations:
            self._keep(registration)
        self._owe(pushes)

    def _keep(self, registration: Registration) -> None:
        self._registrations.setdefault(registration.impi, {})[registration.reg] = registration
        if (registration.impi, registration.reg) not in self._places:
            self._last_place += 1
            self._places[registration.impi, registration.reg] = self._last_place

    async def remove(self, impi: Impi, reg: Reg, pushes: Sequence[PendingPush], end: OwedEnd | None = None) -> None:
        """Remove the registration, replace the pushes owed, and owe the HSS `end` if the user has no other."""
        devices = self._registrations.get(impi, {})
        devices.pop(reg, None)
        self._places.pop((impi, reg), None)
        if not devices:
            self._registrations.pop(impi, None)
        self._owe(pushes)
        if end is not None:
            await self.owe_end(end)

    async def forget_ends(self, until: float) -> int:
        """Drop the ends that are owed since before `until`; return how many."""
        old = [impi for impi, end in self._ends.items() if 0 < end.since < until]
        for impi in old:
            del self._ends[impi]
        return len(old)

    async def owe_end(self, end: OwedEnd) -> None:
        """Owe the HSS an end if the user has no registration."""
        if end.impi not in self._registrations:
            self._ends.pop(end.impi, None)
            self._ends[end.impi] = end

    async def owed_ends(self) -> Sequence[OwedEnd]:
        """Return what the HSS is still to be told."""
        return list(self._ends.values())

    async def end_told(self, impi: Impi) -> None:
        """Owe the HSS no end of this user's."""
        self._ends.pop(impi, None)

    async def get(self, impi: Impi, reg: Reg) -> Registration | None:
        """Return one registration, expired or not."""
        return self._registrations.get(impi, {}).get(reg)

    async def of_impi(self, impi: Impi) -> Sequence[Registration]:
        """Return every device's registration, by reg."""
        devices = self._registrations.get(impi, {})
        return [devices[reg] for reg in sorted(devices)]

    async def impis(self, after: str, limit: int) -> Sequence[Impi]:
        """Return whose registrations there are, sorted, above `after` ("": all); at most `limit`."""
        return heapq.nsmallest(limit, (impi for impi in self._registrations if impi > after))

    async def of_impu(self, impu: Impu) -> Impi | None:
        """Return whose registrations name a public identity; None where nobody's do."""
        held = (each for devices in self._registrations.values() for each in devices.values())
        return next((each.impi for each in held if impu == each.impu or impu in identities_of(each.user_data)), None)

    async def expired(self, now: float, limit: int = 1000) -> Sequence[Registration]:
        """Return registrations whose time is over, the oldest first."""
        over = [each for devices in self._registrations.values() for each in devices.values() if each.expires_at <= now]
        return sorted(over, key=lambda registration: registration.expires_at)[:limit]

    async def delivered(self, push: PendingPush) -> None:
        """Note that the AS answered 2xx; a later push of the same set stays owed."""
        owed = self._pushes.get(_push_key(push))
        if owed is not None and owed.seq <= push.seq:
            del self._pushes[_push_key(push)]

    async def pending(self) -> Sequence[PendingPush]:
        """Return every push owed."""
        return sorted(self._pushes.values(), key=lambda push: push.seq)

    async def last_seq(self, impi: Impi, as_id: AsId, reg: Reg) -> int:
        """Return the highest seq ever stored for this set, 0 if none."""
        return self._seqs.get((impi, as_id, reg), 0)

    async def walk(self, after: int, limit: int) -> Sequence[tuple[int, Impi, Reg]]:
        """Return registrations and their places, by place, above the place `after` (0: all); one that is renewed keeps its place."""
        return sorted((place, impi, reg) for (impi, reg), place in self._places.items() if place > after)[:limit]

    async def as_stores(self) -> Sequence[AsStore]:
        """Return what was last heard of every AS."""
        return [store for _, store in sorted(self._as_stores.items())]

    async def keep_as_store(self, store: AsStore) -> None:
        """Replace what was heard of (server_name, as_id)."""
        self._as_stores[store.server_name, store.as_id] = store

    async def count(self) -> int:
        """Return the number of registrations."""
        return sum(map(len, self._registrations.values()))

    def _owe(self, pushes: Sequence[PendingPush]) -> None:
        for push in pushes:
            key, of_set = _push_key(push), (push.impi, push.as_id, push.reg)
            if key not in self._pushes or self._pushes[key].seq <= push.seq:
                self._pushes[key] = push
            self._seqs[of_set] = max(push.seq, self._seqs.get(of_set, 0))


def _push_key(push: PendingPush) -> tuple[Impi, AsId, str, Reg]:
    return (push.impi, push.as_id, push.server_name, push.reg)


class MemoryKeyStore:
    """Implement ports.KeyStore."""

    def __init__(self, *, began: float = math.inf) -> None:
        """Take when the store began, by the clock of whoever pushes: first nonces count for younger keys alone; by default for none."""
        self._began = began
        self._first: dict[KeyId, float] = {}  # claimed first nonces, and until when they are remembered
        self._sets: dict[tuple[str, Impi, AsId, Reg], HeldSet] = {}
        self._keys: dict[KeyId, tuple[HeldKey, HeldSet]] = {}
        self._store_id = secrets.token_hex(12)

    @property
    def store_id(self) -> str:
        """A random name that the store got when it was made."""
        return self._store_id

    async def apply(self, push: Push, *, pusher: str, realm: str, now: float) -> PushOutcome:
        """Decide by `keypush.receive` and store.

        Raises PushRefused.
        """
        held = self._sets.get((pusher, push.impi, push.as_id, push.reg))
        outcome = receive(held, push, pusher=pusher, realm=realm, now=now, owner_of=self._owner)
        if outcome.held is not held:
            self._store(outcome.held)
        return outcome

    async def erase_impu(self, pusher: str, impu: Impu, as_ids: Sequence[AsId], now: float) -> int:
        """Erase every key of that pusher whose IMPUs hold `impu` (a body-less Expires 0); return how many."""
        del now  # what is over is erased too
        theirs = [held for held in self._sets.values() if held.pusher == pusher and held.as_id in as_ids and impu in held.impus]
        for held in theirs:
            self._store(erased(held))
        return sum(len(held.keys) for held in theirs)

    async def lookup(self, key_id: KeyId, as_id: AsId, now: float) -> KeyRecord | None:
        """Return a key valid at `now`."""
        return self.lookup_now(key_id, as_id, now)

    def lookup_now(self, key_id: KeyId, as_id: AsId, now: float) -> KeyRecord | None:
        """Do the same at once."""
        key, held = self._keys.get(key_id, (None, None))
        if key is None or held is None or held.as_id != as_id or not valid(key, now):
            return None
        superseded = key.superseded_until is not None
        return KeyRecord(key_id, as_id, held.impi, held.reg, held.impus, key.k_as, float(key.not_before), _ends(key), superseded)

    async def claim_first(self, record: KeyRecord) -> bool:
        """Insert if absent."""
        if record.not_before < self._began or record.key_id not in self._keys or record.key_id in self._first:
            return False
        self._first[record.key_id] = record.not_before + MAX_KEY_LIFE + SKEW
        return True

    async def used(self, record: KeyRecord, now: float) -> None:
        """End the superseded keys of the record's device if the record itself is not superseded."""
        key, held = self._keys.get(record.key_id, (None, None))
        if key is not None and held is not None and not record.superseded:
            self._store(after_use(held, record.key_id, now))

    async def count(self, now: float, as_id: AsId | None = None) -> int:
        """Return the number of keys valid at `now`, of one application server or of all."""
        return sum(valid(key, now) for key, held in self._keys.values() if as_id in {None, held.as_id})

    async def sweep(self, now: float) -> int:
        """Delete keys and tombstones whose time is over; return how many went."""
        went = 0
        for place, held in list(self._sets.items()):
            left = held._replace(keys=tuple([key for key in held.keys if _ends(key) > now]))
            went += len(held.keys) - len(left.keys)
            self._store(left)
            if held.tombstone_until <= now:
                went += 1
                del self._sets[place]
        over = [key_id for key_id, until in self._first.items() if until <= now]
        for key_id in over:
            del self._first[key_id]
        return went + len(over)

    def _owner(self, key_id: KeyId) -> Owner | None:
        _, held = self._keys.get(key_id, (None, None))
        return None if held is None else (held.impi, held.as_id, held.reg)

    def _store(self, new: HeldSet) -> None:
        place = (new.pusher, new.impi, new.as_id, new.reg)
        old = self._sets.get(place)
        for key in old.keys if old is not None else ():
            if self._keys.get(key.key_id, (None, None))[1] is old:
                del self._keys[key.key_id]
        self._keys.update({key.key_id: (key, new) for key in new.keys})
        self._sets[place] = new


def _ends(key: HeldKey) -> float:
    return float(key.not_after if key.superseded_until is None else min(key.not_after, key.superseded_until))


class MemoryDocumentStore:
    """Implement ports.DocumentStore."""

    def __init__(self) -> None:
        self._documents: dict[tuple[str, str, str], Document] = {}

    async def get(self, auid: str, owner: str, path: str) -> Document | None:
        """Return a document."""
        return self._documents.get((auid, owner, path))

    async def put(self, auid: str, owner: str, path: str, document: Document, *, expect: Callable[[Document | None], None]) -> bool:
        """Store; true if it is new. `expect` sees what is stored and raises to refuse."""
        old = self._documents.get((auid, owner, path))
        expect(old)
        self._documents[auid, owner, path] = document
        return old is None

    async def delete(self, auid: str, owner: str, path: str, *, expect: Callable[[Document | None], None]) -> bool:
        """Delete; false if there was none. `expect` as in `put`."""
        expect(self._documents.get((auid, owner, path)))
        return self._documents.pop((auid, owner, path), None) is not None


class MemoryUeStore:
    """Implement ports.UeStore."""

    def __init__(self) -> None:
        self._states: dict[Impi, UeState] = {}
        self._first: set[KeyId] = set()
        self._turns: defaultdict[Impi, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self, impi: Impi) -> UeState | None:
        """Return the state."""
        return self._states.get(impi)

    async def save(self, state: UeState) -> None:
        """Store it; SEQ_MS never becomes lower."""
        before = self._states.get(state.impi)
        kept = state if before is None else replace(state, seq_ms=highest_seq_ms(before.seq_ms, state.seq_ms))
        self._states[state.impi] = kept

    @asynccontextmanager
    async def alone(self, impi: Impi) -> AsyncIterator[None]:
        """Keep this UE's other procedures waiting."""
        async with self._turns[impi]:
            yield

    async def claim_first(self, key_id: KeyId, now: float) -> bool:
        """Note that the first nonce of a key is used; false if it was before."""
        del now  # it is forgotten with the process
        before = key_id in self._first
        self._first.add(key_id)
        return not before
