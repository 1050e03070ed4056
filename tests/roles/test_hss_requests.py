# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.2.1, §6.1.3, §6.2.2: what the HSS asks of the S-CSCF that serves a user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from keyferry.errors import CxError, StoreError
from keyferry.ports import Assignment, CxServing, DeregistrationReason, OwedTermination, ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.ifc import InitialFilterCriteria
from keyferry.protocol.ims.user_profile import parse_user_profile
from keyferry.roles.hss import MAX_UNANSWERED, OWED_AGAIN, OWED_AT_ONCE, OWED_BATCH, OWED_FOR, Hss
from keyferry.stores.memory import MemorySubscriberStore
from roles.home import NOTES, SCSCF, SIP_OF, XCAP, criterion, subscriber
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom, settle

ALICE, ALICE_SIP, ALICE_TEL = Impi("alice@home1.net"), Impu("sip:alice@home1.net"), Impu("tel:+15550510")
OTHER = "sip:scscf2.home1.net"
BASIC: dict[str, Sequence[InitialFilterCriteria]] = {"default": [criterion(XCAP), criterion(NOTES)], "basic": [criterion(XCAP)], "none": []}


async def nothing() -> None:
    """What an S-CSCF does before it answers."""


@dataclass
class Asked:
    """An S-CSCF that notes what it is asked, and answers what a test says."""

    profiles: list[bytes] = field(default_factory=list)
    terminations: list[tuple[tuple[Impu, ...], DeregistrationReason, str]] = field(default_factory=list)
    answers: list[CxError] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] = nothing

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        del impi
        self.terminations.append((tuple(impus), reason, info))
        await self._answer()

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        assert impi == ALICE
        self.profiles.append(user_data)
        await self._answer()

    async def _answer(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, nothing
        await meanwhile()
        if self.answers:
            raise self.answers.pop(0)

    def servers(self) -> list[set[str]]:
        return [{one.application_server.server_name for one in parse_user_profile(data).profiles[0].criteria} for data in self.profiles]


@dataclass
class Network:
    """An HSS, and the S-CSCFs that it reaches."""

    store: MemorySubscriberStore = field(default_factory=MemorySubscriberStore)
    log: RecordingLog = field(default_factory=RecordingLog)
    scscfs: dict[str, CxServing] = field(default_factory=dict)
    clock: FakeClock = field(default_factory=FakeClock)
    hss: Hss = field(init=False)

    def __post_init__(self) -> None:
        self.start_again()

    def start_again(self) -> Hss:
        """Start an HSS that knows what is in the store alone."""
        self.hss = Hss(self.store, BASIC, SeededRandom(), self.log, RecordingCounter(), self.clock, servings=self)
        return self.hss

    async def later(self) -> None:
        """Let enough time pass for another attempt."""
        self.clock.time += OWED_AGAIN + 1
        await self.hss.sweep()

    def at(self, server_name: str) -> CxServing | None:
        return self.scscfs.get(server_name)

    async def sar(self, server_name: str = SCSCF, assignment: ServerAssignment = ServerAssignment.REGISTRATION) -> bytes:
        return await self.hss.server_assignment(ALICE, ALICE_SIP, server_name, assignment)

    async def mar(self, server_name: str) -> None:
        await self.hss.multimedia_auth(ALICE, ALICE_SIP, server_name)

    async def move(self, server_name: str) -> None:
        """Let the user prove to another S-CSCF that it is he."""
        await self.mar(server_name)
        await self.sar(server_name)

    async def give(self, profile: str) -> None:
        await self.store.replace(subscriber("alice", profile=profile))

    @property
    def assigned(self) -> Any:
        return self.store.server_name(ALICE)


@pytest.fixture
async def network() -> Network:
    network = Network()
    await network.store.add(subscriber("alice"))
    return network


@pytest.fixture
async def scscf(network: Network) -> Asked:
    """The one assigned."""
    asked = Asked()
    network.scscfs[SCSCF] = asked
    await network.sar()
    return asked


class TestUpdateProfile:
    """§6.2.2."""

    async def test_the_profile_of_now_goes_to_the_s_cscf_assigned(self, network: Network, scscf: Asked) -> None:
        await network.give("basic")
        assert await network.hss.update_profile(ALICE) == SCSCF
        assert scscf.profiles == [await network.sar(assignment=ServerAssignment.NO_ASSIGNMENT)]
        assert scscf.servers() == [{SIP_OF[XCAP]}]

    async def test_without_an_s_cscf_nobody_is_told(self, network: Network) -> None:
        assert await network.hss.update_profile(ALICE) is None

    async def test_an_s_cscf_that_knows_no_registration_gets_it_with_the_next(self, network: Network, scscf: Asked) -> None:
        scscf.answers = [CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")]
        assert await network.hss.update_profile(ALICE) is None
        assert await network.assigned == SCSCF

    async def test_one_that_cannot_be_reached_is_said_so_and_has_it_with_the_next_sar(self, network: Network, scscf: Asked) -> None:
        network.scscfs.clear()
        await network.give("basic")
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(ALICE)
        assert caught.value.code == 3002
        network.hss.servings = None
        with pytest.raises(CxError):
            await network.hss.update_profile(ALICE)
        assert len(parse_user_profile(await network.sar()).profiles[0].criteria) == 1

    async def test_a_stranger_and_a_profile_that_is_not_configured_are_refused(self, network: Network, scscf: Asked) -> None:
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(Impi("eve@home1.net"))
        assert caught.value.code == 5001
        await network.give("gold")
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(ALICE)
        assert (caught.value.code, scscf.profiles) == (5012, [])

    async def test_what_the_s_cscf_answers_comes_back(self, network: Network, scscf: Asked) -> None:
        scscf.answers = [CxError(5009, "DIAMETER_ERROR_NOT_SUPPORTED_USER_DATA")]
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(ALICE)
        assert (caught.value.code, scscf.terminations, await network.assigned) == (5009, [], SCSCF)

    async def test_one_that_has_no_room_for_it_loses_the_user(self, network: Network, scscf: Asked) -> None:
        """§6.2.2.1: TOO_MUCH_DATA is followed by an RTR with SERVER_CHANGE."""
        scscf.answers = [CxError(5008, "DIAMETER_ERROR_TOO_MUCH_DATA")]
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(ALICE)
        assert caught.value.code == 5008
        assert [reason for _, reason, _ in scscf.terminations] == [DeregistrationReason.SERVER_CHANGE]
        assert await network.assigned is None

    @pytest.mark.parametrize(("code", "name"), [(5001, "DIAMETER_AVP_UNSUPPORTED"), (5008, "DIAMETER_AVP_NOT_ALLOWED")])
    async def test_a_number_of_the_base_protocol_says_nothing_of_the_user(
        self, network: Network, scscf: Asked, code: int, name: str
    ) -> None:
        """RFC 6733 §7.1.5 has other meanings for the numbers of TS 29.229 §6.2: nobody is unknown, and nobody is ended."""
        scscf.answers = [CxError(code, name)]
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(ALICE)
        assert (caught.value.code, scscf.terminations, await network.assigned) == (code, [], SCSCF)

    async def test_of_two_changes_at_once_the_later_one_is_what_remains(self, network: Network, scscf: Asked) -> None:
        """The first PPR is the slower one, whichever arrives when."""
        await network.give("none")

        async def meanwhile() -> None:
            await network.give("basic")
            await network.hss.update_profile(ALICE)

        scscf.meanwhile = meanwhile
        assert await network.hss.update_profile(ALICE) == SCSCF
        assert scscf.servers()[-1] == {SIP_OF[XCAP]}
        assert len(scscf.profiles) == 3

    async def test_an_s_cscf_that_cannot_be_reached_keeps_no_other_from_the_profile(self, network: Network, scscf: Asked) -> None:
        network.scscfs[OTHER] = other = Asked()
        await network.mar(OTHER)
        del network.scscfs[SCSCF]
        with pytest.raises(CxError) as caught:
            await network.hss.update_profile(ALICE)
        assert (caught.value.code, caught.value.server_name, len(other.profiles)) == (3002, SCSCF, 1)

    async def test_a_profile_changed_before_the_answer_to_a_sar_is_in_it(self, network: Network, scscf: Asked) -> None:
        """Who changes it finds nobody registered to bring it to."""
        await network.mar(OTHER)
        reassign = network.store.reassign

        async def changed_first(impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
            await network.give("basic")
            return await reassign(impi, change)

        network.store.reassign = changed_first  # type: ignore[method-assign]
        assert len(parse_user_profile(await network.sar(OTHER)).profiles[0].criteria) == 1

    async def test_a_user_whom_another_only_challenged_is_still_served_by_the_first(self, network: Network, scscf: Asked) -> None:
        network.scscfs[OTHER] = other = Asked(answers=[CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")])
        await network.mar(OTHER)
        assert await network.hss.update_profile(ALICE) == SCSCF
        assert (len(scscf.profiles), len(other.profiles)) == (1, 1)


class TestTerminate:
    """§6.1.3."""

    @pytest.mark.parametrize("reason", list(DeregistrationReason))
    async def test_the_s_cscf_is_told_and_its_assignment_ends(self, network: Network, scscf: Asked, reason: DeregistrationReason) -> None:
        assert await network.hss.terminate(ALICE, reason, "why") == SCSCF
        impus = (ALICE_SIP, ALICE_TEL) if reason is DeregistrationReason.NEW_SERVER_ASSIGNED else ()
        assert scscf.terminations == [(impus, reason, "why")]
        assert await network.assigned is None

    async def test_one_that_answers_nothing_without_public_identities_is_asked_with_them(self, network: Network, scscf: Asked) -> None:
        """Kamailio 5.6; from then on at once."""
        for number in (1, 2):
            scscf.answers = [CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")] * (number == 1)
            assert await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION) == SCSCF
            assert [impus for impus, _, _ in scscf.terminations] == [(), *[(ALICE_SIP, ALICE_TEL)] * number]
            await network.sar()

    async def test_a_ue_that_is_back_before_the_answer_keeps_its_new_assignment(self, network: Network, scscf: Asked) -> None:
        """It was told to register anew, and is quick."""

        async def meanwhile() -> None:
            assert await network.assigned is None
            await network.mar(OTHER)
            await network.sar(OTHER)

        scscf.meanwhile = meanwhile
        await network.hss.terminate(ALICE, DeregistrationReason.SERVER_CHANGE)
        assert await network.assigned == OTHER

    @pytest.mark.parametrize("code", [3002, 5012])
    async def test_an_s_cscf_that_fails_stays_assigned(self, network: Network, scscf: Asked, code: int) -> None:
        scscf.answers = [CxError(code, "X") for _ in range(2)]
        with pytest.raises(CxError) as caught:
            await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION)
        assert (caught.value.code, await network.assigned) == (code, SCSCF)

    async def test_one_that_cannot_be_reached_stays_assigned(self, network: Network, scscf: Asked) -> None:
        network.scscfs.clear()
        with pytest.raises(CxError) as caught:
            await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION)
        assert (caught.value.code, await network.assigned) == (3002, SCSCF)

    async def test_one_that_has_nobody_to_end_is_done(self, network: Network, scscf: Asked) -> None:
        scscf.answers = [CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")]
        assert await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION) == SCSCF
        assert await network.assigned is None

    async def test_one_that_could_not_read_the_request_has_ended_nobody(self, network: Network, scscf: Asked) -> None:
        """5001 of the base protocol is AVP_UNSUPPORTED (RFC 6733 §7.1.5)."""
        scscf.answers = [CxError(5001, "DIAMETER_AVP_UNSUPPORTED")]
        with pytest.raises(CxError) as caught:
            await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION)
        assert (caught.value.code, await network.assigned) == (5001, SCSCF)

    async def test_who_waits_no_longer_leaves_the_assignment(self, network: Network, scscf: Asked) -> None:
        """A cancelled request is not half done."""
        gate = asyncio.Event()

        async def meanwhile() -> None:
            await gate.wait()

        scscf.meanwhile = meanwhile
        task = asyncio.create_task(network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION))
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await network.assigned == SCSCF

    @pytest.mark.parametrize("fails", [SCSCF, OTHER])
    async def test_of_two_s_cscfs_each_is_told_whatever_the_other_answers(self, network: Network, scscf: Asked, fails: str) -> None:
        """And the operator hears which is still to be told: it stays assigned."""
        asked = {SCSCF: scscf, OTHER: Asked()}
        network.scscfs.update(asked)
        await network.mar(OTHER)
        asked[fails].answers = [CxError(3004, "DIAMETER_TOO_BUSY")]
        with pytest.raises(CxError) as caught:
            await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION)
        assert (caught.value.code, caught.value.server_name) == (3004, fails)
        assert [len(each.terminations) for each in asked.values()] == [1, 1]
        assert await network.store.assignment(ALICE) == Assignment(fails, SCSCF if fails == SCSCF else None)
        assert await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION) == fails
        assert await network.store.assignment(ALICE) == Assignment()

    async def test_one_that_was_not_told_while_the_ue_came_back_elsewhere_is_told_later(self, network: Network, scscf: Asked) -> None:
        async def meanwhile() -> None:
            await network.mar(OTHER)
            await network.sar(OTHER)

        scscf.meanwhile, scscf.answers = meanwhile, [CxError(5012, "DIAMETER_UNABLE_TO_COMPLY")]
        with pytest.raises(CxError):
            await network.hss.terminate(ALICE, DeregistrationReason.SERVER_CHANGE)
        assert await network.assigned == OTHER
        await network.later()
        assert [reason for _, reason, _ in scscf.terminations] == [DeregistrationReason.SERVER_CHANGE] * 2
        assert await network.store.assignment(ALICE) == Assignment(OTHER, OTHER)

    async def test_a_process_that_ends_in_between_leaves_whom_to_tell(self, network: Network, scscf: Asked) -> None:
        seen = []

        async def meanwhile() -> None:
            seen.append(await network.store.assignment(ALICE))

        scscf.meanwhile = meanwhile
        await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION, "why")
        (left,) = seen  # what is on the disk when the RTR goes out
        await network.store.reassign(ALICE, lambda _: left)
        await network.start_again().sweep()
        assert len(scscf.terminations) == 1  # it may be that of a process that still waits for its answer
        await network.later()
        assert scscf.terminations[1:] == [((), DeregistrationReason.PERMANENT_TERMINATION, "why")]
        assert await network.store.assignment(ALICE) == Assignment()

    async def test_without_an_s_cscf_there_is_nothing_to_end_and_a_stranger_is_5001(self, network: Network) -> None:
        assert await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION) is None
        with pytest.raises(CxError) as caught:
            await network.hss.terminate(Impi("eve@home1.net"), DeregistrationReason.PERMANENT_TERMINATION)
        assert caught.value.code == 5001

    async def test_a_user_whom_another_only_challenged_ends_at_both(self, network: Network, scscf: Asked) -> None:
        network.scscfs[OTHER] = other = Asked()
        await network.mar(OTHER)
        assert await network.hss.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION) == SCSCF
        assert (len(scscf.terminations), len(other.terminations)) == (1, 1)
        await network.sar(OTHER, ServerAssignment.AUTHENTICATION_FAILURE)
        assert await network.assigned is None


