# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.1, §6.1.2, §6.3; TS 33.102 §6.3.2, §6.3.5 and annex C."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from keyferry.errors import AutsRejected, CxError, MacFailure, StoreError, SyncFailure
from keyferry.ports import Resync, ServerAssignment, SubscribedImpu
from keyferry.protocol.aka import DELTA, AuthVector, Usim, algorithm_of, split_sqn
from keyferry.protocol.digest import Credentials, aka_nonce, hash_a1, respond
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.ifc import InitialFilterCriteria
from keyferry.protocol.ims.response_trial import WrongAnswer
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.ims.user_profile import parse_user_profile
from keyferry.protocol.ims.verdicts import Reason
from keyferry.roles.hss import SEQ_RESERVE, Hss
from keyferry.stores.memory import MemorySubscriberStore
from roles.home import SCSCF, criterion, key_of, open_home, subscriber
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom, settle

ALICE, ALICE_SIP, ALICE_TEL = Impi("alice@home1.net"), Impu("sip:alice@home1.net"), Impu("tel:+15550510")
OTHER = "sip:scscf2.home1.net"
PROFILES: dict[str, Sequence[InitialFilterCriteria]] = {"default": [criterion()]}


class Store(MemorySubscriberStore):
    """A store whose writes of SEQ wait for a gate, as a disk's do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.ceilings: list[int] = []

    async def reserve_seq(self, impi: Impi, seq: int, count: int, *, anew: bool = False) -> int:
        await self.gate.wait()
        first = await super().reserve_seq(impi, seq, count, anew=anew)
        self.ceilings.append(first + count - 1)
        return first


def start(store: MemorySubscriberStore, *, max_counters: int = 100) -> Hss:
    return Hss(store, PROFILES, SeededRandom(), RecordingLog(), RecordingCounter(), FakeClock(), max_counters=max_counters)


@pytest.fixture
async def store() -> Store:
    store = Store()
    await store.add(subscriber("alice"))
    await store.add(subscriber("bobby"))
    await store.add(subscriber("tara", algorithm="tuak"))
    return store


@pytest.fixture
def hss(store: Store) -> Hss:
    return start(store)


async def mar(hss: Hss, user: str = "alice", resync: Resync | None = None) -> AuthVector:
    return await hss.multimedia_auth(Impi(f"{user}@home1.net"), Impu(f"sip:{user}@home1.net"), SCSCF, resync)


def seq_of(vector: AuthVector, user: str = "alice") -> int:
    """Return the SEQ that a card finds in AUTN."""
    card = subscriber(user)
    ak = algorithm_of(card.algorithm, card.k, card.opc).f2345(vector.rand).ak
    return split_sqn(int.from_bytes(vector.autn[:6], "big") ^ int.from_bytes(ak, "big"))[0]


def card_at(seq: int, user: str = "alice") -> Usim:
    own = subscriber(user)
    return Usim(algorithm_of(own.algorithm, own.k, own.opc), (seq,) * 32)


def refused(card: Usim, vector: AuthVector) -> Resync:
    """Let a card refuse a vector; return what then goes to the HSS."""
    with pytest.raises(SyncFailure) as caught:
        card.authenticate(vector.rand, vector.autn)
    return Resync(vector.rand, caught.value.auts)


class TestUserAuthorization:
    """TS 29.228 §6.1.1."""

    async def test_a_new_user_has_no_s_cscf(self, hss: Hss) -> None:
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "visited1.net")).server_name is None

    async def test_the_s_cscf_of_the_last_authentication_is_assigned(self, hss: Hss) -> None:
        """TS 29.228 §6.3: MAR says who asks."""
        await mar(hss)
        assert (await hss.user_authorization(ALICE, ALICE_TEL, "visited1.net")).server_name == SCSCF

    async def test_an_unknown_impi_is_5001(self, hss: Hss) -> None:
        """TS 29.229 §6.2.2.1."""
        with pytest.raises(CxError) as caught:
            await hss.user_authorization(Impi("eve@home1.net"), ALICE_SIP, "")
        assert caught.value.code == 5001

    async def test_an_impu_of_another_is_5002(self, hss: Hss) -> None:
        """TS 29.229 §6.2.2.2."""
        with pytest.raises(CxError) as caught:
            await hss.multimedia_auth(ALICE, Impu("sip:bobby@home1.net"), SCSCF)
        assert caught.value.code == 5002
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name is None


class TestVectors:
    """TS 33.102 §6.3.2, annex C."""

    async def test_the_card_accepts_what_the_hss_makes_and_both_have_the_same_keys(self, hss: Hss) -> None:
        vector = await mar(hss)
        answer = card_at(0).authenticate(vector.rand, vector.autn)
        assert (answer.res, answer.ck, answer.ik, answer.amf) == (vector.xres, vector.ck, vector.ik, b"\x80\x00")

    async def test_a_tuak_subscriber_gets_tuak_vectors(self, hss: Hss) -> None:
        """TS 35.231."""
        vector = await mar(hss, "tara")
        card = Usim(algorithm_of("tuak", key_of("k-tara", 16), key_of("opc-tara", 32)))
        assert card.authenticate(vector.rand, vector.autn).res == vector.xres
        with pytest.raises(MacFailure):
            card_at(0, "tara").authenticate(vector.rand, vector.autn)  # the same keys under Milenage

    async def test_seq_rises_by_one_and_ind_goes_round(self, hss: Hss) -> None:
        """Annex C.1.1.2: one IND value after another."""
        card = card_at(0)
        answers = [card.authenticate(vector.rand, vector.autn).sqn for vector in [await mar(hss) for _ in range(70)]]
        assert [split_sqn(sqn) for sqn in answers] == [(seq, seq % 32) for seq in range(1, 71)]

    async def test_a_restart_repeats_no_seq_and_skips_no_more_than_the_reserve(self, store: Store) -> None:
        used = []
        for _ in range(5):
            hss = start(store)
            used += [seq_of(await mar(hss)) for _ in range(SEQ_RESERVE // 2 + 1)]
        assert used == sorted(set(used))
        assert used[-1] <= len(used) + 5 * (SEQ_RESERVE + 1)

    async def test_one_durable_write_serves_many_vectors(self, store: Store, hss: Hss) -> None:
        for _ in range(SEQ_RESERVE):
            await mar(hss)
        assert store.ceilings == [SEQ_RESERVE]
        await mar(hss)
        assert store.ceilings == [SEQ_RESERVE, 2 * SEQ_RESERVE]

    async def test_vectors_made_at_the_same_time_have_their_own_seq(self, hss: Hss) -> None:
        vectors = await asyncio.gather(*(mar(hss) for _ in range(200)))
        assert sorted(map(seq_of, vectors)) == list(range(1, 201))

    async def test_no_vector_leaves_before_its_seq_is_reserved_on_disk(self, store: Store, hss: Hss) -> None:
        """A crash between the two would let the next start use the same SEQ again."""
        store.gate.clear()
        asked = [asyncio.ensure_future(mar(hss)) for _ in range(3)]
        await settle()
        assert not any(each.done() for each in asked)
        restarted = start(Store())  # what the disk holds at this moment
        assert await restarted.subscribers.seq(ALICE) == 0
        store.gate.set()
        assert sorted([seq_of(each) for each in await asyncio.gather(*asked)]) == [1, 2, 3]
        assert await store.seq(ALICE) >= 3

    async def test_a_counter_pushed_out_of_memory_starts_again_above_all_it_used(self, store: Store) -> None:
        hss = start(store, max_counters=1)
        used = []
        for _ in range(3):
            used.append(seq_of(await mar(hss)))
            await mar(hss, "bobby")
        assert used == sorted(set(used))

    async def test_a_counter_whose_reserve_is_being_written_stays_in_memory(self, store: Store) -> None:
        hss = start(store, max_counters=1)
        store.gate.clear()
        first = asyncio.ensure_future(mar(hss))
        await settle()
        others = [asyncio.ensure_future(mar(hss, "bobby")), asyncio.ensure_future(mar(hss, "tara"))]
        await settle()
        second = asyncio.ensure_future(mar(hss))
        store.gate.set()
        assert seq_of(await first) != seq_of(await second)
        await asyncio.gather(*others)

    async def test_the_counter_used_last_stays_in_memory(self, store: Store) -> None:
        hss = start(store, max_counters=2)
        for user in ("alice", "bobby", "alice", "tara"):
            await mar(hss, user)
        assert seq_of(await mar(hss)) == 3


class TestTwoProcesses:
    """TS 33.102 annex C.1: two HSS processes on one store, of which the S-CSCFs ask one or the other."""

    async def test_no_seq_comes_twice_and_a_card_takes_them_in_the_order_in_which_they_come(self, store: Store) -> None:
        pair, card = (start(store), start(store)), card_at(0)
        for turn in (0, 0, 1, 0, 1, 1, 0, 0):
            vector = await mar(pair[turn])
            assert card.authenticate(vector.rand, vector.autn).res == vector.xres

    async def test_vectors_made_by_both_at_the_same_time_have_their_own_seq(self, store: Store) -> None:
        one, other = start(store), start(store)
        vectors = await asyncio.gather(*(mar(each) for _ in range(150) for each in (one, other)))
        assert len({seq_of(vector) for vector in vectors}) == 300

    async def test_a_resynchronisation_at_one_holds_at_the_other(self, store: Store) -> None:
        one, other, card = start(store), start(store), card_at(5000)
        await mar(other)
        again = await mar(one, resync=refused(card, await mar(one)))
        card.authenticate(again.rand, again.autn)
        vector = await mar(other)
        assert card.authenticate(vector.rand, vector.autn).res == vector.xres

    async def test_a_write_that_fails_reserves_nothing(self, store: Store) -> None:
        hss = start(store)
        await store.remove(ALICE)
        await store.add(subscriber("alice"))
        first = seq_of(await mar(hss))
        for _ in range(SEQ_RESERVE - 1):
            await mar(hss)
        reserve, store.reserve_seq = store.reserve_seq, unable  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            await mar(hss)
        store.reserve_seq = reserve  # type: ignore[method-assign]
        assert seq_of(await mar(hss)) == first + SEQ_RESERVE


async def unable(*_: object, **__: object) -> int:
    raise StoreError("the disk is full")


class TestDirectory:
    """What a request over the wire leaves out (TS 29.228 §6.1.2)."""

    async def test_either_identity_is_enough(self, hss: Hss) -> None:
        assert await hss.identities(ALICE, ()) == (ALICE, ALICE_SIP)
        assert await hss.identities(None, (ALICE_TEL,)) == (ALICE, ALICE_TEL)
        assert await hss.identities(ALICE, (ALICE_TEL, ALICE_SIP)) == (ALICE, ALICE_TEL)

    @pytest.mark.parametrize(
        ("impi", "impus", "code"),
        [
            (Impi("nobody@home1.net"), (ALICE_SIP,), 5001), (None, (Impu("sip:nobody@home1.net"),), 5001), (None, (), 5001),
            (ALICE, (Impu("sip:bobby@home1.net"),), 5002), (None, (ALICE_SIP, Impu("sip:bobby@home1.net")), 5002),
        ],
    )  # fmt: skip
    async def test_whom_they_do_not_name_is_refused(self, hss: Hss, impi: Impi | None, impus: tuple[Impu, ...], code: int) -> None:
        with pytest.raises(CxError) as caught:
            await hss.identities(impi, impus)
        assert caught.value.code == code

    async def test_the_release_is_the_one_provisioned(self, store: Store, hss: Hss) -> None:
        assert await hss.release(ALICE) is None
        await store.replace(subscriber("alice")._replace(release=6))
        assert await hss.release(ALICE) == 6
        assert await hss.release(Impi("nobody@home1.net")) is None


class TestResynchronisation:
    """TS 33.102 §6.3.5."""

    async def test_seq_moves_above_the_cards(self, hss: Hss) -> None:
        card = card_at(5000)
        again = await mar(hss, resync=refused(card, await mar(hss)))
        assert split_sqn(card.authenticate(again.rand, again.autn).sqn)[0] == 5001
        counter = hss.counter
        assert isinstance(counter, RecordingCounter)
        assert counter["hss_resynchronisations"] == 1

    async def test_the_new_seq_survives_a_restart(self, store: Store, hss: Hss) -> None:
        card = card_at(5000)
        await mar(hss, resync=refused(card, await mar(hss)))
        vector = await mar(start(store))
        assert card.authenticate(vector.rand, vector.autn).res == vector.xres

    async def test_a_card_that_is_behind_moves_nothing_back(self, hss: Hss) -> None:
        for _ in range(40):
            vector = await mar(hss)
        card = card_at(40)
        resync = refused(card, vector)
        before = seq_of(await mar(hss))
        assert seq_of(await mar(hss, resync=resync)) == before + 1

    async def test_a_seq_too_far_ahead_of_the_card_comes_back_to_it(self, store: Store) -> None:
        """Annex C.2.1: a card refuses a jump of more than Delta, so §6.3.5 sets SQN_HE to SQN_MS."""
        await store.reserve_seq(ALICE, 2 * DELTA, 1)
        hss, card = start(store), card_at(7)
        again = await mar(hss, resync=refused(card, await mar(hss)))
        assert card.authenticate(again.rand, again.autn).res == again.xres
        later = await mar(start(store))
        assert card.authenticate(later.rand, later.autn).res == later.xres

    @pytest.mark.parametrize("place", [0, 5, 6, 13])
    async def test_a_wrong_mac_s_moves_nothing(self, hss: Hss, place: int) -> None:
        """§6.3.5: SQN_MS is believed only if MAC-S is right."""
        vector = await mar(hss)
        resync = refused(card_at(5000), vector)
        auts = bytearray(resync.auts)
        auts[place] ^= 1
        with pytest.raises(CxError) as caught:
            await mar(hss, resync=Resync(vector.rand, bytes(auts)))
        assert caught.value.code == 5012
        assert isinstance(caught.value.__cause__, AutsRejected)
        assert isinstance(hss.log, RecordingLog)
        assert hss.log.warnings == ["auts-rejected"]
        assert seq_of(await mar(hss)) == 2

    async def test_an_auts_for_another_rand_moves_nothing(self, hss: Hss) -> None:
        resync = refused(card_at(5000), await mar(hss))
        with pytest.raises(CxError):
            await mar(hss, resync=Resync((await mar(hss)).rand, resync.auts))


class TestServerAssignment:
    """TS 29.228 §6.1.2."""

    async def sar(self, hss: Hss, assignment: ServerAssignment, server: str = SCSCF) -> bytes:
        return await hss.server_assignment(ALICE, ALICE_SIP, server, assignment)

    @pytest.mark.parametrize("assignment", [ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION])
    async def test_a_registration_assigns_the_s_cscf_and_returns_the_profile(self, hss: Hss, assignment: ServerAssignment) -> None:
        profile = parse_user_profile(await self.sar(hss, assignment))
        assert profile.impi == ALICE
        assert profile.impus == (ALICE_SIP, ALICE_TEL)
        assert list(profile.profiles[0].criteria) == [criterion()]
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name == SCSCF
        await hss.multimedia_auth(ALICE, ALICE_SIP, OTHER)
        await self.sar(hss, assignment, OTHER)
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name == OTHER

    async def test_an_s_cscf_that_has_not_challenged_the_user_is_told_who_serves_and_nothing_else(self, hss: Hss) -> None:
        """§8.1: a command other than the MAR does not overwrite the S-CSCF's name."""
        await self.sar(hss, ServerAssignment.REGISTRATION)
        for assignment, code, named in ((ServerAssignment.REGISTRATION, 5005, SCSCF), (ServerAssignment.NO_ASSIGNMENT, 5012, "")):
            with pytest.raises(CxError) as caught:
                await self.sar(hss, assignment, OTHER)
            assert (caught.value.code, caught.value.server_name) == (code, named)
        assert isinstance(hss.log, RecordingLog)
        assert hss.log.warnings == ["already-registered", "profile-refused"]

    async def test_an_auts_takes_no_user_from_another_s_cscf(self, hss: Hss) -> None:
        """§8.1: a MAR that indicates a synchronisation failure does not overwrite the S-CSCF's name either."""
        resync = refused(card_at(5000), await mar(hss))
        await hss.multimedia_auth(ALICE, ALICE_SIP, OTHER)
        await mar(hss, resync=resync)
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name == OTHER

    async def test_the_one_that_serves_keeps_a_user_whom_another_challenges(self, hss: Hss) -> None:
        """His protected re-REGISTER goes on; who is challenged elsewhere is no more than a stranger."""
        await self.sar(hss, ServerAssignment.REGISTRATION)
        await hss.multimedia_auth(ALICE, ALICE_SIP, OTHER)
        assert await hss.location_info(ALICE_SIP) == SCSCF
        await self.sar(hss, ServerAssignment.RE_REGISTRATION)
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name == SCSCF

    async def test_a_barred_identity_is_marked(self, store: Store, hss: Hss) -> None:
        """TS 23.228 §5.2.1a."""
        await store.replace(subscriber("alice", impus=(SubscribedImpu(ALICE_SIP, barred=True), SubscribedImpu(ALICE_TEL))))
        profile = parse_user_profile(await self.sar(hss, ServerAssignment.REGISTRATION))
        assert profile.profiles[0].impus == ((ALICE_SIP, True), (ALICE_TEL, False))
        assert profile.impus == (ALICE_TEL,)

    async def test_a_profile_that_is_not_there_has_no_criteria(self, store: Store, hss: Hss) -> None:
        await store.replace(subscriber("alice", profile="gone"))
        assert parse_user_profile(await self.sar(hss, ServerAssignment.REGISTRATION)).profiles[0].criteria == ()

    @pytest.mark.parametrize(
        "assignment",
        [
            ServerAssignment.TIMEOUT_DEREGISTRATION,
            ServerAssignment.USER_DEREGISTRATION,
            ServerAssignment.ADMINISTRATIVE_DEREGISTRATION,
        ],
    )
    async def test_an_end_clears_the_assignment_of_the_s_cscf_that_asks_only(self, hss: Hss, assignment: ServerAssignment) -> None:
        await self.sar(hss, ServerAssignment.REGISTRATION)
        assert await self.sar(hss, assignment, OTHER) == b""
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name == SCSCF
        assert await self.sar(hss, assignment) == b""
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name is None

    async def test_a_registration_that_is_carried_out_after_its_end_assigns_nobody(self, hss: Hss) -> None:
        """Its first copy lay in the socket of a frozen HSS, and the S-CSCF, which had no answer at all, has told of the end since."""
        await mar(hss)

        async def sar(assignment: ServerAssignment, order: int) -> bytes:
            return await hss.server_assignment(ALICE, ALICE_SIP, SCSCF, assignment, order=order)

        await sar(ServerAssignment.TIMEOUT_DEREGISTRATION, 9)
        with pytest.raises(CxError) as caught:
            await sar(ServerAssignment.REGISTRATION, 5)
        assert (caught.value.code, caught.value.experimental) == (5012, False)
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name is None
        assert isinstance(hss.log, RecordingLog)
        assert hss.log.warnings == ["registration-came-late"]
        await mar(hss)
        await sar(ServerAssignment.REGISTRATION, 10)
        assert (await hss.user_authorization(ALICE, ALICE_SIP, "")).server_name == SCSCF


