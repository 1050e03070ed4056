# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.2.1: what of the file's application servers stands in a user profile, and in sets that the S-CSCFs hold."""

from __future__ import annotations

import pytest

from keyferry.config import ApplicationServer, Config, SharedIfc
from keyferry.config.profiles import Profile
from keyferry.wiring.criteria import profile_criteria

NAMES = ("a.net", "b.net", "c.net")


def config(*profiles: Profile, shared: tuple[SharedIfc, ...] = ()) -> Config:
    servers = [ApplicationServer(as_id=name, sip_uri=f"sip:{name}") for name in NAMES]
    return Config(application_servers=servers, profiles=list(profiles), shared_ifc=list(shared))


def test_default_has_every_application_server_unless_it_is_defined() -> None:
    assert profile_criteria(config())["default"].as_ids == NAMES
    own = Profile(name="default", application_servers=["b.net"])
    assert profile_criteria(config(own))["default"].as_ids == ("b.net",)


@pytest.mark.parametrize(
    ("names", "own", "sets"),
    [
        (["a.net"], ["a.net"], ()),
        (["a.net", "b.net"], ["a.net", "b.net"], ()),  # not the whole set
        (["c.net", "B.NET"], [], (3,)),
        (["a.net", "b.net", "c.net"], ["a.net"], (3,)),
        ([], [], ()),
    ],
)
def test_a_shared_set_is_named_by_who_has_all_of_it(names: list[str], own: list[str], sets: tuple[int, ...]) -> None:
    """Whoever has only some of its application servers has them in the profile itself."""
    shared = SharedIfc(id=3, application_servers=["b.net", "c.net"])
    found = profile_criteria(config(Profile(name="p", application_servers=names), shared=(shared,)))["p"]
    assert [one.application_server.server_name for one in found.own] == [f"sip:{name}" for name in own]
    assert found.shared == sets
    assert found.as_ids == tuple(name.lower() for name in names)


def test_no_two_criteria_of_a_user_have_the_same_priority() -> None:
    found = profile_criteria(config(Profile(name="p", application_servers=["c.net", "a.net"])))["p"]
    assert [one.priority for one in found.own] == [0, 2]
