# SPDX-License-Identifier: Apache-2.0
"""SimLogin.with_keys: the developer's door with the keys of whoever serves it."""

from __future__ import annotations

import pytest

from asgi.doorkit import AS_ID, Echo, FakeKeys, FakeRandom, call, record
from keyferry.asgi.auth import SimLogin
from keyferry.errors import ConfigError

IDS = b"i" * 32


async def test_rules_stay_and_keys_change() -> None:
    made = SimLogin(Echo(), as_id=AS_ID, keys=FakeKeys(), open=["/health"], random=FakeRandom(), user_id_key=IDS)
    alice = record()
    served = made.with_keys(FakeKeys(alice), certificate_hashes=(b"c" * 32,))
    assert served.as_id == made.as_id == AS_ID
    assert served.app is made.app
    assert (await call(served, target="/notes")).status == 401
    assert made.with_keys(FakeKeys(), as_id="other.home1.net").as_id == "other.home1.net"


def test_what_was_used_up_is_not_taken_for_nothing() -> None:
    """No rule would mean no login."""
    made = SimLogin(Echo(), as_id=AS_ID, keys=FakeKeys(), required=iter(["/"]), user_id_key=IDS)
    with pytest.raises(ConfigError, match="lists or tuples"):
        made.with_keys(FakeKeys())
