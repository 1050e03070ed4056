# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.7: users spread over S-CSCFs, and few move when one comes or goes."""

from __future__ import annotations

from collections import Counter

from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.selection import ranked

SERVERS = [f"sip:scscf{number}.home1.net:6060" for number in (1, 2, 3)]
USERS = [Impi(f"user{number}@home1.net") for number in range(3_000)]


def test_every_server_is_named_once_and_the_order_given_says_nothing() -> None:
    for user in USERS[:20]:
        assert sorted(ranked(user, SERVERS)) == SERVERS
        assert ranked(user, SERVERS) == ranked(user, SERVERS[::-1])


def test_one_or_none_needs_no_choice() -> None:
    assert ranked(USERS[0], SERVERS[:1]) == tuple(SERVERS[:1])
    assert ranked(USERS[0], []) == ()


def test_users_are_spread_evenly() -> None:
    first = Counter(ranked(user, SERVERS)[0] for user in USERS)
    assert all(900 < count < 1_100 for count in first.values())


def test_who_had_the_server_that_goes_moves_and_nobody_else() -> None:
    for user in USERS[:200]:
        with_all, without = ranked(user, SERVERS), ranked(user, SERVERS[1:])
        assert without == tuple(server for server in with_all if server != SERVERS[0])
