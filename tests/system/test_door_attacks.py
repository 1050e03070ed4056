# SPDX-License-Identifier: Apache-2.0
"""Attacks on a door over TLS sockets (docs/attacks.md has the table): refused, and the server goes on serving the victim."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asgi.doorkit import AS_ID, Answer, Client, Echo, FakeCounter, Pki
from keyferry.asgi.auth import SimLogin
from keyferry.ports import KeyRecord, KeyStore
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims import keys as ims_keys
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.database import Database
from keyferry.stores.memory import MemoryKeyStore
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.transports import http_bounds
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.http_server import HttpServer, tls_context

OTHER_AS = AsId("other.home1.net")
CLOCK, RANDOM = SystemClock(), SystemRandom()
BEGAN = CLOCK.now() - 100
PATIENCE = 60.0
"""Seconds for what comes at once."""
ENOUGH = 1.0
"""Seconds after which a server that waits for more of a request has said all that it will."""
HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r]*\r\n((?:[^\r]+\r\n)*)\r\n")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def pushed(store: KeyStore, name: str = "alice", as_id: AsId = AS_ID, *, age: float = 0.0) -> KeyRecord:
    """Push a key, whose octets follow from its name, into a store."""
    k_as = Secret(hashlib.sha256(f"{name} {as_id}".encode()).digest())
    key_id = ims_keys.key_id(k_as, "home1.net")
    begins = int(CLOCK.now() - age)
    push = Push(
        int(CLOCK.now() * 1000), Impi(f"{name}@home1.net"), as_id, Reg("AAAAAAAAAAAA"), (PushedKey(key_id, k_as, begins, begins + 3600),),
        (Impu(f"sip:{name}@home1.net"),),
    )  # fmt: skip
    await store.apply(push, pusher="scscf1.home1.net", realm="home1.net", now=CLOCK.now())
    found = await store.lookup(key_id, as_id, CLOCK.now())
    assert found is not None
    return found


class Opened(NamedTuple):
    """A door that listens."""

    port: int
    app: Echo
    counter: FakeCounter
    pki: Pki
    as_id: AsId

    async def say(self, octets: bytes, patience: float = PATIENCE) -> list[Answer]:
        """Send octets over a connection of their own; return the heads of all answers until the door closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.pki.trust(), server_hostname=self.as_id)
        received = b""
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(octets)
                await writer.drain()
            with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
                async with asyncio.timeout(patience):
                    while more := await reader.read(65_536):
                        received += more
        finally:
            writer.transport.abort()
        return [Answer(int(status), _fields(head), b"") for status, head in HEAD.findall(received)]

    async def statuses(self, octets: bytes, patience: float = PATIENCE) -> list[int]:
        """Return the statuses alone."""
        return [answer.status for answer in await self.say(octets, patience)]

    async def challenge(self) -> digest.Challenge:
        """Ask for a challenge."""
        return (await self.say(request(self.as_id)))[0].challenge()

    async def welcomes(self, record: KeyRecord) -> bool:
        """Tell whether the holder of a key is served: the victim of the attack, in most tests."""
        said = Client(record).answer(await self.challenge())
        return await self.statuses(request(self.as_id, said)) == [200]

    def admitted(self) -> list[str]:
        """Return who reached the application, in order."""
        return [str(scope["keyferry"].user) for scope in self.app.scopes]


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    pairs = (line.partition(b":") for line in head.split(b"\r\n") if line)
    return [(name.lower(), value.strip()) for name, _, value in pairs]


