# SPDX-License-Identifier: Apache-2.0
"""What one user does, and what the others notice of it, over real sockets (DESIGN §11)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from system.bystanders import NUMBER, Bystanders, crowded
from system.serving import serving


@pytest.mark.parametrize("gm", [False, True], ids=["in-clear", "over-esp"])
async def test_ten_bystanders_register_where_nobody_attacks(tmp_path: Path, gm: bool) -> None:
    """The measure itself."""
    strikes = 0

    async def attack() -> None:
        nonlocal strikes
        strikes += 1
        await asyncio.sleep(0.001)

    lab = crowded(tmp_path)
    with serving(lab.serve, lab.state) as served:
        async with Bystanders(lab, served, gm).opened() as bystanders:
            await bystanders.register_under(attack)
        assert strikes > 1
        assert served.health()["registrations"] == NUMBER
