# SPDX-License-Identifier: Apache-2.0
"""What `keyferry ipsec check` asks charon, once for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from keyferry.errors import ProtectionUnmet
from keyferry.protocol.security_association import ChildSa, Wanted, Way, check_way
from keyferry.transports.clock import SystemClock
from keyferry.transports.ipsec import settled
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from keyferry.wiring.ipsec_rules import Pair, Side


class Checked(NamedTuple):
    """One pair, and why it is not protected; "" if it is."""

    pair: Pair
    problem: str


async def check_pairs(pairs: Sequence[Pair], vici_path: Path, side: Side) -> list[Checked]:
    """Ask charon of every pair, as the policy would before a packet."""
    view = SaView(Vici(vici_path), SystemClock())
    await view.start()
    try:
        return [Checked(pair, await _problem(view, pair, side)) for pair in pairs]
    finally:
        await view.aclose()


async def _problem(view: SaView, pair: Pair, side: Side) -> str:
    wanted = Wanted(pair.child, pair.ends(side)[2])
    for way in _ways(pair, side):

        def judge(sas: Sequence[ChildSa], way: Way = way) -> None:
            check_way(sas, wanted, way)

        try:
            await settled(view, pair.child, way, judge)
        except ProtectionUnmet as problem:
            return problem.problem
    return ""


def _ways(pair: Pair, side: Side) -> list[Way]:
    """Return what goes between the two: pushes over UDP and TCP, or the answers to them."""
    if side == "scscf":
        udp = Way("UDP", pair.scscf_address, pair.scscf_port, pair.server_address, pair.server_port)
        return [udp, udp._replace(transport="TCP", local_port=0)]
    udp = Way("UDP", pair.server_address, pair.server_port, pair.scscf_address, pair.scscf_port)
    return [udp, udp._replace(transport="TCP", remote_port=0)]
