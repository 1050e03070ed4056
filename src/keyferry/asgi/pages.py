# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a refusal: a small page for a browser, by Accept (RFC 9110 §12.5.1), and plain text for everything else.

A page says what to do next, and of the reason no more than the plain text.
"""

from __future__ import annotations

import re
from html import escape

from keyferry.asgi.exchange import TEXT, Header, Scope, Send, headers_named, respond

HTML = "text/html; charset=utf-8"
_TAKES_HTML = re.compile(rb"(?:^|,)[ \t]*text/html[ \t]*(?:;(?![^,]*\bq=0(?:\.0*)?[ \t]*(?:[;,]|$))[^,]*)?(?:,|$)", re.IGNORECASE)
_PAGES = {
    401: (
        "Log in with your SIM",
        "Open this page from a phone or program that logs in with its SIM card, or through <code>keyferry ue proxy</code>. "
        "If you were logged in, your registration has ended or changed: register again, then reload this page.",
    ),
    403: (
        "This is not allowed",
        "Open the site by its own https address, not over a link of another site, and try again. "
        "If that does not help, ask whoever runs this site.",
    ),
    503: ("Not available now", "Nothing is wrong with your SIM card or your login. Wait a moment, then reload this page."),
}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body><h1>{title}</h1><p>{text}</p><p>{advice}</p></body>
</html>
"""
_SAFE: tuple[Header, ...] = ((b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"), (b"vary", b"accept"))


async def refuse(scope: Scope, send: Send, status: int, text: bytes, headers: list[Header]) -> None:
    """Send a refusal, `text` as it is or in a page."""
    found = _PAGES.get(status)
    accept = headers_named(scope, b"accept") if found is not None else ()
    if found is None or not accept or not _TAKES_HTML.search(b", ".join(accept)):
        await respond(send, status, text, TEXT, headers)
        return
    title, advice = found
    page = _PAGE.format(title=title, text=escape(text.decode("ascii", "replace").strip()), advice=advice)
    await respond(send, status, page.encode("utf-8"), HTML, [*headers, *_SAFE])