@pytest.mark.parametrize(("option", "masked", "amf"), [(True, True, "8001"), (True, False, "8000"), (False, True, "8000")])
async def test_amf_says_that_a_vector_will_be_masked(store: Store, option: bool, masked: bool, amf: str) -> None:
    """DESIGN §4; TS 33.102 annex H."""
    hss = start(store)
    hss.amf_bit = option
    vector = await hss.multimedia_auth(ALICE, ALICE_SIP, SCSCF, masked=masked)
    assert vector.autn[6:8].hex() == amf


class TestLocation:
    """TS 29.228 §6.1.4."""

    async def test_the_s_cscf_of_any_of_the_users_identities_is_told(self, hss: Hss) -> None:
        await mar(hss)
        assert await hss.location_info(ALICE_SIP) == await hss.location_info(ALICE_TEL) == SCSCF

    async def test_a_user_without_one_is_not_registered_and_a_stranger_unknown(self, hss: Hss) -> None:
        """TS 29.229 §6.2.2.1, §6.2.2.3."""
        with pytest.raises(CxError) as problem:
            await hss.location_info(ALICE_SIP)
        assert problem.value.code == 5003
        with pytest.raises(CxError) as problem:
            await hss.location_info(Impu("sip:nobody@home1.net"))
        assert problem.value.code == 5001


