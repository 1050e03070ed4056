# SPDX-License-Identifier: Apache-2.0
"""The live trace: what a follower sees, what it costs when nobody follows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from costs import costs_under
from keyferry.errors import RemoteProtocolError
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.capture.packets import Endpoint
from keyferry.protocol.identity import Impu
from keyferry.protocol.sip.message import Message
from keyferry.stores.memory import MemorySubscriberStore
from keyferry.wiring import tracing
from keyferry.wiring.tracing import MAX_FOLLOWERS, MAX_WAITING, Tracer, both, printable, short_name
from lab.tracekit import CK, IMPI, IMPU, answer, challenge, credentials, push_answer, register, response, third_party
from protocol.capture.capturekit import AS, ICSCF, PCSCF, SCSCF, UE, nonce

NODES = {PCSCF: "P-CSCF", ICSCF: "I-CSCF", SCSCF: "S-CSCF", AS: "AS xcap.home1.net"}


def peer(end: Endpoint, transport: str = "UDP") -> SipPeer:
    return SipPeer(transport, end.host, end.port)


def event(message: Message, here: Endpoint, there: Endpoint, *, outgoing: bool, transport: str = "UDP", again: bool = False) -> SipEvent:
    return SipEvent(5.0, NODES[here], outgoing, peer(here, transport), peer(there, transport), 900, message, again)


def play(tracer: Tracer) -> None:
    """Let a registration pass through the four functions of a process; UE is elsewhere."""
    first = credentials('nonce="", response=""')
    way = [(UE, PCSCF), (PCSCF, ICSCF), (ICSCF, SCSCF)]
    for cseq, authorization in ((1, first), (2, answer(nonce()))):
        for hop, (source, target) in enumerate(way):
            pass_on(tracer, register(hop, cseq, authorization), source, target)
        if cseq == 2:
            pass_on(tracer, third_party(), SCSCF, AS)
            pass_on(tracer, push_answer(), AS, SCSCF)
        for hop, (target, source) in reversed(list(enumerate(way))):
            reply = response(hop, 1, 401, challenge(hop, nonce())) if cseq == 1 else response(hop, 2, 200)
            pass_on(tracer, reply, source, target)


def pass_on(tracer: Tracer, message: Message, source: Endpoint, target: Endpoint) -> None:
    if source in NODES:
        tracer.observe(event(message, source, target, outgoing=True))
    if target in NODES:
        tracer.observe(event(message, target, source, outgoing=False))


async def steps_of(tracer: Tracer, impi: str = IMPI, impus: tuple[str, ...] = ()) -> list[Mapping[str, Any]]:
    async with tracer.follow(impi, impus) as steps:
        play(tracer)
        tracer.close()
        return [step async for step in steps]


def served() -> Tracer:
    tracer = Tracer()
    for end, role in ((PCSCF, "pcscf"), (ICSCF, "icscf"), (SCSCF, "scscf"), (AS, "as")):
        tracer.serve(peer(end), role, "xcap.home1.net")
    return tracer


@pytest.mark.parametrize("names", [True, False])
async def test_a_follower_sees_every_message_once_with_its_ends(names: bool) -> None:
    """Shown where it is sent; what comes from outside where it arrives. Places tell names where nobody listens yet."""
    found = await steps_of(served() if names else Tracer())
    assert [(step["source"], step["target"], step["what"]) for step in found] == [
        ("UE", "P-CSCF", "REGISTER"),
        ("P-CSCF", "I-CSCF", "REGISTER"),
        ("I-CSCF", "S-CSCF", "REGISTER"),
        ("S-CSCF", "I-CSCF", "401 Unauthorized"),
        ("I-CSCF", "P-CSCF", "401 Unauthorized"),
        ("P-CSCF", "UE", "401 Unauthorized"),
        ("UE", "P-CSCF", "REGISTER"),
        ("P-CSCF", "I-CSCF", "REGISTER"),
        ("I-CSCF", "S-CSCF", "REGISTER"),
        ("S-CSCF", "AS xcap" if names else "AS", "REGISTER"),
        ("AS xcap", "S-CSCF", "200 OK"),
        ("S-CSCF", "I-CSCF", "200 OK"),
        ("I-CSCF", "P-CSCF", "200 OK"),
        ("P-CSCF", "UE", "200 OK"),
    ]
    assert found[3]["note"] == "marker: release 6, flags 7; CK', IK' for the P-CSCF"
    assert set(found[0]) == {"at", "source", "target", "transport", "what", "octets", "note", "retransmission"}
    assert CK not in json.dumps(found)


async def test_somebody_else_is_not_seen() -> None:
    """One IMPI."""
    assert await steps_of(served(), "user2_private@home1.net") == []


async def test_a_push_is_seen_from_the_start_if_the_public_identities_are_known() -> None:
    """The HSS names them; a follower need not wait for a REGISTER."""
    tracer = served()
    store = MemorySubscriberStore()
    async with tracer.follower_of(store)(IMPI) as steps:
        pass_on(tracer, third_party(expires=0), SCSCF, AS)
        assert tracer.following == 1
        tracer.close()
        assert [step async for step in steps] == []
    again = served()
    async with again.follow(IMPI, [Impu(IMPU)]) as steps:
        pass_on(again, third_party(expires=0), SCSCF, AS)
        again.close()
        assert [step["note"] async for step in steps] == ["ends the keys: key block for xcap.home1.net, sealed by scscf1.home1.net, kid t1"]
    assert again.following == 0


async def test_messages_over_tcp_between_our_own_are_seen_once() -> None:
    """Their connection comes from a port of its own; Via says who it is."""
    tracer = served()
    first = register(1, 1, credentials('nonce="", response=""'))
    ephemeral = Endpoint(PCSCF.host, 50_000)
    async with tracer.follow(IMPI) as steps:
        tracer.observe(SipEvent(5.0, "P-CSCF", True, peer(ephemeral, "TCP"), peer(ICSCF, "TCP"), 900, first, False))
        tracer.observe(event(first, ICSCF, ephemeral, outgoing=False, transport="TCP"))
        tracer.close()
        assert [(step["source"], step["target"], step["transport"]) async for step in steps] == [("P-CSCF", "I-CSCF", "TCP")]


async def test_a_follower_that_is_too_slow_is_told_how_many_it_lost() -> None:
    """A bounded queue."""
    tracer = served()
    first = register(0, 1, credentials('nonce="", response=""'))
    async with tracer.follow(IMPI) as steps:
        for _ in range(MAX_WAITING + 7):
            tracer.observe(event(first, PCSCF, UE, outgoing=False))
        reader = aiter(steps)
        for _ in range(10):
            await anext(reader)
        tracer.observe(event(first, PCSCF, UE, outgoing=False))
        tracer.close()
        rest = [step async for step in reader]
        assert [step for step in rest if "lost" in step] == [{"lost": 7}]
        assert len(rest) == MAX_WAITING - 10 + 2


async def test_followers_are_bounded_and_none_comes_after_the_end() -> None:
    """503."""
    tracer = Tracer()
    contexts = [tracer.follow(IMPI) for _ in range(MAX_FOLLOWERS)]
    for context in contexts:
        await context.__aenter__()
    with pytest.raises(RemoteProtocolError):
        async with tracer.follow(IMPI):
            pass
    for context in contexts:
        await context.__aexit__(None, None, None)
    tracer.close()
    with pytest.raises(RemoteProtocolError):
        async with tracer.follow(IMPI):
            pass


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses and Call-IDs; a full queue ends too."""
    monkeypatch.setattr(tracing, "MAX_NAMES", 1)
    tracer = Tracer()
    async with tracer.follow(IMPI, [IMPU]) as steps:
        play(tracer)
        assert len(tracer.names) == 1
        reading = asyncio.ensure_future(anext(aiter(steps)))
        assert (await reading)["what"] == "REGISTER"


