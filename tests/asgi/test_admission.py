# SPDX-License-Identifier: Apache-2.0
"""The ways to log in, and what ends a login (DESIGN §7)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from asgi.doorkit import ALICE, AS_ID, BOB, Answer, Client, Door, call, make_door, record
from keyferry.asgi import admission
from keyferry.asgi.admission import PSK_SCOPE
from keyferry.asgi.limits import CHALLENGES, FailureLimits
from keyferry.asgi.session import SessionCookie
from keyferry.errors import ConfigError, StoreError
from keyferry.ports import KeyRecord
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys

ALICE_KEY, BOB_KEY = record(), record("bob", BOB)
HERE = ("Origin", f"https://{AS_ID}")
ELSEWHERE = ("Origin", "https://evil.example")


class Psk(NamedTuple):
    """What a handshake proved."""

    record: KeyRecord
    source: str = "ims-as-key"


def over(held: KeyRecord) -> dict[str, Any]:
    """Return what a connection adds to a scope."""
    return {PSK_SCOPE: Psk(held)}


def mechanism(door: Door) -> str:
    found: str = door.app.scopes[-1]["keyferry"].mechanism
    return found


async def login(door: Door, held: KeyRecord = ALICE_KEY, method: str = "GET", *more: tuple[str, str], **scope: Any) -> Answer:
    challenge = (await call(door.door)).challenge()
    answer = Client(held).answer(challenge, method=method)
    return await call(door.door, method, headers=[answer, *more], **scope)


async def cookie(door: Door, held: KeyRecord = ALICE_KEY) -> tuple[str, str]:
    answer = await login(door, held)
    return ("Cookie", str(answer.get("set-cookie")).partition(";")[0])


def sessions(*records: KeyRecord, **settings: Any) -> Door:
    return make_door(*records, **{"session": SessionCookie(), **settings})


# ---- TLS-PSK


async def test_what_the_handshake_proved_is_a_login() -> None:
    door = make_door(ALICE_KEY)
    assert (await call(door.door, **over(ALICE_KEY))).body == ALICE[0].encode()
    assert mechanism(door) == "psk"
    await call(door.door, **over(ALICE_KEY))
    assert door.keys.told == [ALICE_KEY.key_id]  # of its use, once


async def test_a_connection_made_with_another_hosts_key_is_misdirected() -> None:
    door = make_door(ALICE_KEY)
    other = ALICE_KEY._replace(as_id=AsId("other.home1.net"))
    assert (await call(door.door, **over(other))).status == 421
    assert (await call(door.door, host="other.home1.net", **over(other))).status == 421
    assert door.app.scopes == []


async def test_a_connection_ends_with_its_key() -> None:
    """A connection may live longer than the registration."""
    door = make_door(ALICE_KEY)
    scope = over(ALICE_KEY)
    assert (await call(door.door, **scope)).status == 200
    del door.keys.records[ALICE_KEY.key_id]
    assert (await call(door.door, **scope)).status == 401
    door.keys.records[ALICE_KEY.key_id] = ALICE_KEY._replace(k_as=BOB_KEY.k_as)
    assert (await call(door.door, **scope)).status == 401


async def test_no_request_changes_whose_the_connection_is() -> None:
    door = sessions(ALICE_KEY, BOB_KEY)
    bobs = await cookie(door, BOB_KEY)
    challenge = await door.challenge()
    digest = Client(BOB_KEY).answer(challenge)
    answer = await call(door.door, headers=[digest, bobs], **over(ALICE_KEY))
    assert answer.body == ALICE[0].encode()
    assert b"authorization" not in dict(door.app.scopes[-1]["headers"])


async def test_a_superseded_key_does_not_end_its_successor() -> None:
    door = make_door(ALICE_KEY._replace(superseded=True))
    assert (await call(door.door, **over(ALICE_KEY))).status == 200
    assert door.keys.told == []


# ---- session


async def test_a_login_may_last_some_hours() -> None:
    door = sessions(ALICE_KEY)
    kept = await cookie(door)
    answer = await call(door.door, headers=[kept, ("Cookie", "theme=dark")])
    assert (answer.status, answer.body) == (200, ALICE[0].encode())
    assert mechanism(door) == "session"
    assert answer.get("set-cookie") is None
    assert (b"cookie", b"theme=dark") in door.app.scopes[-1]["headers"]
    assert not [value for _name, value in door.app.scopes[-1]["headers"] if b"__Host" in value]


async def test_the_cookie_is_off_unless_asked_for() -> None:
    door = make_door(ALICE_KEY)
    kept = await cookie(sessions(ALICE_KEY))
    assert (await login(door)).get("set-cookie") is None
    assert (await call(door.door, headers=[kept])).status == 401
    with pytest.raises(ConfigError, match="SessionCookie"):
        make_door(session=True)


async def test_the_deregistration_ends_it() -> None:
    """The key is erased by the push; the next request finds none."""
    door = sessions(ALICE_KEY)
    kept = await cookie(door)
    del door.keys.records[ALICE_KEY.key_id]
    answer = await call(door.door, headers=[kept])
    assert answer.status == 401
    assert "Max-Age=0" in str(answer.get("set-cookie"))
    assert len(door.app.scopes) == 1


async def test_a_new_registration_has_a_new_cookie() -> None:
    door, after = sessions(ALICE_KEY), record("alice after")
    old = await cookie(door)
    door.keys.records = {after.key_id: after}
    assert (await call(door.door, headers=[old])).status == 401
    answer = await login(door, after, "GET", old)
    new = str(answer.get("set-cookie")).partition(";")[0]
    assert new not in ("None", old[1])
    assert (await call(door.door, headers=[("Cookie", new)])).status == 200


async def test_it_ends_with_its_time_and_is_renewed_by_a_proof_alone() -> None:
    door = sessions(ALICE_KEY, session=SessionCookie(lifetime=1000))
    kept = await cookie(door)
    door.clock.time += 400
    assert (await login(door, ALICE_KEY, "GET", kept)).get("set-cookie") is None
    door.clock.time += 200
    assert (await call(door.door, headers=[kept])).get("set-cookie") is None
    assert "Max-Age=1000" in str((await login(door, ALICE_KEY, "GET", kept)).get("set-cookie"))
    door.clock.time += 400
    assert (await call(door.door, headers=[kept])).status == 401


async def test_it_never_lives_longer_than_its_key() -> None:
    door = sessions(ALICE_KEY._replace(not_after=1_800_000_060.0))
    assert "Max-Age=60;" in str((await login(door)).get("set-cookie"))


async def test_a_cookie_of_another_user_as_or_key_is_worth_nothing() -> None:
    door = sessions(ALICE_KEY, BOB_KEY)
    alices, bobs = (await cookie(door))[1], (await cookie(door, BOB_KEY))[1]
    one, two = alices.split("."), bobs.split(".")
    for forged in (".".join([*one[:3], two[3]]), ".".join([one[0], two[1], *one[2:]]), alices[:-1] + ("A" if alices[-1] != "A" else "B")):
        assert (await call(door.door, headers=[("Cookie", forged)])).status == 401
    assert (await call(door.door, headers=[("Cookie", f"{alices}; {bobs}")])).status == 401


async def test_a_wrong_cookie_costs_as_much_as_one_of_an_unknown_key() -> None:
    door = sessions(ALICE_KEY)
    kept = await cookie(door)
    headers = [[kept, ("Cookie", "x=y")], [("Cookie", kept[1][:-1] + "!")]]
    del door.keys.records[ALICE_KEY.key_id]
    answers = [await call(door.door, headers=one) for one in headers]
    assert len({(answer.status, answer.body, answer.get("set-cookie")) for answer in answers}) == 1


# ---- pages of other sites


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
async def test_a_cookie_alone_changes_nothing_unless_this_site_made_the_request(method: str) -> None:
    door = sessions(ALICE_KEY, trusted_origins=("https://app.example",))
    kept = await cookie(door)
    assert (await call(door.door, method, headers=[kept])).status == 401  # Digest is the answer
    assert (await call(door.door, method, headers=[kept, ELSEWHERE])).status == 403
    assert (await call(door.door, method, headers=[kept, ("Sec-Fetch-Site", "cross-site")])).status == 403
    assert len(door.app.scopes) == 1
    for good in (HERE, ("Sec-Fetch-Site", "same-origin"), ("Origin", "https://app.example")):
        assert (await call(door.door, method, headers=[kept, good])).status == 200


async def test_reading_needs_no_origin() -> None:
    door = sessions(ALICE_KEY)
    kept = await cookie(door)
    assert (await call(door.door, "GET", headers=[kept, ("Sec-Fetch-Site", "cross-site")])).status == 200


async def test_a_browsers_digest_and_connection_do_not_serve_other_sites_either() -> None:
    door = make_door(ALICE_KEY)
    assert (await login(door, ALICE_KEY, "PUT", ELSEWHERE)).status == 403
    assert (await call(door.door, "PUT", headers=[ELSEWHERE], **over(ALICE_KEY))).status == 403
    assert door.app.scopes == []
    assert (await login(door, ALICE_KEY, "PUT")).status == 200
    assert (await call(door.door, "PUT", **over(ALICE_KEY))).status == 200


# ---- limits


async def fail(door: Door, client: str = "192.0.2.1", **wrong: Any) -> Answer:
    answer = Client(ALICE_KEY).answer(await door.challenge(), **{"ha1": Client(BOB_KEY).ha1, **wrong})
    return await call(door.door, headers=[answer], client=(client, 1))


async def test_who_fails_too_often_gets_no_more_challenges_and_nobody_else_is_touched() -> None:
    door = make_door(ALICE_KEY, limits=FailureLimits(burst=3, per_second=0.1))
    assert [(await fail(door)).status for _ in range(8)] == [401] * (3 + CHALLENGES) + [429]
    limited = await fail(door)
    assert (limited.get("retry-after"), limited.all("www-authenticate")) == ("10", [])
    assert b"failed" in limited.body
    assert (await fail(door, "192.0.2.2")).status == 401
    assert (await login(door, client=("192.0.2.1", 1))).status == 200  # the victim behind the same NAT
    assert (await login(door, client=("192.0.2.2", 1))).status == 200  # the victim whose key was tried
    door.clock.time += 10
    assert [(await fail(door)).status for _ in range(3)] == [401, 401, 429]  # a token of the address, one of the name
    assert door.counter.seen.count("door limited") == CHALLENGES + 4


async def test_what_an_honest_client_does_counts_for_nothing() -> None:
    door = make_door(ALICE_KEY, limits=FailureLimits(burst=1, per_second=0.001))
    client = Client(ALICE_KEY)
    for _ in range(3):
        await call(door.door)
        await call(door.door, host="other.example")
        await call(door.door, scheme="http")
        challenge = await door.challenge()
        await call(door.door, headers=[client.answer(challenge)])
        assert (await call(door.door, headers=[client.answer(challenge)])).challenge().stale  # the count was used
    assert (await fail(door, "")).status == 401


@pytest.mark.parametrize("says", ["MD5", "SHA-256", None])
async def test_a_client_that_knows_only_md5_uses_up_nothing_of_what_its_address_may_fail(says: str | None) -> None:
    """Whether it says so, or echoes the algorithm that it was offered, or names none (RFC 7616 §3.4: that is MD5)."""
    door = make_door(ALICE_KEY, limits=FailureLimits(burst=2, per_second=0.001))
    knows = Client(ALICE_KEY, "MD5")
    for _ in range(20):
        credentials = replace(knows.credentials(await door.challenge()), algorithm=says)
        answer = await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])
        assert (answer.status, door.counter.seen[-1]) == (401, "door algorithm")
    assert (await fail(door)).status == 401
    assert door.counter.seen[-1] == "door response"  # a neighbour's failure: not "limited"


async def test_cookies_and_forms_count_too() -> None:
    door = sessions(ALICE_KEY, limits=FailureLimits(burst=1, per_second=0.001))
    for headers in ([("Cookie", "__Host-keyferry=x")], [("Authorization", "Digest x")], [("Authorization", "Basic x")]):
        assert (await call(door.door, headers=headers, client=("192.0.2.9", 1))).status in {401, 400, 429}
    assert (await call(door.door, headers=[("Authorization", "Digest x")], client=("192.0.2.9", 1))).status == 429


async def test_a_store_that_fails_counts_against_nobody() -> None:
    door = make_door(ALICE_KEY, limits=FailureLimits(burst=1, per_second=0.001))
    challenge = await door.challenge()
    door.keys.lookup_fails, door.keys.problem = True, StoreError("broken")
    for _ in range(3):
        assert (await call(door.door, headers=[Client(ALICE_KEY).answer(challenge)])).status == 503
    door.keys.lookup_fails = False
    assert (await fail(door, "")).status == 401


# ---- neighbours: whoever shares an address with somebody who fails on purpose

NAT: dict[str, Any] = {"client": ("192.0.2.1", 1)}


async def abused(*records: KeyRecord, **settings: Any) -> Door:
    """Return a door at which the address of NAT is far over its limit, by garbage and by guesses under Alice's name."""
    door = sessions(*records, **{"limits": FailureLimits(burst=1, per_second=0.001), **settings})
    for _ in range(20):
        await fail(door)
        await call(door.door, headers=[("Authorization", "Digest x")], **NAT)
    assert (await fail(door)).status == 429
    assert (await call(door.door, headers=[("Authorization", "Digest x")], **NAT)).status == 429
    return door


