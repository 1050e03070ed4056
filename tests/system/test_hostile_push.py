# SPDX-License-Identifier: Apache-2.0
"""Pushes that must not be taken, over real sockets against a running network (DESIGN §6 "who may push")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from keyferry.client.http import open_http
from keyferry.client.ue import Isim, UeClient, http_credentials, open_ue
from keyferry.config import Subscriber
from keyferry.lab.demo import demo_config
from keyferry.ports import SipEvent, SipPeer, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, KeyId, Reg, parse_impi, parse_impu
from keyferry.protocol.ims.keypush import Push, PushedKey, SealedPush, open_push, parse_service_info, seal_push
from keyferry.protocol.ims.keys import key_id
from keyferry.protocol.ims.third_party import build_third_party_register, parse_third_party_register
from keyferry.protocol.sip.message import Request, Response, build_message, parse_message
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System

XCAP = AsId("xcap.home1.net")
SCSCF = "scscf1.home1.net"


@dataclass(slots=True)
class Town:
    """A network that runs, two devices of one user, and everything that was sent."""

    system: System
    phone: UeClient
    tablet: UeClient
    events: list[SipEvent]
    _count: int = field(default=0)

    def transport_key(self) -> Secret:
        """Return what seals the pushes to the XCAP server: a test may hold it, a stranger does not."""
        return list(self.system.state.isc_keys(SCSCF, XCAP).values())[-1]

    def sealed(self) -> list[SealedPush]:
        """Return the blocks that the S-CSCF sent to the XCAP server."""
        requests = (
            event.message for event in self.events if event.node == "S-CSCF" and event.outgoing and isinstance(event.message, Request)
        )
        blocks = [parse_service_info(parse_third_party_register(request).service_info or "") for request in requests if request.body]
        return [block for block in blocks if isinstance(block, SealedPush) and block.as_id == XCAP]

    def push(self) -> Push:
        """Return the last push, opened."""
        return open_push(self.sealed()[-1], self.transport_key())

    async def send(self, info: str | None, *, expires: int = 600, impu: str = "sip:a@home1.net", scscf: str = SCSCF) -> int:
        """Send a third-party REGISTER from a socket of our own and return the status."""
        self._count += 1
        request = build_third_party_register(
            server_name="sip:xcap-as.home1.net", scscf_uri=f"sip:{scscf}", impu=impu, expires=expires, cseq=1,
            call_id=f"hostile{self._count}",             from_tag="t", service_info=info,
        )  # fmt: skip
        target = next(one for one in self.system.listeners if one.name == XCAP and one.proto == "tcp")
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(build_message(request.prepending("Via", f"SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bKhostile{self._count}")))
        answer = parse_message(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10))
        writer.close()
        assert isinstance(answer, Response)
        return answer.status

    def reseal(self, push: Push, *, key: Secret | None = None, scscf: str = SCSCF, kid: str = "t1") -> str:
        """Seal a push, as the S-CSCF would."""
        return seal_push(push, transport_key=key or self.transport_key(), scscf=scscf, kid=kid)

    def refused(self, reason: str) -> float:
        """Return how many pushes were refused for a reason."""
        return self.system.metrics.value("as_pushes_refused", reason)

    async def opens(self, state: UeState) -> bool:
        """Tell whether a UE's key opens the XCAP door, over HTTPS."""
        port = next(one.port for one in self.system.listeners if one.name == XCAP and one.proto == "https")
        url = f"https://{XCAP}:{port}/simservs.ngn.etsi.org/users/sip:a@home1.net/simservs.xml"
        hosts = {str(XCAP): "127.0.0.1"}
        async with open_http(state, url, ca=self.system.pki.ca_file, hosts=hosts, random=self.system.random, waits=()) as client:
            return (await client.get(url)).status_code == 200


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Town]:
    """Start the network and register both devices."""
    random, clock, log = SystemRandom(), SystemClock(), StructLog("none")
    k, opc = Secret(random.octets(16)), Secret(random.octets(16))
    card = Isim("milenage", k, opc)
    events: list[SipEvent] = []
    async with AsyncExitStack() as stack:
        state = stack.enter_context(open_state(folder / "state", random=random))
        settings = Subscriber(impi="a@home1.net", impus=["sip:a@home1.net", "tel:+15550100"], k=k, opc=opc)
        system = System(demo_config("short", [settings]), state, clock, random, log, Metrics(), observer=events.append)
        stack.push_async_callback(system.stop)
        pcscf = next(one for one in await system.start() if (one.role, one.proto) == ("pcscf", "udp"))
        profile = UeProfile(parse_impi("a@home1.net"), parse_impu("sip:a@home1.net"), "home1.net")
        store = MemoryUeStore()  # one card in two devices in turn: both draw on the same sequence numbers
        devices = []
        for number in (1, 2):
            hop = SipPeer("UDP", pcscf.host, pcscf.port)
            ue = await stack.enter_async_context(open_ue(profile, card, pcscf=hop, store=store, clock=clock, random=random, log=log))
            ue.ue.instance = f"urn:uuid:00000000-0000-4000-8000-00000000000{number}"
            devices.append(ue)
        yield Town(system, devices[0], devices[1], events)


