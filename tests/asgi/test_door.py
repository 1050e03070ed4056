# SPDX-License-Identifier: Apache-2.0
"""RFC 7616, DESIGN §7: what one door admits."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from asgi.doorkit import AS_ID, BOB, Answer, Client, Door, FakeClock, FakeKeys, FakeRandom, call, make_door, record
from keyferry.asgi.auth import Identity
from keyferry.asgi.door import MAX_CNONCE
from keyferry.asgi.ledger import LocalLedger
from keyferry.errors import DigestRejected
from keyferry.ports import KeyRecord
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys

ALICE_KEY = record()


async def logged_in(door: Door, client: Client, *, target: str = "/notes", method: str = "GET", **wrong: Any) -> Answer:
    challenge = await door.challenge()
    return await call(door.door, method, target, [client.answer(challenge, method=method, **wrong)])


# ---- challenge and admission


async def test_a_request_without_credentials_is_challenged() -> None:
    """RFC 7616 §3.3: one challenge, one qop, nothing a phone's parser trips over."""
    door = make_door()
    answer = await call(door.door)
    assert answer.status == 401
    assert answer.get("retry-after") is None
    (text,) = answer.all("www-authenticate")
    challenge = digest.parse_challenge(text)
    assert (challenge.realm, challenge.algorithm, challenge.qop) == ("IMS-AS-key@xcap.home1.net", "SHA-256", ("auth",))
    assert not challenge.stale
    assert door.counter.seen == ["door challenge"]


async def test_md5_is_offered_second_and_only_if_configured() -> None:
    """DESIGN §7."""
    door = make_door(ALICE_KEY, algorithms=("SHA-256", "MD5"))
    first, second = (digest.parse_challenge(text) for text in (await call(door.door)).all("www-authenticate"))
    assert (first.algorithm, second.algorithm) == ("SHA-256", "MD5")
    for client in (Client(ALICE_KEY, "MD5"), Client(ALICE_KEY), Client(ALICE_KEY, "MD5")):
        assert (await logged_in(door, client)).status == 200
    without = dataclasses.replace(Client(ALICE_KEY, "MD5").credentials(second), algorithm=None)
    assert (await call(door.door, headers=[("Authorization", digest.build_credentials(without))])).status == 200


async def test_whoever_proves_a_key_is_admitted_under_the_identity_of_the_key() -> None:
    """DESIGN §7: the application never sees anything but an identity."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    answer = await logged_in(door, client)
    assert (answer.status, answer.body) == (200, b"sip:alice@home1.net")
    (scope,) = door.app.scopes
    assert scope["keyferry"] == Identity(ALICE_KEY.impus, ALICE_KEY.key_id, "digest")
    assert not any(name == b"authorization" for name, _ in scope["headers"])
    assert door.keys.told == [ALICE_KEY.key_id]


async def test_the_door_proves_the_key_too() -> None:
    """RFC 7616 §3.5: rspauth; no nextnonce while the nonce is young."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    credentials = client.credentials(await door.challenge())
    answer = await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])
    (text,) = answer.all("authentication-info")
    info = digest.parse_authentication_info(text)
    digest.check_rspauth(info, client.ha1, credentials, algorithm="SHA-256")
    assert info.nextnonce is None
    assert answer.get("x-app") == "echo"


async def test_an_old_nonce_is_replaced_by_the_next() -> None:
    """RFC 7616 §3.5: nextnonce."""
    door, client = make_door(ALICE_KEY, nonce_lifetime=100.0), Client(ALICE_KEY)
    challenge = await door.challenge()
    door.clock.time += 60
    answer = await call(door.door, headers=[client.answer(challenge)])
    info = digest.parse_authentication_info(answer.get("authentication-info") or "")
    assert info.nextnonce
    door.clock.time += 60
    assert (await call(door.door, headers=[client.answer(challenge, 2)])).challenge().stale
    following = dataclasses.replace(challenge, nonce=info.nextnonce)
    assert (await call(door.door, headers=[client.answer(following)])).status == 200


