# SPDX-License-Identifier: Apache-2.0
"""Stock Digest clients at the XCAP door of `keyferry serve`, with a key that an S-CSCF pushed; counted by the server's metrics."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asgi.stockclients import Call, Drive, Got, with_aiohttp, with_async_httpx, with_httpx, with_requests
from keyferry.protocol.xcap.usages import SIMSERVS
from system.serving import EXAMPLES, Lab, Served, ue

pytestmark = pytest.mark.interop

HOST = "xcap.home1.net"
DOCUMENT = "/simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
COUNT = 1_000


@dataclass(frozen=True)
class Opened:
    """The door of a process that serves."""

    url: str
    ca: Path
    user: str
    password: str = field(repr=False)


@pytest.fixture
def at(served: Served, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Register a UE; its key is the password. The name is resolved as a hosts file would."""
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host in {HOST, HOST.encode()} else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    ue(lab, "register")
    shown = ue(lab, "status", "--show-http-password", HOST)
    return Opened(f"https://{HOST}:{served.port('as', HOST, 'https')}", served.ca, shown["username"], shown["password"])


@pytest.mark.parametrize("drive", [with_httpx, with_async_httpx, with_requests, with_aiohttp])
async def test_a_thousand_puts_and_gets_after_one_401(drive: Drive, at: Opened, served: Served) -> None:
    """RFC 7616 §3.4, RFC 4825 §8: each document is stored durably, and the last one is what everybody reads."""
    text = (EXAMPLES / "simservs.xml").read_bytes()
    bodies = [text.replace(b">20<", b">%d<" % (5 + number % 175)) for number in range(COUNT)]
    got = await drive(at, [Call("PUT", DOCUMENT, body, SIMSERVS.mime) for body in bodies] + [Call("GET", DOCUMENT)] * COUNT)
    assert got[:COUNT] == [Got(200, b"")] * COUNT
    assert got[COUNT:] == [Got(200, bodies[-1])] * COUNT
    counted = re.findall(r'^keyferry_door_total\{reason="([a-z-]+)"\} (\S+)', served.admin("/metrics")[1], re.MULTILINE)
    assert {reason: float(value) for reason, value in counted if float(value)} == {"challenge": 1, "granted": 2 * COUNT}
