# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.7; TS 29.228 §6.2.2; DESIGN §6: what each AS is owed, worked out of a registration alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyferry.errors import ParseError
from keyferry.ports import Registration
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from keyferry.roles.scscf.owing import ERASE_FOR, expiry_request, profile_of
from roles.home import NOTES, SIP_OF, XCAP, Home, criterion
from roles.manual import SIP_ALICE, TEL_ALICE, on

ALICE = Impi("alice@home1.net")


def profile(*as_ids: str) -> bytes:
    criteria = tuple(criterion(as_id, priority=place) for place, as_id in enumerate((XCAP, NOTES)) if as_id in as_ids)
    return build_user_profile(UserProfile(ALICE, (ServiceProfile(((SIP_ALICE, False), (TEL_ALICE, True)), criteria),)))


async def registered(home: Home) -> Registration:
    alice = home.device()
    await alice.register()
    registration = await home.registration(alice)
    assert registration is not None
    return registration


async def test_a_change_erases_first_and_pushes_then(home: Home) -> None:
    """Each with a seq of its own, above those that were."""
    before = (await registered(home))._replace(user_data=profile(XCAP))
    after = before._replace(user_data=profile(NOTES))
    last = await home.registrations.last_seq(ALICE, XCAP, before.reg)
    (gone, _), (new, target) = await home.scscf.owing.owe_change(before, after)
    assert (gone.as_id, gone.erase, new.as_id, new.erase) == (XCAP, True, NOTES, False)
    assert gone.seq > last
    assert target.impus == (SIP_ALICE,)
    assert gone.give_up_at == before.expires_at + ERASE_FOR


async def test_nothing_is_owed_for_what_is_the_same(home: Home) -> None:
    before = await registered(home)
    assert await home.scscf.owing.owe_change(before, before) == []


async def test_an_as_without_keys_that_was_never_told_is_not_told_that_it_ends(home: Home) -> None:
    """Its criterion is for de-registrations alone."""
    home.push_policy = replace(home.push_policy, as_ids={SIP_OF[XCAP]: (XCAP,)})
    home.start_scscf()
    before = await registered(home)
    criteria = (criterion(XCAP), criterion(NOTES, priority=1, trigger=on(2)))
    named = build_user_profile(UserProfile(ALICE, (ServiceProfile(((SIP_ALICE, False), (TEL_ALICE, False)), criteria),)))
    before = before._replace(user_data=named)
    alone = build_user_profile(UserProfile(ALICE, (ServiceProfile(((SIP_ALICE, False), (TEL_ALICE, False)), criteria[:1]),)))
    assert await home.scscf.owing.owe_change(before, before._replace(user_data=alone)) == []


async def test_the_end_of_keys_alone_leaves_an_as_without_keys_out(home: Home) -> None:
    home.push_policy = replace(home.push_policy, as_ids={SIP_OF[XCAP]: (XCAP,)})
    home.start_scscf()
    registration = await registered(home)
    owing = home.scscf.owing
    every = await owing.owe_end(registration, expiry_request(registration))
    keys = await owing.owe_end(registration, expiry_request(registration), keys_alone=True)
    assert ([push.as_id for push, _ in every], [push.as_id for push, _ in keys]) == ([XCAP, ""], [XCAP])


def test_user_data_that_cannot_be_read_are_the_hsss_fault() -> None:
    with pytest.raises(ParseError) as caught:
        profile_of(b"<a/>")
    assert caught.value.status == 500
