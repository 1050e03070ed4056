# SPDX-License-Identifier: Apache-2.0
"""Requests of connections that proved a key in TLS, closely: admitted as long as the key is there (DESIGN §7)."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from asgi.doorkit import ALICE, AS_ID, BOB, Client, Door, call, make_door, record
from keyferry.errors import SealError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Reg
from keyferry.protocol.ims.key_record import KeyRecord, PskProof
from keyferry.protocol.ims.keys import UA_TLS13_PSK
from transports.pskkit import Connection, context_of, make_psk_door, psk_serving

HELD, OTHER = record("alice"), record("bob", BOB)


def proof_of(held: KeyRecord, source: str = "ims-as-key") -> PskProof:
    """Return what our HTTP protocol class says of a connection."""
    return PskProof(held, source, UA_TLS13_PSK, "TLS_AES_128_GCM_SHA256")


def psk(held: KeyRecord = HELD, source: str = "ims-as-key") -> dict[str, Any]:
    """Return what such a connection adds to each scope."""
    return {"keyferry.psk": proof_of(held, source)}


async def test_a_request_needs_no_proof_of_its_own_and_the_source_is_told_once() -> None:
    door = make_door(HELD)
    for _ in range(3):
        answer = await call(door.door, **psk())
        assert (answer.status, answer.body.decode()) == (200, ALICE[0])
        assert answer.get("authentication-info") is None
    identity = door.app.scopes[0]["keyferry"]
    assert (identity.impus, identity.key_id, identity.mechanism) == (ALICE, HELD.key_id, "psk")
    assert door.keys.told == [HELD.key_id]
    assert door.counter.seen == ["door granted"] * 3


async def test_a_superseded_key_is_admitted_and_ends_no_other() -> None:
    """DESIGN §6: the older key of a device, while the newer one is not yet used."""
    older = record("alice", superseded=True)
    door = make_door(older)
    assert (await call(door.door, **psk(older))).status == 200
    assert door.keys.told == []
    door.keys.records[older.key_id] = HELD
    assert (await call(door.door, **psk(older))).status == 200
    assert door.keys.told == [HELD.key_id]


async def test_a_key_that_went_ends_its_connections() -> None:
    """De-registered, retired or over: the connection lives on, and the next request of it does not."""
    door = make_door(HELD)
    assert (await call(door.door, **psk())).status == 200
    del door.keys.records[HELD.key_id]
    answer = await call(door.door, **psk())
    assert (answer.status, answer.get("connection")) == (401, "close")
    assert answer.challenge().realm == "IMS-AS-key@xcap.home1.net"  # RFC 9110 §11.6.1: a 401 has one
    assert b"open another" in answer.body
    door.keys.records[HELD.key_id] = HELD
    assert (await call(door.door, **psk())).status == 200
    assert door.keys.told == [HELD.key_id] * 2


@pytest.mark.parametrize(
    "now",
    [
        HELD._replace(k_as=Secret(b"n" * 32)),
        HELD._replace(impi=OTHER.impi),
        HELD._replace(reg=Reg("BBBBBBBBBBBB")),
        HELD._replace(impus=()),
        HELD._replace(key_id=OTHER.key_id),
        HELD._replace(as_id=AsId("notes.home1.net")),
    ],
    ids=["another key", "another user", "another device", "nobody", "another name", "another AS"],
)
async def test_a_record_that_is_another_one_by_now_is_not_what_was_proved(now: KeyRecord) -> None:
    door = make_door(HELD)
    door.keys.records[HELD.key_id] = now
    assert (await call(door.door, **psk())).status == 401
    assert door.app.scopes == []


async def test_names_of_the_user_are_those_of_now() -> None:
    door = make_door(HELD)
    door.keys.records[HELD.key_id] = HELD._replace(impus=ALICE[1:])
    assert (await call(door.door, **psk())).body.decode() == ALICE[1]


@pytest.mark.parametrize("host", ["notes.home1.net", "xcap.home1.net.evil", "127.0.0.1", None])
async def test_the_host_of_another_as_is_misdirected(host: str | None) -> None:
    """RFC 9110 §15.5.20."""
    door = make_door(HELD)
    assert (await call(door.door, host=host, **psk())).status == (421 if host else 400)
    assert door.app.scopes == []


async def test_a_key_of_another_as_is_misdirected_whatever_the_host_says() -> None:
    elsewhere = record("alice", as_id=AsId("notes.home1.net"))
    door = make_door(HELD)
    assert (await call(door.door, **psk(elsewhere))).status == 421
    assert (await call(door.door, **psk(HELD, source="gba"))).status == 421
    assert door.keys.asked == []
    assert door.app.scopes == []


async def test_over_plain_http_nothing_is_believed() -> None:
    assert (await call(make_door(HELD).door, scheme="http", **psk())).status == 403


async def test_digest_over_such_a_connection_changes_nothing() -> None:
    door: Door = make_door(HELD, OTHER)
    answer = Client(OTHER).answer(await door.challenge())
    assert (await call(door.door, headers=[answer], **psk())).body.decode() == ALICE[0]


async def test_an_open_path_is_open_to_this_host_alone_and_ends_with_the_key() -> None:
    door = make_door(HELD, open=("/notes",))
    assert (await call(door.door, **psk())).body.decode() == ALICE[0]
    assert (await call(door.door, host="notes.home1.net", **psk())).status == 421
    del door.keys.records[HELD.key_id]
    assert (await call(door.door, **psk())).status == 401


@pytest.mark.parametrize("failing", ["lookup_fails", "used_fails"])
async def test_a_store_that_fails_is_said(failing: str) -> None:
    door = make_door(HELD)
    setattr(door.keys, failing, True)
    door.keys.problem = SealError("a row was changed")
    assert (await call(door.door, **psk())).status == 503
    assert door.app.scopes == []


@pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")
@pytest.mark.parametrize("version", ["1.3", "1.2"])
async def test_from_the_socket_to_the_application(version: str) -> None:
    door = make_door(HELD, OTHER)
    listener = make_psk_door(version=version, as_id=AS_ID)  # type: ignore[arg-type]
    object.__setattr__(listener, "by_prefix", {"IMS-AS-key": door.keys})
    async with psk_serving(listener, door.door) as port:
        alice = await Connection.open(port, context_of(HELD, version))  # type: ignore[arg-type]
        bob = await Connection.open(port, context_of(OTHER, version))  # type: ignore[arg-type]
        assert (await alice.get())[::2] == (200, ALICE[0])
        assert (await bob.get())[::2] == (200, BOB[0])
        assert (await bob.get(host="notes.home1.net"))[0] == 421
        assert (await bob.get(host=f"{AS_ID}:8453"))[0] == 200
        del door.keys.records[OTHER.key_id]
        status, headers, _ = await bob.get()
        assert (status, headers["connection"]) == (401, "close")
        assert await bob.ended()
        assert (await alice.get())[::2] == (200, ALICE[0])
        await alice.close()
        await bob.close()
    assert door.keys.told == [HELD.key_id, OTHER.key_id]