async def test_an_unreadable_via_names_nobody() -> None:
    """The address is shown."""
    tracer = served()
    odd = register(0, 1, credentials('nonce="", response=""')).replacing("Via", "?")
    stranger = Endpoint("192.0.2.1", 9)
    async with tracer.follow(IMPI) as steps:
        tracer.observe(event(odd, AS, stranger, outgoing=False))
        tracer.observe(SipEvent(5.0, "probe", True, peer(AS), peer(stranger), 9, odd.without("Via"), False))
        tracer.close()
        assert [(step["source"], step["target"]) async for step in steps] == [("S-CSCF", "AS xcap"), ("probe", "udp:192.0.2.1:9")]


def test_two_observers_see_an_event() -> None:
    """The ladder of the demonstration and the trace."""
    seen: list[str] = []
    one = event(register(0, 1, None), PCSCF, UE, outgoing=True)
    alone = Tracer().observe
    assert both(alone, None) is alone
    both(lambda _: seen.append("a"), lambda _: seen.append("b"))(one)
    assert seen == ["a", "b"]


def test_names_are_short_and_texts_printable() -> None:
    """Lifelines are narrow; a peer may have sent anything."""
    assert short_name("AS xcap.home1.net") == "AS xcap"
    assert printable("a\x1b[2J\udcff") == "a?[2J?"
    assert len(printable("x" * 999)) == 200


def test_an_event_costs_nothing_when_nobody_follows() -> None:
    """Under a microsecond; the bound here is for busy machines."""
    tracer = Tracer()
    one = event(register(0, 1, None), PCSCF, UE, outgoing=True)
    with costs_under(20_000 * 5e-6):
        for _ in range(20_000):
            tracer.observe(one)


async def test_messages_of_others_cost_little_when_one_is_followed() -> None:
    """Thousands a second may pass."""
    tracer = served()
    other = event(register(0, 1, credentials('nonce="", response=""', user="other@home1.net"), call_id="x"), PCSCF, UE, outgoing=True)
    async with tracer.follow(IMPI):
        with costs_under(5_000 * 50e-6):
            for _ in range(5_000):
                tracer.observe(other)