class TestAnalysis:
    """ports.CxAnalyst: verdicts alone."""

    def answer(self, vector: AuthVector, response: str = "0" * 32, user: str = "alice") -> WrongAnswer:
        nonce = aka_nonce(vector.rand, vector.autn)
        impi = Impi(f"{user}@home1.net")
        credentials = Credentials(impi, "home1.net", nonce, "sip:home1.net", response, "AKAv1-MD5")
        return WrongAnswer(impi, ALICE_SIP, "home1.net", nonce, False, credentials)

    async def test_a_response_made_with_k_as_password_is_named(self, hss: Hss) -> None:
        vector = await mar(hss)
        ha1 = hash_a1("AKAv1-MD5", ALICE, "home1.net", key_of("k-alice", 16))
        given = self.answer(vector)
        response = respond("AKAv1-MD5", ha1, method="REGISTER", uri="sip:home1.net", nonce=given.nonce)
        found = await hss.explain_answer(self.answer(vector, response))
        assert found is not None
        assert found.reasons == (Reason.NO_AKA,)
        assert await hss.explain_answer(given) is None

    async def test_an_auts_is_explained_and_seq_stays(self, hss: Hss) -> None:
        vector = await mar(hss)
        found = await hss.explain_auts(ALICE, aka_nonce(vector.rand, vector.autn), refused(card_at(500), vector).auts, [])
        assert found is not None
        assert found.reasons == (Reason.SQN,)
        assert "+499 in SEQ" in found.text
        assert seq_of(await mar(hss)) == 2

    async def test_a_user_who_is_not_there_has_no_verdict(self, hss: Hss) -> None:
        vector = await mar(hss)
        assert await hss.explain_answer(self.answer(vector, user="eve")) is None
        assert await hss.explain_auts(Impi("eve@home1.net"), aka_nonce(vector.rand, vector.autn), bytes(14), []) is None


