# SPDX-License-Identifier: Apache-2.0
"""kill -9 of a whole network at work: what was answered 2xx is there afterwards (DESIGN §5 step 4, §6, §8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from keyferry.client.http import open_http
from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.errors import KeyferryError
from keyferry.ports import SipPeer, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import StructLog
from system.serving import Lab, Served, make_lab, serving

UES = 4
ROUNDS = (3, 8, 15)  # acknowledgements after which the process is killed: early, in the middle, later
KEY_LIMIT = 5.0  # seconds in which the AS of an acknowledged registration must know its key
WORK_LIMIT = 30.0  # seconds in which a round must reach its number
HOST = "xcap.home1.net"


@dataclass(slots=True)
class Phone:
    """A UE, what it was told, and what it has asked for and not heard of."""

    number: int
    client: UeClient
    ca: Path
    port: int
    registered: UeState | None = None  # the last one answered 200
    stored: bytes | None = None  # the last document answered 2xx
    asked: bytes | None = None  # the document of a PUT without an answer
    puts: int = 0

    @property
    def url(self) -> str:
        """Return where this user's settings are."""
        return f"https://{HOST}:{self.port}/simservs.ngn.etsi.org/users/{self.client.ue.profile.impu}/simservs.xml"

    async def register(self) -> None:
        """Register: new keys."""
        self.registered = await self.client.register()

    async def put(self) -> None:
        """Store the next document."""
        self.puts += 1
        self.asked = _document(self.number, self.puts)
        response = await self.request("PUT", self.asked)
        if response.is_success:
            self.stored, self.asked = self.asked, None

    async def request(self, method: str, body: bytes | None = None) -> httpx.Response:
        """Send one request with the key of the last acknowledged registration, over a connection of its own."""
        assert self.registered is not None
        headers = {"Content-Type": "application/vnd.etsi.simservs+xml"} if body else {}
        async with open_http(self.registered, self.url, ca=self.ca, hosts={HOST: "127.0.0.1"}, random=SystemRandom()) as client:
            return await client.request(method, self.url, content=body, headers=headers)


@dataclass(slots=True)
class Work:
    """The acknowledgements of one round."""

    wanted: int
    done: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def acknowledged(self) -> None:
        """Count one."""
        self.done += 1
        if self.done >= self.wanted:
            self.enough.set()


async def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    """Every registration answered 200 has its key at the AS, and every PUT answered 2xx is there with its content."""
    lab = make_lab(tmp_path, _with_subscribers)
    stores = [MemoryUeStore() for _ in range(UES)]
    before: list[Phone] = []
    for wanted in ROUNDS:
        with serving(lab.serve, lab.state) as served:
            async with _phones(lab, served, stores, before) as phones:
                await _check(phones)
                await _work_until_killed(phones, served, wanted)
                before = phones
        assert sum(phone.registered is not None for phone in before) >= 1
    with serving(lab.serve, lab.state) as served:
        async with _phones(lab, served, stores, before) as phones:
            await _check(phones)
            assert any(phone.stored for phone in phones)
            # and the network goes on: every UE registers, and the new key works
            for phone in phones:
                await phone.register()
                assert (await phone.request("GET")).status_code == 200
            registrations = served.health()["registrations"]
        assert registrations == UES


async def test_an_acknowledged_push_that_never_left_is_delivered_after_the_restart(tmp_path: Path) -> None:
    """DESIGN §6: at least once. The AS is away when the UE registers and the S-CSCF is killed; the push is owed in the store."""
    lab = make_lab(tmp_path)
    network = ("--role", "pcscf", "--role", "icscf", "--role", "scscf", "--role", "admin")
    with serving(lab.serve, lab.state, *network) as served:
        async with _phones(lab, served, [MemoryUeStore()], []) as phones:
            await phones[0].register()
            served.kill()
    with serving(lab.serve, lab.state) as served:
        async with _phones(lab, served, [MemoryUeStore()], phones) as again:
            await _check(again)


