# SPDX-License-Identifier: Apache-2.0
"""What an S-CSCF's address answers (TS 24.229 §5.4; RFC 3261 §8.2.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest

from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.scscf.node import Scscf
from keyferry.roles.scscf.reg_event import RegEventNotifier
from roles.home import Home, open_home


class Watchers:
    """The notifier's two entrances."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def handle_subscribe(self, request: Request, peer: object) -> Response:
        self.seen.append(request.method)
        return make_response(request, 489)

    async def sweep(self) -> int:
        self.seen.append("sweep")
        return 2


@pytest.fixture(name="home")
async def home_fixture() -> AsyncIterator[Home]:
    async with open_home() as opened:
        yield opened


def request(method: str) -> Request:
    fields = {"Via": "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1", "From": "<sip:a@home1.net>;tag=1", "To": "<sip:a@home1.net>", "Call-ID": "c"}
    return Request(method, "sip:home1.net", (*fields.items(), ("CSeq", f"1 {method}"), ("Contact", "<sip:a@192.0.2.1>")))


async def test_each_method_goes_to_its_procedure_and_others_are_405(home: Home) -> None:
    watchers = Watchers()
    node = Scscf(home.scscf, cast("RegEventNotifier", watchers))
    assert (await node.handle(request("SUBSCRIBE"), home.network.peer("I"))).status == 489
    assert (await node.handle(request("REGISTER"), home.network.peer("I"))).status in {401, 403}
    answer = await node.handle(request("MESSAGE"), home.network.peer("I"))
    assert (answer.status, answer.get("Allow")) == (405, "REGISTER, SUBSCRIBE")
    assert await node.sweep() == 2
    assert watchers.seen == ["SUBSCRIBE", "sweep"]
