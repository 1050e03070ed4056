# SPDX-License-Identifier: Apache-2.0
"""What a proxy does to a request before it sends it on (RFC 3261 §16.3, §16.6)."""

from __future__ import annotations

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.sip.message import Request

DEFAULT_MAX_FORWARDS = 70  # RFC 3261 §8.1.1.6


def forwarded(request: Request, *, uri: str | None = None) -> Request:
    """Return the request with one hop less to go and, if given, another Request-URI; the sender adds its Via.

    Raises RemoteProtocolError 483 when no hop is left, ParseError when Max-Forwards is not a number.
    """
    text = request.get("Max-Forwards")
    if text is None:
        hops = DEFAULT_MAX_FORWARDS
    elif text.isascii() and text.isdigit() and len(text) <= 3:
        hops = min(int(text), 255)
    else:
        raise ParseError("Max-Forwards", "not a number from 0 to 255")
    if hops == 0:
        raise RemoteProtocolError("Too Many Hops", status=483)
    onward = request.replacing("Max-Forwards", str(hops - 1))
    return onward if uri is None else Request(onward.method, uri, onward.headers, onward.body)
