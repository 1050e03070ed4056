# SPDX-License-Identifier: Apache-2.0
"""What `keyferry ipsec check` finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.wiring import ipsec_check
from keyferry.wiring.ipsec_check import check_pairs, rules_problem
from keyferry.wiring.ipsec_files import Pair
from transports.vicikit import CHILD, IDENTITY, charon, sa

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


async def test_the_other_side_sees_the_s_cscf() -> None:
    async with charon(sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")) as served:
        assert (await check_pairs([PAIR], served.path, "as"))[0].problem == ""
        served.sas = [sa("evil.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")]
        assert "another identity" in (await check_pairs([PAIR], served.path, "as"))[0].problem


async def test_without_charon_no_pair_is_protected(tmp_path: Path) -> None:
    found = await check_pairs([PAIR, OTHER], tmp_path / "charon.vici", "scscf")
    assert all("charon is not there" in each.problem for each in found)


SAYS = """#!/bin/sh
[ "$*" = "list table inet keyferry_isc" ] || exit 2
cat "{}"
"""
LISTED = "table inet keyferry_isc {\n ip saddr 10.99.0.1 ip daddr 10.99.0.2 jump to_peer\n counter packets 0 bytes 0 drop\n}\n"


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (LISTED, ""),
        (LISTED.replace("10.99.0.2", "10.99.0.9"), "does not name 10.99.0.2"),
        (LISTED.replace("drop", "accept"), "drop nothing"),
        (None, "is not loaded"),
    ],
)
def test_the_drop_rules_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str | None, says: str) -> None:
    program, file = tmp_path / "nft", tmp_path / "listed"
    program.write_text(SAYS.format(file))
    program.chmod(0o700)
    if listed is not None:
        file.write_text(listed)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert says in rules_problem([PAIR])
    assert bool(says) is bool(rules_problem([PAIR]))


def test_no_nft_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec_check, "nft", lambda: None)
    assert rules_problem([PAIR]) == "nft is not installed"
