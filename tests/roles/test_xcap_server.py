# SPDX-License-Identifier: Apache-2.0
"""RFC 4825 §8; HANDSETS X1, X9 to X11."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import RemoteProtocolError
from keyferry.ports import Document
from keyferry.protocol.identity import Impu
from keyferry.protocol.xcap.conditions import Conditions, etag_of
from keyferry.protocol.xcap.errors import XcapConflict
from keyferry.protocol.xcap.uri import XcapUri
from keyferry.protocol.xcap.usages import RESOURCE_LISTS, SIMSERVS, default_simservs
from keyferry.roles.xcap_server import XcapServer, owner_of

ALICE = (Impu("sip:alice@home1.net"), Impu("tel:+15551234"), Impu("sip:+15551234@home1.net"))
SETTINGS = XcapUri("simservs.ngn.etsi.org", "users", "sip:alice@home1.net", "simservs.xml")
LISTS = XcapUri("resource-lists", "users", "sip:alice@home1.net", "index")
EMPTY_LISTS = b'<resource-lists xmlns="urn:ietf:params:xml:ns:resource-lists"/>'
EMPTY_SETTINGS = b'<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap"/>'


class FakeDocuments:
    """A DocumentStore over a dict."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str], Document] = {}

    async def get(self, auid: str, owner: str, path: str) -> Document | None:
        return self.held.get((auid, owner, path))

    async def put(self, auid: str, owner: str, path: str, document: Document, *, expect: Callable[[Document | None], None]) -> bool:
        before = self.held.get((auid, owner, path))
        expect(before)
        self.held[auid, owner, path] = document
        return before is None

    async def delete(self, auid: str, owner: str, path: str, *, expect: Callable[[Document | None], None]) -> bool:
        expect(self.held.get((auid, owner, path)))
        return self.held.pop((auid, owner, path), None) is not None


@pytest.fixture
def server() -> XcapServer:
    return XcapServer(FakeDocuments())


async def put(server: XcapServer, uri: XcapUri = LISTS, body: bytes = EMPTY_LISTS, **conditions: str) -> int:
    mime = RESOURCE_LISTS.mime if uri.auid == "resource-lists" else SIMSERVS.mime
    return (await server.put(ALICE, uri, content_type=mime, body=body, conditions=Conditions(**conditions))).status


async def status(awaitable: object) -> int:
    try:
        return (await awaitable).status  # type: ignore[no-any-return, misc]
    except RemoteProtocolError as problem:
        return problem.status


async def test_a_new_subscriber_has_settings_to_read(server: XcapServer) -> None:
    """HANDSETS X1: without a 200 and a document a phone never writes."""
    answer = await server.get(ALICE, SETTINGS)
    assert (answer.status, answer.body, answer.content_type) == (200, default_simservs(), "application/vnd.etsi.simservs+xml")
    assert answer.etag == etag_of(default_simservs())


async def test_what_was_put_is_what_is_read(server: XcapServer) -> None:
    """RFC 4825 §8: GET(PUT(x)) == x, GET(DELETE(x)) is 404."""
    assert await status(server.get(ALICE, LISTS)) == 404
    assert await put(server) == 201
    answer = await server.get(ALICE, LISTS)
    assert (answer.body, answer.etag, answer.content_type) == (EMPTY_LISTS, etag_of(EMPTY_LISTS), RESOURCE_LISTS.mime)
    assert await put(server) == 200
    deleted = await server.delete(ALICE, LISTS)
    assert (deleted.status, deleted.etag) == (200, None)
    assert await status(server.get(ALICE, LISTS)) == 404
    assert await status(server.delete(ALICE, LISTS)) == 404


async def test_the_settings_are_replaced_from_the_first_write_on(server: XcapServer) -> None:
    """HANDSETS X1, X11: the first ETag a phone saw is that of the default document."""
    first = (await server.get(ALICE, SETTINGS)).etag
    with pytest.raises(RemoteProtocolError) as caught:
        await put(server, SETTINGS, EMPTY_SETTINGS, if_none_match="*")
    assert caught.value.status == 412
    assert await put(server, SETTINGS, EMPTY_SETTINGS, if_match=f'"{first}"') == 200
    assert (await server.get(ALICE, SETTINGS)).body == EMPTY_SETTINGS
    with pytest.raises(RemoteProtocolError):
        await put(server, SETTINGS, EMPTY_SETTINGS, if_match=f'"{first}"')
    assert (await server.delete(ALICE, SETTINGS)).status == 200
    assert (await server.get(ALICE, SETTINGS)).body == default_simservs()
    assert await status(server.delete(ALICE, SETTINGS)) == 404


@pytest.mark.parametrize(
    "xui",
    [
        "sip:alice@home1.net",
        "SIP:alice@HOME1.net",
        "sip:alice@home1.net;user=phone",
        "sip:+15551234@home1.net;user=phone",
        "tel:+15551234",
        "tel:+1-555-1234;phone-context=x",
    ],
)
async def test_every_alias_opens_the_same_document(server: XcapServer, xui: str) -> None:
    """HANDSETS X9."""
    await put(server)
    assert (await server.get(ALICE, LISTS._replace(xui=xui))).body == EMPTY_LISTS
    assert owner_of(ALICE, LISTS._replace(xui=xui)) == ALICE[0]