class TestSeveralServers:
    """TS 29.228 §6.1.1, §6.7: the user's own S-CSCF, else those to choose from."""

    @pytest.fixture
    def several(self, store: Store) -> Hss:
        return Hss(store, PROFILES, SeededRandom(), RecordingLog(), RecordingCounter(), FakeClock(), scscfs=(SCSCF, OTHER))

    async def test_who_has_none_may_have_any_in_an_order_of_its_own(self, several: Hss) -> None:
        found = await several.user_authorization(ALICE, ALICE_SIP, "")
        assert found.server_name is None
        assert sorted(found.candidates) == sorted((SCSCF, OTHER))
        assert found == await several.user_authorization(ALICE, ALICE_TEL, "")

    async def test_who_has_one_keeps_it_unless_capabilities_are_asked_for(self, several: Hss) -> None:
        await mar(several)
        assert await several.user_authorization(ALICE, ALICE_SIP, "") == UserAuthorization(SCSCF)
        assert await several.user_authorization(ALICE, ALICE_SIP, "", AuthorizationType.DE_REGISTRATION) == UserAuthorization(SCSCF)
        found = await several.user_authorization(ALICE, ALICE_SIP, "", AuthorizationType.REGISTRATION_AND_CAPABILITIES)
        assert (found.server_name, len(found.candidates)) == (None, 2)

    async def test_nobody_de_registers_who_is_not_registered(self, several: Hss) -> None:
        """TS 29.229 §6.2.2.3."""
        with pytest.raises(CxError) as problem:
            await several.user_authorization(ALICE, ALICE_SIP, "", AuthorizationType.DE_REGISTRATION)
        assert problem.value.code == 5003

    async def test_a_seq_that_another_process_gave_is_not_given_again(self, store: Store) -> None:
        """TS 33.102 §6.3.2: two processes with an HSS each, over one store."""
        one, two = start(store), start(store)
        seqs = [seq_of(await mar(hss)) for _ in range(3 * SEQ_RESERVE) for hss in (one, two)]
        assert len(set(seqs)) == len(seqs)


