# SPDX-License-Identifier: Apache-2.0
"""What an attack is: a name, a party, what it tries; and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.lab.attacks.town import Setting, Town


class Outcome(NamedTuple):
    """What happened, in words, and whether the scheme held."""

    happened: str
    held: bool


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack of one party."""

    name: str
    party: str
    tried: str
    run: Callable[[Town], Awaitable[Outcome]]
    setting: Setting = field(default_factory=Setting)
    depth: int = 1  # of the closure that the judge computes