async def test_a_neighbours_session_that_is_over_ends_in_a_challenge_and_without_its_cookie() -> None:
    """A bare 429 would leave the browser with a cookie that opens nothing, for as long as the abuser likes."""
    door = await abused(ALICE_KEY)
    kept = await cookie(door)
    assert (await call(door.door, headers=[kept], **NAT)).status == 200
    del door.keys.records[ALICE_KEY.key_id]
    for dead in (kept, ("Cookie", "__Host-keyferry=x"), kept):
        answer = await call(door.door, headers=[dead], **NAT)
        assert (answer.status, answer.challenge().realm) == (401, Client(ALICE_KEY).realm)
        assert "Max-Age=0" in str(answer.get("set-cookie"))
    after = record("alice after")
    door.keys.records = {after.key_id: after}
    assert (await call(door.door, headers=[Client(after).answer(answer.challenge()), kept], **NAT)).status == 200


async def test_a_neighbours_session_that_is_over_loses_its_cookie_on_an_open_path_too() -> None:
    door = await abused(ALICE_KEY, open=("/open",))
    kept = await cookie(door)
    del door.keys.records[ALICE_KEY.key_id]
    answer = await call(door.door, target="/open", headers=[kept], **NAT)
    assert (answer.status, "Max-Age=0" in str(answer.get("set-cookie"))) == (200, True)


