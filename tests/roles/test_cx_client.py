# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6: what answers mean, and what an HSS asks of an S-CSCF. Promises of the port: tests/contract/test_cx.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from keyferry.errors import CxError, StoreError, TransportError
from keyferry.ports import DeregistrationReason, Resync, ServerAssignment
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import Result, ResultCode
from keyferry.protocol.diameter.cx_fields import build_request
from keyferry.protocol.diameter.message import VENDOR_3GPP, DiameterMessage, make_avp
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from keyferry.roles.cx_client import CxListener, DiameterCx
from keyferry.roles.cx_status import status_of
from protocol.diameter.cxkit import HSS, IMPI, IMPU, PPR, RTR, SCSCF, SERVER, TO_SCSCF, VECTOR
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom

OTHER = Impi("other@home1.net")


class Sender:
    """A node whose peer answers as the test says."""

    def __init__(self, answer: Callable[[DiameterMessage], DiameterMessage]) -> None:
        self.answer = answer
        self.asked: list[DiameterMessage] = []
        self.timeouts: list[float] = []

    async def send(self, request: DiameterMessage, *, timeout: float) -> DiameterMessage:
        self.asked.append(request)
        self.timeouts.append(timeout)
        return self.answer(request.with_ids(1, 1))


def client(answer: Callable[[DiameterMessage], DiameterMessage]) -> DiameterCx:
    return DiameterCx(Sender(answer), SCSCF, "home1.net", FakeClock(), SeededRandom(), RecordingLog(), RecordingCounter(), timeout=3.0)


def sent(asking: DiameterCx) -> DiameterMessage:
    assert isinstance(asking.sender, Sender)
    return asking.sender.asked[-1]


async def refusal(asked: object) -> CxError:
    with pytest.raises(CxError) as caught:
        await asked  # type: ignore[misc]
    return caught.value


def mar(asking: DiameterCx, resync: Resync | None = None) -> object:
    return asking.multimedia_auth(IMPI, IMPU, SERVER, resync, masked=True)


def an_maa(request: DiameterMessage) -> DiameterMessage:
    return cx.build_maa(request, cx.Maa(IMPI, IMPU, (cx.AuthItem(VECTOR, b"3G\x06\x07"),)), HSS)


class TestRequests:
    """TS 29.229 §6.1."""

    async def test_they_go_to_the_realm_and_any_hss_of_it_may_answer(self) -> None:
        asking = client(an_maa)
        await mar(asking)  # type: ignore[misc]
        request = sent(asking)
        assert (base.identity_of(request, base.DESTINATION_REALM), request.first(base.DESTINATION_HOST)) == ("home1.net", None)
        assert base.identity_of(request, base.ORIGIN_HOST) == SCSCF.origin_host
        assert isinstance(asking.sender, Sender)
        assert asking.sender.timeouts == [3.0]

    async def test_each_has_a_session_of_its_own(self) -> None:
        """RFC 6733 §5.5.4: a server takes two of one session for one that came again."""
        asking = client(an_maa)
        for _ in range(3):
            await mar(asking)  # type: ignore[misc]
        assert isinstance(asking.sender, Sender)
        assert len({avp.data for request in asking.sender.asked if (avp := request.first(base.SESSION_ID))}) == 3

    async def test_a_vector_is_asked_for_one_by_one_and_a_resynchronisation_says_rand_and_auts(self) -> None:
        asking = client(an_maa)
        await mar(asking, Resync(bytes(16), bytes(range(14))))  # type: ignore[misc]
        assert cx.parse_mar(sent(asking)) == cx.Mar(IMPI, IMPU, SERVER, resynchronisation=cx.Resynchronisation(bytes(16), bytes(range(14))))

    async def test_what_a_marker_says_to_other_s_cscfs_is_not_used(self) -> None:
        """Ours decides by the Contact."""
        assert await mar(client(an_maa)) == VECTOR  # type: ignore[misc]


