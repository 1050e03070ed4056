# SPDX-License-Identifier: Apache-2.0
"""What `keyferry ipsec check` finds of charon."""

from __future__ import annotations

from pathlib import Path

from keyferry.wiring.ipsec_check import check_pairs
from keyferry.wiring.ipsec_rules import Pair
from transports.vicikit import CHILD, IDENTITY, charon, sa, shunt

PAIR = Pair(CHILD, "scscf1.home1.net", "10.99.0.1", 6060, IDENTITY, "10.99.0.2", 5090)
OTHER = PAIR._replace(server_address="10.99.0.3")


async def test_each_pair_is_protected_or_has_a_reason() -> None:
    async with charon(sa()) as served:
        found = await check_pairs([PAIR, OTHER], served.path, "scscf")
        assert [each.pair for each in found] == [PAIR, OTHER]
        assert found[0].problem == ""
        assert "does not cover UDP from 10.99.0.1 to 10.99.0.3:5090" in found[1].problem


async def test_selectors_for_one_transport_alone_are_a_problem() -> None:
    async with charon(sa(remote="10.99.0.2/32[udp/5090]")) as served:
        assert "does not cover TCP" in (await check_pairs([PAIR], served.path, "scscf"))[0].problem


async def test_a_policy_that_lets_packets_past_is_a_problem() -> None:
    async with charon(sa()) as served:
        served.passes = [shunt()]
        assert "lets it past every CHILD_SA" in (await check_pairs([PAIR], served.path, "scscf"))[0].problem


async def test_the_other_side_sees_the_s_cscf() -> None:
    async with charon(sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")) as served:
        assert (await check_pairs([PAIR], served.path, "as"))[0].problem == ""
        served.sas = [sa("evil.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")]
        assert "another identity" in (await check_pairs([PAIR], served.path, "as"))[0].problem
        served.sas = [sa("scscf1.home1.net", local="10.99.0.2/32[udp]", remote="10.99.0.1/32[udp]")]  # pushes are over 1,300 octets
        assert "does not cover TCP" in (await check_pairs([PAIR], served.path, "as"))[0].problem


async def test_without_charon_no_pair_is_protected(tmp_path: Path) -> None:
    found = await check_pairs([PAIR, OTHER], tmp_path / "charon.vici", "scscf")
    assert all("charon is not there" in each.problem for each in found)
