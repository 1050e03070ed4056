# SPDX-License-Identifier: Apache-2.0
"""Requests that another site made a browser send (RFC 6454 §7; Fetch Metadata): they must not act in the user's name.

A cookie goes with them by itself, and so does Digest, which a browser, or a proxy on the user's machine, answers for any page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from keyferry.asgi.exchange import headers_named
from keyferry.errors import ConfigError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing (RFC 9110 §9.2.1), and a browser shows their answer to no other site."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://[a-z0-9_.\-]+(?::[0-9]{1,5})?")  # also those of apps, such as capacitor://localhost


class Origins:
    """Tell whether a browser sent a request for a page of this site."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        """Take further origins whose pages may change things, such as "https://app.example". Raises ConfigError."""
        if isinstance(trusted, str):
            raise ConfigError("SimLogin trusted_origins", "is one text, not several origins", f'Write trusted_origins=("{trusted}",)')
        self._trusted = frozenset(trusted)
        for origin in self._trusted:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError("SimLogin trusted_origins", f"{origin!r} is no origin", "Write it as a browser does: https://app.example")

    def same(self, scope: Any, name: str) -> bool | None:
        """Return whether the page that asked is of the host `name`, or trusted; None where nothing says so: no browser of today.

        One name is one site whatever its ports, as for its keys and its cookies; a page that came without TLS is another one.
        """
        origins, sites = headers_named(scope, b"origin"), headers_named(scope, b"sec-fetch-site")
        if origins == [b"null"]:
            # Pages with Referrer-Policy: no-referrer send so for their own site, too (Fetch, "append a request Origin header"). An origin
            # that is opaque, such as that of a sandboxed frame, is the same as no other, and its requests are cross-site.
            return sites == [b"same-origin"]
        if origins:
            origin = origins[0].decode("latin-1")
            return len(origins) == 1 and (origin in self._trusted or re.fullmatch(_same(name), origin) is not None)
        if sites:
            # "none": the user's own doing, such as a bookmark. "same-site" is another name of the same owner, perhaps.
            return len(sites) == 1 and sites[0] in {b"same-origin", b"none"}
        return None


def changes(scope: Any) -> bool:
    """Tell whether a request may change something, or opens a channel that may: a websocket has no method."""
    return scope["type"] != "http" or scope["method"] not in SAFE_METHODS


def _same(name: str) -> str:
    return rf"https://{re.escape(name)}(?::[0-9]{{1,5}})?"
