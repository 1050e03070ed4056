# SPDX-License-Identifier: Apache-2.0
"""Pushes to test with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, KeyId, Reg
from keyferry.protocol.ims import keypush
from keyferry.protocol.ims.keypush import (
    HeldSet,
    Push,
    PushedKey,
    PushOutcome,
    receive,
    valid,
)
from keyferry.protocol.ims.keys import key_id

REALM = "home1.net"
PUSHER = "scscf1.home1.net"
NOW = 1_800_000_000
TRANSPORT_KEY = Secret(bytes(range(64)))


def key(number: int, *, start: int = NOW, life: int = 3_600, realm: str = REALM) -> PushedKey:
    k_as = Secret(bytes([number]) * 32)
    return PushedKey(key_id(k_as, realm), k_as, start, start + life)


def push(seq: int, *keys: PushedKey, **changes: object) -> Push:
    impus = ("sip:user1@home1.net", "tel:+491721") if keys else ()
    made = Push(seq, Impi("user1@home1.net"), AsId("xcap.home1.net"), Reg("AbCdEfGhIjKl"), keys, impus)  # type: ignore[arg-type]
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def nobody(_: KeyId) -> None:
    return None


def take(
    held: HeldSet | None,
    new: Push,
    *,
    pusher: str = PUSHER,
    realm: str = REALM,
    now: float = NOW,
    owner_of: Callable[[KeyId], keypush.Owner | None] = nobody,
) -> PushOutcome:
    return receive(held, new, pusher=pusher, realm=realm, now=now, owner_of=owner_of)


def ids(held: HeldSet, now: float = NOW) -> set[KeyId]:
    return {one.key_id for one in held.keys if valid(one, now)}
