# SPDX-License-Identifier: Apache-2.0
"""One suite per port; every implementation runs it with a `store` fixture of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyferry.errors import PushRefused
from keyferry.ports import (
    AsStore,
    Document,
    DocumentStore,
    KeyRecord,
    KeyStore,
    OwedEnd,
    RegistrationStore,
    ServerAssignment,
)
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId
from keyferry.protocol.ims.keypush import GRACE, MAX_AHEAD, MAX_KEY_LIFE, Push, PushOutcome
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from stores.made import (
    AS_ID,
    IMPI,
    IMPU,
    NOW,
    OTHER_REG,
    PUSHER,
    REALM,
    REG,
    TEL,
    key,
    pending,
    push,
    pushed_key,
    registration,
)

OTHER_IMPI = Impi("001010000000002@ims.example")


class RegistrationContract:
    """ports.RegistrationStore."""

    async def test_what_is_committed_comes_back(self, store: RegistrationStore) -> None:
        first = registration()
        raw = registration(reg=OTHER_REG, k_m=None, release=None, path=(), user_data=b"")
        await store.commit(first, [])
        await store.commit(raw, [])
        assert await store.get(IMPI, REG) == first
        assert await store.get(IMPI, OTHER_REG) == raw
        assert list(await store.of_impi(IMPI)) == [first, raw]
        assert await store.get(OTHER_IMPI, REG) is None
        assert await store.count() == 2

    async def test_octets_that_are_no_utf8_come_back(self, store: RegistrationStore) -> None:
        odd = b"\xff\xfe\x00\n".decode("utf-8", "surrogateescape")
        await store.commit(registration(contact=odd, call_id=odd, path=(odd, "", odd)), [])
        assert await store.get(IMPI, REG) == registration(contact=odd, call_id=odd, path=(odd, "", odd))

    async def test_whose_an_identity_is(self, store: RegistrationStore) -> None:
        """TS 24.229 §5.4.2.1.1: a subscription names a public identity."""
        hidden, other = Impu("sip:hidden@ims.example"), Impu("sip:other@ims.example")
        profiles = (ServiceProfile(((hidden, True), (other, False))),)
        data = build_user_profile(UserProfile(IMPI, profiles))
        await store.commit(registration(user_data=data), [])
        await store.commit(registration(reg=OTHER_REG, user_data=data), [])
        found = [await store.of_impu(impu) for impu in (hidden, other, registration().impu, Impu("sip:nobody@ims.example"))]
        assert found == [IMPI, IMPI, IMPI, None]
        await store.remove(IMPI, REG, [])
        assert await store.of_impu(other) == IMPI
        await store.commit(registration(reg=OTHER_REG, user_data=b"<new/>"), [])
        assert [await store.of_impu(other), await store.of_impu(registration().impu)] == [None, IMPI]
        await store.remove(IMPI, OTHER_REG, [])
        assert await store.of_impu(registration().impu) is None

    async def test_a_registration_is_replaced(self, store: RegistrationStore) -> None:
        await store.commit(registration(), [])
        changed = registration(k_m=key("new"), cseq=3, expires_at=NOW + 1200, user_data=b"<other/>")
        await store.commit(changed, [])
        assert list(await store.of_impi(IMPI)) == [changed]
        assert await store.count() == 1

    async def test_devices_share_user_data_and_do_not_lose_it(self, store: RegistrationStore) -> None:
        one, two = registration(), registration(reg=OTHER_REG)
        await store.commit(one, [])
        await store.commit(two, [])
        await store.commit(registration(user_data=b"<new/>"), [])
        assert await store.get(IMPI, OTHER_REG) == two
        await store.commit(one, [])
        await store.remove(IMPI, OTHER_REG, [])
        assert await store.get(IMPI, REG) == one

    async def test_devices_are_committed_together_with_what_they_owe(self, store: RegistrationStore) -> None:
        """TS 29.228 §6.2.2: new user data of all of them."""
        old = [registration(), registration(reg=OTHER_REG)]
        for each in old:
            await store.commit(each, [])
        both = [each._replace(user_data=b"<other/>") for each in old]
        owed = [pending(seq=5), pending(seq=6, reg=OTHER_REG)]
        await store.commit_all(both, owed)
        assert sorted(await store.of_impi(IMPI), key=lambda each: each.reg) == sorted(both, key=lambda each: each.reg)
        assert list(await store.pending()) == owed

    async def test_removal_leaves_other_devices(self, store: RegistrationStore) -> None:
        await store.commit(registration(), [])
        await store.commit(registration(reg=OTHER_REG), [])
        await store.remove(IMPI, REG, [pending(5, erase=True)])
        await store.remove(IMPI, REG, [])
        assert await store.get(IMPI, REG) is None
        assert list(await store.of_impi(IMPI)) == [registration(reg=OTHER_REG)]
        assert list(await store.pending()) == [pending(5, erase=True)]
        await store.remove(IMPI, OTHER_REG, [])
        assert await store.count() == 0

    async def test_expired_ones_come_the_oldest_first(self, store: RegistrationStore) -> None:
        for place, reg in enumerate((REG, OTHER_REG, "CCCCCCCCCCCC")):
            await store.commit(registration(reg=reg, expires_at=NOW - place), [])  # type: ignore[arg-type]
        await store.commit(registration(OTHER_IMPI), [])
        assert [found.expires_at for found in await store.expired(NOW)] == [NOW - 2, NOW - 1, NOW]
        assert [found.expires_at for found in await store.expired(NOW, limit=1)] == [NOW - 2]
        assert list(await store.expired(NOW - 10)) == []

    async def test_a_push_is_owed_per_set_and_server_until_it_is_delivered(self, store: RegistrationStore) -> None:
        """DESIGN §6."""
        other_server = pending(1, server_name="sip:as2.ims.example")
        takes_no_keys = pending(1, as_id=AsId(""), server_name="sip:as3.ims.example")
        await store.commit(registration(), [pending(1), other_server, takes_no_keys])
        await store.commit(registration(), [pending(2)])
        assert {(owed.server_name, owed.seq) for owed in await store.pending()} == {
            ("sip:as.ims.example", 2),
            ("sip:as2.ims.example", 1),
            ("sip:as3.ims.example", 1),
        }
        await store.delivered(other_server)
        await store.delivered(takes_no_keys)
        await store.delivered(pending(1))
        assert list(await store.pending()) == [pending(2)]  # the answer to the first push does not pay the second
        await store.delivered(pending(2))
        await store.delivered(pending(2))
        assert list(await store.pending()) == []

    async def test_an_older_push_does_not_replace_a_newer(self, store: RegistrationStore) -> None:
        await store.commit(registration(), [pending(5)])
        await store.commit(registration(), [pending(4, erase=True)])
        assert list(await store.pending()) == [pending(5)]

    async def test_the_highest_seq_is_remembered_after_delivery_and_removal(self, store: RegistrationStore) -> None:
        """DESIGN §6: strictly rising per (impi, as, reg)."""
        await store.commit(registration(), [pending(7), pending(3, server_name="sip:as2.ims.example")])
        await store.delivered(pending(7))
        await store.remove(IMPI, REG, [])
        assert await store.last_seq(IMPI, AS_ID, REG) == 7
        assert await store.last_seq(IMPI, AS_ID, OTHER_REG) == 0

    async def test_a_walk_comes_by_every_registration_once_page_by_page(self, store: RegistrationStore) -> None:
        impis = [Impi(f"{number}@ims.example") for number in range(5)]
        for impi in impis:
            await store.commit(registration(impi), [])
        await store.commit(registration(IMPI, OTHER_REG), [])
        await store.remove(impis[1], REG, [])
        first = await store.walk(0, 2)
        await store.commit(registration(impis[0], cseq=99), [])  # renewed: where it was
        second = await store.walk(first[-1][0], 2)
        third = await store.walk(second[-1][0], 2)
        assert [(impi, reg) for _, impi, reg in (*first, *second, *third)] == [
            *((impi, REG) for impi in impis if impi != impis[1]),
            (IMPI, OTHER_REG),
        ]
        assert await store.walk(third[-1][0], 2) == []

    async def test_whose_registrations_there_are_comes_sorted_and_page_by_page(self, store: RegistrationStore) -> None:
        assert list(await store.impis("", 3)) == []
        impis = [Impi(f"{name}@ims.example") for name in ("d", "B", "c", "a", "e")]
        for impi in impis:
            await store.commit(registration(impi), [])
        await store.commit(registration(impis[0], OTHER_REG), [])  # two devices, one user
        await store.remove(impis[4], REG, [])
        assert list(await store.impis("", 2)) == [impis[1], impis[3]]
        assert list(await store.impis(impis[3], 3)) == [impis[2], impis[0]]

    async def test_what_was_heard_of_an_as_comes_back(self, store: RegistrationStore) -> None:
        assert list(await store.as_stores()) == []
        one, two = AsStore("sip:as1.ims.example", AS_ID, "a" * 24, 7), AsStore("sip:as2.ims.example", AS_ID, "b" * 24, None)
        for each in (two, one, replace(one, place=9)):
            await store.keep_as_store(each)
        assert list(await store.as_stores()) == [replace(one, place=9), two]

    async def test_the_end_of_a_user_s_last_registration_is_owed_until_it_is_told(self, store: RegistrationStore) -> None:
        end = OwedEnd(IMPI, registration().impu, ServerAssignment.TIMEOUT_DEREGISTRATION, NOW + 1)
        other = OwedEnd(OTHER_IMPI, registration().impu, ServerAssignment.USER_DEREGISTRATION, NOW + 2)
        for reg in (REG, OTHER_REG):
            await store.commit(registration(reg=reg), [])
        await store.remove(IMPI, REG, [], end)
        assert list(await store.owed_ends()) == []
        await store.remove(IMPI, OTHER_REG, [])
        assert list(await store.owed_ends()) == []
        await store.remove(IMPI, OTHER_REG, [], end._replace(assignment=ServerAssignment.USER_DEREGISTRATION, since=NOW))
        await store.remove(IMPI, OTHER_REG, [], end)
        await store.remove(OTHER_IMPI, REG, [], other)
        assert list(await store.owed_ends()) == [end, other]
        await store.end_told(IMPI)
        await store.end_told(IMPI)
        assert list(await store.owed_ends()) == [other]

    async def test_an_end_of_what_was_never_registered_is_owed_too_and_each_has_its_age(self, store: RegistrationStore) -> None:
        ends = [OwedEnd(Impi(f"u{age}"), registration().impu, ServerAssignment.TIMEOUT_DEREGISTRATION, NOW - age) for age in (9, 5, 1)]
        for end in ends:
            await store.owe_end(end)
        assert list(await store.owed_ends()) == ends
        assert (await store.forget_ends(NOW - 5), list(await store.owed_ends())) == (1, ends[1:])
        await store.commit(registration(), [])
        await store.owe_end(OwedEnd(IMPI, registration().impu, ServerAssignment.TIMEOUT_DEREGISTRATION, NOW))
        assert list(await store.owed_ends()) == ends[1:]


class KeyContract:
    """ports.KeyStore (DESIGN §6)."""

    async def apply(self, store: KeyStore, message: Push, now: float = NOW, pusher: str = PUSHER) -> PushOutcome:
        return await store.apply(message, pusher=pusher, realm=REALM, now=now)

    async def held(self, store: KeyStore, name: str, now: float = NOW) -> KeyRecord | None:
        return await store.lookup(pushed_key(name).key_id, AS_ID, now)

    async def test_a_pushed_key_is_found(self, store: KeyStore) -> None:
        outcome = await self.apply(store, push(1, "a"))
        assert (outcome.stored, outcome.stale) == (1, False)
        expected = KeyRecord(pushed_key("a").key_id, AS_ID, IMPI, REG, (IMPU, TEL), key("a"), NOW, NOW + 3600, superseded=False)
        assert await self.held(store, "a") == expected
        assert await self.held(store, "a") == expected
        assert await store.count(NOW) == 1

    @pytest.mark.parametrize("now", [NOW - 61, NOW + 3600])
    async def test_a_key_is_not_found_before_and_after_its_time(self, store: KeyStore, now: float) -> None:
        await self.apply(store, push(1, "a"))
        assert await self.held(store, "a", now) is None
        assert await store.count(now) == 0

    async def test_a_key_is_of_one_as(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        assert await store.lookup(pushed_key("a").key_id, AsId("other.ims.example"), NOW) is None

    @pytest.mark.parametrize("key_id", ["", "x" * 300, "\x00", "\udcff@ims.example", "é@ims.example"])
    async def test_an_identifier_that_nobody_pushed_is_not_found(self, store: KeyStore, key_id: str) -> None:
        assert await store.lookup(KeyId(key_id), AS_ID, NOW) is None

    async def test_an_older_push_is_ignored_and_an_equal_one_changes_nothing(self, store: KeyStore) -> None:
        await self.apply(store, push(2, "a"))
        assert (await self.apply(store, push(1, "b"))).stale
        assert not (await self.apply(store, push(2, "b"))).stale
        assert await self.held(store, "a")
        assert await self.held(store, "b") is None

    async def test_a_newer_key_supersedes_and_its_use_ends_the_older(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(2, "b"))
        old, new = await self.held(store, "a"), await self.held(store, "b")
        assert old is not None and old.superseded and old.not_after == NOW + GRACE
        assert new is not None and not new.superseded
        await store.used(old, NOW)
        assert await self.held(store, "a") == old
        await store.used(new, NOW)
        await store.used(new, NOW)
        assert await self.held(store, "a") is None
        assert await self.held(store, "b") == new
        assert await store.count(NOW) == 1

    async def test_a_superseded_key_ends_by_itself(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(2, "b"))
        assert await store.count(NOW) == 2
        assert await self.held(store, "a", NOW + GRACE) is None
        assert await store.count(NOW + GRACE) == 1
        assert await store.sweep(NOW + GRACE) == 1
        assert await self.held(store, "a") is None
        assert await self.held(store, "b")

    async def test_using_a_key_that_went_is_no_error(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        record = await self.held(store, "a")
        assert record is not None
        await self.apply(store, push(2))
        await store.used(record, NOW)
        assert await self.held(store, "a") is None

    async def test_an_empty_push_erases_and_the_tombstone_keeps_older_ones_away(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(3))
        assert await self.held(store, "a") is None
        assert (await self.apply(store, push(2, "b"))).stale
        assert await store.sweep(NOW + MAX_AHEAD + MAX_KEY_LIFE - 1) == 0
        assert (await self.apply(store, push(2, "b"))).stale

    async def test_a_sweep_removes_tombstones_whose_time_is_over(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(3))
        assert await store.sweep(NOW + MAX_AHEAD + MAX_KEY_LIFE) == 1
        assert not (await self.apply(store, push(2, "b"))).stale

    async def test_a_sweep_removes_keys_and_then_their_tombstone(self, store: KeyStore) -> None:
        for place in range(150):
            await self.apply(store, push(1, f"key{place}", impi=Impi(f"{place}@ims.example")))
        assert await store.sweep(NOW + 3600) == 150
        assert await store.count(NOW) == 0
        assert await store.sweep(NOW + 3600) == 0
        assert await store.sweep(NOW + MAX_AHEAD + MAX_KEY_LIFE) == 150

    async def test_devices_do_not_touch_each_other(self, store: KeyStore) -> None:
        await self.apply(store, push(5, "a"))
        await self.apply(store, push(1, "b", reg=OTHER_REG))
        await self.apply(store, push(6))
        assert await self.held(store, "a") is None
        record = await self.held(store, "b")
        assert record is not None and record.reg == OTHER_REG

    async def test_pushers_do_not_touch_each_other(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(9), pusher="other.ims.example")
        assert await self.held(store, "a")
        assert await store.erase_impu("other.ims.example", IMPU, [AS_ID], NOW) == 0
        assert await self.held(store, "a")

    async def test_a_known_key_id_cannot_be_bound_to_another_user(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        with pytest.raises(PushRefused) as refusal:
            await self.apply(store, push(1, "a", impi=OTHER_IMPI))
        assert refusal.value.reason == "rebound"
        with pytest.raises(PushRefused):
            await self.apply(store, push(1, "a", reg=OTHER_REG))
        record = await self.held(store, "a")
        assert record is not None and record.impi == IMPI

    async def test_a_refused_push_changes_nothing(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        foreign = pushed_key("b", realm="elsewhere.example")
        with pytest.raises(PushRefused):
            await self.apply(store, Push(2, IMPI, AS_ID, REG, (pushed_key("c"), foreign), (IMPU,)))
        assert not (await self.apply(store, push(2, "a"))).stale
        assert await self.held(store, "a")
        assert await self.held(store, "c") is None

    async def test_erasing_an_impu_takes_every_device_of_that_pusher_at_those_ass(self, store: KeyStore) -> None:
        """DESIGN §6: a body-less Expires 0."""
        other_as = AsId("other.ims.example")
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(1, "b", reg=OTHER_REG))
        await self.apply(store, push(1, "c", impi=OTHER_IMPI, impus=(Impu("sip:bob@ims.example"),)))
        await self.apply(store, push(1, "d", as_id=other_as))
        assert await store.erase_impu(PUSHER, TEL, [AS_ID], NOW) == 2
        assert await store.erase_impu(PUSHER, TEL, [AS_ID], NOW) == 0
        assert [await self.held(store, name) for name in "ab"] == [None, None]
        assert await self.held(store, "c")
        assert await store.lookup(pushed_key("d").key_id, other_as, NOW)
        assert not (await self.apply(store, push(1, "a"))).stale  # a retransmission …
        assert await self.held(store, "a") is None  # … does not bring it back
        await self.apply(store, push(2, "a"))
        assert await self.held(store, "a")

    async def test_the_impus_follow_the_newest_push(self, store: KeyStore) -> None:
        await self.apply(store, push(1, "a"))
        await self.apply(store, push(2, "a", impus=(TEL,)))
        record = await self.held(store, "a")
        assert record is not None and record.impus == (TEL,)
        assert await store.erase_impu(PUSHER, IMPU, [AS_ID], NOW) == 0
        assert await store.erase_impu(PUSHER, TEL, [AS_ID], NOW) == 1


class RefusalError(Exception):
    """What `expect` raises."""


def anything(stored: Document | None) -> None:
    """Accept whatever is stored."""


class DocumentContract:
    """ports.DocumentStore."""

    async def test_what_is_put_comes_back(self, store: DocumentStore) -> None:
        odd = b"\xff \x00%2F".decode("utf-8", "surrogateescape")
        for path in ("index", odd, "Index", ""):
            assert await store.put(
                "simservs.ngn.etsi.org", "sip:a@b", path, Document(path.encode("utf-8", "surrogateescape"), "1"), expect=anything
            )
        for path in ("index", odd, "Index", ""):
            found = await store.get("simservs.ngn.etsi.org", "sip:a@b", path)
            assert found == Document(path.encode("utf-8", "surrogateescape"), "1")
        assert await store.get("resource-lists", "sip:a@b", "index") is None
        assert await store.get("simservs.ngn.etsi.org", "sip:c@b", "index") is None

    async def test_a_document_is_replaced_and_deleted(self, store: DocumentStore) -> None:
        assert await store.put("a", "o", "p", Document(b"1", "1"), expect=anything)
        assert not await store.put("a", "o", "p", Document(b"2", "2"), expect=anything)
        assert await store.get("a", "o", "p") == Document(b"2", "2")
        assert await store.delete("a", "o", "p", expect=anything)
        assert not await store.delete("a", "o", "p", expect=anything)
        assert await store.get("a", "o", "p") is None

    async def test_expect_sees_what_is_stored_and_refuses(self, store: DocumentStore) -> None:
        seen: list[Document | None] = []

        def refuse(stored: Document | None) -> None:
            seen.append(stored)
            raise RefusalError

        with pytest.raises(RefusalError):
            await store.put("a", "o", "p", Document(b"1", "1"), expect=refuse)
        assert await store.get("a", "o", "p") is None
        await store.put("a", "o", "p", Document(b"1", "1"), expect=anything)
        with pytest.raises(RefusalError):
            await store.put("a", "o", "p", Document(b"2", "2"), expect=refuse)
        with pytest.raises(RefusalError):
            await store.delete("a", "o", "p", expect=refuse)
        assert seen == [None, Document(b"1", "1"), Document(b"1", "1")]
        assert await store.get("a", "o", "p") == Document(b"1", "1")
