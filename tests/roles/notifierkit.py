# SPDX-License-Identifier: Apache-2.0
"""What the tests of the AsNotifier ask of a home network."""

from __future__ import annotations

from typing import Any

from keyferry.protocol.sip.message import Request
from roles.home import Device, Home


def pushes(home: Home) -> list[Request]:
    return [message for message in home.network.sent("S", "AS1") if isinstance(message, Request)]


def isc(home: Home) -> list[str]:
    """Return the part of the ladder between S-CSCF and AS, and forget the ladder."""
    return [line for line in home.network.ladder() if "AS" in line]


async def registered(home: Home, **profile: Any) -> Device:
    device = home.device(**profile)
    await device.register()
    return device