class TestAnswers:
    """TS 29.228 §6."""

    @pytest.mark.parametrize(
        ("kind", "name", "candidates", "found"),
        [
            (0, SERVER, None, UserAuthorization(SERVER)),
            (0, None, (SERVER,), UserAuthorization(None, (SERVER,))),
            (0, None, (), UserAuthorization(None)),
            (0, None, None, UserAuthorization(None)),
            (2, SERVER, (SERVER, "sip:other"), UserAuthorization(None, (SERVER, "sip:other"))),
        ],
    )
    async def test_an_authorisation_names_a_server_or_those_to_choose_from(
        self, kind: int, name: str | None, candidates: tuple[str, ...] | None, found: UserAuthorization
    ) -> None:
        capabilities = None if candidates is None else cx.Capabilities((7,), (), candidates)
        result = Result(cx.CxResult.SUBSEQUENT_REGISTRATION, experimental=True)
        asking = client(lambda request: cx.build_uaa(request, cx.Uaa(result, name, capabilities), HSS))
        assert await asking.user_authorization(IMPI, IMPU, "visited1.net", AuthorizationType(kind)) == found
        assert cx.parse_uar(sent(asking)) == cx.Uar(IMPI, IMPU, "visited1.net", cx.UserAuthorizationType(kind))

    async def test_a_user_for_whom_an_s_cscf_could_be_chosen_is_not_registered(self) -> None:
        result = Result(cx.CxResult.UNREGISTERED_SERVICE, experimental=True)
        asking = client(lambda request: cx.build_lia(request, cx.Lia(result, None, cx.Capabilities((1,))), HSS))
        assert (await refusal(asking.location_info(IMPU))).code == 5003

    @pytest.mark.parametrize("ending", [ServerAssignment.USER_DEREGISTRATION, ServerAssignment.AUTHENTICATION_TIMEOUT])
    async def test_a_profile_after_the_end_is_passed_over(self, ending: ServerAssignment) -> None:
        asking = client(lambda request: cx.build_saa(request, cx.Saa(IMPI, b"<IMSSubscription/>"), HSS))
        assert await asking.server_assignment(IMPI, IMPU, SERVER, ending) == b""

    @pytest.mark.parametrize(
        "answer",
        [
            lambda request: cx.build_maa(request, cx.Maa(OTHER, IMPU, (cx.AuthItem(VECTOR),)), HSS),
            lambda request: base.answer_to(request, HSS.origin),
            lambda request: cx.build_maa(request, cx.Maa(IMPI, IMPU, ()), HSS),
            lambda request: cx.build_saa(request, cx.Saa(IMPI), HSS),
        ],
        ids=["of another user", "without a result", "without a vector", "another command's"],
    )
    async def test_what_cannot_be_read_is_no_refusal(self, answer: Callable[[DiameterMessage], DiameterMessage]) -> None:
        asking = client(answer)
        found = await refusal(mar(asking))
        assert (found.code, found.experimental, status_of(found)) == (5012, False, 500)
        assert asking.log.warnings == ["cx-answer-unreadable"]  # type: ignore[attr-defined]
        assert asking.counter["cx_requests", "MAR unreadable"] == 1  # type: ignore[index]

    async def test_a_registration_without_a_profile_is_none(self) -> None:
        asking = client(lambda request: cx.build_saa(request, cx.Saa(IMPI), HSS))
        assert (await refusal(asking.server_assignment(IMPI, IMPU, SERVER, ServerAssignment.REGISTRATION))).code == 5012

    @pytest.mark.parametrize("where", ["UAA", "LIA"])
    async def test_a_server_name_that_nothing_can_be_sent_to_is_not_taken(self, where: str) -> None:
        def answer(request: DiameterMessage) -> DiameterMessage:
            if where == "LIA":
                return cx.build_lia(request, cx.Lia(cx.SUCCESS, "\r\nVia: x"), HSS)
            return cx.build_uaa(request, cx.Uaa(cx.SUCCESS, "http://x"), HSS)

        asking = client(answer)
        asked = asking.location_info(IMPU) if where == "LIA" else asking.user_authorization(IMPI, IMPU, "")
        assert (await refusal(asked)).code == 5012

    async def test_nobody_in_time_is_a_504_for_the_ue(self) -> None:
        def silent(_: DiameterMessage) -> DiameterMessage:
            raise TransportError("aaa://127.0.0.1:3868", "no answer in 3 s")

        asking = client(silent)
        found = await refusal(mar(asking))
        assert (found.code, found.experimental, status_of(found)) == (3002, False, 504)
        assert asking.counter["cx_requests", "MAR UNABLE_TO_DELIVER"] == 1  # type: ignore[index]

    @pytest.mark.parametrize(
        ("code", "status"), [(cx.CxResult.ERROR_USER_UNKNOWN, 403), (ResultCode.AVP_UNSUPPORTED, 500), (ResultCode.TOO_BUSY, 504)]
    )
    async def test_a_code_of_rfc_6733_forbids_nobody(self, code: cx.CxResult | ResultCode, status: int) -> None:
        asking = client(lambda request: cx.build_error(request, cx.error_for(code), HSS))
        assert status_of(await refusal(mar(asking))) == status


