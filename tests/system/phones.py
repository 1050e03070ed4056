# SPDX-License-Identifier: Apache-2.0
"""UEs at a network of real processes, and what they may rely on once it was acknowledged (DESIGN §5 step 4, §6, §8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from keyferry.client.http import open_http
from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.ports import SipPeer, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import StructLog
from system.serving import Lab, Served

UES = 4
KEY_LIMIT = 60.0  # seconds in which the AS of an acknowledged registration must know its key: 5 on a machine that has time
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
        """Store the next document; a 200 does not wait for ever for the AS to have the key."""
        self.puts += 1
        self.asked = document_of(self.number, self.puts)
        response, deadline = await self.request("PUT", self.asked), time.monotonic() + KEY_LIMIT
        while response.status_code == 401 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            response = await self.request("PUT", self.asked)
        if response.is_success:
            self.stored, self.asked = self.asked, None

    async def request(self, method: str, body: bytes | None = None) -> httpx.Response:
        """Send one request with the key of the last acknowledged registration, over a connection of its own."""
        assert self.registered is not None
        headers = {"Content-Type": "application/vnd.etsi.simservs+xml"} if body else {}
        async with open_http(self.registered, self.url, ca=self.ca, hosts={HOST: "127.0.0.1"}, random=SystemRandom()) as client:
            return await client.request(method, self.url, content=body, headers=headers)


async def check_acknowledged(phones: list[Phone]) -> None:
    """Check that each UE's acknowledged registration has its key at the AS, KEY_LIMIT seconds from now at the latest, and its document."""
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
async def open_phones(lab: Lab, served: Served, stores: list[MemoryUeStore], before: list[Phone]) -> AsyncIterator[list[Phone]]:
    """Open a UE for each store; each remembers what it was told `before`."""
    async with AsyncExitStack() as stack:
        phones = []
        for number, store in enumerate(stores):
            impi, impu, k, opc = subscriber_of(number)
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


def subscriber_of(number: int) -> tuple[str, str, Secret, Secret]:
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


def with_subscribers(text: str) -> str:
    """Add the subscribers to a lab.toml that has the first."""
    for number in range(1, UES):
        impi, impu, k, opc = subscriber_of(number)
        keys = f'k = "{k.reveal().hex()}"\nopc = "{opc.reveal().hex()}"'
        text += f'\n[[subscribers]]\nimpi = "{impi}"\nimpus = ["{impu}"]\n{keys}\n'
    return text


def document_of(number: int, version: int) -> bytes:
    """Return a document that no other UE stores, nor the same one again."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap">\n'
        f"  <!-- UE {number}, version {version} -->\n"
        '  <communication-waiting active="true"/>\n</simservs>\n'
    ).encode()