async def test_a_neighbour_with_a_key_that_is_gone_is_challenged() -> None:
    """Browsers forget a Digest password at a 401, and at nothing else."""
    door = await abused(ALICE_KEY, BOB_KEY)
    held = Client(BOB_KEY).answer(await door.challenge(), 2)
    del door.keys.records[BOB_KEY.key_id]
    for old in (held, held, ("Authorization", "Basic Ym9iOg==")):
        answer = await call(door.door, headers=[old], **NAT)
        assert (answer.status, answer.challenge().realm) == (401, Client(BOB_KEY).realm)
        assert door.counter.seen[-1] == "door limited"  # so a flood fills no log


async def test_a_neighbour_over_a_relay_is_told_so() -> None:
    door = await abused(ALICE_KEY, BOB_KEY)
    answer = Client(BOB_KEY).answer(await door.challenge(), cnonce=f"cb1.{'c' * 22}.{'A' * 43}")
    assert (await call(door.door, headers=[answer], **NAT)).status == 403


@pytest.mark.parametrize("client", [Client(ALICE_KEY), Client(BOB_KEY)], ids=["whose name was tried", "another"])
async def test_a_neighbours_right_proof_is_admitted_whatever_it_is(client: Client) -> None:
    """Digest, auth-int, the first nonce, and a stale nonce, which is worth a new one."""
    door = await abused(ALICE_KEY, BOB_KEY, qop=("auth", "auth-int"))
    challenge = await door.challenge()
    first = replace(challenge, nonce=ims_keys.first_nonce(ims_keys.ua_key(client.held.k_as)))
    assert (await call(door.door, headers=[client.answer(first)], **NAT)).status == 200
    assert mechanism(door) == "first-nonce"
    assert (await call(door.door, headers=[client.answer(challenge)], **NAT)).status == 200
    signed = client.answer(challenge, 2, method="PUT", qop="auth-int", body=b"note")
    assert (await call(door.door, "PUT", headers=[signed], body=b"note", **NAT)).status == 200
    assert (await call(door.door, headers=[client.answer(challenge)], **NAT)).challenge().stale
    assert (await call(door.door, **NAT, **over(client.held))).status == 200


