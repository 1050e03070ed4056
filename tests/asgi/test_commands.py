# SPDX-License-Identifier: Apache-2.0
"""Commands of an operator: a JSON object, and nothing that a page of another site can send unasked."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from keyferry.asgi.commands import MAX_BODY, path_of, read_command, respond_json, respond_with, want_method
from keyferry.asgi.exchange import Message, Receive, Scope
from keyferry.errors import KeyferryError, RemoteProtocolError, StoreError

FIELDS = {"reg": str, "seconds": int}


def scope(*content_types: str, method: str = "POST") -> Scope:
    headers = [(b"content-type", each.encode()) for each in content_types]
    return {"type": "http", "method": method, "path": "/a b", "raw_path": b"/a%20b", "headers": headers}


def body(octets: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": octets}

    return receive


@pytest.mark.parametrize(("octets", "read"), [(b"", {}), (b"{}", {}), (b'{"reg": "r", "seconds": 5}', {"reg": "r", "seconds": 5})])
async def test_an_object_of_known_members_is_read(octets: bytes, read: dict[str, object]) -> None:
    assert await read_command(scope("application/json; charset=utf-8"), body(octets), FIELDS) == read


@pytest.mark.parametrize(
    ("octets", "types", "status"),
    [
        (b"{}", (), 415),
        (b"{}", ("text/plain",), 415),
        (b"{}", ("application/json", "text/plain"), 415),
        (b"{", ("application/json",), 400),
        (b"[" * 1_000, ("application/json",), 400),
        (b"[]", ("application/json",), 400),
        (b'{"other": 1}', ("application/json",), 400),
        (b'{"seconds": true}', ("application/json",), 400),
        (b" " * (MAX_BODY + 1), ("application/json",), 413),
    ],
)
async def test_anything_else_is_refused(octets: bytes, types: tuple[str, ...], status: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        await read_command(scope(*types), body(octets), FIELDS)
    assert caught.value.status == status


async def test_a_command_without_members_says_so() -> None:
    with pytest.raises(RemoteProtocolError, match="an empty object"):
        await read_command(scope("application/json"), body(b'{"a": 1}'), {})


def test_the_path_is_as_it_was_sent_and_the_method_is_wanted() -> None:
    assert path_of(scope()) == "/a%20b"
    want_method(scope(), "POST")
    with pytest.raises(RemoteProtocolError, match="Use GET") as caught:
        want_method(scope(), "GET")
    assert caught.value.status == 405


async def test_an_answer_is_kept_by_nobody() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await respond_json(send, {"ok": True})
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (200, {"ok": True})
    assert (b"cache-control", b"no-store") in sent[0]["headers"]


@pytest.mark.parametrize(
    ("problem", "status", "text"),
    [
        (RemoteProtocolError("Ask for less.", 400), 400, b"Ask for less.\n"),
        (StoreError("/var/lib/keyferry/scscf.db: disk"), 503, b"The registrations cannot be read.\n"),
    ],
)
async def test_what_comes_to_nothing_says_so_and_names_no_path(problem: KeyferryError, status: int, text: bytes) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def work() -> Mapping[str, object]:
        raise problem

    await respond_with(send, "registrations", work())
    assert (sent[0]["status"], sent[1]["body"]) == (status, text)
