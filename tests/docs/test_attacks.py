# SPDX-License-Identifier: Apache-2.0
"""docs/attacks.md lists the attacks that `keyferry lab attack` runs, in its order and words."""

from __future__ import annotations

import re

from docs.console import ROOT
from keyferry.lab.attacks.run import ATTACKS

PAGE = ROOT / "docs" / "attacks.md"
DOOR = "tests/system/test_door_attacks.py"
DOOR_ROW = re.compile(r"^\|[^|]+\|[^|]+\| (`[^|]*test_[^|]+`) \|$", re.MULTILINE)
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_the_table_is_the_list_of_the_code() -> None:
    """No attack is promised that nobody runs, and none runs that is not told of."""
    assert ROW.findall(PAGE.read_text("utf-8")) == [(attack.name, attack.party, attack.tried) for attack in ATTACKS]


def test_every_attack_at_the_door_names_a_test_that_there_is() -> None:
    """And every test of the attacks stands in the table."""
    named = set()
    for row in DOOR_ROW.findall(PAGE.read_text("utf-8")):
        for place in re.findall(r"`([^`]*test_[^`]*)`", row):
            file, _, name = place.rpartition("::")
            text = (ROOT / (file or DOOR)).read_text("utf-8")
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), place
            named.add(name)
    assert set(re.findall(r"^async def (test_\w+)", (ROOT / DOOR).read_text("utf-8"), re.MULTILINE)) <= named


def test_no_two_attacks_share_a_name() -> None:
    """`keyferry lab attack NAME` means one."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