async def test_a_device_uses_one_nonce_for_many_requests() -> None:
    """RFC 7616 §3.4.5; the source is told of the use once."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    challenge = await door.challenge()
    for count in (1, 2, 3, 0x10, 9):
        assert (await call(door.door, headers=[client.answer(challenge, count)])).status == 200
    assert door.keys.told == [ALICE_KEY.key_id]


async def test_a_superseded_key_still_opens_the_door_but_ends_no_other() -> None:
    """DESIGN §6: an older key stays valid until the newer one is first used."""
    held = record(superseded=True)
    door, client = make_door(held), Client(held)
    assert (await logged_in(door, client)).status == 200
    assert door.keys.told == []
    door.keys.records[held.key_id] = held._replace(superseded=False)
    assert (await logged_in(door, client)).status == 200
    assert door.keys.told == [held.key_id]


# ---- attacks on the answer


async def test_a_replayed_request_is_refused() -> None:
    """RFC 7616 §5.4; stale, so that a client whose packet was doubled goes on."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    header = client.answer(await door.challenge())
    assert (await call(door.door, headers=[header])).status == 200
    again = await call(door.door, headers=[header])
    assert again.status == 401
    assert again.challenge().stale
    assert len(door.app.scopes) == 1


class SlowKeys(FakeKeys):
    """A key source that lets others run."""

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        await asyncio.sleep(0)
        return await super().lookup(identifier, as_id)

    async def used(self, held: KeyRecord) -> None:
        await asyncio.sleep(0)
        await super().used(held)


