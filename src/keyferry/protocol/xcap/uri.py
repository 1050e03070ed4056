# SPDX-License-Identifier: Apache-2.0
"""Where an XCAP document is (RFC 4825 §6)."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias, cast
from urllib.parse import quote, unquote_to_bytes

from keyferry.errors import ParseError, RemoteProtocolError

Tree: TypeAlias = Literal["users", "global"]

MAX_PATH = 2048
"""Octets of a path: an XUI is at most 255 octets, 765 when all of it is escaped; the rest is names of ours."""
MAX_SEGMENTS = 8
"""Directories in a document's path; every usage served has one."""
SELECTOR = "~~"
"""Separates the document from a node inside it (RFC 4825 §6)."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_AUID = re.compile(r"[A-Za-z0-9.\-]{1,100}")


class XcapUri(NamedTuple):
    """A document: application usage, tree, whose, and its path below that; never holds a password."""

    auid: str
    tree: Tree
    xui: str | None  # None in the global tree
    document: str  # segments joined by "/"


def parse_xcap_uri(raw_path: bytes | str, root: str) -> XcapUri:
    """Return the document that a raw request path below the XCAP root names (RFC 4825 §6.2).

    The path is split before it is decoded, once, so `%2F` in an XUI is no separator. A query is ignored:
    phones put `?xmlns(…)` on document URIs too. `root` is "" or a path without a final slash.
    Raises RemoteProtocolError: 404 (not below the root, or no document there), 501 (a node selector);
    ParseError: 400 (not a path), 414 (over MAX_PATH).
    """
    path = _octets(raw_path).partition(b"?")[0]
    if len(path) > MAX_PATH:
        raise ParseError("XCAP URI", f"longer than {MAX_PATH} octets", 414)
    if _BAD_ESCAPE.search(path):
        raise ParseError("XCAP URI", "a percent sign without two hexadecimal digits")
    prefix = root.rstrip("/").encode("utf-8") + b"/"
    if not path.startswith(prefix):
        raise RemoteProtocolError("nothing is served below this path", 404)
    return _locate([_decode(segment) for segment in path[len(prefix) :].split(b"/")])


def build_xcap_uri(uri: XcapUri, root: str) -> str:
    """Return the path of a document, the reverse of `parse_xcap_uri`."""
    owner = "global" if uri.xui is None else "users/" + quote(uri.xui, safe=":@+;=")
    return f"{root.rstrip('/')}/{uri.auid}/{owner}/{quote(uri.document)}"


def _locate(segments: list[str]) -> XcapUri:
    where = 3 if segments[1:2] == ["users"] else 2
    document = segments[where:]
    if SELECTOR in document:
        raise RemoteProtocolError("parts of a document are not served: read and write the whole document", 501)
    if len(segments) < 3 or segments[1] not in {"users", "global"} or not _AUID.fullmatch(segments[0]):
        raise RemoteProtocolError("no document has this path", 404)
    if not 0 < len(document) <= MAX_SEGMENTS or any(name in {"", ".", ".."} or "/" in name for name in document):
        raise RemoteProtocolError("no document has this path", 404)
    xui = _without_password(segments[2]) if where == 3 else None
    return XcapUri(segments[0], cast("Tree", segments[1]), xui, "/".join(document))


def _octets(path: bytes | str) -> bytes:
    if isinstance(path, bytes):
        return path
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as problem:
        raise ParseError("XCAP URI", "not Unicode") from problem


def _decode(segment: bytes) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ParseError("XCAP URI", "not UTF-8") from problem
    if _CONTROL.search(text):
        raise ParseError("XCAP URI", "holds a control character")
    return text


def _without_password(xui: str) -> str:
    # AOSP puts the call-barring password into the XUI, as RFC 3261 §19.1.1 `userinfo`: `sip:user:PASSWORD@host`.
    scheme, _, rest = xui.partition(":")
    userinfo, at, host = rest.rpartition("@")
    if not at:
        return xui
    user = userinfo.partition(":")[0] if scheme.lower() in {"sip", "sips"} else ""
    return f"{scheme}:{user}@{host}"
