# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.3.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from keyferry.errors import CxError, LocalFailure
from keyferry.ports import SipPeer
from keyferry.protocol.digest import Credentials, build_credentials
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.selection import UserAuthorization, ranked
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.icscf import ANSWER_WITHIN, Icscf
from roles.home import SCSCF, Home, open_home


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with open_home() as opened:
        opened.network.attach("UE", "ue.invalid", None)
        yield opened


def register(
    impi: str | None = "alice@home1.net", impu: str = "sip:alice@home1.net", method: str = "REGISTER", hops: str = "70"
) -> Request:
    own = Credentials(impi or "", "home1.net", "", "sip:home1.net", "")
    authorization = (("Authorization", build_credentials(own)),) if impi else ()
    return Request(
        method,
        "sip:home1.net",
        (
            ("Max-Forwards", hops), ("From", f"<{impu}>;tag=1"), ("To", f"<{impu}>"), ("Call-ID", "c"), ("CSeq", f"1 {method}"),
            ("Contact", "<sip:a@192.0.2.1>"), ("P-Visited-Network-ID", '"visited1.net"'), *authorization,
        ),
    )  # fmt: skip


async def ask(home: Home, *args: Any, **changes: Any) -> Response:
    return await home.network.carry("UE", register(*args, **changes), home.network.peer("I"))


def onward(home: Home) -> Request:
    message = home.network.sent("I", "S")[-1]
    assert isinstance(message, Request)
    return message


async def test_a_new_user_goes_to_the_configured_s_cscf(home: Home) -> None:
    """§5.3.1.2."""
    assert (await ask(home)).status == 401
    assert home.network.ladder() == ["UE > I REGISTER", "I > S REGISTER", "S > I 401", "I > UE 401"]


async def test_the_request_uri_becomes_the_s_cscfs_and_a_hop_is_used(home: Home) -> None:
    """§5.3.1.2; RFC 3261 §16.6."""
    await ask(home)
    assert onward(home).uri == SCSCF
    assert onward(home).get("Max-Forwards") == "69"


async def test_a_known_user_goes_to_the_s_cscf_assigned(home: Home) -> None:
    await home.subscribers.set_server_name(Impi("alice@home1.net"), "sip:scscf1.home1.net:6060")
    await ask(home)
    assert onward(home).uri == "sip:scscf1.home1.net:6060"


async def test_without_authorization_the_impi_follows_from_the_impu(home: Home) -> None:
    """§5.3.1.2; TS 24.229 §5.4.1.1."""
    assert (await ask(home, None)).status == 401


@pytest.mark.parametrize(("impi", "impu"), [("eve@home1.net", "sip:eve@home1.net"), ("alice@home1.net", "sip:bobby@home1.net")])
async def test_a_user_or_pair_that_the_hss_does_not_know_is_403(home: Home, impi: str, impu: str) -> None:
    """§5.3.1.2; TS 29.229 §6.2.2."""
    assert (await ask(home, impi, impu)).status == 403
    assert home.network.ladder() == ["UE > I REGISTER", "I > UE 403"]
    assert home.log.warnings == ["hss-refused"]


async def test_the_visited_network_is_asked_for(home: Home) -> None:
    asked: list[str] = []

    class Strict:
        async def user_authorization(self, impi: Impi, impu: str, visited_network: str, kind: object) -> UserAuthorization:
            asked.append(visited_network)
            raise CxError(5004, "DIAMETER_ERROR_ROAMING_NOT_ALLOWED")

    object.__setattr__(home.icscf, "cx", Strict())
    assert (await ask(home)).status == 403
    assert asked == ['"visited1.net"']


