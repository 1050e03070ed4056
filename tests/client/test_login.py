# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5 step 6: a login that follows the registration from key to key."""

from __future__ import annotations

import httpx
import pytest

from asgi.doorkit import FakeClock, FakeRandom, make_door, record
from client.test_ue import PROFILE, state
from keyferry.client.login import UeLogin
from keyferry.client.ue import UeClient
from keyferry.errors import LocalProtocolError, RegistrationFailed
from keyferry.ports import KeyRecord, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id
from keyferry.protocol.ims import keys as ims_keys
from keyferry.stores.memory import MemoryUeStore

XCAP = parse_as_id("xcap.home1.net")
URL = "https://xcap.home1.net/notes"
LIFE = 1_900_000_000.0


class Card:
    """Stands for the role behind a UeClient, which these tests do not register."""

    profile = PROFILE
    security = None


def held(registered: UeState) -> KeyRecord:
    assert registered.k_m is not None
    k_as = ims_keys.as_key(registered.k_m, XCAP)
    return record()._replace(key_id=ims_keys.key_id(k_as, registered.realm), k_as=k_as)


async def client_with(kept: UeState | None) -> UeClient:
    store = MemoryUeStore()
    if kept is not None:
        await store.save(kept)
    return UeClient(Card(), store, FakeClock())  # type: ignore[arg-type]


async def test_every_request_uses_the_key_of_the_registration_of_the_moment() -> None:
    old, new = state(expires_at=LIFE), state(expires_at=LIFE, k_m=Secret(b"n" * 32))
    door = make_door(held(old), held(new))
    client = await client_with(old)
    login = UeLogin(client, XCAP, FakeRandom("client"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door.door), auth=login) as http:
        assert (await http.get(URL)).status_code == 200
        await client.store.save(new)
        assert (await http.get(URL)).status_code == 200
    assert door.keys.told == [held(old).key_id, held(new).key_id]
    assert [await client.store.claim_first(held(each).key_id, 0.0) for each in (old, new)] == [False, False]


async def test_while_a_registration_is_under_way_the_key_before_it_is_used() -> None:
    """DESIGN §6: it is good until the new one is used."""
    old = state(expires_at=LIFE)
    door = make_door(held(old))
    client = await client_with(old)
    login = UeLogin(client, XCAP, FakeRandom("client"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door.door), auth=login) as http:
        assert (await http.get(URL)).status_code == 200
        await client.store.save(state(expires_at=LIFE, k_m=None, no_keys_because="a registration was begun and not finished"))
        async with client.turn:
            client.renewing = True
            assert (await http.get(URL)).status_code == 200
        client.renewing = False
        with pytest.raises(RegistrationFailed, match="begun and not finished"):
            await http.get(URL)


async def test_while_it_waits_for_its_turn_the_keys_of_another_process_are_used() -> None:
    """Once they are, the AS does not take the ones before any more (DESIGN §6)."""
    old, new = state(expires_at=LIFE), state(expires_at=LIFE, k_m=Secret(b"n" * 32))
    door = make_door(held(old), held(new))
    client = await client_with(old)
    login = UeLogin(client, XCAP, FakeRandom("client"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door.door), auth=login) as http:
        assert (await http.get(URL)).status_code == 200
        async with client.turn:
            client.renewing = True
            await client.store.save(new)
            assert (await http.get(URL)).status_code == 200
    assert door.keys.told == [held(old).key_id, held(new).key_id]


@pytest.mark.parametrize(
    ("kept", "why"),
    [(None, "not registered"), (state(expires_at=0.0), "not registered"), (state(expires_at=1.0), "expired"),
     (state(expires_at=LIFE, k_m=None, no_keys_because="Release 5"), "Release 5")],
)  # fmt: skip
async def test_without_a_registration_nothing_is_sent(kept: UeState | None, why: str) -> None:
    door = make_door()
    login = UeLogin(await client_with(kept), XCAP, FakeRandom("client"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door.door), auth=login) as http:
        with pytest.raises(RegistrationFailed, match=why):
            await http.get(URL)
    assert door.counter.seen == []


async def test_the_key_goes_to_its_own_host_alone() -> None:
    login = UeLogin(await client_with(state(expires_at=LIFE)), XCAP, FakeRandom("client"))
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200)), auth=login) as http:
        for url in ("http://xcap.home1.net/", "https://notes.home1.net/"):
            with pytest.raises(LocalProtocolError):
                await http.get(url)


async def test_a_ue_that_wants_bodies_proven_signs_them() -> None:
    """RFC 7616 §3.5: integrity, from the first request on."""
    kept = state(expires_at=LIFE)
    door = make_door(held(kept), qop=("auth", "auth-int"))
    login = UeLogin(await client_with(kept), XCAP, FakeRandom("client"), integrity=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door.door), auth=login) as http:
        assert (await http.put(URL, content=b"x")).extensions["keyferry.qop"] == "auth-int"
    assert door.counter.seen == ["door challenge", "door granted"]


async def test_a_synchronous_client_is_told_so() -> None:
    login = UeLogin(await client_with(None), XCAP, FakeRandom("client"))
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200)), auth=login) as http, pytest.raises(LocalProtocolError):
        http.get(URL)
