# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.7A: what the filter criteria ask for besides the key, from the configuration file to the AS, over real sockets."""

from __future__ import annotations

from pathlib import Path

from keyferry.client.session import ue_session
from keyferry.config import load_config, load_ue_config
from keyferry.ports import SipEvent
from keyferry.protocol.ims.keypush import SealedPush, parse_service_info
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.message import Request, parse_message
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from system.serving import make_lab


async def test_the_copies_go_along_with_the_key_in_one_body_and_prove_nothing(tmp_path: Path) -> None:
    """The AS stores the key all the same; neither the Digest response nor rspauth is in what it got, and a de-registration has no copy."""
    asked = 'app = "xcap"                # XCAP'
    settings = "include_register_request = true\ninclude_register_response = true\n"
    lab = make_lab(tmp_path, lambda text: text.replace(asked, settings + asked, 1))
    pushed: list[Request] = []

    def observe(event: SipEvent) -> None:
        message = event.message
        if event.node == "AS xcap.home1.net" and not event.outgoing and isinstance(message, Request) and message.method == "REGISTER":
            pushed.append(message)

    clock, random, log = SystemClock(), SystemRandom(), StructLog("none")
    with open_state(lab.state, random=random, exclusive=True) as state:
        system = System(load_config(lab.serve), state, clock, random, log, Metrics(), observer=observe)
        try:
            await system.start()
            async with ue_session(load_ue_config(lab.ue), lab.state, log) as session:
                await session.client.register()
                counts = {server.as_id: await server.keys.count(clock.now()) for server in system.servers}
                assert counts == {"xcap.home1.net": 1, "notes.home1.net": 1}
                await session.client.deregister()
        finally:
            await system.stop()
    registered, ended = map(parse_third_party_register, pushed)
    assert (pushed[0].get("Content-Type") or "").startswith("multipart/mixed;boundary=")
    assert isinstance(parse_service_info(registered.service_info or ""), SealedPush)
    request, response = parse_message(registered.register or b""), parse_message(registered.response or b"")
    assert 'response=""' in (request.get("Authorization") or "")
    assert "cnonce" not in (request.get("Authorization") or "")
    assert (response.get("P-Associated-URI"), response.get("Authentication-Info")) == (
        "<sip:user1_public1@home1.net>, <tel:+15550100001>",
        None,
    )
    assert (ended.expires, ended.register, ended.response) == (0, None, None)
