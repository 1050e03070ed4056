# SPDX-License-Identifier: Apache-2.0
"""The suite of ports.SubscriberStore; every implementation runs it with a `store` fixture of its own."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.errors import CxError, StoreError
from keyferry.ports import Assignment, DeregistrationReason, OwedTermination, SubscribedImpu, SubscriberStore, Subscription, ToldEnd
from keyferry.protocol.identity import Impi, Impu
from stores.made import key, subscriber


class SubscriberContract:
    """ports.SubscriberStore."""

    async def test_what_is_added_comes_back(self, store: SubscriberStore) -> None:
        await store.add(subscriber())
        tuak = subscriber(2, algorithm="tuak", k=key("k", 32), opc=key("topc", 32))
        await store.add(tuak)
        assert await store.get(subscriber().impi) == subscriber()
        assert await store.get(tuak.impi) == tuak
        assert await store.get(Impi("nobody@ims.example")) is None

    async def test_all_come_back_by_impi(self, store: SubscriberStore) -> None:
        for number in (3, 1, 2):
            await store.add(subscriber(number))
        assert list(await store.all()) == [subscriber(1), subscriber(2), subscriber(3)]

    async def test_an_impi_is_added_once(self, store: SubscriberStore) -> None:
        await store.add(subscriber())
        with pytest.raises(StoreError, match="there already"):
            await store.add(subscriber(profile="other"))
        assert await store.get(subscriber().impi) == subscriber()

    async def test_an_impu_has_one_subscription(self, store: SubscriberStore) -> None:
        await store.add(subscriber(1))
        taken = subscriber(2, impus=(SubscribedImpu(Impu("sip:new@ims.example")), SubscribedImpu(Impu("sip:user1@ims.example"))))
        for method in (store.add, store.replace):
            with pytest.raises(StoreError):
                await method(taken)
        assert await store.get(taken.impi) is None
        await store.add(subscriber(3, impus=(SubscribedImpu(Impu("sip:new@ims.example")),)))  # the refusal has left nothing behind

    async def test_replacing_keeps_seq_and_server_name(self, store: SubscriberStore) -> None:
        await store.replace(subscriber())
        await store.reserve_seq(subscriber().impi, 1, 64)
        await store.set_server_name(subscriber().impi, "sip:scscf.ims.example")
        changed = subscriber(impus=(SubscribedImpu(Impu("sip:user1@ims.example")),), k=key("new", 16))
        await store.replace(changed)
        assert await store.get(changed.impi) == changed
        assert (await store.seq(changed.impi), await store.server_name(changed.impi)) == (64, "sip:scscf.ims.example")
        await store.add(subscriber(2, impus=(SubscribedImpu(Impu("tel:+15550001")),)))  # the IMPU given up is free

    async def test_the_server_name_and_seq_come_along(self, store: SubscriberStore) -> None:
        one = subscriber()
        assert (await store.for_vector(one.impi), await store.subscription(one.impi)) == (None, None)
        await store.add(one)
        assert await store.for_vector(one.impi) == (one, None, 0)
        assert await store.subscription(one.impi) == Subscription(one.impus, one.profile, None)
        await store.set_server_name(one.impi, "sip:scscf.ims.example")
        await store.reserve_seq(one.impi, 1, 64)
        assert await store.for_vector(one.impi) == (one, "sip:scscf.ims.example", 64)
        assert await store.subscription(one.impi) == Subscription(one.impus, one.profile, "sip:scscf.ims.example")

    async def test_a_subscription_is_that_of_now(self, store: SubscriberStore) -> None:
        await store.add(subscriber())
        await store.subscription(subscriber().impi)
        changed = subscriber(impus=(SubscribedImpu(Impu("sip:new@ims.example"), barred=True),), profile="other")
        await store.replace(changed)
        assert await store.subscription(changed.impi) == Subscription(changed.impus, "other", None)
        await store.remove(changed.impi)
        assert await store.subscription(changed.impi) is None

    async def test_an_identity_names_its_subscriber(self, store: SubscriberStore) -> None:
        await store.add(subscriber(1))
        await store.add(subscriber(2))
        assert await store.of_impu(subscriber(2).impus[0].impu) == subscriber(2).impi
        await store.remove(subscriber(2).impi)
        assert await store.of_impu(subscriber(2).impus[0].impu) is None

    async def test_removing_forgets_everything(self, store: SubscriberStore) -> None:
        impi = subscriber().impi
        await store.add(subscriber())
        await store.reserve_seq(impi, 1, 64)
        await store.set_server_name(impi, "sip:scscf.ims.example")
        assert await store.remove(impi)
        assert not await store.remove(impi)
        assert await store.get(impi) is None
        await store.add(subscriber(2)._replace(impus=subscriber().impus))
        await store.add(subscriber(1, impus=()))
        assert (await store.seq(impi), await store.server_name(impi)) == (0, None)

    async def test_seq_and_server_name_need_a_subscriber(self, store: SubscriberStore) -> None:
        impi = subscriber().impi
        assert (await store.seq(impi), await store.server_name(impi)) == (0, None)
        with pytest.raises(StoreError, match="no such subscriber"):
            await store.reserve_seq(impi, 1, 1)
        with pytest.raises(StoreError, match="no such subscriber"):
            await store.set_server_name(impi, "sip:scscf.ims.example")

    async def test_seq_values_are_reserved_above_all_that_were(self, store: SubscriberStore) -> None:
        impi = subscriber().impi
        await store.add(subscriber())
        assert [await store.reserve_seq(impi, 1, 64), await store.reserve_seq(impi, 2, 64)] == [1, 65]
        assert (await store.seq(impi), await store.reserve_seq(impi, 1000, 10), await store.seq(impi)) == (128, 1000, 1009)
        assert sorted(await asyncio.gather(*(store.reserve_seq(impi, 5, 10) for _ in range(5)))) == list(range(1010, 1060, 10))
        assert (await store.reserve_seq(impi, 7, 2, anew=True), await store.seq(impi)) == (7, 8)

    async def test_a_release_is_kept(self, store: SubscriberStore) -> None:
        await store.add(subscriber(release=6))
        assert await store.get(subscriber().impi) == subscriber(release=6)
        found = await store.subscription(subscriber().impi)
        assert found is not None and found.release == 6
        await store.replace(subscriber())
        assert await store.get(subscriber().impi) == subscriber()

    async def test_the_server_name_is_cleared(self, store: SubscriberStore) -> None:
        await store.add(subscriber())
        await store.set_server_name(subscriber().impi, "sip:scscf.ims.example")
        await store.set_server_name(subscriber().impi, None)
        await store.set_server_name(subscriber().impi, None)
        assert await store.server_name(subscriber().impi) is None

    async def test_an_assignment_is_changed_whole(self, store: SubscriberStore) -> None:
        impi = subscriber().impi
        owed = OwedTermination("sip:b.ims.example", DeregistrationReason.NEW_SERVER_ASSIGNED, "why", 17.5)
        full = Assignment(
            "sip:c.ims.example", "sip:a.ims.example", (owed,), (1 << 65) + 7, 21.5, ToldEnd("sip:d.ims.example", 1 << 65, 3.5)
        )
        assert await store.assignment(impi) == Assignment()
        with pytest.raises(StoreError, match="no such subscriber"):
            await store.reassign(impi, lambda found: full)
        await store.add(subscriber())
        assert await store.reassign(impi, lambda found: full) == (Assignment(), full)
        await store.replace(subscriber(profile="other"))
        assert await store.assignment(impi) == full
        found = await store.subscription(impi)
        assert found is not None
        assert (found.server_name, found.serving) == full[:2]
        await store.set_server_name(impi, None)
        assert await store.reassign(impi, lambda found: found) == (full._replace(server_name=None),) * 2
        await store.remove(impi)
        await store.add(subscriber())
        assert (await store.assignment(impi), await store.owing()) == (Assignment(), {})

    async def test_what_cannot_be_changed_stays_and_says_why(self, store: SubscriberStore) -> None:
        impi, full = subscriber().impi, Assignment("sip:a.ims.example", "sip:a.ims.example")

        def refuse(found: Assignment) -> Assignment:
            assert found == full
            raise CxError(5005, "X")

        await store.add(subscriber())
        await store.reassign(impi, lambda found: full)
        with pytest.raises(CxError):
            await store.reassign(impi, refuse)
        assert await store.assignment(impi) == full

    async def test_changes_at_the_same_time_take_effect_one_after_the_other(self, store: SubscriberStore) -> None:
        impi = subscriber().impi
        await store.add(subscriber())
        await asyncio.gather(
            *(store.reassign(impi, lambda found: found._replace(server_name=(found.server_name or "") + "x")) for _ in range(20))
        )
        assert await store.server_name(impi) == "x" * 20

    async def test_what_is_owed_is_found_by_s_cscf_the_oldest_first(self, store: SubscriberStore) -> None:
        one, other = subscriber(1), subscriber(2)
        rtr = OwedTermination("sip:a.ims.example", DeregistrationReason.PERMANENT_TERMINATION, "", 20.0)
        older, elsewhere = rtr._replace(since=10.0), rtr._replace(server_name="sip:b.ims.example", since=30.0)
        for each, owed in ((one, (elsewhere, rtr)), (other, (older,))):
            await store.add(each)
            await store.reassign(each.impi, lambda found, owed=owed: found._replace(serving="sip:c.ims.example", owed=owed))  # type: ignore[misc]
        assert await store.owing() == {"sip:a.ims.example": 10.0, "sip:b.ims.example": 30.0}
        assert list(await store.owed_to("sip:a.ims.example", 9)) == [(other.impi, older), (one.impi, rtr)]
        assert list(await store.owed_to("sip:a.ims.example", 1)) == [(other.impi, older)]
        assert await store.forget_owed(20.0) == 1
        assert await store.owing() == {"sip:a.ims.example": 20.0, "sip:b.ims.example": 30.0}
        assert (await store.assignment(other.impi)) == Assignment(None, "sip:c.ims.example")

    async def test_who_comes_from_the_file_is_known_until_he_is_removed(self, store: SubscriberStore) -> None:
        one, other, nobody = subscriber(1), subscriber(2), subscriber(3).impi
        await store.add(one)
        await store.add(other)
        assert set(await store.from_file()) == set()
        for _ in range(2):
            await store.note_from_file([one.impi, nobody])
        await store.replace(one._replace(profile="other"))
        assert set(await store.from_file()) == {one.impi}
        assert await store.remove(one.impi)
        await store.add(one)
        assert set(await store.from_file()) == set()
