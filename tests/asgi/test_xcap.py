# SPDX-License-Identifier: Apache-2.0
"""RFC 4825 §8 over ASGI, behind the door."""

from __future__ import annotations

from typing import Any

import pytest

from asgi.doorkit import ALICE, BOB, Answer, Client, call, make_door, record
from keyferry.asgi.auth import Identity
from keyferry.asgi.xcap import XcapApp
from keyferry.errors import LocalProtocolError
from keyferry.protocol import xmlsafe
from keyferry.protocol.identity import KeyId
from keyferry.protocol.xcap.errors import MIME
from keyferry.protocol.xcap.usages import MAX_DOCUMENT, RESOURCE_LISTS, SIMSERVS, default_simservs
from keyferry.roles.xcap_server import XcapServer
from roles.test_xcap_server import EMPTY_LISTS, EMPTY_SETTINGS, FakeDocuments

WHO = Identity(ALICE, KeyId("k"), "digest")
LISTS = "/resource-lists/users/sip:alice@home1.net/index"
SETTINGS = "/simservs.ngn.etsi.org/users/sip:alice@home1.net/simservs.xml"
TYPE = ("Content-Type", RESOURCE_LISTS.mime)


@pytest.fixture
def app() -> XcapApp:
    return XcapApp(XcapServer(FakeDocuments()), roots=("/mtasxdms", "/UtProxy/rest", ""))


async def ask(app: XcapApp, method: str = "GET", target: str = LISTS, headers: Any = (), body: bytes = b"", who: object = WHO) -> Answer:
    return await call(app, method, target, headers, body, keyferry=who)


async def test_a_document_is_put_read_and_deleted(app: XcapApp) -> None:
    """RFC 4825 §8: 201, 200; the strong ETag with 2xx alone (HANDSETS X11)."""
    missing = await ask(app)
    assert (missing.status, missing.get("etag")) == (404, None)
    created = await ask(app, "PUT", headers=[TYPE], body=EMPTY_LISTS)
    assert (created.status, created.body) == (201, b"")
    read = await ask(app)
    assert (read.status, read.body, read.get("content-type")) == (200, EMPTY_LISTS, RESOURCE_LISTS.mime)
    assert read.get("etag") == created.get("etag")
    assert (read.get("etag") or "").startswith('"')
    assert (await ask(app, "HEAD")).get("content-length") == str(len(EMPTY_LISTS))
    saved = await ask(app, headers=[("If-None-Match", read.get("etag"))])
    assert (saved.status, saved.body) == (304, b"")
    refused = await ask(app, "PUT", headers=[TYPE, ("If-Match", '"x"')], body=EMPTY_LISTS)
    assert (refused.status, refused.get("etag")) == (412, None)
    assert (await ask(app, "DELETE", headers=[("If-Match", '"y"'), ("If-Match", read.get("etag"))])).status == 200
    assert (await ask(app)).status == 404


async def test_a_tag_without_its_quotes_is_compared_as_its_client_means_it(app: XcapApp) -> None:
    """RFC 9110 §8.8.3 has quotes; some clients give back only what is between them."""
    tag = ((await ask(app, "PUT", headers=[TYPE], body=EMPTY_LISTS)).get("etag") or "").strip('"')
    assert (await ask(app, "PUT", headers=[TYPE, ("If-Match", "x")], body=EMPTY_LISTS)).status == 412
    assert (await ask(app, "PUT", headers=[TYPE, ("If-Match", tag)], body=EMPTY_LISTS)).status == 200
    assert (await ask(app, headers=[("If-None-Match", tag)])).status == 304


@pytest.mark.parametrize("root", ["", "/mtasxdms", "/UtProxy/rest"])
async def test_phones_have_their_operators_root_compiled_in(app: XcapApp, root: str) -> None:
    """HANDSETS X8; X6: a query on a document is ignored."""
    answer = await ask(app, target=f"{root}{SETTINGS}?xmlns(ss=http://x)xmlns(cp=urn:y)")
    assert (answer.status, answer.body) == (200, default_simservs())
    assert (await ask(app, target=f"{root}{SETTINGS}/~~/simservs/communication-diversion")).status == 501


async def test_statuses(app: XcapApp) -> None:
    """RFC 4825 §8; 204 and redirects never (HANDSETS H9)."""
    assert (await ask(app, target="/nowhere/" + LISTS)).status == 404
    assert (await ask(app, target=LISTS + "%")).status == 400
    assert (await ask(app, target="/" + "x" * 3000)).status == 414
    assert (await ask(app, target=LISTS.replace("alice", "bob"))).status == 403
    assert (await ask(app, target=LISTS.replace("alice", "bob").replace("resource-lists", "pres-rules"))).status == 404
    assert (await ask(app, "PUT", body=EMPTY_LISTS)).status == 415
    assert (await ask(app, headers=[("If-Match", "a b")])).status == 400
    assert (await ask(app, "PUT", headers=[TYPE], body=b"x" * (MAX_DOCUMENT + 1))).status == 413
    for method, target in (("POST", LISTS), ("PATCH", LISTS), ("PUT", "/xcap-caps/global/index")):
        answer = await ask(app, method, target)
        assert (answer.status, answer.get("allow")) == (405, "GET, HEAD, PUT, DELETE")


async def test_a_conflict_says_why(app: XcapApp) -> None:
    """RFC 4825 §11."""
    answer = await ask(app, "PUT", headers=[TYPE], body=b"<a>")
    assert (answer.status, answer.get("content-type")) == (409, MIME)
    assert b"not-well-formed" in answer.body
    xmlsafe.parse(answer.body, what="error")


async def test_a_password_in_the_path_comes_back_nowhere(app: XcapApp) -> None:
    """HANDSETS X10."""
    right = await ask(app, target=SETTINGS.replace("alice@", "alice:s3cret@"))
    assert right.status == 200
    for target in (SETTINGS.replace("alice@", "bob:s3cret@"), SETTINGS.replace("alice@", "alice:s3cret@") + "/..", "/s3cret%"):
        answer = await ask(app, target=target)
        assert answer.status >= 400
        assert b"s3cret" not in answer.body


async def test_without_a_door_nothing_is_served(app: XcapApp) -> None:
    """Fail closed."""
    for who in (None, {"impus": ALICE}):
        with pytest.raises(LocalProtocolError, match="SimLogin"):
            await ask(app, who=who)
    with pytest.raises(LocalProtocolError):
        await call(app, type="lifespan")


async def test_each_user_reads_their_own_behind_the_door() -> None:
    """DESIGN §7, §8."""
    alice, bob = record(), record("bob", BOB)
    door = make_door(alice, bob)
    door.door.app = XcapApp(XcapServer(FakeDocuments()))
    challenge = await door.challenge()

    async def ask(who: Client, count: int, method: str = "GET", target: str = SETTINGS, **more: Any) -> Answer:
        header = who.answer(challenge, count, method=method, uri=target)
        return await call(door.door, method, target, [header, ("Content-Type", SIMSERVS.mime)], **more)

    assert (await ask(Client(alice), 1, "PUT", body=EMPTY_SETTINGS)).status == 200
    assert (await ask(Client(alice), 2)).body == EMPTY_SETTINGS
    assert (await ask(Client(bob), 1)).status == 403
    assert (await ask(Client(bob), 2, target=SETTINGS.replace("alice", "bob"))).body == default_simservs()
