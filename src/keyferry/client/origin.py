# SPDX-License-Identifier: Apache-2.0
"""What a forward proxy that logs in must know of a request: where it goes, and which page of a browser made it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from keyferry.errors import ParseError
from keyferry.protocol.identity import AsId, parse_as_id

_ABSOLUTE = re.compile(r"(https?)://([^/?#@\\]{1,300})([/?][^#]*)?", re.IGNORECASE)
_ORIGIN_FORM = re.compile(r"/[^#]*")
_PORTS = {"http": 80, "https": 443}
_OWN = ("same-origin", "none")  # values of Sec-Fetch-Site that another page cannot bring about


class Target(NamedTuple):
    """A request target: which application server, on which port, and what of it."""

    as_id: AsId
    port: int  # of https
    path: str
    origin: str  # of the pages that the browser believes to be the target's own (RFC 6454 §6.2)

    @property
    def url(self) -> str:
        """Return the https URL."""
        return f"https://{authority_of(self.as_id, self.port, 'https')}{self.path}"


def parse_absolute(text: str) -> Target:
    """Read an absolute-form target (RFC 9112 §3.2.2); http stands for https here, so that its default port is 443.

    Raises ParseError.
    """
    found = _ABSOLUTE.fullmatch(text)
    if found is None:
        raise ParseError("request target", "neither an absolute http URL nor CONNECT: this is a forward proxy")
    scheme, path = found[1].lower(), found[3] or "/"
    as_id, port = parse_authority(found[2], scheme)
    origin = f"{scheme}://{authority_of(as_id, port, scheme)}"
    secure = 443 if port == _PORTS[scheme] else port
    return Target(as_id, secure, path if path.startswith("/") else f"/{path}", origin)


def inside(as_id: AsId, port: int, text: str, host: str) -> Target:
    """Read an origin-form target that came through a tunnel to an application server; Host must name it too.

    Raises ParseError.
    """
    if not _ORIGIN_FORM.fullmatch(text) or parse_authority(host, "https") != (as_id, port):
        raise ParseError("request target", "goes to another host than its tunnel", 421)
    return Target(as_id, port, text, f"https://{authority_of(as_id, port, 'https')}")


def parse_authority(text: str, scheme: str) -> tuple[AsId, int]:
    """Read HOST or HOST:PORT.

    Raises ParseError.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        return parse_as_id(text), _PORTS[scheme]
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ParseError("authority", "has no usable port")
    return parse_as_id(host), int(port)


def authority_of(as_id: str, port: int, scheme: str) -> str:
    """Return HOST, or HOST:PORT where the port is not the scheme's own; reverse of `parse_authority`."""
    return as_id if port == _PORTS[scheme] else f"{as_id}:{port}"


def is_forged(method: str, headers: Sequence[tuple[str, str]], origin: str) -> bool:
    """Tell whether a page of another origin made a request: it must not borrow the user's login.

    A link that the user follows is let through, as cookies with SameSite=Lax are. Browsers say who asks over https alone, so a browser
    that does not is taken for a forger, and what is no browser for the user's own. A page with Referrer-Policy: no-referrer hides its
    origin from its own site, too (Fetch, "append a request Origin header"); that it is its own, Sec-Fetch-Site says still.
    """
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value)
    sites: Collection[str] = fields.get("sec-fetch-site", ())
    origins = fields.get("origin", ())
    if any(value != origin for value in origins) and (origins, sites) != (["null"], ["same-origin"]):
        return True
    if not sites:
        return any(agent.startswith("Mozilla/") for agent in fields.get("user-agent", ()))
    if all(site in _OWN for site in sites):
        return False
    follows = fields.get("sec-fetch-mode") == ["navigate"] and fields.get("sec-fetch-dest") == ["document"]
    return not (follows and method in ("GET", "HEAD"))
