# SPDX-License-Identifier: Apache-2.0
"""DESIGN §10: what a hostile P-CSCF gains of a UE that leaves the proof of its keys to each AS, over real sockets."""

from __future__ import annotations

from dataclasses import replace

import httpx

from keyferry.client.http import open_http
from keyferry.lab.attacks.pcscf_marker import changing_marker
from keyferry.lab.attacks.town import XCAP, Setting, Town, open_town
from keyferry.protocol.ims.marker import Marker, build_marker

THREE = build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=False))


async def test_a_forged_marker_and_a_forged_200_open_no_server_and_draw_no_body() -> None:
    """The UE believes in keys that the P-CSCF knows, CK and IK being raw; but no server was pushed them, and none can prove them."""
    async with open_town(Setting(scscf_release=5)) as town:
        ue = town.alice.client.ue
        ue.profile = replace(ue.profile, rspauth="as")
        changing_marker(town, THREE, forge=True)
        state = await town.alice.register()
        assert state is not None
        assert state.k_m is not None
        assert not state.rspauth
        assert not await town.opens(state)  # the UE; and as well the P-CSCF, which has the same keys
        assert await _put(town) == (401, [b""])
        assert town.pushes() == []


async def test_taking_bit_2_away_from_flags_7_gives_nobody_keys() -> None:
    """The answer covers the nonce that the UE saw: the S-CSCF takes none that was changed on the way, and nothing is pushed."""
    async with open_town(Setting()) as town:
        ue = town.alice.client.ue
        ue.profile = replace(ue.profile, rspauth="as")
        changing_marker(town, THREE, forge=False)
        assert await town.alice.register() is None
        assert not await town.alice.has_keys()
        assert town.opened() == []


async def _put(town: Town) -> tuple[int, list[bytes]]:
    """Let the UE write a document; return the answer, and the bodies that left."""
    state, sent = await town.alice.client.state(), []
    port = next(one.port for one in town.system.listeners if one.proto == "https" and one.name == XCAP)
    url = f"https://{XCAP}:{port}/simservs.ngn.etsi.org/users/sip:{town.impi()}/simservs.xml"

    async def note(request: httpx.Request) -> None:
        sent.append(request.content)

    async with open_http(
        state, url, ca=town.system.pki.ca_file, hosts={str(XCAP): "127.0.0.1"}, random=town.system.random, waits=()
    ) as client:
        client.event_hooks = {"request": [note]}
        response = await client.put(url, content=b"<simservs/>")
        return response.status_code, [body for body in sent if body] or [b""]
