# SPDX-License-Identifier: Apache-2.0
"""The suite of ports.UeStore; every implementation runs it with a `store` fixture of its own."""

from __future__ import annotations

import asyncio

from keyferry.ports import UeStore
from stores.contract import OTHER_IMPI
from stores.made import IMPI, ue_state


class UeContract:
    """ports.UeStore."""

    async def test_the_state_comes_back(self, store: UeStore) -> None:
        odd = b"\xff".decode("utf-8", "surrogateescape")
        assert await store.load(IMPI) is None
        for state in (
            ue_state(),
            ue_state(contact=odd, associated=(odd,), service_route=(odd, "")),
            ue_state(k_m=None, gm_keys=None, no_keys_because="the network is Release 5", associated=(), service_route=(), pinned=()),
        ):
            await store.save(state)
            assert await store.load(IMPI) == state

    async def test_ues_are_apart(self, store: UeStore) -> None:
        await store.save(ue_state())
        await store.save(ue_state(impi=OTHER_IMPI, cseq=9))
        assert await store.load(IMPI) == ue_state()
        assert await store.load(OTHER_IMPI) == ue_state(impi=OTHER_IMPI, cseq=9)

    async def test_sequence_numbers_never_go_down_whoever_writes_last(self, store: UeStore) -> None:
        """TS 33.102 annex C.2.2: all else is that of the last writer."""
        low, high = (3, 9, *(1,) * 30), (5, 2, *(1,) * 30)
        for seq_ms in (low, high, low):
            await store.save(ue_state(seq_ms=seq_ms, cseq=seq_ms[0]))
        assert await store.load(IMPI) == ue_state(seq_ms=(5, 9, *(1,) * 30), cseq=3)

    async def test_one_procedure_of_a_ue_at_a_time(self, store: UeStore) -> None:
        """Of another UE at any time."""
        done: list[str] = []

        async def procedure(name: str) -> None:
            async with store.alone(IMPI):
                done.append(f"{name} begins")
                for _ in range(3):
                    await asyncio.sleep(0)
                done.append(f"{name} ends")

        async with store.alone(IMPI):
            waiting = [asyncio.create_task(procedure(name)) for name in ("a", "b")]
            async with store.alone(OTHER_IMPI):
                await asyncio.sleep(0)
            assert done == []
        await asyncio.gather(*waiting)
        first, second = ("a", "b") if done[0] == "a begins" else ("b", "a")
        assert done == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
