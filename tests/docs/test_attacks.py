# SPDX-License-Identifier: Apache-2.0
"""docs/attacks.md lists the attacks that `keyferry lab attack` runs, in its order and words."""

from __future__ import annotations

import re

from docs.console import ROOT
from keyferry.lab.attacks.run import ATTACKS

PAGE = ROOT / "docs" / "attacks.md"
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_the_table_is_the_list_of_the_code() -> None:
    """No attack is promised that nobody runs, and none runs that is not told of."""
    assert ROW.findall(PAGE.read_text("utf-8")) == [(attack.name, attack.party, attack.tried) for attack in ATTACKS]


def test_no_two_attacks_share_a_name() -> None:
    """`keyferry lab attack NAME` means one."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
