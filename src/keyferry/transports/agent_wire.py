# SPDX-License-Identifier: Apache-2.0
"""What goes over the key agent's socket (*ours*; docs/protocol.md): frames, and the fields of requests and answers.

A frame is the length of its body (4 octets, big endian) and the body, one JSON object. A request has `id`, `op` and what
that needs; its answer has the same `id`. A frame without `id` from the agent names keys that a cache must forget.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from keyferry.errors import ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims.key_record import KeyRecord

VERSION: Final = 1
"""Of the protocol; `hello` offers those that a client speaks, and the agent takes one or says which it knows."""
MAX_REQUEST: Final = 4_096
"""Octets of a request: a key id, an AS_ID and a nonce take 700."""
MAX_ANSWER: Final = 131_072
"""Octets of an answer: a hundred public identities of 255 octets, some escaped, and the rest."""
MAX_IDENTIFIER: Final = 300
"""Characters of a key id: 25, and a realm of 255 at most."""

_LENGTH = 4  # octets
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)

Fields: TypeAlias = dict[str, Any]


class NonceTerms(NamedTuple):
    """What a worker needs to issue nonces of one AS_ID itself; `now` is the agent's monotonic clock, in seconds."""

    key: Secret
    scope: str
    now: float


def build_frame(fields: Fields) -> bytes:
    """Return one frame."""
    body = _ENCODER.encode(fields).encode("ascii")
    return len(body).to_bytes(_LENGTH, "big") + body


class Frames:
    """Cut a stream into the objects of its frames."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        """Take how many octets a body may have."""
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Fields]:
        """Take some octets and yield what is whole. Raises ParseError; nothing that follows means anything then."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            length = int.from_bytes(self._buffer[:_LENGTH], "big")
            if length > self._limit:
                raise ParseError("frame", f"has {length} octets, at most {self._limit} are taken")
            end = _LENGTH + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH:end])
            del self._buffer[:end]
            yield _fields(body)


def _fields(body: bytes) -> Fields:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of too many digits, too deep
        fields = None
    if not isinstance(fields, dict):
        raise ParseError("frame", "is no JSON object")
    return fields


# ---- records


def build_record(record: KeyRecord) -> list[Any]:
    """Return a record as it goes over the wire, its key in clear: whoever may connect may have it."""
    key = base64.b64encode(record.k_as.reveal()).decode("ascii")
    return [record.key_id, record.impi, record.reg, record.impus, key, record.not_before, record.not_after, record.superseded]


def parse_record(value: object, as_id: AsId) -> KeyRecord:
    """Read a record, reverse of `build_record`. Raises ParseError."""
    match value:
        case [str(key_id), str(impi), str(reg), list(impus), str(key), float(start) | int(start), float(end) | int(end), bool(superseded)]:
            names = tuple([Impu(impu) for impu in impus if isinstance(impu, str)])
            k_as = octets_of(key)
            if len(names) == len(impus):
                return KeyRecord(KeyId(key_id), as_id, Impi(impi), Reg(reg), names, Secret(k_as), float(start), float(end), superseded)
    raise ParseError("record", "is not of the form that this version has")


def octets_of(text: object) -> bytes:
    """Decode base64. Raises ParseError."""
    try:
        if isinstance(text, str):
            return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        pass
    raise ParseError("octets", "are no base64")


def whose(record: KeyRecord) -> str:
    """Return a short name of what an application is told of a key's owner; another one where that has changed."""
    told = "\n".join([record.impi, record.reg, *record.impus])
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:16]
