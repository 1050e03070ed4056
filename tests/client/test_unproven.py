# SPDX-License-Identifier: Apache-2.0
"""DESIGN §10: a key that the S-CSCF did not prove goes out with no body until the server has proved it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from asgi.doorkit import AS_ID, Pki, make_door, serving
from client.test_http_auth import ALICE, LOCAL, LOCAL_ALICE, URL, Spy, client_of, drop, sim
from keyferry.asgi.exchange import Receive, Scope, Send
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


async def test_what_one_server_has_proved_another_has_not(tmp_path: Path) -> None:
    """Over TLS: the second one has another certificate of the name, however valid, and not the key."""
    pki = Pki(tmp_path)
    first, second = pki.issue(LOCAL, "first"), pki.issue(LOCAL, "second")
    door = make_door(LOCAL_ALICE, as_id=LOCAL, certificate_hashes=(first.sha256,))
    bodies: list[bytes] = []

    async def thief(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append((await receive())["body"])
        challenge = f'Digest realm="{ims_keys.digest_realm(LOCAL)}", nonce="n", qop="auth", algorithm=SHA-256'.encode()
        await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", challenge)]})
        await send({"type": "http.response.body", "body": b""})

    async with httpx.AsyncClient(verify=pki.trust(), auth=sim(LOCAL_ALICE, proven=False)) as client:
        async with serving(door.door, first) as port:
            url = f"https://localhost:{port}/notes"
            assert (await client.put(url, content=b"note", headers={"Connection": "close"})).status_code == 200
        async with serving(thief, second, port):
            with pytest.raises(DigestRejected):
                await client.put(url, content=b"note")
            assert (await client.put(url, content=b"note", headers={"Connection": "close"})).status_code == 401
    assert door.app.bodies[-1] == b"note"
    assert bodies
    assert set(bodies) == {b""}