async def _work_until_killed(phones: list[Phone], served: Served, wanted: int) -> None:
    work = Work(wanted)
    tasks = [asyncio.create_task(_work(phone, work)) for phone in phones]
    try:
        await asyncio.wait_for(work.enough.wait(), WORK_LIMIT)
        served.kill()  # blocks this loop: what the tasks hear afterwards was sent before
    finally:
        # An answer that the kernel still holds counts: let the tasks read it, then end those that wait for more.
        await asyncio.wait(tasks, timeout=0.2)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [problem for problem in ended if not isinstance(problem, (httpx.HTTPError, KeyferryError, asyncio.CancelledError))]
    assert unexpected == []


async def _work(phone: Phone, work: Work) -> None:
    """Register and store, again and again, until the network is gone."""
    while True:
        await phone.register()
        work.acknowledged()
        for _ in range(2):
            await phone.put()
            assert phone.asked is None, "a PUT with an acknowledged key is answered 2xx"
            work.acknowledged()


async def _check(phones: list[Phone]) -> None:
    deadline = time.monotonic() + KEY_LIMIT
    for phone in phones:
        if phone.registered is None:
            continue
        response = await phone.request("GET")
        while response.status_code == 401 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            response = await phone.request("GET")
        assert response.status_code == 200, f"UE {phone.number}'s key is not at the AS"
        if phone.stored is not None:
            assert response.content in (phone.stored, phone.asked), f"UE {phone.number}'s document is not the one acknowledged"
        # A PUT that was cut off may have been stored or not; what is there now is what a later check must find.
        phone.stored, phone.asked = response.content, None


@asynccontextmanager
async def _phones(lab: Lab, served: Served, stores: list[MemoryUeStore], before: list[Phone]) -> AsyncIterator[list[Phone]]:
    """Open the UEs of a round; each remembers what it was told in the round before."""
    async with AsyncExitStack() as stack:
        phones = []
        for number, store in enumerate(stores):
            impi, impu, k, opc = _subscriber(number)
            opened = open_ue(
                UeProfile(parse_impi(impi), parse_impu(impu), "home1.net"), Isim("milenage", k, opc),
                pcscf=SipPeer("UDP", "127.0.0.1", lab.ports["5060"]), store=store, clock=SystemClock(), random=SystemRandom(),
                log=StructLog("none"),
            )  # fmt: skip
            client = await stack.enter_async_context(opened)
            phone = Phone(number, client, served.ca, lab.ports["8443"])
            if before:
                old = before[number]
                phone.registered, phone.stored, phone.asked, phone.puts = old.registered, old.stored, old.asked, old.puts
            phones.append(phone)
        yield phones


def _subscriber(number: int) -> tuple[str, str, Secret, Secret]:
    """Return IMPI, IMPU, K and OPc; the first is the first subscriber of examples/lab.toml."""
    if number == 0:
        k, opc = "465b5ce8b199b49faa5f0a2ee238a6bc", "cd63cb71954a9f4e48a5994e37a02baf"
        return "user1_private@home1.net", "sip:user1_public1@home1.net", Secret(bytes.fromhex(k)), Secret(bytes.fromhex(opc))
    return (
        f"more{number}_private@home1.net",
        f"sip:more{number}@home1.net",
        Secret(bytes([number] * 16)),
        Secret(bytes([number + 100] * 16)),
    )


def _with_subscribers(text: str) -> str:
    for number in range(1, UES):
        impi, impu, k, opc = _subscriber(number)
        keys = f'k = "{k.reveal().hex()}"\nopc = "{opc.reveal().hex()}"'
        text += f'\n[[subscribers]]\nimpi = "{impi}"\nimpus = ["{impu}"]\n{keys}\n'
    return text


def _document(number: int, version: int) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap">\n'
        f"  <!-- UE {number}, version {version} -->\n"
        '  <communication-waiting active="true"/>\n</simservs>\n'
    ).encode()
