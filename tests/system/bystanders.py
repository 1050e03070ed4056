# SPDX-License-Identifier: Apache-2.0
"""Ten users who register while somebody attacks: each within a second, and each with a key that works at once.

A test makes a lab with them, serves it, and lets them register under its attack:

    lab = crowded(tmp_path)  # `edit` changes lab.toml besides
    with serving(lab.serve, lab.state) as served:
        async with Bystanders(lab, served).opened() as bystanders:
            await bystanders.register_under(attack)

`attack` is a coroutine function that strikes once. It is called again and again from before the first bystander begins until the last
has used his key. For an attack that runs by itself, a process for example, call `register_all` while it does. `card` and `profile` make
a UE of any number, and `more` makes subscribers without a UE here: those of the attacker, and victims whose messages a test writes itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
from steady import ATTEMPTS, beating
from system.serving import Lab, Served, make_lab

HOME = "home1.net"
NUMBER = 10
WITHIN = 1.0  # seconds that a bystander's registration may take
SLACK = 0.1  # seconds without the processor, after which what a bystander met says nothing of the attack, and he tries again
AS_ID = "notes.home1.net"
OPC = Secret(b"\xab" * 16)


def impi(number: int) -> str:
    """Return the IMPI of a bystander, or of one of the `more`; his only IMPU is this as a SIP URI."""
    return f"bystander{number}@{HOME}"


def card(number: int) -> Isim:
    """Return his card."""
    return Isim("milenage", Secret(number.to_bytes(16, "big")), OPC)


def profile(number: int) -> UeProfile:
    """Return what his UE knows of him."""
    return UeProfile(parse_impi(impi(number)), parse_impu(f"sip:{impi(number)}"), HOME)


def crowded(folder: Path, edit: Callable[[str], str] = str, *, more: int = 0) -> Lab:
    """Write the example's network with the bystanders, and `more` subscribers, whose numbers follow theirs."""

    def with_subscribers(text: str) -> str:
        for number in range(NUMBER + more):
            keys = f'k = "{number:032x}"\nopc = "{OPC.reveal().hex()}"'
            text += f'\n[[subscribers]]\nimpi = "{impi(number)}"\nimpus = ["sip:{impi(number)}"]\n{keys}\n'
        return edit(text)

    return make_lab(folder, with_subscribers)


@dataclass(slots=True)
class Bystanders:
    """The ten, each with a UE of his own on loopback; with `gm` they register over ESP."""

    lab: Lab
    served: Served
    gm: bool = False
    clients: list[UeClient] = field(default_factory=list)
    stores: dict[int, MemoryUeStore] = field(default_factory=dict)  # of cards that several devices have

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Bystanders]:
        """Open their UEs."""
        async with AsyncExitStack() as stack:
            for number in range(NUMBER):
                self.clients.append(await stack.enter_async_context(self.ue(number)))
            yield self

    @asynccontextmanager
    async def ue(self, number: int, *, device: int | None = None) -> AsyncIterator[UeClient]:
        """Open one UE, of a bystander or of the `more`; of several devices with one card, `device` numbers each."""
        pcscf = SipPeer("UDP", "127.0.0.1", self.served.port("pcscf", proto="udp"))
        gm = SipPeer("UDP", "127.0.0.1", self.served.port("pcscf", proto="esp")) if self.gm else None
        store = MemoryUeStore() if device is None else self.stores.setdefault(number, MemoryUeStore())  # one card, one SQN
        instance = None if device is None else f"urn:uuid:00000000-0000-4000-8000-{device:012d}"
        async with open_ue(
            profile(number), card(number), pcscf=pcscf, gm=gm, store=store, clock=SystemClock(), random=SystemRandom(),
            log=StructLog("none"), instance=instance,
        ) as client:  # fmt: skip
            yield client

    async def register_under(self, attack: Callable[[], Awaitable[object]]) -> None:
        """Let them register, one after the other, while the attacker strikes again and again; he has struck once before they begin."""
        await attack()
        going_on = asyncio.ensure_future(_forever(attack))
        try:
            await self.register_all()
            assert not going_on.done(), going_on.exception()  # else it was no attack
        finally:
            going_on.cancel()
            await asyncio.gather(going_on, return_exceptions=True)

    async def register_all(self) -> None:
        """Let each register in turn: within WITHIN, with a key that works at the AS with the first request after the 200."""
        for number in range(NUMBER):
            await self._register(number)

    async def _register(self, number: int) -> None:
        for left in reversed(range(ATTEMPTS)):
            with beating() as heart:
                problem = await self.harm(number)
            if not problem:
                return
            assert heart.lost >= SLACK and left, f"{impi(number)} {problem}"

    async def harm(self, number: int) -> str:
        """Let one bystander register and use his key at once; return what went wrong, "" for nothing."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(WITHIN):
                state = await self.clients[number].register()
        except TimeoutError:
            return f"was not registered within {WITHIN:g} s"
        except KeyferryError as problem:
            return f"was not registered: {problem}"
        took = time.monotonic() - began
        status = await self.status(state)
        return "" if status in {200, 201} else f"got {status} for his first request, {took:.3f} s after he had begun to register"

    async def status(self, state: UeState) -> int:
        """Return how the AS answers the first request with the key of a registration."""
        url = f"https://{AS_ID}:{self.served.port('as', AS_ID, 'https')}/"
        async with open_http(state, url, ca=self.served.ca, hosts={AS_ID: "127.0.0.1"}, random=SystemRandom(), waits=()) as client:
            return (await client.put(url, content=b"mine")).status_code


async def _forever(attack: Callable[[], Awaitable[object]]) -> None:
    while True:
        await attack()
        await asyncio.sleep(0)  # an attack that never waits still leaves the others their turn