class TestFormerServer:
    """§6.1.2.1: the S-CSCF that served a user is told that another does."""

    async def test_it_is_told_once_the_user_has_proven_to_be_one(self, network: Network, scscf: Asked) -> None:
        await network.mar(OTHER)
        await settle()
        assert scscf.terminations == []
        await network.sar(OTHER)
        await settle()
        assert scscf.terminations == [((ALICE_SIP, ALICE_TEL), DeregistrationReason.NEW_SERVER_ASSIGNED, "")]
        assert await network.store.assignment(ALICE) == Assignment(OTHER, OTHER)

    async def test_the_answer_does_not_wait_for_it(self, network: Network, scscf: Asked) -> None:
        """Each could be waiting for the other."""
        gate = asyncio.Event()

        async def meanwhile() -> None:
            await gate.wait()

        scscf.meanwhile = meanwhile
        async with asyncio.timeout(60):
            await network.move(OTHER)
        await settle()
        await network.hss.aclose()

    async def test_who_is_back_meanwhile_is_not_cleared(self, network: Network, scscf: Asked) -> None:
        network.scscfs[OTHER] = Asked()
        await network.move(OTHER)
        await network.move(SCSCF)
        await settle()
        assert scscf.terminations == []

    async def test_one_that_cannot_be_reached_is_told_when_it_can(self, network: Network, scscf: Asked) -> None:
        """Also by a process that has started since."""
        network.scscfs.clear()
        await network.move(OTHER)
        await settle()
        assert network.log.fields("s-cscf-not-told")["server"] == SCSCF
        network.start_again()
        await network.later()
        assert scscf.terminations == []
        network.scscfs[SCSCF] = scscf
        await network.later()
        assert scscf.terminations == [((ALICE_SIP, ALICE_TEL), DeregistrationReason.NEW_SERVER_ASSIGNED, "")]
        await network.later()
        assert len(scscf.terminations) == 1

    async def test_one_that_serves_the_user_again_by_then_is_told_nothing(self, network: Network, scscf: Asked) -> None:
        network.scscfs.clear()
        await network.move(OTHER)
        await settle()
        await network.move(SCSCF)
        network.scscfs[SCSCF] = scscf
        await network.later()
        assert scscf.terminations == []

    async def test_one_that_never_comes_back_is_given_up_when_its_registrations_have_ended(self, network: Network, scscf: Asked) -> None:
        network.scscfs.clear()
        await network.move(OTHER)
        await settle()
        network.clock.time += OWED_FOR
        await network.later()
        assert network.log.fields("s-cscf-never-told")["users"] == 1
        assert await network.store.owing() == {}

    async def test_one_that_is_lost_on_the_way_is_asked_no_more_in_this_sweep(self, network: Network, scscf: Asked) -> None:
        """Each question would wait for its time-out."""
        await self.owe(network, OWED_AT_ONCE + 1)
        scscf.answers = [CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")] * OWED_AT_ONCE
        await network.later()
        assert len(scscf.terminations) == OWED_AT_ONCE
        assert len(await network.store.owed_to(SCSCF, 99)) == OWED_AT_ONCE + 1

    async def test_one_that_leaves_some_unanswered_is_asked_of_the_others_and_of_these_some_times(
        self, network: Network, scscf: Asked
    ) -> None:
        """Kamailio, of users who are not registered there any more."""
        await self.owe(network, 3)
        for _ in range(MAX_UNANSWERED):
            assert len(await network.store.owing()) == 1
            scscf.answers = [CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")]
            await network.later()
        assert (len(scscf.terminations), await network.store.owing()) == (3 + MAX_UNANSWERED - 1, {})
        assert network.log.fields("s-cscf-never-told") == {"impi": "0@home1.net", "server": SCSCF}

    async def owe(self, network: Network, users: int) -> None:
        owed = OwedTermination(SCSCF, DeregistrationReason.NEW_SERVER_ASSIGNED, "", network.clock.now())
        for number in range(users):
            each = subscriber("alice")._replace(impi=Impi(f"{number}@home1.net"), impus=())
            await network.store.add(each)
            await network.store.reassign(each.impi, lambda found: found._replace(owed=(owed,)))

    async def test_one_that_is_back_after_long_is_told_of_everybody_at_once(self, network: Network, scscf: Asked) -> None:
        """And one that refuses is asked about a batch, not without end."""
        owed = OwedTermination(SCSCF, DeregistrationReason.NEW_SERVER_ASSIGNED, "", network.clock.now())
        await self.owe(network, OWED_BATCH + 1)
        scscf.answers = [CxError(5012, "DIAMETER_UNABLE_TO_COMPLY")]
        await network.later()
        assert len(scscf.terminations) == OWED_BATCH
        for number in range(OWED_BATCH):
            await network.store.reassign(Impi(f"{number}@home1.net"), lambda found: found._replace(owed=(owed,)))
        await network.later()
        assert (len(scscf.terminations), await network.store.owing()) == (2 * OWED_BATCH + 1, {})

    async def test_one_that_is_being_told_keeps_no_other_waiting(self, network: Network, scscf: Asked) -> None:
        gate, owed = asyncio.Event(), OwedTermination(SCSCF, DeregistrationReason.NEW_SERVER_ASSIGNED, "", network.clock.now())

        async def meanwhile() -> None:
            await gate.wait()

        scscf.meanwhile = meanwhile
        await network.move(OTHER)
        await settle()
        bobby = subscriber("bobby")
        await network.store.add(bobby)
        await network.store.reassign(bobby.impi, lambda found: found._replace(owed=(owed,)))
        await network.later()
        assert [impus[0] for impus, _, _ in scscf.terminations] == [ALICE_SIP, bobby.impus[0].impu]
        gate.set()
        await settle()
        assert await network.store.owing() == {}

    async def test_an_s_cscf_that_does_not_answer_keeps_no_other_waiting_in_a_sweep(self, network: Network, scscf: Asked) -> None:
        gate, frozen = asyncio.Event(), Asked()

        async def meanwhile() -> None:
            await gate.wait()

        frozen.meanwhile = meanwhile
        first = "sip:scscf0.home1.net"  # before the other in the sweep's order
        for name, user in ((first, "bobby"), (SCSCF, "carol")):
            each = subscriber(user)
            await network.store.add(each)
            owed = OwedTermination(name, DeregistrationReason.NEW_SERVER_ASSIGNED, "", network.clock.now())
            await network.store.reassign(each.impi, lambda found, owed=owed: found._replace(owed=(owed,)))  # type: ignore[misc]
        network.scscfs[first] = frozen
        sweep = asyncio.get_running_loop().create_task(network.later())
        await settle()
        assert (len(frozen.terminations), len(scscf.terminations), sweep.done()) == (1, 1, False)
        gate.set()
        await sweep
        assert await network.store.owing() == {}

    async def test_a_store_that_fails_ends_nothing(self, network: Network, scscf: Asked) -> None:
        async def fails(impi: Impi) -> Assignment:
            raise StoreError("the disk is full")

        network.store.assignment = fails  # type: ignore[method-assign]
        await network.move(OTHER)
        await settle()
        assert (scscf.terminations, network.log.warnings) == ([], ["s-cscf-not-told"])

    @pytest.mark.parametrize("assignment", [ServerAssignment.RE_REGISTRATION, ServerAssignment.NO_ASSIGNMENT])
    async def test_the_same_one_is_told_nothing(self, network: Network, scscf: Asked, assignment: ServerAssignment) -> None:
        await network.mar(SCSCF)
        await network.sar(assignment=assignment)
        await settle()
        assert scscf.terminations == []
