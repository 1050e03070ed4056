# SPDX-License-Identifier: Apache-2.0
"""The UE as a library: what it keeps between two procedures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from keyferry.client.ue import Isim, UeClient, http_credentials, open_ue
from keyferry.errors import ParseError, RegistrationFailed, StateError, TransportError
from keyferry.ports import SipPeer, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, parse_as_id, parse_impi, parse_impu
from keyferry.protocol.ims.marker import RELEASE_TAG
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.ue import BEGUN, UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.observability import StructLog

PROFILE = UeProfile(parse_impi("a@home1.net"), parse_impu("sip:a@home1.net"), "home1.net")
ISIM = Isim("milenage", Secret(bytes(16)), Secret(bytes(16)))
LOG = StructLog("none")


def state(**fields: object) -> UeState:
    """A registered UE's state."""
    base = UeState(
        impi=PROFILE.impi, seq_ms=(0,) * 32, call_id="c", cseq=2, contact="<sip:a@127.0.0.1>", impu=PROFILE.impu, realm="home1.net",
        expires_at=9e9, release_marker=b"3G\x06\x07", masked=True, rspauth=True, k_m=Secret(bytes(32)), gm_keys=None, no_keys_because="",
        associated=(), service_route=(), pinned=(),
    )  # fmt: skip
    return replace(base, **fields)  # type: ignore[arg-type]


def test_credentials_are_those_of_the_key_hierarchy() -> None:
    found = http_credentials(state(), parse_as_id("xcap.home1.net"))
    assert found.username.endswith("@home1.net")
    assert found.realm == "IMS-AS-key@xcap.home1.net"
    assert found.algorithm == "SHA-256"
    assert http_credentials(state(), parse_as_id("notes.home1.net")).username != found.username


def test_without_keys_the_reason_is_said() -> None:
    with pytest.raises(RegistrationFailed, match="Release 5"):
        http_credentials(state(k_m=None, no_keys_because="the S-CSCF is Release 5"), parse_as_id("xcap.home1.net"))


async def test_a_card_with_a_wrong_key_length_is_refused() -> None:
    bad = Isim("milenage", Secret(bytes(15)), Secret(bytes(16)))
    with pytest.raises(ParseError, match="K"):
        async with _opened(MemoryUeStore(), SipPeer("UDP", "127.0.0.1", 9), bad):
            pass


async def test_a_failed_registration_ends_the_keys_and_keeps_the_sequence_numbers() -> None:
    """Invariant S2: no message that comes later makes the old keys good again."""

    async def refuse(request: Request, peer: SipPeer) -> Response:
        del peer
        return make_response(request, 403)

    clock, random, store = SystemClock(), SystemRandom(), MemoryUeStore()
    await store.save(state())
    node = SipNode(name="P-CSCF", clock=clock, random=random, log=LOG, handler=refuse)
    try:
        pcscf = (await node.listen("127.0.0.1", 0))[0]
        async with _opened(store, pcscf) as client:
            with pytest.raises(RegistrationFailed, match="403"):
                await client.register()
    finally:
        await node.aclose()
    kept = await store.load(PROFILE.impi)
    assert kept is not None
    assert kept.k_m is None
    assert kept.no_keys_because == "the last registration failed"


async def test_to_deregister_one_must_have_registered() -> None:
    async with _opened(MemoryUeStore(), SipPeer("UDP", "127.0.0.1", 9)) as client:
        with pytest.raises(RegistrationFailed, match="never registered"):
            await client.deregister()


async def test_a_dead_pcscf_is_a_transport_error() -> None:
    async with _opened(MemoryUeStore(), SipPeer("TCP", "127.0.0.1", 9)) as client:
        with pytest.raises(TransportError):
            await client.register()
        kept = await client.state()
        assert kept is not None
        assert (kept.expires_at, kept.k_m, kept.cseq) == (0.0, None, 1)


async def test_the_keys_of_another_process_are_not_dropped_with_ours() -> None:
    """TS 24.229 §5.1.1.7 ends the registration of a contact; the same device may have registered another one since."""
    store = MemoryUeStore()
    async with _opened(store, SipPeer("UDP", "127.0.0.1", 9)) as client:
        theirs = state(contact="<sip:a@127.0.0.1:1>")
        await store.save(theirs)
        await client.drop_keys("the network ended it")
        assert await store.load(PROFILE.impi) == theirs
        registered = _state_of(client)
        await store.save(registered)
        await client.drop_keys("the network ended it")
        dropped = await store.load(PROFILE.impi)
        assert dropped is not None
        assert (dropped.k_m, dropped.expires_at, dropped.no_keys_because) == (None, 0.0, "the network ended it")


def _state_of(client: UeClient) -> UeState:
    """Return a state of this UE's own contact."""
    ue = client.ue
    stated = f';{RELEASE_TAG}="6"'
    return state(contact=f'<{ue.contact_uri}>;+sip.instance="<{ue.instance}>"{stated}')


async def test_what_another_process_has_begun_is_waited_for() -> None:
    """Between its challenge and its 2xx there are no keys; afterwards there are those of the 2xx, or it was killed."""
    store = MemoryUeStore()
    async with _opened(store, SipPeer("UDP", "127.0.0.1", 9)) as client:
        assert await client.settled() is None
        begun = state(k_m=None, no_keys_because=BEGUN)
        await store.save(begun)
        async with store.alone(PROFILE.impi):
            settled = asyncio.create_task(client.settled())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not settled.done()
            await store.save(state())
        assert await settled == state()
        await store.save(begun)
        assert await client.settled() == begun


async def test_a_procedure_that_gets_no_turn_leaves_the_keys_alone() -> None:
    """They are those of whoever has it."""

    class Busy(MemoryUeStore):
        @asynccontextmanager
        async def alone(self, impi: Impi) -> AsyncIterator[None]:
            if impi:
                raise StateError("ue.lock", f"process 7 has been registering {impi}")
            yield

    store = Busy()
    await store.save(state())
    async with _opened(store, SipPeer("UDP", "127.0.0.1", 9)) as client:
        for procedure in (client.register, client.deregister):
            with pytest.raises(StateError, match="process 7"):
                await procedure()
        assert not client.renewing
    assert await store.load(PROFILE.impi) == state()


def _opened(store: MemoryUeStore, pcscf: SipPeer, isim: Isim = ISIM) -> AbstractAsyncContextManager[UeClient]:
    return open_ue(PROFILE, isim, pcscf=pcscf, store=store, clock=SystemClock(), random=SystemRandom(), log=LOG)
