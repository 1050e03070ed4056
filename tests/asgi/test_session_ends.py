# SPDX-License-Identifier: Apache-2.0
"""What ends a session: the pushes of de-registration and re-registration, taken by a real key store (DESIGN §5, §6)."""

from __future__ import annotations

import httpx

from keyferry.asgi import SessionCookie, SimLogin
from keyferry.asgi.exchange import Receive, Scope, Send, respond
from keyferry.testing import Sims


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 200, scope["user"].display_name.encode())


async def session_of(sims: Sims, door: SimLogin, name: str) -> str:
    """Log in by Digest and return the cookie."""
    async with sims.http(door, name) as client:
        answer = await client.get("/")
    assert answer.status_code == 200
    return answer.headers["set-cookie"].partition(";")[0]


async def status(sims: Sims, door: SimLogin, cookie: str) -> int:
    transport = httpx.ASGITransport(door)
    async with httpx.AsyncClient(transport=transport, base_url=f"https://{sims.as_id}", headers={"Cookie": cookie}) as browser:
        return (await browser.get("/")).status_code


async def test_deregistration_ends_the_sessions_of_that_user_at_the_next_request() -> None:
    sims = Sims()
    door = sims.login(app, session=SessionCookie())
    alice, bob = await session_of(sims, door, "alice"), await session_of(sims, door, "bob")
    assert [await status(sims, door, cookie) for cookie in (alice, bob)] == [200, 200]
    sims.deregister("alice")
    assert [await status(sims, door, cookie) for cookie in (alice, bob)] == [401, 200]
    sims.register("alice")
    assert await status(sims, door, alice) == 401


async def test_reregistration_ends_them_when_the_new_key_is_used_and_begins_new_ones() -> None:
    sims = Sims()
    door = sims.login(app, session=SessionCookie())
    old = await session_of(sims, door, "alice")
    sims.register("alice")
    assert await status(sims, door, old) == 200  # the older key is good until the newer one is used
    new = await session_of(sims, door, "alice")
    assert new != old
    assert [await status(sims, door, cookie) for cookie in (old, new)] == [401, 200]


async def test_a_worker_that_never_saw_the_login_takes_the_session_too() -> None:
    """It is no state of a door; so it survives a restart."""
    sims = Sims()
    cookie = await session_of(sims, sims.login(app, session=SessionCookie()), "alice")
    assert await status(sims, sims.login(app, session=SessionCookie()), cookie) == 200
    other = Sims(sims.as_id)
    assert await status(other, other.login(app, session=SessionCookie()), cookie) == 401


async def test_a_session_ends_by_its_own_time() -> None:
    sims = Sims()
    door = sims.login(app, session=SessionCookie(lifetime=600))
    cookie = await session_of(sims, door, "alice")
    sims.clock.advance(599)
    assert await status(sims, door, cookie) == 200
    sims.clock.advance(2)
    assert await status(sims, door, cookie) == 401