@pytest.mark.parametrize(
    "xui",
    [
        "sip:bob@home1.net",
        "sip:nobody@home1.net",
        "sip:Alice@home1.net",
        "sips:alice@home1.net",
        "alice",
        "",
        "sip:alice@home1.net.evil.net",
    ],
)
async def test_another_users_documents_are_forbidden_existing_or_not(server: XcapServer, xui: str) -> None:
    """DESIGN §7."""
    await server.put(
        (Impu("sip:bob@home1.net"),), LISTS._replace(xui="sip:bob@home1.net"), content_type=RESOURCE_LISTS.mime, body=EMPTY_LISTS
    )
    for uri in (
        LISTS._replace(xui=xui),
        SETTINGS._replace(xui=xui),
        LISTS._replace(xui=xui, document="x"),
    ):
        assert await status(server.get(ALICE, uri)) == 403
        assert await status(server.put(ALICE, uri, content_type="text/plain", body=b"")) == 403
        assert await status(server.delete(ALICE, uri)) == 403


@pytest.mark.parametrize("content_type", [None, "", "text/xml", "application/xml", "application/xcap-el+xml"])
async def test_a_document_has_the_type_of_its_usage(server: XcapServer, content_type: str | None) -> None:
    """RFC 4825 §8.2.2."""
    assert await status(server.put(ALICE, LISTS, content_type=content_type, body=EMPTY_LISTS)) == 415


async def test_a_type_may_have_parameters(server: XcapServer) -> None:
    """RFC 9110 §8.3.1."""
    assert await status(server.put(ALICE, LISTS, content_type="Application/Resource-Lists+XML; charset=utf-8", body=EMPTY_LISTS)) == 201


async def test_a_user_has_only_the_documents_of_the_usage(server: XcapServer) -> None:
    """A million subscribers must not fill the disk with names of their own."""
    with pytest.raises(XcapConflict) as caught:
        await put(server, LISTS._replace(document="index2"))
    assert caught.value.condition == "constraint-failure"
    assert await status(server.get(ALICE, LISTS._replace(document="index2"))) == 404
    assert await status(server.get(ALICE, SETTINGS._replace(document="other.xml"))) == 404


async def test_a_broken_document_changes_nothing(server: XcapServer) -> None:
    """RFC 4825 §8.2.5."""
    await put(server)
    with pytest.raises(XcapConflict):
        await put(server, body=b"<x/>")
    assert (await server.get(ALICE, LISTS)).body == EMPTY_LISTS


async def test_preconditions_hold_for_reading_and_deleting(server: XcapServer) -> None:
    """RFC 9110 §13; RFC 4825 §8.5."""
    await put(server)
    tag = f'"{etag_of(EMPTY_LISTS)}"'
    fresh = await server.get(ALICE, LISTS, Conditions(if_none_match=tag))
    assert (fresh.status, fresh.body, fresh.etag) == (304, b"", etag_of(EMPTY_LISTS))
    assert await status(server.get(ALICE, LISTS, Conditions(if_match=tag))) == 200
    assert await status(server.get(ALICE, LISTS, Conditions(if_match='"x"'))) == 412
    assert await status(server.delete(ALICE, LISTS, Conditions(if_match='"x"'))) == 412
    assert await status(server.delete(ALICE, LISTS, Conditions(if_match=tag))) == 200
    assert await status(server.delete(ALICE, LISTS, Conditions(if_match=tag))) == 412


async def test_the_global_tree_is_read_only(server: XcapServer) -> None:
    """RFC 4825 §12.1."""
    caps = XcapUri("xcap-caps", "global", None, "index")
    answer = await server.get(ALICE, caps)
    assert (answer.status, answer.content_type) == (200, "application/xcap-caps+xml")
    assert await status(server.get(ALICE, caps, Conditions(if_none_match=f'"{answer.etag}"'))) == 304
    assert await status(server.get(ALICE, caps._replace(document="x"))) == 404
    assert await status(server.get(ALICE, caps._replace(auid="resource-lists"))) == 404
    assert await status(server.put(ALICE, caps, content_type="application/xcap-caps+xml", body=b"<x/>")) == 405
    assert await status(server.delete(ALICE, caps)) == 405


@pytest.mark.parametrize("xui", ["sip:alice@home1.net", "sip:bob@home1.net", "nobody"])
async def test_an_unknown_usage_is_not_found_whoever_is_named_below_it(server: XcapServer, xui: str) -> None:
    """RFC 4825 §8. A client that looks for what is served names a user in its own way and takes 403 for a wrong password."""
    unknown = LISTS._replace(auid="pres-rules", xui=xui)
    assert await status(server.get(ALICE, unknown)) == 404
    assert await status(server.put(ALICE, unknown, content_type="x", body=b"")) == 404
    assert await status(server.delete(ALICE, unknown)) == 404


@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<&]"), max_size=20), min_size=1, max_size=5))
async def test_whatever_was_put_last_is_read(contents: list[str]) -> None:
    """RFC 4825 §8: GET(PUT(x)) == x."""
    server = XcapServer(FakeDocuments())
    for content in contents:
        body = EMPTY_LISTS.replace(b"/>", b">") + content.encode() + b"</resource-lists>"
        await put(server, body=body)
        answer = await server.get(ALICE, LISTS)
        assert (answer.body, answer.etag) == (body, etag_of(body))
