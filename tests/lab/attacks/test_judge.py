# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5: the judge finds every invariant that is broken, and none in a network where nobody attacks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from keyferry.client.ue import Isim
from keyferry.lab.attacks.judge import broken, foreign_keys, runs
from keyferry.lab.attacks.town import ALICE, HOME, XCAP, Setting, Town, open_town
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.sip.message import Request, Response


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """A town in which Alice has registered."""
    async with open_town(Setting()) as opened:
        assert await opened.alice.register() is not None
        assert await broken(opened) == []
        yield opened


def saying(name: str, value: str) -> Request:
    return Request("REGISTER", f"sip:{HOME}", (("Authorization", f'Digest {name}="{value}"'),))


async def test_a_vector_in_two_challenges_breaks_s1(town: Town) -> None:
    sent = [event for event in town.events if event.node == "S-CSCF" and event.outgoing and isinstance(event.message, Response)]
    town.events.append(next(event for event in sent if isinstance(event.message, Response) and event.message.status == 401))
    assert "S1: one vector went into two challenges" in await broken(town)


async def test_a_key_of_a_vector_that_was_not_masked_breaks_s1_and_s2(town: Town) -> None:
    """To a judge who thinks that the card was another one, ck and ik of the 401 are not CK', IK'."""
    town.cards[ALICE] = Isim("milenage", Secret(bytes(16)), Secret(bytes(16)))
    found = await broken(town)
    assert f"S1: {XCAP} was pushed a key of a vector that was not masked" in found
    assert "S2: a UE activated AS keys without the proof" in found


async def test_keys_without_rspauth_break_s2(town: Town) -> None:
    client = town.alice.client
    state = await client.state()
    assert state is not None
    await client.store.save(replace(state, rspauth=False))
    assert await broken(town) == ["S2: a UE activated AS keys without the proof"]


async def test_ck_of_a_masked_vector_in_a_message_breaks_s3(town: Town) -> None:
    (run,) = runs(town)
    assert run.masked
    town.events.append(town.events[0]._replace(message=saying("ck", run.ck.reveal().hex())))
    assert await broken(town) == ["S3: CK or IK of a masked vector was in a message"]


@pytest.mark.parametrize("what", ["k_as", "k_m", "ck_ik"])
async def test_what_a_key_follows_from_in_the_view_of_the_pcscf_breaks_s4(town: Town, what: str) -> None:
    """The key itself, what it is derived from, and what that is derived from."""
    state = await town.alice.client.state()
    assert state is not None
    (run,) = runs(town)
    known = {
        "k_as": [next(iter(foreign_keys(town, XCAP, [state])))],
        "k_m": [run.k_m.reveal()],
        "ck_ik": [run.ck.reveal(), run.ik.reveal()],
    }[what]
    town.middle.seen += [saying("x", octets.hex()) for octets in known]
    found = await broken(town)
    assert len(found) == (1 if what == "k_as" else 2)
    assert all(line.startswith("S4: a key for ") for line in found)