@pytest.mark.parametrize(
    ("code", "name", "status"),
    [
        (5001, "DIAMETER_ERROR_USER_UNKNOWN", 403),
        (5001, "DIAMETER_AVP_UNSUPPORTED", 500),
        (5006, "DIAMETER_ERROR_AUTH_SCHEME_NOT_SUPPORTED", 403),
        (5012, "DIAMETER_UNABLE_TO_COMPLY", 500),
        (5010, "DIAMETER_NO_COMMON_APPLICATION", 500),
        (3002, "DIAMETER_UNABLE_TO_DELIVER", 504),
        (3004, "DIAMETER_TOO_BUSY", 504),
    ],
)
async def test_what_the_hss_says_decides_the_answer(home: Home, code: int, name: str, status: int) -> None:
    """§5.3.1.2; TS 29.229 §6.2; RFC 6733 §7.1."""

    class Refusing:
        async def user_authorization(self, impi: Impi, impu: str, visited_network: str, kind: object) -> UserAuthorization:
            raise CxError(code, name)

    object.__setattr__(home.icscf, "cx", Refusing())
    assert (await ask(home)).status == status


@pytest.mark.parametrize(("warnings", "warning"), [(False, None), (True, '399 icscf "S-CSCF scscf1.home1.net: no answer in 32 s"')])
async def test_a_silent_s_cscf_is_504_that_names_it_in_a_laboratory_alone(home: Home, warnings: bool, warning: str | None) -> None:
    home.network.down("S")
    home.icscf = replace(home.icscf, warnings=warnings)
    answer = await ask(home)
    assert (answer.status, answer.get("Warning")) == (504, warning)
    assert home.log.warnings == ["s-cscf-unreachable", "no-s-cscf-left"]


async def test_what_we_cannot_send_for_want_of_connections_is_no_silence_of_the_s_cscf(home: Home) -> None:
    """It is asked first again, by the next user's REGISTER."""

    def refuse(request: Request) -> Request:
        raise LocalFailure("tcp:127.0.0.1:6060", "too many connections are open")

    home.network.requests["I", "S"] = refuse
    assert (await ask(home)).status == 504
    assert not home.icscf._is_down("sip:scscf1.home1.net")


@pytest.mark.parametrize("protected", [False, True])
async def test_what_the_hss_takes_is_no_time_of_the_s_cscf(home: Home, protected: bool) -> None:
    """The P-CSCF would give up first, and say that we are silent."""
    cx = home.icscf.cx

    class Slow:
        async def user_authorization(self, *args: Any) -> UserAuthorization:
            await home.clock.advance(ANSWER_WITHIN - 0.01)
            return await cx.user_authorization(*args)

    home.icscf = replace(home.icscf, cx=Slow(), warnings=True)  # type: ignore[arg-type]  # all that it asks for
    home.network.attach("S", "scscf1.home1.net", silent)
    request = register()
    if protected:
        marked = f'{request.get("Authorization")}, integrity-protected="yes"'
        request = request.with_headers([(name, marked if name == "Authorization" else value) for name, value in request.headers])
    answer = await asyncio.wait_for(home.network.carry("UE", request, home.network.peer("I")), 60)
    assert (answer.status, answer.get("Warning")) == (504, '399 icscf "S-CSCF scscf1.home1.net: no answer in 0.01 s"')


async def test_an_hss_that_takes_all_the_time_is_what_the_ue_is_told_of(home: Home) -> None:
    cx = home.icscf.cx

    class Slow:
        async def user_authorization(self, *args: Any) -> UserAuthorization:
            await home.clock.advance(ANSWER_WITHIN)
            return await cx.user_authorization(*args)

    home.icscf = replace(home.icscf, cx=Slow(), warnings=True)  # type: ignore[arg-type]  # all that it asks for
    answer = await ask(home)
    assert (answer.status, answer.get("Warning")) == (504, '399 icscf "S-CSCF not asked: the HSS took all the time"')


async def test_an_s_cscf_that_nobody_can_find_is_replaced(home: Home) -> None:
    """§5.3.1.3."""
    await home.subscribers.set_server_name(Impi("alice@home1.net"), "sip:gone.home1.net")
    assert (await ask(home)).status == 401
    assert await home.subscribers.server_name(Impi("alice@home1.net")) == SCSCF
    assert home.counter["icscf_moved_on", "silent"] == 1