async def test_a_right_proof_waits_for_its_turn_and_is_never_turned_away() -> None:
    """The abuser keeps every turn busy for as long as the key store takes, and has more requests in line."""
    door = await abused(ALICE_KEY, BOB_KEY, limits=FailureLimits(burst=1, per_second=0.001, at_once=2))
    challenge = await door.challenge()
    slow = SlowKeys(door)
    guesses = [Client(ALICE_KEY).answer(challenge, ha1=Client(BOB_KEY).ha1)] * 30
    async with asyncio.TaskGroup() as tasks:
        forged = [tasks.create_task(call(door.door, headers=[guess], **NAT)) for guess in guesses]
        right = tasks.create_task(call(door.door, headers=[Client(BOB_KEY).answer(challenge)], **NAT))
        await slow.asked_for(2)
        assert slow.most == 2
        assert (await call(door.door, **NAT)).status == 401  # who asks for a challenge does not stand in line
        slow.goes_on.set()
    assert {task.result().status for task in forged} == {429}
    assert right.result().status == 200
    assert slow.most == 2


async def test_the_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX_IN_LINE: some servers do not tell an application that a client has left."""
    monkeypatch.setattr(admission, "MAX_IN_LINE", 5)
    door = await abused(ALICE_KEY)
    challenge = await door.challenge()
    slow = SlowKeys(door)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(call(door.door, headers=[Client(ALICE_KEY).answer(challenge, 1 + n)], **NAT)) for n in range(5)]
        await slow.asked_for(4)
        full = await call(door.door, headers=[Client(ALICE_KEY).answer(challenge, 9)], **NAT)
        assert (full.status, full.get("retry-after")) == (503, "1")
        slow.goes_on.set()
    assert {task.result().status for task in waiting} == {200}


class SlowKeys:
    """Make a door's key store answer only when a test says so."""

    def __init__(self, door: Door) -> None:
        self.goes_on = asyncio.Event()
        self.most = self._now = 0
        self._changed = asyncio.Condition()
        lookup = door.keys.lookup

        async def slowly(identifier: str, as_id: AsId) -> KeyRecord | None:
            self._now += 1
            self.most = max(self.most, self._now)
            async with self._changed:
                self._changed.notify_all()
            await self.goes_on.wait()
            self._now -= 1
            return await lookup(identifier, as_id)

        door.keys.lookup = slowly  # type: ignore[method-assign]

    async def asked_for(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._now >= count)
