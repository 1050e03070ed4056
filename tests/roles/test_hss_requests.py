# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.2.1, §6.1.3, §6.2.2: what the HSS asks of the S-CSCF that serves a user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from keyferry.errors import CxError
from keyferry.ports import CxServing, DeregistrationReason, ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.ifc import InitialFilterCriteria
from keyferry.protocol.ims.user_profile import parse_user_profile
from keyferry.roles.hss import Hss
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.stores.memory import MemorySubscriberStore
from roles.home import NOTES, SCSCF, SIP_OF, XCAP, criterion, open_home, subscriber
from roles.network import RecordingCounter, RecordingLog, SeededRandom, settle

ALICE, ALICE_SIP = Impi("alice@home1.net"), Impu("sip:alice@home1.net")
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
        assert impi == ALICE
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
    hss: Hss = field(init=False)

    def __post_init__(self) -> None:
        self.hss = Hss(self.store, BASIC, SeededRandom(), self.log, RecordingCounter(), servings=self)

    def at(self, server_name: str) -> CxServing | None:
        return self.scscfs.get(server_name)

    async def sar(self, server_name: str = SCSCF, assignment: ServerAssignment = ServerAssignment.REGISTRATION) -> bytes:
        return await self.hss.server_assignment(ALICE, ALICE_SIP, server_name, assignment)

    async def mar(self, server_name: str) -> None:
        await self.hss.multimedia_auth(ALICE, ALICE_SIP, server_name)

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
        assert scscf.terminations == [((), reason, "why")]
        assert await network.assigned is None

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
        scscf.answers = [CxError(code, "X")]
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

    @pytest.mark.parametrize("challenged", [True, False])
    async def test_it_is_told_once_the_user_has_proven_to_be_one(self, network: Network, scscf: Asked, challenged: bool) -> None:
        if challenged:
            await network.mar(OTHER)
            await settle()
            assert scscf.terminations == []
        await network.sar(OTHER)
        await settle()
        assert scscf.terminations == [((), DeregistrationReason.NEW_SERVER_ASSIGNED, "")]
        assert await network.assigned == OTHER

    async def test_the_answer_does_not_wait_for_it(self, network: Network, scscf: Asked) -> None:
        """Each could be waiting for the other."""
        gate = asyncio.Event()

        async def meanwhile() -> None:
            await gate.wait()

        scscf.meanwhile = meanwhile
        async with asyncio.timeout(5):
            assert await network.sar(OTHER)
        await settle()
        await network.hss.aclose()

    async def test_who_is_back_meanwhile_is_not_cleared(self, network: Network, scscf: Asked) -> None:
        network.scscfs[OTHER] = Asked()
        await network.sar(OTHER)
        await network.sar(SCSCF)
        await settle()
        assert scscf.terminations == []

    async def test_one_that_cannot_be_reached_is_noted(self, network: Network, scscf: Asked) -> None:
        network.scscfs.clear()
        await network.sar(OTHER)
        await settle()
        assert network.log.fields("former-s-cscf-not-told")["server"] == SCSCF

    @pytest.mark.parametrize("assignment", [ServerAssignment.RE_REGISTRATION, ServerAssignment.NO_ASSIGNMENT])
    async def test_the_same_one_is_told_nothing(self, network: Network, scscf: Asked, assignment: ServerAssignment) -> None:
        await network.mar(SCSCF)
        await network.sar(assignment=assignment)
        await settle()
        assert scscf.terminations == []


async def test_a_whole_network_changes_a_profile_and_ends_a_user() -> None:
    """§6.1.3, §6.2.2: HSS, S-CSCF and AS together; the S-CSCF tells the HSS nothing of its own."""
    async with open_home(criteria=[criterion(XCAP)]) as home:
        network = Network()
        home.hss.servings = network
        network.scscfs[SCSCF] = ScscfServing(home.scscf, home.reg_event.forget)
        alice = home.device()
        await alice.register()
        home.profiles["default"] = [criterion(XCAP), criterion(NOTES)]
        assert await home.hss.update_profile(ALICE) == SCSCF
        await settle()
        assert await home.key_of(alice, NOTES) is not None
        assert await home.hss.terminate(ALICE, DeregistrationReason.SERVER_CHANGE) == SCSCF
        await settle()
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES), await home.subscribers.server_name(ALICE)) == (0, 0, None)
        await alice.register()
        assert await home.key_of(alice, NOTES) is not None