class Serving:
    """An S-CSCF that notes what the HSS wants."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.problem = problem

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        self._take(impi, tuple(impus), reason, info)

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        self._take(impi, user_data)

    def _take(self, *what: object) -> None:
        self.asked.append(what)
        if self.problem is not None:
            raise self.problem


class Hss:
    """Who is at the other end."""

    origin_host, role, product = HSS.origin_host, "hss", "keyferry"


def listener(serving: Serving | None) -> CxListener:
    return CxListener(SCSCF, RecordingLog(), RecordingCounter(), serving)


class TestWhatTheHssAsks:
    """TS 29.228 §6.1.3, §6.2.1."""

    async def test_an_rtr_ends_registrations_of_each_private_identity_that_it_names(self) -> None:
        serving = Serving()
        answer = await listener(serving).handle(cx.build_rtr(RTR, TO_SCSCF), Hss())
        cx.parse_rta(answer)
        ended = (RTR.impus, DeregistrationReason.SERVER_CHANGE, "moved")
        assert serving.asked == [(IMPI, *ended), (OTHER, *ended)]

    async def test_a_ppr_brings_a_profile(self) -> None:
        serving = Serving()
        cx.parse_ppa(await listener(serving).handle(cx.build_ppr(PPR, TO_SCSCF), Hss()))
        assert serving.asked == [(IMPI, PPR.user_data)]

    async def test_a_ppr_without_one_changes_nothing(self) -> None:
        serving = Serving()
        request = build_request(cx.PUSH_PROFILE, TO_SCSCF, (make_avp(base.USER_NAME, 0, IMPI),))
        cx.parse_ppa(await listener(serving).handle(request, Hss()))
        assert serving.asked == []

    @pytest.mark.parametrize(
        ("problem", "code", "experimental"),
        [(cx.error_for(cx.CxResult.ERROR_USER_UNKNOWN), 5001, True), (StoreError("the disk is full"), 5012, False)],
    )
    async def test_what_the_s_cscf_cannot_do_is_answered(self, problem: Exception, code: int, experimental: bool) -> None:
        one = listener(Serving(problem))
        answer = await one.handle(cx.build_ppr(PPR, TO_SCSCF), Hss())
        assert base.result_of(answer) == Result(code, experimental)
        assert one.counter["cx_requests", "PPR SUCCESS"] == 0  # type: ignore[index]

    @pytest.mark.parametrize("serving", [None, Serving()])
    async def test_who_serves_nobody_and_commands_of_an_hss_are_not_supported(self, serving: Serving | None) -> None:
        request = cx.build_ppr(PPR, TO_SCSCF) if serving is None else cx.build_lir(cx.Lir(IMPU), TO_SCSCF)
        answer = await listener(serving).handle(request, Hss())
        assert (base.result_of(answer), answer.error) == (Result(3001, experimental=False), True)

    async def test_a_request_that_cannot_be_read_is_answered_as_such(self) -> None:
        unknown = make_avp(4711, VENDOR_3GPP, b"x", mandatory=True)
        request = build_request(cx.PUSH_PROFILE, TO_SCSCF, (make_avp(base.USER_NAME, 0, IMPI), unknown))
        answer = await listener(Serving()).handle(request, Hss())
        assert base.result_of(answer) == Result(5001, experimental=False)


class TestLateAnswers:
    """An HSS that carries out a SAR after another did: the user may be back since, or gone."""

    PROFILE = build_user_profile(UserProfile(IMPI, (ServiceProfile(((Impu("sip:barred@home1.net"), True), (IMPU, False))),)))

    async def told(self, assignment: ServerAssignment, answer: Callable[[DiameterMessage], DiameterMessage], times: int = 1) -> int:
        asking, came = client(answer), listener(None)
        asking.late(answer(a_sar()))  # nobody wants to know yet
        asking.done_late = came.late
        asking.late(answer(a_sar()))
        found: list[tuple[Impi, Impu]] = []
        came.done_late = lambda *who: found.append(who)
        with suppress(CxError):
            await asking.server_assignment(IMPI, IMPU, SERVER, assignment)
        for _ in range(times):
            asking.late(answer(sent(asking)))
        assert set(found) <= {(IMPI, IMPU)}
        return len(found)

    @pytest.mark.parametrize("assignment", list(ServerAssignment))
    async def test_of_an_end_the_hss_is_told_once_more_and_once(self, assignment: ServerAssignment) -> None:
        other = {ServerAssignment(number) for number in (0, 1, 2)} | {
            ServerAssignment.AUTHENTICATION_FAILURE, ServerAssignment.AUTHENTICATION_TIMEOUT,
        }  # fmt: skip
        told = await self.told(assignment, lambda request: cx.build_saa(request, cx.Saa(IMPI, b""), HSS), 2)
        assert told == (assignment not in other)

    @pytest.mark.parametrize("named", [IMPI, None])
    async def test_of_a_registration_that_the_user_may_have_left(self, named: Impi | None) -> None:
        told = await self.told(ServerAssignment.REGISTRATION, lambda request: cx.build_saa(request, cx.Saa(named, self.PROFILE), HSS))
        assert told == 1

    @pytest.mark.parametrize("assignment", [ServerAssignment.USER_DEREGISTRATION, ServerAssignment.REGISTRATION])
    async def test_what_was_refused_or_cannot_be_read_has_done_nothing(self, assignment: ServerAssignment) -> None:
        busy = cx.error_for(ResultCode.TOO_BUSY)
        assert await self.told(assignment, lambda request: cx.build_error(request, busy, HSS)) == 0
        assert await self.told(assignment, lambda request: replace(request, request=False)) == 0
        assert await self.told(assignment, lambda request: cx.build_saa(request, cx.Saa(IMPI, b"<x/>"), HSS)) == 0
        saa = cx.Saa(IMPI, self.PROFILE)
        assert await self.told(assignment, lambda request: replace(cx.build_saa(request, saa, HSS), code=cx.MULTIMEDIA_AUTH)) == 0


def a_sar() -> DiameterMessage:
    sar = cx.Sar(IMPI, (IMPU,), SERVER, cx.ServerAssignmentType.REGISTRATION)
    return cx.build_sar(sar, cx.Route(SCSCF, "another;1;2", "home1.net"))
