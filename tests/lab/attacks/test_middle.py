# SPDX-License-Identifier: Apache-2.0
"""The hostile parties do their ordinary work where an attack changes nothing."""

from __future__ import annotations

from keyferry.lab.attacks.middle import NOWHERE, HostilePcscf, IscMiddleman, host_of
from keyferry.lab.attacks.town import ALICE, NOTES, XCAP, Setting, open_town
from keyferry.protocol.sip.message import Request

REQUEST = Request(
    "REGISTER",
    "sip:home1.net",
    (("Via", "SIP/2.0/UDP 127.0.0.1:1;branch=z9hG4bK1"), ("Max-Forwards", "70"), ("From", "<sip:a@b>;tag=1"), ("To", "<sip:a@b>"),
     ("Call-ID", "c"), ("CSeq", "1 REGISTER")),
)  # fmt: skip


async def test_a_pcscf_that_was_not_started_answers_503_and_has_seen_what_came() -> None:
    middle = HostilePcscf()
    assert (await middle.handle(REQUEST, NOWHERE)).status == 503
    assert (await middle.send(REQUEST, NOWHERE)).status == 503
    assert (middle.requests, middle.seen) == (1, [REQUEST, REQUEST])


async def test_a_middleman_that_was_not_started_answers_503_and_one_that_holds_pretends() -> None:
    middleman = IscMiddleman(NOWHERE)
    assert (await middleman.handle(REQUEST, NOWHERE)).status == 503
    middleman.hold = True
    assert (await middleman.handle(REQUEST, NOWHERE)).status == 200
    assert (middleman.passed, middleman.held) == ([REQUEST], [REQUEST])
    assert host_of("sip:xcap-as.home1.net:5090") == "xcap-as.home1.net"


async def test_a_town_that_nobody_attacks_works() -> None:
    """Registration through the hostile P-CSCF, a push through a middleman, HTTPS with the key; what is injected is refused."""
    async with open_town(Setting()) as town:
        middleman = await town.between_isc(NOTES)
        state = await town.alice.register()
        assert state is not None
        assert state.k_m is not None
        assert await town.alice.has_keys()
        assert len(middleman.passed) == 1
        assert {await town.status(state, as_id) for as_id in (XCAP, NOTES)} <= {200, 404}
        assert await town.opens(state)
        assert town.http
        assert {push.as_id for push in town.opened()} == {XCAP, NOTES}
        assert await town.inject(XCAP, town.info_of(NOTES)) in {400, 403}
        assert town.impi(ALICE) == "alice@home1.net"
        town.middle.pcscf = None
        assert await town.alice.register() is None
        assert not await town.alice.has_keys()  # the last registration failed


async def test_the_clock_of_an_attack_goes_ahead() -> None:
    async with open_town(Setting(ue_release=None)) as town:
        before = (town.clock.now(), town.clock.monotonic())
        town.clock.ahead += 1_000
        assert town.clock.now() - before[0] >= 1_000
        assert town.clock.monotonic() - before[1] >= 1_000
        town.clock.ahead = 0.0
        state = await town.alice.register()
        assert state is not None
        assert state.k_m is None  # Release 5