async def test_another_method_is_405(home: Home) -> None:
    answer = await ask(home, method="INVITE")
    assert (answer.status, answer.get("Allow")) == (405, "REGISTER, SUBSCRIBE")


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"hops": "0"}, 483), ({"hops": "x"}, 400), ({"impu": "mailto:alice@home1.net"}, 400), ({"impi": "alice"}, 400)],
)
async def test_what_cannot_be_routed_is_refused(home: Home, changes: dict[str, str], status: int) -> None:
    assert (await ask(home, **changes)).status == status
    assert home.network.sent("I", "S") == []


def subscribe(uri: str = "sip:alice@home1.net", *extra: tuple[str, str]) -> Request:
    headers = (("To", f"<{uri}>"), ("From", "<sip:pcscf1.visited1.net>;tag=1"), ("Call-ID", "c"), ("CSeq", "1 SUBSCRIBE"), *extra)
    return Request("SUBSCRIBE", uri, headers)


async def ask_for(home: Home, *args: Any) -> int:
    return (await home.network.carry("UE", subscribe(*args), home.network.peer("I"))).status


class TestSubscribe:
    """TS 24.229 §5.3.2.1: a request for a user."""

    async def test_it_goes_to_the_users_s_cscf_and_keeps_its_uri(self, home: Home) -> None:
        """LIR; the I-CSCF takes its Route away and is no part of the dialog."""
        home.icscf = Icscf(home.hss, home.icscf.sip, home.network, SCSCF, home.log, home.clock, home.counter, "icscf.home1.net")
        await home.subscribers.set_server_name(Impi("alice@home1.net"), SCSCF)
        await ask_for(home, "sip:alice@home1.net", ("Route", "<sip:icscf.home1.net;lr>"))
        assert (onward(home).uri, onward(home).all("Route")) == ("sip:alice@home1.net", [f"<{SCSCF};lr>"])
        assert onward(home).all("Record-Route") == []

    async def test_a_user_who_is_not_registered_is_480_an_unknown_one_404(self, home: Home) -> None:
        assert await ask_for(home) == 480
        assert await ask_for(home, "sip:nobody@home1.net") == 404
        assert home.log.warnings == ["subscribe-refused"] * 2

    async def test_a_silent_s_cscf_is_504(self, home: Home) -> None:
        await home.subscribers.set_server_name(Impi("alice@home1.net"), SCSCF)
        home.network.down("S")
        assert await ask_for(home) == 504

    async def test_an_hss_that_fails_is_500(self, home: Home) -> None:
        class Failing:
            async def location_info(self, impu: str) -> str:
                raise CxError(5012, "DIAMETER_UNABLE_TO_COMPLY")

        object.__setattr__(home.icscf, "cx", Failing())
        assert await ask_for(home) == 500


async def silent(request: Request, peer: SipPeer) -> Response:
    never: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    return await never


OTHER = "sip:scscf2.home1.net"
ALICE = Impi("alice@home1.net")


class Second:
    """Another S-CSCF, played by hand."""

    def __init__(self, home: Home, status: int = 401) -> None:
        self.status, self.seen, self.gate = status, 0, asyncio.Event()
        self.gate.set()
        home.hss.scscfs = (SCSCF, OTHER)
        home.network.attach("S2", "scscf2.home1.net", self.answer)

    async def answer(self, request: Request, peer: SipPeer) -> Response:
        self.seen += 1
        await self.gate.wait()
        return make_response(request, self.status)


async def assign(home: Home, server: str) -> None:
    await home.subscribers.set_server_name(ALICE, server)