async def test_of_two_copies_at_the_same_time_one_is_admitted() -> None:
    """DESIGN §7: claimed atomically."""
    door, client = make_door(keys=SlowKeys(ALICE_KEY)), Client(ALICE_KEY)
    header = client.answer(await door.challenge())
    answers = await asyncio.gather(*(call(door.door, headers=[header]) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401, 401]
    assert len(door.app.scopes) == 1


async def test_a_wrong_response_does_not_use_up_the_count() -> None:
    """DESIGN §7: claimed after the response verified; else anybody could lock a user out."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    challenge = await door.challenge()
    assert (await call(door.door, headers=[client.answer(challenge, ha1=Secret(b"0" * 64))])).status == 401
    assert (await call(door.door, headers=[client.answer(challenge)])).status == 200


async def test_unknown_key_wrong_password_and_retired_key_look_alike() -> None:
    """DESIGN §7."""
    stranger, door = Client(record("stranger")), make_door(ALICE_KEY)
    client = Client(ALICE_KEY)
    challenge = await door.challenge()
    assert (await call(door.door, headers=[client.answer(challenge)])).status == 200
    unknown = await call(door.door, headers=[stranger.answer(challenge)])
    wrong = await call(door.door, headers=[client.answer(challenge, 2, ha1=Secret(b"0" * 64))])
    del door.keys.records[ALICE_KEY.key_id]
    retired = await call(door.door, headers=[client.answer(challenge, 3)])
    assert door.counter.seen[-3:] == ["door unknown-key", "door response", "door unknown-key"]
    for answer in (unknown, wrong, retired):
        assert answer.status == 401
        assert answer.get("retry-after") == "1"
        assert not answer.challenge().stale
        assert [name for name, _ in answer.headers] == [name for name, _ in unknown.headers]
        assert answer.body == unknown.body == (await call(door.door)).body


async def test_every_refused_answer_costs_one_derivation_and_a_known_key_none() -> None:
    """DESIGN §7: unknown id, wrong password, retired key take the same time."""
    door, client, stranger = make_door(ALICE_KEY), Client(ALICE_KEY), Client(record("stranger"))
    challenge = await door.challenge()

    async def cost(client: Client, count: int, **wrong: Any) -> int:
        before = door.keys.derived
        await call(door.door, headers=[client.answer(challenge, count, **wrong)])
        return door.keys.derived - before

    wrong = {"ha1": Secret(b"0" * 64)}
    assert await cost(client, 1, **wrong) == 1  # not seen before
    assert await cost(client, 1) == 1
    assert await cost(client, 2) == 0
    assert await cost(client, 3, **wrong) == 1
    assert await cost(stranger, 1) == 1
    door.keys.records.clear()
    assert await cost(client, 3) == 1


async def test_stale_is_told_only_to_those_who_hold_the_key() -> None:
    """RFC 7616 §3.3; a nonce of another door, or forged, or too old."""
    other = make_door(ALICE_KEY, random=FakeRandom("other"))
    door, client = make_door(ALICE_KEY, nonce_lifetime=100.0), Client(ALICE_KEY)
    old = await door.challenge()
    door.clock.time += 101
    forged = dataclasses.replace(old, nonce="A" * 40)
    for challenge in (old, forged, await other.challenge()):
        right = await call(door.door, headers=[client.answer(challenge)])
        wrong = await call(door.door, headers=[client.answer(challenge, ha1=Secret(b"0" * 64))])
        assert (right.status, right.challenge().stale) == (401, True)
        assert (wrong.status, wrong.challenge().stale) == (401, False)
        assert (await call(door.door, headers=[client.answer(right.challenge())])).status == 200


async def test_the_key_that_stands_in_for_unknown_ones_opens_nothing() -> None:
    """Whoever guessed it has still no identity."""

    class Guessed(FakeRandom):
        def octets(self, count: int) -> bytes:
            return ALICE_KEY.k_as.reveal() if count == 32 else super().octets(count)

    door, client = make_door(random=Guessed()), Client(ALICE_KEY)
    assert (await logged_in(door, client)).status == 401
    assert door.app.scopes == []


async def test_another_key_under_the_same_id_is_not_the_cached_one() -> None:
    """A cached HA1 belongs to the octets it was made of."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    assert (await logged_in(door, client)).status == 200
    changed = ALICE_KEY._replace(k_as=Secret(b"n" * 32))
    door.keys.records[ALICE_KEY.key_id] = changed
    assert (await logged_in(door, client)).status == 401
    assert (await logged_in(door, Client(changed))).status == 200
    door.keys.records[ALICE_KEY.key_id] = changed._replace(k_as=Secret(b"n" * 32))
    assert (await logged_in(door, Client(changed))).status == 200


@pytest.mark.parametrize(
    "bad",
    [ALICE_KEY._replace(as_id=AsId("other.home1.net")), ALICE_KEY._replace(key_id=record("bob").key_id), ALICE_KEY._replace(impus=())],
)
async def test_a_record_that_does_not_fit_the_question_admits_nobody(bad: KeyRecord) -> None:
    """Depth: a key source with a fault must not open the door to another AS's key."""
    door = make_door()
    door.keys.records[ALICE_KEY.key_id] = bad
    assert (await logged_in(door, Client(ALICE_KEY))).status == 401


async def test_the_memory_for_keys_is_bounded() -> None:
    """PROVEN_KEYS."""
    held = [record(name, BOB) for name in ("a", "b", "c", "d")]
    door = make_door(*held, proven_keys=2)
    for one in [*held, *held]:
        door.clock.time += 1
        assert (await logged_in(door, Client(one))).status == 200
    assert len(door.door._doors[AS_ID]._proven) == 2


@pytest.mark.parametrize("name", ['al"ice', "a\\b", "", "x" * 500, "../../etc/passwd", "\u00e9@home1.net", "A" * 24 + "@home1.net'--"])
async def test_a_name_that_is_no_key_id_never_reaches_the_store(name: str) -> None:
    """The store is asked for key ids alone."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    credentials = dataclasses.replace(client.credentials(await door.challenge()), username=name)
    answer = await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])
    assert (answer.status, answer.get("retry-after")) == (401, "1")
    assert door.keys.asked == []


async def test_the_answer_is_for_this_realm_algorithm_and_qop() -> None:
    """RFC 7616 §3.4; no way down to MD5 or to RFC 2069."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    challenge = await door.challenge()
    right = client.credentials(challenge)
    md5 = Client(ALICE_KEY, "MD5").credentials(challenge)
    bad = {
        "realm": dataclasses.replace(right, realm="IMS-AS-key@other.home1.net"),
        "algorithm": md5,
        "qop": client.credentials(challenge, qop="auth-int"),
        "response": dataclasses.replace(right, nc="1"),
    }
    for reason, credentials in bad.items():
        answer = await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])
        assert (answer.status, door.counter.seen[-1]) == (401, f"door {reason}")
    for credentials in (
        dataclasses.replace(md5, algorithm=None),
        dataclasses.replace(right, algorithm="SHA-256-sess"),
    ):
        assert (await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])).status == 401
    assert door.app.scopes == []


