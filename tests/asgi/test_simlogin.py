# SPDX-License-Identifier: Apache-2.0
"""SimLogin for a web developer: open paths, names, proxies, what the application sees, what the operator reads."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from asgi.doorkit import ALICE, AS_ID, BOB, Answer, Client, Door, FakeKeys, call, make_door, record
from keyferry.asgi import SessionCookie, SimUser
from keyferry.asgi.audit import Event
from keyferry.asgi.exchange import Receive, Scope, Send, respond
from keyferry.asgi.identity import user_id
from keyferry.errors import ConfigError, LocalProtocolError, StoreError
from keyferry.ports import KeyRecord
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi

ALICE_KEY = record()._replace(impi=Impi("001010000000001@ims.mnc001.mcc001.3gppnetwork.org"))
BOB_KEY = record("bob", BOB)
OTHER = AsId("other.example")


class NamedKeys(FakeKeys):
    """Keys for several names."""

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        return next((held for held in self.records.values() if held.key_id == identifier and held.as_id == as_id), None)


async def login(
    door: Door, held: KeyRecord = ALICE_KEY, *more: tuple[str, str], host: str = AS_ID, target: str = "/notes", **scope: Any
) -> Answer:
    challenge = (await call(door.door, host=host, headers=more, **scope)).challenge()
    return await call(door.door, "GET", target, [Client(held).answer(challenge, uri=target), *more], host=host, **scope)


def user(door: Door) -> SimUser:
    found = door.app.scopes[-1]["user"]
    assert isinstance(found, SimUser)
    return found


# ---- what the application sees


async def test_the_application_sees_a_user_and_never_the_impi() -> None:
    door = make_door(ALICE_KEY)
    await login(door)
    found, scope = user(door), door.app.scopes[-1]
    assert found.id == user_id(Secret(bytes(32)), AS_ID, ALICE_KEY.impi)
    assert found.public_identities == list(ALICE)
    assert scope["auth"].scopes == ["sim"]
    assert scope["keyferry"] == (ALICE, ALICE_KEY.key_id, "digest")
    assert ALICE_KEY.impi not in repr(scope) + repr(vars(type(found)))
    assert "authorization" not in repr(scope["headers"]).lower()


async def test_a_user_has_one_id_at_all_names_of_an_application() -> None:
    there = record("alice there", as_id=OTHER)._replace(impi=ALICE_KEY.impi)
    keys = NamedKeys(ALICE_KEY, there)
    door = make_door(keys=keys, public_names=(OTHER,))
    await login(door)
    one = user(door)
    assert (await login(door, there, host=OTHER)).status == 200
    assert user(door) == one


async def test_a_key_of_one_name_opens_no_other() -> None:
    keys = NamedKeys(ALICE_KEY)
    door = make_door(keys=keys, public_names=(OTHER,))
    challenge = (await call(door.door, host=OTHER)).challenge()
    assert challenge.realm == "IMS-AS-key@other.example"
    assert (await call(door.door, headers=[Client(ALICE_KEY).answer(challenge)], host=OTHER)).status == 401
    there = Client(ALICE_KEY._replace(as_id=OTHER)).answer(challenge)
    assert (await call(door.door, headers=[there], host=OTHER)).status == 401
    assert door.app.scopes == []


@pytest.mark.parametrize("name", ["Remote-User", "remote_user", "REMOTE-USER"])
async def test_a_client_does_not_name_itself(name: str) -> None:
    """Django's asynchronous RemoteUserMiddleware would believe it."""
    door = make_door(ALICE_KEY, open=("/open",))
    await login(door, ALICE_KEY, (name, "root"))
    await call(door.door, "GET", "/open", [(name, "root")])
    assert [b"root" in repr(scope["headers"]).encode() for scope in door.app.scopes] == [False, False]


# ---- open paths


async def test_an_open_path_needs_no_login_and_no_name() -> None:
    door = make_door(ALICE_KEY, open=("/health",))
    for scope in ({}, {"host": "127.0.0.1:8000"}, {"host": None}, {"scheme": "http"}):
        answer = await call(door.door, "GET", "/health", **scope)
        assert (answer.status, answer.body) == (200, b"nobody")
        assert not user(door).is_authenticated
        assert door.app.scopes[-1]["auth"].scopes == []
    assert (await call(door.door, "GET", "/healthy")).status == 401
    assert (await call(door.door, "GET", "//health")).status == 401


async def test_who_logs_in_on_an_open_path_is_known() -> None:
    door = make_door(ALICE_KEY, open=("/open",))
    assert (await login(door, target="/open")).body == ALICE[0].encode()


async def test_a_wrong_login_is_refused_on_an_open_path_too() -> None:
    door = make_door(ALICE_KEY, open=("/open",))
    answer = Client(ALICE_KEY).answer(await door.challenge(), uri="/open", ha1=Client(BOB_KEY).ha1)
    assert (await call(door.door, "GET", "/open", [answer])).status == 401
    assert (await call(door.door, "GET", "/open", [answer], scheme="http")).status == 403
    assert (await call(door.door, "GET", "/open", [answer], host="x")).status == 421
    assert door.app.scopes == []


