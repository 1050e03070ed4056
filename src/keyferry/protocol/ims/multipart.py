# SPDX-License-Identifier: Apache-2.0
"""Multipart bodies of SIP messages: RFC 2046 §5.1 as narrowed by RFC 5621 (binary parts, CRLF line ends, no nesting)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from keyferry.errors import LocalProtocolError, ParseError

MAX_PARTS = 8
"""A third-party REGISTER has three; each part costs a parse."""
MAX_PART_HEADER = 2_048
"""Octets before a part's empty line; real ones have under 200."""

_WHAT = "multipart body"
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_TYPE = re.compile(r"\s*([\w.+\-]+/[\w.+\-]+)\s*", re.ASCII)
# the three parts of one parameter; possessive, so that no text is read twice
_PARAMETER = re.compile(r'\s*+;\s*+([\w\-]++)\s*+=\s*+("(?:[^"\\]|\\.)*+"|[^\s;"]++)\s*+', re.ASCII)
_CARRIED_AS_IS = frozenset({"7bit", "8bit", "binary"})


class Part(NamedTuple):
    """One body with its media type, lower case and without parameters."""

    media_type: str
    content: bytes


def parse_content_type(text: str) -> tuple[str, dict[str, str]]:
    """Return the media type, lower case, and the parameters of a Content-Type, names in lower case (RFC 2045 §5.1).

    Raises ParseError; a repeated parameter is one, as two readers could take two.
    """
    found = _TYPE.match(text)
    if found is None:
        raise ParseError("Content-Type", "is no media type")
    pos = found.end()
    parameters: dict[str, str] = {}
    while pos < len(text):
        parameter = _PARAMETER.match(text, pos)
        if parameter is None or parameter[1].lower() in parameters:
            raise ParseError("Content-Type", "has a malformed or repeated parameter")
        value = parameter[2]
        parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] == '"' else value
        pos = parameter.end()
    return found[1].lower(), parameters


def parse_multipart(body: bytes, boundary: str) -> list[Part]:
    """Return the parts, preamble and epilogue dropped.

    Raises ParseError: a boundary that is none, a part that never ends, a transfer encoding, too many parts.
    """
    if not _BOUNDARY.fullmatch(boundary):
        raise ParseError(_WHAT, "has no boundary, or one that RFC 2046 forbids")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("ascii"), MAX_PARTS + 2)
    parts: list[Part] = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            return parts
        line, crlf, rest = piece.partition(b"\r\n")
        if line.strip(b" \t") or not crlf:
            raise ParseError(_WHAT, "has a line that begins as the boundary and goes on")
        parts.append(_part(rest))
        if len(parts) > MAX_PARTS:
            raise ParseError(_WHAT, f"has more than {MAX_PARTS} parts")
    raise ParseError(_WHAT, "does not end")


def _part(piece: bytes) -> Part:
    head, empty, content = (b"\r\n" + piece).partition(b"\r\n\r\n")
    if not empty or len(head) > MAX_PART_HEADER:
        raise ParseError(_WHAT, "has a part without an empty line, or with too long a header")
    fields: dict[str, str] = {}
    for line in re.sub(rb"\r\n[ \t]", b" ", head).decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        key = name.strip(" \t").lower()
        if not colon or key in fields:
            raise ParseError(_WHAT, "has a malformed or repeated header field in a part")
        fields[key] = value
    if fields.get("content-transfer-encoding", "binary").strip(" \t").lower() not in _CARRIED_AS_IS:
        raise ParseError(_WHAT, "has a transfer encoding, which SIP does not use (RFC 5621 §3.2)", status=415)
    return Part(parse_content_type(fields.get("content-type", "text/plain"))[0], content)


def build_multipart(parts: Iterable[Part], boundary: str | None = None) -> tuple[str, bytes]:
    """Return the boundary and the body, reverse of `parse_multipart`.

    Without `boundary` it is a hash of the parts: a UE whose message is one of them cannot have put the boundary into it.
    Raises LocalProtocolError if `boundary` stands in a part.
    """
    every = list(parts)
    if boundary is None:
        boundary = "kf-" + hashlib.sha256(b"\0".join(part.content for part in every)).hexdigest()[:32]
    mark = b"--" + boundary.encode("ascii", "replace")
    if not _BOUNDARY.fullmatch(boundary) or any(mark in part.content for part in every):
        raise LocalProtocolError("a multipart boundary stands in a part, or RFC 2046 forbids it")
    pieces = [b"%b\r\nContent-Type: %b\r\n\r\n%b\r\n" % (mark, part.media_type.encode("ascii"), part.content) for part in every]
    return boundary, b"%b%b--\r\n" % (b"".join(pieces), mark)
