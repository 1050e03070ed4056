# SPDX-License-Identifier: Apache-2.0
"""Hypothesis runs with the profile that HYPOTHESIS_PROFILE names."""

from __future__ import annotations

from fuzz.profiles import load

load()