async def test_other_credentials_on_an_open_path_are_the_applications() -> None:
    door = make_door(ALICE_KEY, open=("/open",))
    assert (await call(door.door, "GET", "/open", [("Authorization", "Bearer x")])).status == 200
    assert (b"authorization", b"Bearer x") in door.app.scopes[-1]["headers"]
    assert (await call(door.door, "GET", "/notes", [("Authorization", "Bearer x")])).status == 401


async def test_an_open_path_that_wants_to_know_after_all_challenges() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200 if scope["user"].is_authenticated else 401)

    door = make_door(ALICE_KEY, app=app, open=("/",), required=())  # type: ignore[arg-type]
    assert (await login(door)).status == 200
    assert (await call(door.door, scheme="http")).all("www-authenticate") == []
    assert (await call(door.door, host="other")).all("www-authenticate") == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_session_is_known_on_open_paths_and_a_dead_one_hurts_nobody(method: str) -> None:
    door = make_door(ALICE_KEY, open=("/open",), session=SessionCookie())
    kept = ("Cookie", str((await login(door)).get("set-cookie")).partition(";")[0])
    here = ("Origin", f"https://{AS_ID}")
    assert (await call(door.door, method, "/open", [kept, here])).body == ALICE[0].encode()
    assert (await call(door.door, "POST", "/open", [kept, ("Origin", "https://evil.example")])).body == b"nobody"
    assert (await call(door.door, "POST", "/open", [kept])).body == b"nobody"
    assert (await call(door.door, method, "/open", [kept, here], scheme="http")).body == b"nobody"
    door.keys.lookup_fails, door.keys.problem = True, StoreError("broken")
    assert (await call(door.door, method, "/open", [kept, here])).body == b"nobody"
    door.keys.lookup_fails = False
    door.keys.records.clear()
    answer = await call(door.door, method, "/open", [kept, here])
    assert answer.body == b"nobody"
    assert "Max-Age=0" in str(answer.get("set-cookie"))
    assert answer.get("cache-control") == "no-store"


async def test_an_applications_own_trouble_is_its_own() -> None:
    """What it raises goes to the server, and it is called once."""
    calls = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["user"].is_authenticated)
        raise StoreError("of the application")

    door = make_door(ALICE_KEY, app=app, open=("/open",), session=SessionCookie())  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="of the application"):
        await login(door)
    with pytest.raises(StoreError, match="of the application"):
        await call(door.door, "GET", "/open")
    assert calls == [True, False]


class NoNonces:
    """A ledger whose key agent has gone."""

    def issue(self) -> str:
        raise StoreError("no key agent answers")

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        raise StoreError("no key agent answers")

    async def claim_first(self, record: KeyRecord) -> bool:
        raise StoreError("no key agent answers")


async def test_without_a_key_agent_the_answer_is_503_and_open_paths_work() -> None:
    """Not even a challenge can be made; the server's error log stays clean of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 401 if scope["path"] == "/open/strict" else 200)

    door = make_door(ALICE_KEY, app=app, ledger=NoNonces(), open=("/open",))  # type: ignore[arg-type]
    for headers in ([], [Client(ALICE_KEY).answer(await make_door(ALICE_KEY).challenge())]):
        answer = await call(door.door, headers=headers)
        assert (answer.status, answer.get("retry-after")) == (503, "1")
    assert (await call(door.door, "GET", "/open")).status == 200
    strict = await call(door.door, "GET", "/open/strict")
    assert (strict.status, strict.all("www-authenticate")) == (401, [])


# ---- names and proxies


async def test_a_wrong_name_is_told_with_the_right_ones(caplog: pytest.LogCaptureFixture) -> None:
    """RFC 9110 §15.5.20; the name a client used stands in the answer and, once a minute, in the log."""
    door = make_door(ALICE_KEY, public_names=(OTHER,))
    for _ in range(3):
        answer = await call(door.door, host="<b>127.0.0.1:8000\x00" + "a" * 5000)
    assert answer.status == 421
    assert answer.body.startswith(b"The client used the name %3Cb%3E127.0.0.1:8000%00aaaa")
    assert answer.body.endswith(b"...; here is xcap.home1.net, other.example.\n")
    assert len(answer.body) < 300
    (message,) = caplog.messages
    assert "public_names" in message
    assert "%3Cb%3E127.0.0.1:8000%00aaa" in message
    door.clock.time += 61
    await call(door.door, host="x")
    assert len(caplog.messages) == 2


async def test_tls_may_end_at_a_proxy_that_the_developer_names(caplog: pytest.LogCaptureFixture) -> None:
    said: Any = {"headers": [("X-Forwarded-Proto", "https")], "scheme": "http", "client": ("127.0.0.1", 1)}
    assert (await call(make_door(ALICE_KEY).door, **said)).status == 403
    assert caplog.messages == ['127.0.0.1 says that TLS ended there: if it is your proxy, give SimLogin(trusted_proxies=("127.0.0.1",))']
    door = make_door(ALICE_KEY, trusted_proxies=("127.0.0.1",))
    assert (await call(door.door, **{**said, "client": ("192.0.2.1", 1)})).status == 403
    answer = await login(door, ALICE_KEY, ("X-Forwarded-Proto", "https"), scheme="http", client=("127.0.0.1", 1))
    assert answer.status == 200
    assert door.app.scopes[-1]["scheme"] == "https"  # so that it makes right links


async def test_root_path_is_part_of_what_the_client_signs_and_not_of_the_rules() -> None:
    door = make_door(ALICE_KEY, open=("/health",))
    scope: Any = {"root_path": "/app"}
    assert (await call(door.door, "GET", "/app/health", **scope)).status == 200
    assert (await login(door, target="/app/notes", **scope)).status == 200
    challenge = await door.challenge()
    assert (await call(door.door, "GET", "/app/notes", [Client(ALICE_KEY).answer(challenge, uri="/notes")], **scope)).status == 400


# ---- what the operator reads


class Lines:
    """An audit that remembers."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.raises = False

    def __call__(self, event: Event) -> None:
        if self.raises:
            raise OSError("full")
        self.lines.append(json.loads(event.line()))


