# SPDX-License-Identifier: Apache-2.0
"""What an application sees of a user, and how little the id of a user tells."""

from __future__ import annotations

import re

import pytest

from keyferry.asgi.identity import KNOWN_IDS, SIM_SCOPE, SimAuth, SimUser, UserIds, user_id, user_of
from keyferry.errors import ConfigError, LocalProtocolError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId

KEY = Secret(bytes(range(32)))
NOTES, XCAP = AsId("notes.home1.net"), AsId("xcap.home1.net")
IMPI = "001010000000001@ims.mnc001.mcc001.3gppnetwork.org"


class Source:
    """A source of keys that has the key of the ids, perhaps."""

    def __init__(self, key: Secret | None) -> None:
        self.key = key
        self.asked: list[str] = []

    def user_id_key(self, as_id: AsId) -> Secret | None:
        self.asked.append(as_id)
        return self.key


def test_a_user_has_the_shape_that_frameworks_expect() -> None:
    user = SimUser("id", ["sip:alice@home1.net", "tel:+15551234"])
    assert (user.id, user.identity, str(user)) == ("id", "id", "id")
    assert (user.is_authenticated, user.is_anonymous) == (True, False)
    assert user.display_name == "sip:alice@home1.net"
    assert user.public_identities == ["sip:alice@home1.net", "tel:+15551234"]
    assert "alice" not in repr(user)
    assert user == SimUser("id") != SimUser("other")
    assert len({user, SimUser("id")}) == 1
    assert user != "id"
    assert SimAuth(SIM_SCOPE).scopes == ["sim"]
    assert repr(SimAuth(SIM_SCOPE)) == "SimAuth('sim')"


def test_nobody_has_no_id() -> None:
    user = SimUser()
    assert (user.is_authenticated, user.is_anonymous, user.display_name, user.public_identities) == (False, True, "", [])


def test_an_application_without_simlogin_is_told() -> None:
    assert user_of({"user": SimUser("id")}).id == "id"
    for scope in ({}, {"user": "alice"}):
        with pytest.raises(LocalProtocolError, match="SimLogin"):
            user_of(scope)


def test_an_id_is_stable_opaque_and_differs_between_applications() -> None:
    """The IMPI is an IMSI, one of few: without the key nobody can try them."""
    alice = user_id(KEY, NOTES, IMPI)
    assert re.fullmatch(r"[A-Za-z0-9_-]{24}", alice)
    assert alice == user_id(Secret(bytes(range(32))), "notes.home1.net", IMPI) == "KRvc1wflndjj-Sbq7F0GviLz"
    others = {user_id(KEY, XCAP, IMPI), user_id(KEY, NOTES, "2" + IMPI), user_id(Secret(bytes(32)), NOTES, IMPI)}
    assert len(others | {alice}) == 4


def test_the_parts_of_an_id_do_not_run_into_each_other() -> None:
    assert user_id(KEY, "a.b", "c@d") != user_id(KEY, "a.bc", "@d")


def test_the_key_comes_from_the_first_source_that_has_one() -> None:
    sources = [object(), Source(None), Source(KEY), Source(Secret(bytes(32)))]
    ids = UserIds(NOTES, sources)
    assert ids.of(IMPI) == ids.of(IMPI) == user_id(KEY, NOTES, IMPI)
    assert sources[2].asked == ["notes.home1.net"]  # type: ignore[attr-defined]
    assert UserIds(NOTES, sources, Secret(bytes(32))).of(IMPI) != ids.of(IMPI)


def test_ids_that_are_remembered_are_bounded_and_the_same_again() -> None:
    """Strangers cannot fill the memory: only proven keys have an IMPI, and the oldest id goes first."""
    ids = UserIds(NOTES, [], KEY)
    names = [f"user{number}@home1.net" for number in range(KNOWN_IDS + 10)]
    assert [ids.of(name) for name in names] == [user_id(KEY, NOTES, name) for name in names]
    assert len(ids._known) == KNOWN_IDS
    assert ids.of(names[0]) == user_id(KEY, NOTES, names[0])


def test_without_a_key_there_is_no_id() -> None:
    """An unkeyed hash would be the IMPI in another form."""
    with pytest.raises(ConfigError, match="user_id_key: is needed"):
        UserIds(NOTES, [object()])
    with pytest.raises(ConfigError, match="shorter"):
        UserIds(NOTES, [], Secret(bytes(15)))
    for key in (None, Secret(bytes(15))):
        with pytest.raises(ConfigError, match="for this AS_ID"):
            UserIds(NOTES, [Source(key)]).of(IMPI)
