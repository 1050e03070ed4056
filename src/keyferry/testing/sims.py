# SPDX-License-Identifier: Apache-2.0
"""SIMs for tests: each has a card, runs AKA, derives its keys, and has them pushed to a store in memory (DESIGN §3, §6)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import App
from keyferry.asgi.identity import user_id
from keyferry.client.http_auth import SimDigest
from keyferry.client.names import as_id_of
from keyferry.errors import LocalProtocolError
from keyferry.protocol.aka import algorithm_of, generate_vector, sqn_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impu, Reg, parse_impi, parse_impu
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.protocol.ims.keys import application_master_key, as_key, key_id, ua_key
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.memory import MemoryKeyStore
from keyferry.testing.logged_in import LoggedIn
from keyferry.transports.clock import SystemClock, SystemRandom

if TYPE_CHECKING:
    from starlette.testclient import TestClient

AS_ID: Final = "app.example"
"""The host name of the application under test, if nothing else is said."""
HOME: Final = "home1.net"
KEY_LIFE: Final = 86_400
"""Seconds, as `scscf.key_max_age`."""
_PUSHER: Final = "scscf1.home1.net"
_AMF: Final = b"\x80\x00"

T = TypeVar("T")


class TestClock:
    """A clock that a test sets forward: what is over after an hour is over at once."""

    __test__ = False  # for pytest: no test in spite of its name

    def __init__(self) -> None:
        """Begin now."""
        self._now, self._monotonic = SystemClock().now(), SystemClock().monotonic()

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._monotonic += seconds


class Sim(httpx.Auth):
    """One SIM in one device: an httpx.Auth for whatever application its requests go to, sync and async.

    A key for an application is derived, and pushed to it, at the first request to its host.
    """

    def __init__(self, sims: Sims, name: str, device: str, impus: tuple[Impu, ...], *, known: bool) -> None:
        """`Sims` makes one."""
        self._sims = sims
        self._known = known
        random = sims.random
        self._card = algorithm_of("milenage", Secret(random.octets(16)), Secret(random.octets(16)))
        self._runs = 0
        self._impus = impus
        self.impi = parse_impi(f"{name}_private@{HOME}")
        self.reg = Reg(f"{device:x<12.12}")
        self._digests: dict[AsId, SimDigest] = {}
        self._claimed: set[str] = set()
        self._k_m = Secret(b"")
        self.registered = False
        self.register()

    @property
    def public_identities(self) -> list[str]:
        """Return the public identities that an application sees, the default first."""
        return list(self._impus)

    def register(self) -> None:
        """Run AKA: new keys, for every application that has had one. The old ones are good until the new ones are used, or ten minutes."""
        self._runs += 1
        rand = self._sims.random.octets(16)
        vector = generate_vector(self._card, rand, sqn_of(self._runs, 0), _AMF)
        self._k_m = application_master_key(vector.ck, vector.ik, rand, self.impi)
        self.registered = True
        for as_id in list(self._digests):
            self._derive(as_id)

    def deregister(self) -> None:
        """End the registration: every application forgets the keys. This SIM goes on to use them, in vain."""
        self.registered = False
        for as_id in self._digests:
            self._sims.push(Push(self._sims.seq(), self.impi, as_id, self.reg), known=self._known)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Log an httpx.Client in."""
        return self._digest(request).sync_auth_flow(request)

    def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Log an httpx.AsyncClient in."""
        return self._digest(request).async_auth_flow(request)

    def _digest(self, request: httpx.Request) -> SimDigest:
        as_id = as_id_of(request.url)
        return self._digests.get(as_id) or self._derive(as_id)

    def _derive(self, as_id: AsId) -> SimDigest:
        k_as = as_key(self._k_m, as_id)
        name = key_id(k_as, HOME)
        if self.registered:
            now = int(self._sims.clock.now())
            key = PushedKey(name, k_as, now, now + KEY_LIFE)
            self._sims.push(Push(self._sims.seq(), self.impi, as_id, self.reg, (key,), self._impus), known=self._known)

        async def claim() -> bool:
            fresh = name not in self._claimed
            self._claimed.add(name)
            return fresh

        self._digests[as_id] = SimDigest(
            key_id=name, as_id=as_id, k_ua=ua_key(k_as), random=self._sims.random, waits=(), claim_first=claim
        )  # fmt: skip
        return self._digests[as_id]


class Sims:
    """SIMs by name, and the keys that applications know of them."""

    def __init__(self, as_id: str = AS_ID) -> None:
        """Take the host name of the application under test."""
        self.as_id = as_id
        self.clock = TestClock()
        self.random = SystemRandom()
        self._store = MemoryKeyStore(began=self.clock.now() - 1)
        self._ids = Secret(self.random.octets(32))
        self.keys = PushedKeys(self._store, self.clock, user_ids=lambda _: self._ids)
        """The KeySource to give to SimLogin."""
        self._sims: dict[tuple[str, str], Sim] = {}
        self._seq = 0

    def __call__(self, name: str, *public_identities: str, device: str = "phone") -> Sim:
        """Return a registered SIM, the same for the same name and device; by default its public identity is sip:NAME@home1.net."""
        if (name, device) not in self._sims:
            impus = tuple(parse_impu(text) for text in public_identities) or (parse_impu(f"sip:{name}@{HOME}"),)
            self._sims[name, device] = Sim(self, name, device, impus, known=True)
        return self._sims[name, device]

    def stranger(self, name: str = "eve") -> Sim:
        """Return a SIM of whose keys no application hears."""
        return Sim(self, name, "phone", (parse_impu(f"sip:{name}@{HOME}"),), known=False)

    def register(self, name: str, device: str = "phone") -> None:
        """Let a SIM authenticate again: new keys."""
        self(name, device=device).register()

    def deregister(self, name: str, device: str = "phone") -> None:
        """End a SIM's registration: its keys are erased at every application."""
        self(name, device=device).deregister()

    def user_id(self, name: str) -> str:
        """Return `user.id` of a SIM at the application under test."""
        return user_id(self._ids, self.as_id, self(name).impi)

    def login(self, app: App, **options: Any) -> SimLogin:
        """Return the real middleware around an application, with the keys of these SIMs; `options` are those of SimLogin."""
        return SimLogin(app, **{"as_id": self.as_id, "keys": self.keys, "clock": self.clock, "random": self.random, **options})

    def client(self, app: App, name: str | Sim, **options: Any) -> TestClient:
        """Return Starlette's TestClient, logged in as a SIM; `app` is what `login` returns, or has a SimLogin of its own over `keys`.

        `options` are those of TestClient. It needs Starlette, and what its TestClient needs.
        """
        from starlette.testclient import TestClient

        auth = self(name) if isinstance(name, str) else name
        return TestClient(LoggedIn(app, auth), **{"base_url": f"https://{self.as_id}", **options})

    def http(self, app: App, name: str | Sim) -> httpx.AsyncClient:
        """Return an httpx.AsyncClient for an application in this process, logged in as a SIM."""
        auth = self(name) if isinstance(name, str) else name
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), auth=auth, base_url=f"https://{self.as_id}")

    def seq(self) -> int:
        """Return a number for the next push."""
        self._seq += 1
        return self._seq

    def push(self, push: Push, *, known: bool) -> None:
        """Do what an application server does with a push that has arrived."""
        if known:
            _at_once(self._store.apply(push, pusher=_PUSHER, realm=HOME, now=self.clock.now()))


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run what never waits, such as a store in memory, without an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise LocalProtocolError("a store in memory waits")
