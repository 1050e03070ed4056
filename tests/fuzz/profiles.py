# SPDX-License-Identifier: Apache-2.0
"""How long and how randomly the property tests run: the profiles of hypothesis, chosen by HYPOTHESIS_PROFILE.

`default` and `ci` do the same in every run, so that nothing fails by chance; `deep` (make fuzz) looks for what is new.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
STEPS = int(os.environ.get("KEYFERRY_FUZZ_STEPS", 1_000_000 if PROFILE == "deep" else 20_000))
"""Of the state machine in test_hostile_network, in all."""
SHARDS = 20 if PROFILE == "deep" else 4
"""Tests that share them, so that they can run beside each other."""


def load() -> None:
    """Register the profiles and take the one that is asked for."""
    settings.register_profile("default", deadline=None, derandomize=True, database=None)
    settings.register_profile("ci", settings.get_profile("default"), print_blob=True)
    default = settings.get_profile("default")
    # for tools/mutate.py: that it fails is enough, how is of no interest
    settings.register_profile("once", default, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
    settings.register_profile("deep", deadline=None, max_examples=5_000, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.load_profile(PROFILE)