def request(
    host: str, *fields: tuple[str, str], method: str = "GET", target: str = "/notes", body: bytes = b"", end: str = "close"
) -> bytes:
    """Return a request; the server closes the connection after it."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Connection: {end}", *(f"{name}: {value}" for name, value in fields)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def first_nonce(client: Client) -> tuple[str, str]:
    """Return the credentials of a first request."""
    nonce = ims_keys.first_nonce(ims_keys.ua_key(client.held.k_as))
    return client.answer(digest.Challenge(client.realm, nonce, "SHA-256", ("auth",)))


@contextlib.asynccontextmanager
async def door(pki: Pki, store: KeyStore, as_id: AsId = AS_ID, **options: Any) -> AsyncIterator[Opened]:
    """Serve SimLogin as `keyferry serve` does."""
    app, counter = Echo(), FakeCounter()
    login = SimLogin(app, as_id=as_id, keys=PushedKeys(store, CLOCK), user_id_key=bytes(32), counter=counter, **options)
    pem = pki.issue(as_id, f"{as_id}-{id(app)}").pem
    server = HttpServer(login, tls=tls_context(pem, pem))
    _, port = await server.listen("127.0.0.1", 0)
    try:
        yield Opened(port, app, counter, pki, as_id)
    finally:
        await server.aclose()


@contextlib.contextmanager
def stored(path: Path) -> Any:
    """Open the key store that several workers share; its keys come from before or after its beginning, as `age` says."""
    with Database(path) as database:
        yield SqliteKeyStore(database, Keyring({b"kek1": Secret(b"k" * 64)}, b"kek1", random=RANDOM), now=BEGAN, skew=0)


# ---- replay


async def test_a_replay_is_refused_by_the_same_worker_and_by_another(pki: Pki, tmp_path: Path) -> None:
    """Octet for octet, on another connection; the other worker shares the key store and nothing else."""
    with stored(tmp_path / "keys.db") as one_store, stored(tmp_path / "keys.db") as two_store:
        alice = await pushed(one_store)
        async with door(pki, one_store) as one, door(pki, two_store) as two:
            taken = [request(AS_ID, Client(alice).answer(await one.challenge())), request(AS_ID, first_nonce(Client(alice)))]
            for octets in taken:
                assert await one.statuses(octets) == [200]
            for octets in taken:
                for worker in (one, two):
                    again = await worker.say(octets)
                    assert [(answer.status, answer.challenge().stale) for answer in again] == [(401, True)]
            assert (len(one.app.scopes), len(two.app.scopes)) == (2, 0)
            assert await two.welcomes(alice)


async def test_a_replay_is_refused_after_a_restart_with_an_empty_store(pki: Pki, tmp_path: Path) -> None:
    """Before the S-CSCF has pushed again what was in it, and after."""
    with stored(tmp_path / "before.db") as store:
        alice = await pushed(store)
        async with door(pki, store) as before:
            taken = [request(AS_ID, Client(alice).answer(await before.challenge())), request(AS_ID, first_nonce(Client(alice)))]
            assert [await before.statuses(octets) for octets in taken] == [[200], [200]]
    with Database(tmp_path / "after.db") as database:
        empty = SqliteKeyStore(database, Keyring({b"kek1": Secret(b"k" * 64)}, b"kek1", random=RANDOM), skew=0)
        async with door(pki, empty) as after:
            assert [await after.statuses(octets) for octets in taken] == [[401], [401]]
            again = await pushed(empty, age=200)
            assert again.key_id == alice.key_id
            assert [await after.statuses(octets) for octets in taken] == [[401], [401]]
            assert after.app.scopes == []
            assert await after.welcomes(alice)


async def test_of_first_nonces_sent_to_two_workers_at_once_exactly_one_is_taken(pki: Pki, tmp_path: Path) -> None:
    """Twenty keys, both requests on their way before either is answered."""
    with stored(tmp_path / "keys.db") as one_store, stored(tmp_path / "keys.db") as two_store:
        users = [await pushed(one_store, f"user{number}") for number in range(20)]
        async with door(pki, one_store) as one, door(pki, two_store) as two:
            for user in users:
                octets = request(AS_ID, first_nonce(Client(user)))
                answers = await asyncio.gather(*(worker.statuses(octets) for worker in (one, two, one, two)))
                assert sorted(status for each in answers for status in each) == [200, 401, 401, 401]
            assert len(one.app.scopes) + len(two.app.scopes) == len(users)


async def test_of_one_request_sent_many_times_at_once_exactly_one_is_taken(pki: Pki) -> None:
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store) as place:
        octets = request(AS_ID, Client(alice).answer(await place.challenge()))
        answers = await asyncio.gather(*(place.statuses(octets) for _ in range(10)))
        assert sorted(status for each in answers for status in each) == [200] + [401] * 9
        assert await place.statuses(octets.replace(b"Connection: close", b"Connection: Keep-Alive") * 5, ENOUGH) == [401] * 5
        assert len(place.app.scopes) == 1


# ---- another request, another server


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/admin", 400), ("GET", "/notes?all=1", 400), ("GET", "/notes/", 400), ("GET", "/%6eotes", 400), ("GET", "//notes", 400),
        ("GET", "/x/../notes", 400), ("GET", f"https://{AS_ID}/admin", 400), ("DELETE", "/notes", 401), ("HEAD", "/notes", 401),
    ],
)  # fmt: skip
async def test_credentials_that_were_cut_out_fit_no_other_request(pki: Pki, method: str, target: str, status: int) -> None:
    """RFC 7616 §5.4: the relay that holds a request back sends another one with its proof."""
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store) as place:
        for said in (Client(alice).answer(await place.challenge()), first_nonce(Client(alice))):
            assert await place.statuses(request(AS_ID, said, method=method, target=target)) == [status]
            field = (said[0], said[1].replace('uri="/notes"', f'uri="{target}"'))
            assert await place.statuses(request(AS_ID, field, method=method, target=target)) in ([401], [400])
            assert place.app.scopes == []
            assert await place.statuses(request(AS_ID, said)) == [200]  # which cost the victim nothing
            place.app.scopes.clear()


async def test_what_one_server_gets_opens_no_other(pki: Pki) -> None:
    """DESIGN §3: each server name has a key of its own; AS1 sends on what it got, and what it makes of it."""
    store = MemoryKeyStore(began=BEGAN)
    here, there = await pushed(store), await pushed(store, as_id=OTHER_AS)
    async with door(pki, store) as evil, door(pki, store, OTHER_AS) as victim:
        challenge = await victim.challenge()
        theirs = Client(here)
        theirs.realm = challenge.realm  # a client that answers whatever realm AS1 shows it
        attempts = [
            request(OTHER_AS, Client(here).answer(await evil.challenge())),  # passed on
            request(OTHER_AS, Client(here).answer(challenge)),  # over the other's nonce
            request(OTHER_AS, theirs.answer(challenge)),  # in the other's realm
            request(OTHER_AS, first_nonce(Client(here))),
        ]
        assert [await victim.statuses(octets) for octets in attempts] == [[401]] * 4
        assert await victim.statuses(request(AS_ID, Client(here).answer(challenge))) == [421]
        assert victim.app.scopes == []
        assert await victim.welcomes(there)


async def test_a_forger_burns_neither_counts_nor_the_first_nonce_of_a_victim(pki: Pki) -> None:
    """Who has seen key id, nonce and count sends a hundred wrong answers from the victim's own address."""
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store) as place:
        client, challenge = Client(alice), await place.challenge()
        guess = Secret(b"0" * 64)
        forged = [client.answer(challenge, count, ha1=guess) for count in range(1, 95)]
        forged += [client.answer(challenge, count, ha1=guess) for count in (0xFFFFFFFF, 0x80000000, 1)]
        statuses = [await place.statuses(request(AS_ID, said)) for said in forged]
        assert {tuple(each) for each in statuses} <= {(401,), (429,)}
        assert await place.statuses(request(AS_ID, first_nonce(client))) == [200]
        for count in (1, 2, 3):
            assert await place.statuses(request(AS_ID, client.answer(challenge, count))) == [200]


