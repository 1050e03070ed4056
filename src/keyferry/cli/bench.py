# SPDX-License-Identifier: Apache-2.0
"""`keyferry bench`."""

from __future__ import annotations


def bench() -> None:
    """Measure."""
