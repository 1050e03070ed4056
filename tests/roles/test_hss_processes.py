# SPDX-License-Identifier: Apache-2.0
"""Two HSS processes on one store: what one does in the middle of what the other does (TS 33.102 annex C.1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyferry.ports import Assignment
from keyferry.protocol.aka import AuthVector, algorithm_of, split_sqn
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.hss import Hss
from keyferry.stores.memory import MemorySubscriberStore
from roles.home import SCSCF, criterion, subscriber
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom

ALICE, ALICE_SIP = Impi("alice@home1.net"), Impu("sip:alice@home1.net")


async def mar(hss: Hss) -> AuthVector:
    return await hss.multimedia_auth(ALICE, ALICE_SIP, SCSCF)


def seq_of(vector: AuthVector) -> int:
    """Return the SEQ that a card finds in AUTN."""
    card = subscriber("alice")
    ak = algorithm_of(card.algorithm, card.k, card.opc).f2345(vector.rand).ak
    return split_sqn(int.from_bytes(vector.autn[:6], "big") ^ int.from_bytes(ak, "big"))[0]


async def test_what_one_reserves_while_the_other_writes_who_challenges_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SEQ that came with the subscriber is used only where nothing was waited for since."""
    store = MemorySubscriberStore()
    await store.add(subscriber("alice"))
    one, other = (Hss(store, {"default": [criterion()]}, SeededRandom(), RecordingLog(), RecordingCounter(), FakeClock()) for _ in range(2))
    await mar(one)
    await store.set_server_name(ALICE, "sip:scscf2.home1.net")
    between: list[AuthVector] = []
    reassign = store.reassign

    async def meanwhile(impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
        written = await reassign(impi, change)
        between.append(await mar(other))
        return written

    monkeypatch.setattr(store, "reassign", meanwhile)
    last = await mar(one)
    assert [seq_of(each) < seq_of(last) for each in between] == [True]