# ---- heads that mean two things


def _smuggled(good: tuple[str, str], bad: tuple[str, str]) -> dict[str, bytes]:
    """Return requests that carry a right proof and something beside it, each of which two readers may read in two ways."""
    name, value = good
    plain = request(AS_ID, good)
    return {
        "two Authorization fields": request(AS_ID, good, bad),
        "the same in another case": request(AS_ID, (name.lower(), value), ("AUTHORIZATION", bad[1])),
        "the same field twice": request(AS_ID, good, good),
        "two credentials in one field": request(AS_ID, (name, f"{value}, {bad[1]}")),
        "a parameter twice": request(AS_ID, (name, f'{value}, username="mallory"')),
        "a parameter twice in another case": request(AS_ID, (name, f"{value}, NC=00000002")),
        "a field name that ends in a blank": plain.replace(b"Authorization:", b"Authorization :"),
        "a NUL in the value": plain.replace(b"Digest ", b"Digest \0"),
        "a bare CR in the value": plain.replace(b", realm", b",\r realm"),
        "two hosts": request(AS_ID, good, ("Host", "evil.example")),
        "no host": plain.replace(f"Host: {AS_ID}\r\n".encode(), b""),
        "two hosts in one": plain.replace(f"Host: {AS_ID}".encode(), f"Host: {AS_ID}, evil.example".encode()),
        "a user in the host": plain.replace(f"Host: {AS_ID}".encode(), f"Host: evil@{AS_ID}".encode()),
    }


