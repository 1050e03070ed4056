# SPDX-License-Identifier: Apache-2.0
"""What `keyferry ipsec check` asks charon, once for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from keyferry.errors import ProtectionUnmet, TransportError
from keyferry.protocol.security_association import Wanted, Way, check_passes, check_way, child_sas, passes
from keyferry.transports.vici import Vici
from keyferry.wiring.ipsec_rules import Pair, Side


class Checked(NamedTuple):
    """One pair, and why it is not protected; "" if it is."""

    pair: Pair
    problem: str


async def check_pairs(pairs: Sequence[Pair], vici_path: Path, side: Side) -> list[Checked]:
    """Ask charon of every pair, as the policy would before a packet."""
    vici = Vici(vici_path)
    await vici.start()
    try:
        listed = await vici.list_sas()
        past = [found for each in await vici.list_passes() for found in passes(each)]
    except TransportError as problem:
        return [Checked(pair, f"charon cannot be asked at {problem}") for pair in pairs]
    finally:
        await vici.aclose()
    sas = [sa for each in listed for sa in child_sas(each)]
    found = []
    for pair in pairs:
        try:
            for way in _ways(pair, side):
                check_passes(past, way)
                check_way(sas, Wanted(pair.child, pair.ends(side)[2]), way)
        except ProtectionUnmet as problem:
            found.append(Checked(pair, problem.problem))
        else:
            found.append(Checked(pair, ""))
    return found


def _ways(pair: Pair, side: Side) -> list[Way]:
    """Return what goes between the two: pushes over UDP and TCP, or the answers to them."""
    if side == "scscf":
        udp = Way("UDP", pair.scscf_address, pair.scscf_port, pair.server_address, pair.server_port)
        return [udp, udp._replace(transport="TCP", local_port=0)]
    udp = Way("UDP", pair.server_address, pair.server_port, pair.scscf_address, pair.scscf_port)
    return [udp, udp._replace(transport="TCP", remote_port=0)]