@pytest.mark.parametrize("unproven", [ServerAssignment.AUTHENTICATION_TIMEOUT, ServerAssignment.AUTHENTICATION_FAILURE])
async def test_a_challenge_at_another_s_cscf_that_nobody_answers_moves_no_user(unproven: ServerAssignment) -> None:
    """TS 29.228 §6.1.2.1: a stranger's REGISTER must not take a registered user's S-CSCF away."""
    async with open_home() as home:
        alice = home.device()
        await alice.register()
        impu, other = Impu("sip:alice@home1.net"), "sip:scscf2.home1.net"
        await home.hss.multimedia_auth(alice.impi, impu, other)
        await home.hss.server_assignment(alice.impi, impu, other, unproven)
        assert await home.hss.location_info(impu) == SCSCF
        await home.hss.multimedia_auth(alice.impi, impu, other)
        await home.hss.server_assignment(alice.impi, impu, SCSCF, ServerAssignment.USER_DEREGISTRATION)
        await home.hss.server_assignment(alice.impi, impu, other, unproven)
        assert await home.subscribers.server_name(alice.impi) is None


async def test_who_proves_to_be_the_user_moves() -> None:
    async with open_home() as home:
        device = home.device()
        await device.register()
        for assignment in (ServerAssignment.REGISTRATION, ServerAssignment.AUTHENTICATION_FAILURE):
            await home.hss.multimedia_auth(device.impi, ALICE_SIP, OTHER)
            await home.hss.server_assignment(device.impi, ALICE_SIP, OTHER, assignment)
            assert await home.subscribers.server_name(device.impi) == OTHER
