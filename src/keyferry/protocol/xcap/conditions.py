# SPDX-License-Identifier: Apache-2.0
"""Entity tags and the preconditions on them (RFC 9110 §8.8.3, §13; RFC 4825 §8.5)."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple

from keyferry.errors import ParseError, RemoteProtocolError

MAX_HEADER = 2048
"""Octets of one If-Match or If-None-Match: over 30 of our tags."""

_TAG = re.compile(
    r"""
    [ \t]* (?: (?P<weak>W/)?
    (?: "(?P<tag>[\x21\x23-\x7e\x80-\xff]*)" | (?!\*[ \t]*(?:,|$)) (?P<bare>[\x21\x23-\x2b\x2d-\x7e\x80-\xff]+) ) )?
    [ \t]* (?: ,|$ )""",
    re.VERBOSE,
)
"""An entity tag; `bare` is one whose client left its quotes out."""


class Conditions(NamedTuple):
    """The preconditions of a request, as the headers say."""

    if_match: str | None = None
    if_none_match: str | None = None


NO_CONDITIONS = Conditions()


class EntityTag(NamedTuple):
    """One entity tag."""

    tag: str  # without quotes
    weak: bool


def etag_of(body: bytes) -> str:
    """Return the strong entity tag of a document, without quotes: 22 characters that depend on its octets alone."""
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:16])[:22].decode("ascii")


def parse_entity_tags(text: str) -> list[EntityTag] | None:
    """Return the tags of If-Match or If-None-Match, None for `*`; a tag may lack its quotes.

    Raises ParseError.
    """
    if len(text) > MAX_HEADER:
        raise ParseError("entity tags", f"longer than {MAX_HEADER} octets")
    if text.strip(" \t") == "*":
        return None
    tags: list[EntityTag] = []
    position = 0
    while position < len(text):
        found = _TAG.match(text, position)
        if found is None:
            raise ParseError("entity tags", "neither * nor a list of tags")
        tag = found["tag"] if found["bare"] is None else found["bare"]
        if tag is not None:
            tags.append(EntityTag(tag, found["weak"] is not None))
        position = found.end()
    if not tags:
        raise ParseError("entity tags", "empty")
    return tags


def check_write(conditions: Conditions, etag: str | None) -> None:
    """Check the preconditions of a PUT or DELETE against what is stored (RFC 9110 §13.2.2), `etag` None if nothing is.

    Raises RemoteProtocolError (412), ParseError.
    """
    check_match(conditions, etag)
    if conditions.if_none_match is not None and _names(conditions.if_none_match, etag, weak=True):
        raise RemoteProtocolError("the document is there, or is the one you name", 412)


def check_match(conditions: Conditions, etag: str | None) -> None:
    """Check If-Match alone, by strong comparison (RFC 9110 §13.1.1).

    Raises RemoteProtocolError (412), ParseError.
    """
    if conditions.if_match is not None and not _names(conditions.if_match, etag, weak=False):
        raise RemoteProtocolError("the document changed since you read it", 412)


def not_modified(conditions: Conditions, etag: str) -> bool:
    """Say whether a GET may be answered 304 (RFC 9110 §13.1.2).

    Raises ParseError.
    """
    return conditions.if_none_match is not None and _names(conditions.if_none_match, etag, weak=True)


def _names(header: str, etag: str | None, *, weak: bool) -> bool:
    tags = parse_entity_tags(header)
    if etag is None or tags is None:
        return etag is not None
    return any(tag.tag == etag and (weak or not tag.weak) for tag in tags)
