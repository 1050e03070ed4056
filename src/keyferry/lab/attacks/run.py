# SPDX-License-Identifier: Apache-2.0
"""Run attacks one by one, each on a network of its own, and let the judge look at each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from keyferry.errors import ConfigError
from keyferry.lab.attacks import gm, isc, pcscf_answers, pcscf_marker, pcscf_short_res, servers
from keyferry.lab.attacks.attack import Attack
from keyferry.lab.attacks.judge import broken
from keyferry.lab.attacks.town import open_town

ATTACKS: tuple[Attack, ...] = (
    *pcscf_marker.ATTACKS,
    *pcscf_answers.ATTACKS,
    *pcscf_short_res.ATTACKS,
    *gm.ATTACKS,
    *isc.ATTACKS,
    *servers.ATTACKS,
)


class Result(NamedTuple):
    """One line of the table."""

    name: str
    party: str
    tried: str
    happened: str
    held: bool


def chosen(name: str) -> Sequence[Attack]:
    """Return the attacks that a name means. Raises ConfigError."""
    found = [attack for attack in ATTACKS if name in {"all", attack.name}]
    if not found:
        names = ", ".join(attack.name for attack in ATTACKS)
        raise ConfigError("NAME", f"{name!r} is no attack: all, {names}")
    return found


async def run_attack(attack: Attack) -> Result:
    """Run one attack; it holds only if its own condition and all of S1 to S4 do."""
    async with open_town(attack.setting) as town:
        outcome = await attack.run(town)
        problems = await broken(town, depth=attack.depth)
    happened = "; ".join([outcome.happened, *problems])
    return Result(attack.name, attack.party, attack.tried, happened, outcome.held and not problems)


async def run_attacks(name: str, tell: Callable[[Result], None] | None = None) -> list[Result]:
    """Run the attacks that a name means, in the order of the list. Raises ConfigError."""
    results = []
    for attack in chosen(name):
        results.append(await run_attack(attack))
        if tell is not None:
            tell(results[-1])
    return results