SMUGGLED = tuple(_smuggled(("Authorization", ""), ("Authorization", "")))


@pytest.mark.parametrize("trick", SMUGGLED)
async def test_a_head_that_could_mean_two_things_is_refused(pki: Pki, trick: str) -> None:
    store = MemoryKeyStore(began=BEGAN)
    alice, mallory = await pushed(store), await pushed(store, "mallory")
    async with door(pki, store) as place:
        challenge = await place.challenge()
        good, bad = (Client(one).answer(challenge) for one in (alice, mallory))
        statuses = await place.statuses(_smuggled(good, bad)[trick])
        assert len(statuses) == 1
        assert statuses[0] in {400, 401, 421}, statuses
        assert place.app.scopes == []
        assert await place.welcomes(alice)


async def test_a_folded_field_is_read_as_one_value_or_refused(pki: Pki) -> None:
    """RFC 9112 §5.2, obs-fold: what stands on the next line never becomes a field of its own."""
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store) as place:
        name, value = Client(alice).answer(await place.challenge())
        folded = request(AS_ID, (name, value.replace(", realm", ",\r\n realm")))
        hidden = request(AS_ID, ("X-A", f"b\r\n {name}: {value}"))
        statuses = [await place.statuses(octets) for octets in (hidden, folded)]
        assert statuses[0] in ([400], [401])
        assert statuses[1] in ([400], [200])
        assert all(not any(b"\n" in field or b"\n" in text for field, text in scope["headers"]) for scope in place.app.scopes)


INNER = b"GET /stolen HTTP/1.1\r\nHost: " + AS_ID.encode() + b"\r\n\r\n"
FRAMINGS = {
    "length and chunks": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n" + INNER,
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" + INNER,
    "two lengths in one": b"Content-Length: 0, %d\r\n\r\n" + INNER,
    "a signed length": b"Content-Length: +%d\r\n\r\n" + INNER,
    "a length of hex digits": b"Content-Length: 0x%x\r\n\r\n" + INNER,
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n" + INNER,
    "a coding behind chunked": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
    "two codings": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "a name that ends in a blank": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
    "a chunk size that is none": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + INNER,
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + INNER,
    "a bare LF for CRLF": b"Content-Length: 0\nX: y\r\n\r\n" + INNER,
}


@pytest.mark.parametrize("trick", FRAMINGS)
async def test_nothing_behind_a_request_travels_with_its_login(pki: Pki, trick: str) -> None:
    """RFC 9112 §11.2: whatever the body is taken for, a second request has to prove itself; it never does here."""
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store) as place:
        said = Client(alice).answer(await place.challenge(), method="POST")
        framing = FRAMINGS[trick]
        head = request(AS_ID, said, method="POST", end="keep-alive")[:-2]
        statuses = await place.statuses(head + (framing % len(INNER) if b"%" in framing else framing), ENOUGH)
        assert set(statuses) <= {200, 400, 401, 501}
        assert [scope["raw_path"] for scope in place.app.scopes] in ([], [b"/notes"])
        assert await place.welcomes(alice)