@pytest.mark.parametrize("algorithm", ["SHA-256", None])
@pytest.mark.parametrize("algorithms", [("SHA-256",), ("SHA-256", "MD5")])
async def test_a_client_of_rfc_2069_is_told_so_and_not_asked_again(algorithm: str | None, algorithms: tuple[str, ...]) -> None:
    """RFC 7616 §3.4: what must be there and is not earns a 4xx; a 401 would make such a client try for ever."""
    door, client = make_door(ALICE_KEY, algorithms=algorithms), Client(ALICE_KEY, algorithm or "MD5")
    challenge = await door.challenge()
    response = digest.respond(client.algorithm, client.ha1, method="GET", uri="/notes", nonce=challenge.nonce)
    old = dataclasses.replace(client.credentials(challenge), algorithm=algorithm, qop=None, nc=None, cnonce=None, response=response)
    answer = await call(door.door, headers=[("Authorization", digest.build_credentials(old))])
    assert (answer.status, answer.all("www-authenticate"), door.counter.seen[-1]) == (400, [], "door rfc-2069")
    assert b"qop" in answer.body
    assert door.app.scopes == []


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("userhash", "true", 400),
        ("userhash", "TRUE", 400),
        ("userhash", "false", 200),
        ("username*", "UTF-8''x", 400),
        ("charset", "x", 200),
    ],
)
async def test_a_hashed_or_a_second_user_name_is_refused(name: str, value: str, status: int) -> None:
    """RFC 7616 §3.4.4: nobody was told that we can do it."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    credentials = dataclasses.replace(client.credentials(await door.challenge()), parameters=((name, value),))
    assert (await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])).status == status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("DIGEST {}", 200),
        ("digest  {}", 200),
        ("Digest , {} , ,", 200),
        ("Digest {}, extra=token", 200),
        ('Digest {}, opaque="a, b=\\"c\\", nonce=x\\\\"', 200),  # commas, quotes and backslashes inside quotes
        ('Digest {}, Nonce="x"', 400),
        ("Digest {}, x=1, X=2", 400),
        ('Digest {}, opaque="', 400),
        ("Digest {}, opaque", 400),
        ("Digest {}; opaque=x", 400),
    ],
)
async def test_the_grammar_of_authorization(text: str, status: int) -> None:
    """RFC 9110 §11.4, §5.6: order, case, quoted pairs, empty elements; nothing twice."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    value = client.answer(await door.challenge())[1].removeprefix("Digest ")
    shuffled = ", ".join(part.replace("=", " = ", 1) for part in sorted(value.split(", "), reverse=True))
    upper = ", ".join(part.partition("=")[0].upper() + "=" + part.partition("=")[2] for part in value.split(", "))
    for count, parameters in enumerate((value, shuffled, upper)):
        door = make_door(ALICE_KEY)
        answer = await call(door.door, headers=[("Authorization", text.format(parameters))])
        assert answer.status == status, (count, parameters)


async def test_quoted_pairs_are_resolved_before_anything_is_compared() -> None:
    """RFC 9110 §5.6.4."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    value = client.answer(await door.challenge())[1]
    assert (await call(door.door, headers=[("Authorization", value.replace("IMS-AS", "\\I\\MS-AS", 1))])).status == 200


@pytest.mark.parametrize("cnonce", ["", 'a"b', "a\\b", "x" * (MAX_CNONCE + 1), "\u00e9"])
async def test_a_cnonce_that_cannot_be_sent_back_plainly_is_refused(cnonce: str) -> None:
    """RFC 7616 §3.4; ordinary clients send hexadecimal or base64."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    answer = await logged_in(door, client, cnonce=cnonce)
    assert answer.status == 400


async def test_a_method_is_part_of_the_answer() -> None:
    """RFC 7616 §3.4.3."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    header = client.answer(await door.challenge(), method="GET")
    assert (await call(door.door, "DELETE", headers=[header])).status == 401


# ---- first nonce


def first(client: Client, **wrong: Any) -> tuple[str, str]:
    nonce = ims_keys.first_nonce(ims_keys.ua_key(client.held.k_as))
    return client.answer(digest.Challenge(client.realm, nonce, client.algorithm, ("auth",)), **wrong)


async def test_a_first_request_needs_no_challenge_and_the_next_goes_on() -> None:
    """DESIGN §3: nonce0, then nextnonce: two requests, and no 401."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    answer = await call(door.door, headers=[first(client)])
    assert answer.status == 200
    info = digest.parse_authentication_info(answer.get("authentication-info") or "")
    assert info.rspauth
    assert info.nextnonce
    assert len(info.nextnonce) == 40
    following = digest.Challenge(client.realm, info.nextnonce, "SHA-256", ("auth",))
    assert (await call(door.door, headers=[client.answer(following)])).status == 200
    assert [scope["keyferry"].mechanism for scope in door.app.scopes] == ["first-nonce", "digest"]


