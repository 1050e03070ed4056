# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5, the attack table: every attack holds, over real sockets, and the judge finds S1 to S4 kept."""

from __future__ import annotations

import pytest

from keyferry.errors import ConfigError
from keyferry.lab.attacks.attack import Attack
from keyferry.lab.attacks.run import ATTACKS, chosen, run_attack


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
async def test_the_attack_holds(attack: Attack) -> None:
    """Its own condition, and S1 to S4."""
    result = await run_attack(attack)
    assert result.held, result.happened


def test_a_name_that_is_no_attack_is_refused() -> None:
    """`keyferry lab attack NAME`."""
    with pytest.raises(ConfigError, match="strip-marker"):
        chosen("none")