# ---- too much, too slow


def _oversized(said: tuple[str, str]) -> dict[str, bytes]:
    name, value = said
    return {
        "a target of 100 kB": request(AS_ID, said, target="/" + "a" * 100_000),
        "a field of 100 kB": request(AS_ID, said, ("X-A", "a" * 100_000)),
        "a field name of 100 kB": request(AS_ID, said, ("X" * 100_000, "a")),
        "20,000 fields": request(AS_ID, said, *[("A", "b")] * 20_000),
        "an Authorization of 5 kB": request(AS_ID, (name, f'{value}, x="{"y" * 5_000}"')),
        "2,000 parameters": request(AS_ID, (name, value + ", a=b" * 500)),
        "a cnonce of 3 kB": request(AS_ID, (name, re.sub('cnonce="[^"]*"', f'cnonce="{"c" * 3_000}"', value))),
        "a username of 3 kB": request(AS_ID, (name, re.sub('username="[^"]*"', f'username="{"u" * 3_000}"', value))),
        "a nonce of 3 kB": request(AS_ID, (name, re.sub('nonce="[^"]*"', f'nonce="{"n" * 3_000}"', value, count=1))),
        "a count of 3,000 digits": request(AS_ID, (name, re.sub("nc=[0-9a-f]*", f"nc={'1' * 3_000}", value))),
        "a head without end": f"GET /notes HTTP/1.1\r\nHost: {AS_ID}\r\nX: ".encode() + b"a" * 2_000_000,
        "a method without end": b"G" * 200_000,
        "a host of 10 kB": request("a" * 10_000, said),
    }  # fmt: skip


@pytest.mark.parametrize("size", _oversized(("Authorization", "")))
async def test_what_is_too_large_is_refused_and_the_door_stands(pki: Pki, size: str) -> None:
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store) as place:
        said = Client(alice).answer(await place.challenge())
        statuses = await place.statuses(_oversized(said)[size])
        assert len(statuses) <= 1  # a connection that is cut may lose its answer
        assert set(statuses) <= {400, 401, 421, 431}
        assert place.app.scopes == []
        assert await place.welcomes(alice)


async def test_a_body_to_be_hashed_is_bounded(pki: Pki) -> None:
    """qop auth-int, where a body is held in memory."""
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    async with door(pki, store, qop=("auth", "auth-int"), max_body=1_000) as place:
        body = b"x" * 200_000
        said = Client(alice).answer(await place.challenge(), method="PUT", qop="auth-int", body=body)
        assert await place.statuses(request(AS_ID, said, method="PUT", body=body)) == [413]
        assert place.app.scopes == []
        assert await place.welcomes(alice)


def _slow(stage: int) -> Sequence[bytes]:
    return (b"", b"GET /no", f"GET /notes HTTP/1.1\r\nHost: {AS_ID}\r\nX: ".encode())[stage : stage + 1]


async def test_slow_clients_hold_up_nobody_and_are_ended(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 connections: TLS begun and left, a request line begun and left, a head begun and left."""
    store = MemoryKeyStore(began=BEGAN)
    alice = await pushed(store)
    monkeypatch.setattr(http_bounds.BoundedHttp, "bounds", http_bounds.Bounds(head=3.0))
    async with door(pki, store) as place:
        silent = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", place.port) for _ in range(100)))
        for _, writer in silent:
            writer.write(b"\x16\x03\x01")  # the beginning of a ClientHello
        slow = []
        for number in range(200):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=pki.trust(), server_hostname=AS_ID)
            writer.writelines(_slow(number % 3))
            slow.append((reader, writer))
        async with asyncio.timeout(PATIENCE):
            assert await place.welcomes(alice)
            for reader, _ in slow:
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    assert await reader.read() == b""
        assert place.admitted() == ["sip:alice@home1.net"]
        for _, writer in (*silent, *slow):
            writer.transport.abort()
