# SPDX-License-Identifier: Apache-2.0
"""DESIGN §10: a key that the S-CSCF did not prove goes out with no body until the server has proved it."""

from __future__ import annotations

import httpx
import pytest

from asgi.doorkit import AS_ID, make_door
from client.test_http_auth import ALICE, URL, Spy, client_of, drop, sim
from keyferry.errors import DigestRejected
from keyferry.protocol.ims import keys as ims_keys


async def test_a_key_that_nobody_has_proved_sends_no_body_until_the_server_has() -> None:
    """DESIGN §10: a HEAD asks for the challenge, a HEAD with credentials for the proof, and then the body goes; once a key."""
    spy = Spy(door := make_door(ALICE))
    async with client_of(spy, sim(proven=False)) as client:
        for _ in range(2):
            assert (await client.put(URL, content=b"note")).status_code == 200
    assert spy.counts() == [None, "00000001", "00000002", "00000003"]
    assert door.app.bodies == [b"", b"note", b"note"]


@pytest.mark.parametrize("status", [401, 403, 503])
async def test_a_server_that_refuses_a_key_that_nobody_has_proved_sees_no_body(status: int) -> None:
    """Whoever knows the key may have forged the marker; only the holder of the name's certificate and of the key gets a body."""
    seen: list[bytes] = []
    challenge = f'Digest realm="{ims_keys.digest_realm(AS_ID)}", nonce="n", qop="auth", algorithm=SHA-256'

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"www-authenticate": challenge})
        return httpx.Response(status)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=sim(proven=False)) as client:
        assert (await client.put(URL, content=b"note")).status_code == status
    assert seen == [b"", b""]


async def test_a_forged_proof_of_a_key_that_nobody_has_proved_is_none() -> None:
    spy = Spy(door := make_door(ALICE), drop(b"authentication-info"))
    async with client_of(spy, sim(proven=False)) as client:
        with pytest.raises(DigestRejected):
            await client.put(URL, content=b"note")
    assert door.app.bodies == [b""]
