# SPDX-License-Identifier: Apache-2.0
"""Somebody who subscribes to Alice's registration state, by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from keyferry.protocol.ims.reginfo import parse_reginfo
from keyferry.protocol.ims.subscribe import parse_notify
from keyferry.protocol.sip.message import Request, Response, make_response
from roles.home import Home
from roles.manual import SIP_ALICE
from roles.network import settle


@dataclass
class Watcher:
    """What the documents said: of each, by identity, its state and the event of its last contact."""

    home: Home
    asserts: str = SIP_ALICE
    states: list[dict[str, str]] = field(default_factory=list)
    contacts: list[dict[str, str]] = field(default_factory=list)
    ended: list[str | None] = field(default_factory=list)  # reasons of a last NOTIFY

    async def subscribe(self) -> Response:
        sip = self.home.network.attach("W", "w.home1.net", self._take)
        headers = (
            ("Max-Forwards", "70"), ("From", f"<{SIP_ALICE}>;tag=w"), ("To", f"<{SIP_ALICE}>"), ("Call-ID", "w"), ("CSeq", "1 SUBSCRIBE"),
            ("Contact", "<sip:w.home1.net>"), ("Event", "reg"), ("Expires", "3600"), ("P-Asserted-Identity", f"<{self.asserts}>"),
        )  # fmt: skip
        answer = await sip.send(Request("SUBSCRIBE", SIP_ALICE, headers), self.home.network.peer("S"))
        await settle()
        return answer

    async def _take(self, request: Request, peer: object) -> Response:
        state = parse_notify(request).state
        if state.state == "terminated":
            self.ended.append(state.reason)
        if request.body:
            found = parse_reginfo(request.body).registrations
            self.states.append({each.aor: each.state for each in found})
            self.contacts.append({each.aor: each.contacts[-1].event for each in found if each.contacts})
        return make_response(request, 200)


async def watched(home: Home, asserts: str = SIP_ALICE) -> Watcher:
    """Subscribe, which must be granted."""
    watcher = Watcher(home, asserts)
    assert (await watcher.subscribe()).status == 200
    return watcher
