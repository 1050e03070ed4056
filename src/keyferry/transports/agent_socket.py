# SPDX-License-Identifier: Apache-2.0
"""Keys and nonces of a key agent, for the workers of an application on the same machine (*ours*; docs/protocol.md).

    keys = AgentKeys(socket_path("unix:/run/keyferry/agent.sock"))     # a KeySource
    ledger = keys.ledger(as_id)                                        # a UseLedger

Nothing connects before it is needed, and what broke is connected again by whoever needs it next. Records are kept
as long as the connection lives over which the agent says which of them have changed; nothing is kept without one.
This module needs nothing but the standard library and `cryptography`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyferry.errors import ConfigError, DigestRejected, ParseError, StoreError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.door_nonce import CHANCE, build_nonce
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.key_record import KeyRecord, Offer
from keyferry.protocol.ims.keys import MECHANISM, PSK_PREFIX, digest_realm, ua_key
from keyferry.transports.agent_link import REST, AgentLink, BlockingLink, Rest, checked, hangs, hello
from keyferry.transports.agent_wire import MAX_IDENTIFIER, Fields, octets_of, parse_record, whose
from keyferry.transports.clock import SystemClock, SystemRandom

if TYPE_CHECKING:
    from keyferry.ports import Clock, RandomSource

ENVIRONMENT: Final = "KEYFERRY_AGENT"
"""The variable that names the socket where nothing else does."""
DEFAULT: Final = "unix:/run/keyferry/agent.sock"
LIMIT: Final = 2.0
"""Seconds that a request waits for an answer; then the connection counts as broken."""
LIMIT_NOW: Final = 0.2
"""Seconds that a callback may stand still for an answer, with the whole event loop; 100 µs are usual. Once, if the agent hangs."""
ATTEMPTS: Final = 3
"""Times that one question is asked, if what it is about changes before its answer can be noted."""
MAX_CACHED: Final = 10_000
"""Records kept, about 1 kB each; the agent remembers for each worker which ones."""


def socket_path(address: str | None = None) -> Path:
    """Return the path in `unix:PATH`; by default of the environment's KEYFERRY_AGENT, else /run/keyferry/agent.sock.

    Raises ConfigError.
    """
    text = address or os.environ.get(ENVIRONMENT) or DEFAULT
    kind, _, path = text.partition(":")
    if kind != "unix" or not path:
        raise ConfigError("key agent", f"{text!r} is no address of a key agent", f"Write {DEFAULT}")
    return Path(path)


class _Question:
    """A key that is being asked for. What the agent says of it meanwhile may be heard before its answer is looked at."""

    __slots__ = ("changed",)

    def __init__(self) -> None:
        self.changed = False


class AgentKeys:
    """A KeySource: the keys that an agent holds for the AS_IDs that it lets this user see. For one event loop at a time."""

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Clock | None = None,
        random: RandomSource | None = None,
        limit: float = LIMIT,
        limit_now: float = LIMIT_NOW,
        rest: float = REST,
        max_cached: int = MAX_CACHED,
    ) -> None:
        """Take the socket's path; nothing connects yet."""
        self.path = Path(path)
        self.clock: Clock = clock or SystemClock()
        self.random: RandomSource = random or SystemRandom()
        self._limit = limit
        self._max_cached = max_cached
        self._cache: OrderedDict[str, KeyRecord] = OrderedDict()
        self._questions: dict[str, set[_Question]] = {}
        self._user_ids: dict[AsId, Secret] = {}
        self._link: AgentLink | None = None
        self._opening: asyncio.Task[AgentLink | StoreError] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._rest = Rest(self.path, self.clock.monotonic, rest)
        self._blocking = BlockingLink(self.path, limit_now, self._rest)
        self._ledgers: dict[AsId, AgentLedger] = {}

    # ---- ports.KeySource

    def offer(self, as_id: AsId) -> Offer:
        """Return what pushed keys are offered as."""
        return Offer(MECHANISM, digest_realm(as_id), PSK_PREFIX, handsets=False)

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Return the record if the key is valid now, as far as the agent has said. Raises StoreError."""
        if len(identifier) > MAX_IDENTIFIER:
            return None
        if as_id not in self._user_ids:
            await self._note_user_ids(as_id)
        for _ in range(ATTEMPTS):
            link = await self._connected()
            known = self._cached(identifier, as_id)
            if known is not None:
                return known
            question = _Question()
            self._questions.setdefault(identifier, set()).add(question)
            try:
                answer = checked(self.path, await link.ask({"op": "lookup", "as": as_id, "key": identifier}))
            finally:
                self._end(identifier, question)
            # The answer and the word of the key's end, or the end of the connection, may have come at once: it is old then.
            if link is self._link and not question.changed:
                return self._take(answer, identifier, as_id)
        raise StoreError(f"{self.path}: the key changes faster than the key agent can be asked for it")

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Do the same without awaiting, over a connection of its own. Raises StoreError."""
        if len(identifier) > MAX_IDENTIFIER:
            return None
        known = self._cached(identifier, as_id)
        return known or self._record(self._ask_now({"op": "lookup", "as": as_id, "key": identifier}), identifier, as_id)

    def protocol_key(self, record: KeyRecord, ua_id: bytes) -> Secret:
        """Derive K_UA from K_AS (DESIGN §3)."""
        return ua_key(record.k_as, ua_id)

    async def used(self, record: KeyRecord) -> None:
        """Note that a request proved this key. Raises StoreError."""
        await self._ask({"op": "used", "as": record.as_id, "key": record.key_id})

    # ---- further

    def ledger(self, as_id: AsId) -> AgentLedger:
        """Return what the workers of this AS_ID share: the same each time."""
        found = self._ledgers.get(as_id)
        if found is None:
            found = self._ledgers[as_id] = AgentLedger(self, as_id)
        return found

    def user_id_key(self, as_id: AsId) -> Secret | None:
        """Return what the user ids of an AS are made with; the same for all workers, and after every restart. Raises StoreError."""
        return self._user_ids.get(as_id) or self._user_id_key(self._ask_now({"op": "user-ids", "as": as_id}))

    async def aclose(self) -> None:
        """End the connections."""
        for task in (self._opening, self._looking):
            if task is not None and task.get_loop() is asyncio.get_running_loop():
                task.cancel()
                await asyncio.wait([task])
        if self._link is not None:
            self._link.end("was left")
        self._blocking.close()
        await asyncio.sleep(0)  # the loop closes the socket in its next turn

    # ---- for the ledger

    async def take(self, record: KeyRecord, fields: Fields) -> Fields:
        """Ask for something to be taken; where the connection breaks nobody knows whether it was. Raises StoreError, DigestRejected."""
        try:
            return await self._ask({**fields, "as": record.as_id, "key": record.key_id, "whose": whose(record)})
        except DigestRejected:
            self._cache.pop(record.key_id, None)  # what is known of the key may be old
            raise

    async def nonce_terms(self, as_id: AsId) -> Fields:
        """Ask for the nonce key of the agent that is there now. Raises StoreError."""
        for _ in range(ATTEMPTS):
            link = await self._connected()
            answer = checked(self.path, await link.ask({"op": "nonces", "as": as_id}))
            if link is self._link:
                return answer
        raise StoreError(f"{self.path}: the key agent goes as soon as it has answered")

    def nonce_terms_now(self, as_id: AsId) -> Fields:
        """Do the same without awaiting. Raises StoreError."""
        return self._ask_now({"op": "nonces", "as": as_id})

    # ---- inside

    async def _ask(self, fields: Fields) -> Fields:
        link = await self._connected()
        return checked(self.path, await link.ask(fields))

    def _ask_now(self, fields: Fields) -> Fields:
        """Stand still for an answer; on an event loop once, and not again until the agent has answered a task there."""
        if self._rest.silent and self._looks_for_itself():
            raise hangs(self.path)
        try:
            return checked(self.path, self._blocking.ask(fields))
        except StoreError:
            if self._rest.silent:
                self._looks_for_itself()
            raise

    def _looks_for_itself(self) -> bool:
        """Ask the agent whether it is back, where there is an event loop for that; one task at a time, which nobody waits for."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False  # a thread stands still by itself
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not loop:
            self._looking = loop.create_task(self._look(loop))
        return True

    async def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(StoreError, asyncio.CancelledError):
            link = self._usable(loop) or await self._opened(loop, anyway=True)
            await link.ask(hello(cache=True))

    def _take(self, answer: Fields, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Note what an answer says that is true now."""
        record = self._record(answer, identifier, as_id)
        if record is not None and answer.get("keep") is True:
            self._cache[record.key_id] = record
            if len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        return record

    async def _note_user_ids(self, as_id: AsId) -> None:
        """Fetch what is needed right after the first record, where nobody can wait for it."""
        link = await self._connected()
        answer = await link.ask({"op": "user-ids", "as": as_id})
        with contextlib.suppress(StoreError):  # whoever needs it is told
            key = self._user_id_key(checked(self.path, answer))
            if key is not None:
                self._user_ids[as_id] = key

    def _user_id_key(self, answer: Fields) -> Secret | None:
        key = answer.get("user_id_key")
        try:
            return None if key is None else Secret(octets_of(key))
        except ParseError as problem:
            raise StoreError(f"{self.path}: the key agent's answer: {problem}") from problem

    def _end(self, identifier: str, question: _Question) -> None:
        questions = self._questions[identifier]
        questions.discard(question)
        if not questions:
            del self._questions[identifier]

    def _cached(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        known = self._cache.get(identifier)
        link = self._link
        if known is None or known.as_id != as_id or link is None or not link.is_open or not link.loop.is_running():
            return None  # or nobody hears that it has changed
        if self.clock.now() >= known.not_after:
            self._cache.pop(identifier, None)
            return None
        with contextlib.suppress(KeyError):  # a thread may ask, too
            self._cache.move_to_end(identifier)
        return known

    def _record(self, answer: Fields, identifier: str, as_id: AsId) -> KeyRecord | None:
        value = answer.get("record")
        try:
            record = None if value is None else parse_record(value, as_id)
        except ParseError as problem:
            raise StoreError(f"{self.path}: the key agent's answer: {problem}") from problem
        if record is not None and record.key_id != identifier:
            raise StoreError(f"{self.path}: the key agent's answer is a record of another key")
        return record

    async def _connected(self) -> AgentLink:
        loop = asyncio.get_running_loop()
        return self._usable(loop) or await self._opened(loop)

    def _usable(self, loop: asyncio.AbstractEventLoop) -> AgentLink | None:
        return self._link if self._link is not None and self._link.is_open and self._link.loop is loop else None

    async def _opened(self, loop: asyncio.AbstractEventLoop, *, anyway: bool = False) -> AgentLink:
        """Wait for the one attempt to connect, whose result is that of all who wait; in the pause there is none but `anyway`."""
        if not anyway:
            self._rest.check()
        if self._opening is None or self._opening.done() or self._opening.get_loop() is not loop:
            self._opening = loop.create_task(self._open())
        found = await asyncio.shield(self._opening)
        if isinstance(found, StoreError):
            raise StoreError(*found.args)
        return found

    async def _open(self) -> AgentLink | StoreError:
        self._link = None  # it has ended, or is of an event loop that has
        self._forget()
        try:
            link = await AgentLink.connect(self.path, self._limit, self._changed, self._lost, self._rest)
        except StoreError as problem:
            return problem
        except asyncio.CancelledError:  # by `aclose`; those who wait here are not cancelled
            return StoreError(f"{self.path}: the key agent was left")
        if link.is_open:
            self._link = link
        return link

    def _changed(self, key_ids: Sequence[str]) -> None:
        for key_id in key_ids:
            self._cache.pop(key_id, None)
            for question in self._questions.get(key_id, ()):
                question.changed = True

    def _lost(self, link: AgentLink) -> None:
        if link is self._link:
            self._link = None
            self._forget()

    def _forget(self) -> None:
        """Forget what an agent whose connection ended had said."""
        self._cache.clear()
        for ledger in self._ledgers.values():
            ledger.forget()


class AgentLedger:
    """A UseLedger that all workers of one AS_ID share: nonces are issued here, and the agent decides about their use."""

    def __init__(self, keys: AgentKeys, as_id: AsId) -> None:
        self._keys = keys
        self._as_id = as_id
        self._terms: tuple[Secret, bytes, float] | None = None  # the nonce key, the scope, how far the agent's clock is ahead

    def issue(self) -> str:
        """Return a new nonce under the agent's nonce key, which is fetched when the first one is issued. Raises StoreError."""
        key, scope, ahead = self._terms or self._take(self._keys.nonce_terms_now(self._as_id))
        return build_nonce(key, scope, self._keys.clock.monotonic() + ahead, self._keys.random.octets(CHANCE))

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        """Take a count of a nonce, whose response is right; true if the nonce grows old.

        Raises DigestRejected: stale if that count or nonce is no longer there to be used, or if the key's owner has other
        identities now, else the key is no longer valid. Raises StoreError.
        """
        old = (await self._keys.take(record, {"op": "claim", "nonce": nonce, "count": count})).get("old") is True
        if old:
            await self.ready()
        return old

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, which there is once; false if it is used. Raises DigestRejected as `claim` does, StoreError."""
        taken = (await self._keys.take(record, {"op": "first"})).get("taken") is True
        if taken:
            await self.ready()
        return taken

    async def ready(self) -> None:
        """Fetch the nonce key for `issue`, which would stand still for it. Raises StoreError."""
        if self._terms is None:
            self._take(await self._keys.nonce_terms(self._as_id))

    def forget(self) -> None:
        """Forget the nonce key of an agent that has gone."""
        self._terms = None

    def _take(self, answer: Fields) -> tuple[Secret, bytes, float]:
        now, scope = answer.get("now"), answer.get("scope")
        try:
            key = Secret(octets_of(answer.get("nonce_key")))
        except ParseError:
            key = Secret(b"")
        if not isinstance(now, float) or not isinstance(scope, str) or not key:
            raise StoreError(f"{self._keys.path}: the key agent's answer holds no nonce key")
        self._terms = key, scope.encode("utf-8"), now - self._keys.clock.monotonic()
        return self._terms