async def test_a_first_nonce_is_used_once() -> None:
    """DESIGN §7: stale, since the client holds the key and goes on with the challenge."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    assert (await call(door.door, headers=[first(client)])).status == 200
    again = await call(door.door, headers=[first(client, cnonce="d" * 16)])
    assert (again.status, again.challenge().stale, door.counter.seen[-1]) == (401, True, "door first-nonce")
    assert (await call(door.door, headers=[client.answer(again.challenge())])).status == 200


async def test_of_two_first_requests_at_two_workers_one_is_admitted() -> None:
    """DESIGN §7: claimed in the shared key store, by insert-if-absent."""
    keys = SlowKeys(ALICE_KEY)
    workers = [make_door(keys=keys), make_door(keys=keys, random=FakeRandom("two"))]
    client = Client(ALICE_KEY)
    answers = await asyncio.gather(*(call(worker.door, headers=[first(client)]) for worker in workers))
    assert sorted(answer.status for answer in answers) == [200, 401]
    assert sum(len(worker.app.scopes) for worker in workers) == 1


async def test_a_forger_cannot_use_up_the_first_nonce_of_another() -> None:
    """It is claimed only after the response verified."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    wrong = await call(door.door, headers=[first(client, ha1=Secret(b"0" * 64))])
    assert (wrong.status, wrong.challenge().stale, door.keys.first) == (401, False, set())
    assert (await call(door.door, headers=[first(client)])).status == 200


async def test_a_first_nonce_is_of_its_key_its_count_and_its_algorithm() -> None:
    """DESIGN §3: SHA-256, nc=1, qop auth; whatever else is said with it is an old nonce."""
    bob = record("bob", BOB)
    door, client = make_door(ALICE_KEY, bob, algorithms=("SHA-256", "MD5"), qop=("auth", "auth-int")), Client(ALICE_KEY)
    others = digest.Challenge(client.realm, ims_keys.first_nonce(ims_keys.ua_key(bob.k_as)), "SHA-256", ("auth",))
    for header in (
        client.answer(others),
        first(client, count=2),
        first(client, qop="auth-int"),
        first(Client(ALICE_KEY, "MD5")),
        client.answer(digest.Challenge(client.realm, "A" * 32, "SHA-256", ("auth",))),
    ):
        answer = await call(door.door, headers=[header])
        assert (answer.status, answer.challenge().stale) == (401, True)
    assert door.keys.first == set()
    assert door.app.scopes == []


async def test_a_first_nonce_over_a_relay_is_not_spent() -> None:
    """DESIGN §7: cb1. is checked first."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    assert (await call(door.door, headers=[first(client, cnonce="cb1.AAAA.BBBB")])).status == 403
    assert door.keys.first == set()


class GoneLedger:
    """A shared ledger whose keys went after the lookup."""

    def issue(self) -> str:
        return "n" * 40

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        raise DigestRejected("the key is no longer valid")

    async def claim_first(self, record: KeyRecord) -> bool:
        raise DigestRejected("the key is no longer valid")


async def test_a_key_that_went_after_the_lookup_is_unknown() -> None:
    """ports.UseLedger: not stale, since no new nonce helps."""
    door, client = make_door(ALICE_KEY, ledger=GoneLedger()), Client(ALICE_KEY)
    for header in (client.answer(await door.challenge()), first(client)):
        answer = await call(door.door, headers=[header])
        assert (answer.status, answer.challenge().stale, door.counter.seen[-1]) == (401, False, "door unknown-key")


async def test_an_empty_store_takes_no_first_nonce() -> None:
    """Attack table: replay after a restart with an empty store, which was filled again by pushes."""
    door, client = (
        make_door(ALICE_KEY, ledger=LocalLedger(scope=AS_ID, clock=FakeClock(), random=FakeRandom(), lifetime=9.0)),
        Client(ALICE_KEY),
    )
    assert (await call(door.door, headers=[first(client)])).challenge().stale