class TestSeveral:
    """§5.3.1.2, §5.3.1.3: several S-CSCFs."""

    async def test_a_new_user_goes_to_the_first_that_the_hss_prefers(self, home: Home) -> None:
        second = Second(home)
        await ask(home)
        assert second.seen == (ranked(ALICE, (SCSCF, OTHER))[0] == OTHER)

    @pytest.mark.parametrize("status", [480, 302])
    async def test_one_that_sends_away_is_followed_by_another(self, home: Home, status: int) -> None:
        second = Second(home, status)
        await assign(home, OTHER)
        assert (await ask(home)).status == 401
        assert (second.seen, await home.subscribers.server_name(ALICE)) == (1, SCSCF)
        assert home.counter["icscf_moved_on", "sent-away"] == 1

    async def test_one_that_takes_too_long_is_followed_by_another_and_then_asked_last(self, home: Home) -> None:
        """Its users do not wait for it each."""
        second = Second(home)
        second.gate.clear()
        home.icscf = replace(home.icscf, patience=0.3)
        for expected in (1, 1):
            await assign(home, OTHER)
            assert (await ask(home)).status == 401
            assert second.seen == expected
        assert home.log.warnings == ["s-cscf-unreachable"]
        await home.clock.advance(31)
        await assign(home, OTHER)
        second.gate.set()
        assert (await ask(home)).status == 401
        assert second.seen == 2

    async def test_where_all_are_silent_it_is_504(self, home: Home) -> None:
        second = Second(home, 480)
        home.icscf = replace(home.icscf, warnings=True)
        home.network.down("S")
        await assign(home, OTHER)
        answer = await ask(home)
        assert (answer.status, second.seen) == (504, 1)
        assert answer.get("Warning") == '399 icscf "S-CSCF scscf2.home1.net: sends us away, scscf1.home1.net: no answer in 32 s"'
        assert (home.counter["icscf_moved_on", "silent"], home.counter["icscf_moved_on", "sent-away"]) == (1, 1)

    async def test_no_other_is_asked_when_the_p_cscf_has_given_up(self, home: Home) -> None:
        """What it answered then, nobody would hear."""
        second = Second(home)
        await assign(home, OTHER)

        async def late(request: Request, peer: SipPeer) -> Response:
            await home.clock.advance(ANSWER_WITHIN)
            return await second.answer(request, peer)

        second.status = 480
        home.network.attach("S2", "scscf2.home1.net", late)
        assert (await ask(home)).status == 504
        assert (second.seen, home.network.sent("I", "S")) == (1, [])

    async def test_one_that_was_given_less_time_than_the_others_is_not_known_to_be_down(self, home: Home) -> None:
        second = Second(home, 480)
        home.icscf = replace(home.icscf, patience=20.0)
        await assign(home, OTHER)

        async def late(request: Request, peer: SipPeer) -> Response:
            await home.clock.advance(ANSWER_WITHIN - 0.01)
            return await second.answer(request, peer)

        home.network.attach("S2", "scscf2.home1.net", late)
        home.network.attach("S", "scscf1.home1.net", silent)
        assert (await ask(home)).status == 504
        assert [home.icscf._is_down(each) for each in (OTHER, SCSCF)] == [True, False]

    async def test_one_that_had_all_the_time_that_there_is_is_down_whatever_the_patience(self, home: Home) -> None:
        Second(home)
        home.network.down("S2")
        home.icscf = replace(home.icscf, patience=ANSWER_WITHIN + 2)
        await assign(home, OTHER)
        assert (await ask(home)).status == 401
        assert home.icscf._is_down(OTHER)

    async def test_one_that_was_silent_is_still_asked_where_there_is_no_other(self, home: Home) -> None:
        Second(home)
        home.network.down("S", "S2")
        await ask(home)
        home.network.up("S")
        assert (await ask(home)).status == 401

    @pytest.mark.parametrize("what", ["protected", "de-registration"])
    async def test_what_another_cannot_go_on_with_stays_with_the_users_own(self, home: Home, what: str) -> None:
        """§5.3.1.3: the UE then begins anew."""
        second = Second(home)
        await assign(home, OTHER)
        home.network.down("S2")
        request = register()
        if what == "protected":
            own = build_credentials(Credentials("alice@home1.net", "home1.net", "", "sip:home1.net", ""))
            request = request.replacing("Authorization", f'{own}, integrity-protected="yes"')
        else:
            request = request.with_headers((*request.headers, ("Expires", "0")))
        assert (await home.network.carry("UE", request, home.network.peer("I"))).status == 504
        assert (second.seen, home.network.sent("I", "S")) == (0, [])

    async def test_who_is_not_registered_cannot_de_register(self, home: Home) -> None:
        """TS 29.228 §6.1.1."""
        request = register()
        contact = request.replacing("Contact", "<sip:a@192.0.2.1>;expires=0")
        assert (await home.network.carry("UE", contact, home.network.peer("I"))).status == 403
