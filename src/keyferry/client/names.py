# SPDX-License-Identifier: Apache-2.0
"""Host names of URLs and of tables, both in the form that goes over the wire: A-labels, lower case, no final dot (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import httpx

from keyferry.errors import ParseError
from keyferry.protocol.identity import AsId, parse_as_id

T = TypeVar("T")


def as_id_of(url: httpx.URL) -> AsId:
    """Return the AS_ID of a URL; httpx shows hosts with U-labels, but sends A-labels. Raises ParseError: an IP address has none."""
    return parse_as_id(url.raw_host.decode("ascii"))


def host_of(url: httpx.URL) -> str:
    """Return what a table made by `by_host` is asked for."""
    return _normal(url.raw_host.decode("ascii"))


def by_host(table: Mapping[str, T]) -> dict[str, T]:
    """Return a table of a configuration by names as `host_of` has them; a name that is none stays as it is."""
    return {_normal(name): value for name, value in table.items()}


def is_for(url: httpx.URL, as_id: AsId) -> bool:
    """Tell whether a key for an application server may be used for a URL: https, and its own host."""
    try:
        return url.scheme == "https" and as_id_of(url) == as_id
    except ParseError:
        return False


def _normal(name: str) -> str:
    try:
        return parse_as_id(name)
    except ParseError:
        return name.lower()
