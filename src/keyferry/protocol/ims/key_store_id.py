# SPDX-License-Identifier: Apache-2.0
"""Which key store an AS has (*ours*): a name in its answers, new with every new store, and the request that asks for it (RFC 3261 §11)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from keyferry.errors import ParseError
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.sip.message import Request

HEADER = "Keyferry-Store"
MAX_STORES = 64
"""AS_IDs behind one SIP URI; the header field has 4 kB then."""

_WHAT = HEADER
_ENTRY = re.compile(r"[ \t]*([A-Za-z0-9.-]{1,253})[ \t]*;[ \t]*id=([A-Za-z0-9_-]{16,64})[ \t]*")


def build_store_header(as_ids: Iterable[AsId], store_id: str) -> tuple[str, str]:
    """Return the header field that says which store holds the keys of these AS_IDs, reverse of `parse_store_header`."""
    return HEADER, ", ".join([f"{as_id};id={store_id}" for as_id in as_ids])


def parse_store_header(values: Sequence[str]) -> Mapping[AsId, str]:
    """Return the name of the store by AS_ID.

    Raises ParseError.
    """
    entries = [entry for value in values for entry in value.split(",", MAX_STORES + 1)]
    if len(entries) > MAX_STORES:
        raise ParseError(_WHAT, f"has more than {MAX_STORES} entries")
    found: dict[AsId, str] = {}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ParseError(_WHAT, "is not of the form AS_ID;id=NAME")
        as_id = parse_as_id(match[1])
        if as_id in found:
            raise ParseError(_WHAT, "names an AS_ID twice")
        found[as_id] = match[2]
    return found


def build_store_query(*, server_name: str, scscf_uri: str, call_id: str, from_tag: str) -> Request:
    """Return the OPTIONS, without a Via, by which an S-CSCF asks an AS at `server_name` whether it is there and which store it has."""
    headers = (
        ("Max-Forwards", "70"),
        ("From", f"<{scscf_uri}>;tag={from_tag}"),
        ("To", f"<{server_name}>"),
        ("Call-ID", call_id),
        ("CSeq", "1 OPTIONS"),
    )
    return Request("OPTIONS", server_name, headers, b"")