@pytest.fixture(name="town")
async def town_fixture(tmp_path: Path) -> AsyncIterator[Town]:
    """A network with the phone registered."""
    async with opened(tmp_path) as town:
        await town.phone.register()
        yield town


async def state_of(device: UeClient) -> UeState:
    """Return a device's state."""
    state = await device.state()
    assert state is not None
    return state


async def test_what_a_stranger_pushes_is_refused_counted_and_changes_nothing(town: Town) -> None:
    """DESIGN §6: unlisted peer, seal that does not open, unknown kid, plain block, another AS."""
    state, push = await state_of(town.phone), town.push()
    newer = replace(push, seq=push.seq + 1)
    stranger = Secret(bytes(64))
    assert await town.send(town.reseal(newer, scscf="scscf9.home1.net"), scscf="scscf9.home1.net") == 403
    assert await town.send(town.reseal(newer, key=stranger)) == 403
    assert await town.send(town.reseal(newer, kid="t9")) == 403
    assert await town.send(town.reseal(replace(newer, as_id=AsId("notes.home1.net")))) == 403
    assert await town.send(None, expires=0) == 200
    assert await town.send("<kf:push xmlns:kf='urn:keyferry:isc:1'/>") in {400, 403}
    assert {reason: town.refused(reason) for reason in ("pusher", "seal", "kid", "as")} == dict.fromkeys(
        ("pusher", "seal", "kid", "as"), 1.0
    )
    assert town.system.metrics.value("as_pushes", "unproven-end") == 1  # and it ended nothing:
    assert await town.opens(state)


async def test_what_the_s_cscf_itself_may_not_push_is_refused_and_counted(town: Town) -> None:
    """DESIGN §6: a key re-bound to another IMPI, a key id that is not its key's, another home's identity; and a lower seq is ignored."""
    state, push = await state_of(town.phone), town.push()
    newer = replace(push, seq=push.seq + 1)
    assert await town.send(town.reseal(replace(newer, impi=Impi("b@home1.net")))) == 403
    assert town.refused("rebound") == 1
    assert await town.send(town.reseal(replace(newer, reg=Reg("AAAAAAAAAAAA")))) == 403
    assert town.refused("rebound") == 2
    wrong = PushedKey(KeyId("A" * 24 + "@home1.net"), push.keys[0].k_as, push.keys[0].not_before, push.keys[0].not_after)
    assert await town.send(town.reseal(replace(newer, keys=(wrong,)))) == 403
    assert town.refused("key-id") == 1
    foreign = push.keys[0]._replace(key_id=key_id(push.keys[0].k_as, "home2.net"))
    assert await town.send(town.reseal(replace(newer, keys=(foreign,)))) == 403
    assert town.refused("realm") == 1
    assert await town.send(town.reseal(replace(newer, impus=(parse_impu("sip:a@home1.net"), parse_impu("sip:b@home2.net"))))) == 403
    assert await town.send(town.reseal(replace(push, seq=push.seq - 1, keys=(), impus=()))) == 200
    assert town.system.metrics.value("as_pushes", "stale") == 1
    assert await town.opens(state)


async def test_two_devices_of_one_user_keep_their_own_keys(town: Town) -> None:
    """DESIGN §6: a set for each (impi, as, reg)."""
    phone = await state_of(town.phone)
    tablet = await town.tablet.register()
    assert http_credentials(phone, XCAP).username != http_credentials(tablet, XCAP).username
    assert await town.opens(phone)
    assert await town.opens(tablet)
    await town.tablet.deregister()
    assert await town.opens(phone)
    assert not await town.opens(tablet)


async def test_a_push_held_back_past_a_deregistration_revives_nothing(town: Town) -> None:
    """DESIGN §6: a tombstone keeps the count."""
    state, held_back = await state_of(town.phone), town.sealed()[-1]
    push = open_push(held_back, town.transport_key())
    assert await town.opens(state)
    await town.phone.deregister()
    assert not await town.opens(state)
    assert await town.send(town.reseal(push)) == 200
    assert town.system.metrics.value("as_pushes", "stale") == 1
    assert not await town.opens(state)