async def test_the_audit_says_who_what_when_how_and_the_result() -> None:
    audit = Lines()
    door = make_door(ALICE_KEY, audit=audit)
    await login(door, target="/secret?path=1", client=("192.0.2.1", 1))
    wrong = Client(ALICE_KEY).answer(await door.challenge(), ha1=Client(BOB_KEY).ha1)
    await call(door.door, headers=[wrong], client=("192.0.2.1", 1))
    await call(door.door, "PUT", "/secret", host="other")
    granted, refused, misdirected = audit.lines
    assert granted == {
        "time": "2027-01-15T08:00:00.000Z",
        "as": AS_ID,
        "result": "granted",
        "mechanism": "digest",
        "user": user_id(Secret(bytes(32)), AS_ID, ALICE_KEY.impi),
        "public_identity": ALICE[0],
        "key_id": ALICE_KEY.key_id,
        "source": "192.0.2.1",
        "method": "GET",
    }
    assert [refused[name] for name in ("result", "reason", "mechanism", "key_id")] == ["refused", "response", "digest", ALICE_KEY.key_id]
    assert "user" not in refused
    assert (misdirected["reason"], misdirected["method"]) == ("host", "PUT")
    text = json.dumps(audit.lines)
    assert not [word for word in ("secret", "path", ALICE_KEY.impi, Client(ALICE_KEY).password) if str(word) in text]


async def test_an_audit_that_fails_fails_no_request() -> None:
    audit = Lines()
    audit.raises = True
    assert (await login(make_door(ALICE_KEY, audit=audit))).status == 200


async def test_a_flood_fills_no_log() -> None:
    audit = Lines()
    door = make_door(ALICE_KEY, audit=audit)
    for _ in range(100):
        await call(door.door)
        await call(door.door, headers=[("Authorization", "Digest x")])
    assert len(audit.lines) == 60  # the burst; the rest is counted
    assert door.counter.seen.count("door limited") == 40


async def test_a_claimed_name_that_is_no_key_id_is_not_logged() -> None:
    audit = Lines()
    door = make_door(ALICE_KEY, audit=audit)
    for value in ('Digest username="sip:user:PASSWORD@domain"', "Digest username=" + "x" * 300):
        await call(door.door, headers=[("Authorization", value)])
    assert [line.get("key_id") for line in audit.lines] == [None, None]


async def test_wrong_answers_of_all_kinds_are_one_answer() -> None:
    """Unknown id, wrong password, retired key: the same octets but for the nonce."""
    door = make_door(ALICE_KEY, BOB_KEY)
    del door.keys.records[BOB_KEY.key_id]
    seen = set()
    for held, ha1 in ((ALICE_KEY, Client(BOB_KEY).ha1), (BOB_KEY, None), (record("stranger"), None)):
        answer = await call(door.door, headers=[Client(held).answer(await door.challenge(), ha1=ha1)])
        nonce = answer.challenge().nonce
        seen.add((answer.status, answer.body, tuple((name, value.replace(nonce.encode(), b"")) for name, value in answer.headers)))
    assert len(seen) == 1


# ---- what cannot be meant


async def test_other_scopes() -> None:
    door = make_door(ALICE_KEY)
    with pytest.raises(LocalProtocolError):
        await door.door({"type": "other"}, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"as_id": "https://xcap.home1.net"}, "is a URI"),
        ({"as_id": "xcap.home1.net:443"}, "Write xcap.home1.net"),
        ({"user_id_key": b"short"}, "user_id_key: shorter"),
        ({"keys": object()}, "is no source of keys"),
        ({"audit": "/nonexistent/audit.log"}, "cannot be written"),
    ],
)
def test_settings_that_cannot_be_meant_say_what_to_write(settings: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        make_door(ALICE_KEY, **settings)
    assert refused.value.remedy


def test_the_log_has_no_handler_of_ours() -> None:
    assert logging.getLogger("keyferry.asgi").handlers == []
