# SPDX-License-Identifier: Apache-2.0
"""ASGI HTTP."""

from __future__ import annotations

import pytest

from keyferry.asgi.exchange import Message, Receive, headers_named, read_body, respond
from keyferry.errors import RemoteProtocolError


def receiving(*messages: Message) -> Receive:
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    return receive


async def test_a_body_is_read_to_its_end_and_no_further_than_the_limit() -> None:
    """ASGI http.request."""
    pieces: list[Message] = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request"}]
    assert await read_body(receiving(*pieces), 2) == b"ab"
    with pytest.raises(RemoteProtocolError) as caught:
        await read_body(receiving(*pieces), 1)
    assert caught.value.status == 413
    with pytest.raises(RemoteProtocolError, match="went away"):
        await read_body(receiving(pieces[0], {"type": "http.disconnect"}), 9)


async def test_a_response_says_how_long_it_is() -> None:
    """RFC 9110 §8.6; a connection with an unread body is closed."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await respond(send, 200, b"x", "text/x")
    assert sent[0]["headers"] == [(b"content-length", b"1"), (b"content-type", b"text/x")]
    await respond(send, 413)
    assert sent[2]["headers"] == [(b"content-length", b"0"), (b"connection", b"close")]


def test_all_values_of_a_header_are_found() -> None:
    """ASGI: names are lower case."""
    assert headers_named({"headers": [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]}, b"a") == [b"1", b"3"]
