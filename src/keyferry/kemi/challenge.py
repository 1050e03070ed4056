# SPDX-License-Identifier: Apache-2.0
"""A challenge on its way to the P-CSCF: CK', IK' in place of CK, IK where its nonce says so, or it does not leave (DESIGN §5, §10)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from keyferry.errors import KeyferryError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Challenge, build_challenge, parse_aka_nonce, parse_challenge
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.keys import access_keys, application_master_key
from keyferry.protocol.ims.marker import parse_marker
from keyferry.protocol.sip.message import Response, build_message, parse_message

_HEADERS: Final = ("WWW-Authenticate", "Proxy-Authenticate")
_KEY: Final = re.compile(r"[0-9a-fA-F]{32}")
_KEPT: Final = ("Via", "From", "To", "Call-ID", "CSeq")


class NotMaskable(KeyferryError):
    """Report a challenge that must not leave: its keys cannot be told, or not wholly be replaced."""


@dataclass(frozen=True, slots=True)
class Sensitive:
    """A challenge whose nonce holds a marker with bit 0: its CK, IK must not be seen by the P-CSCF."""

    response: Response
    header: str
    challenge: Challenge
    rand: bytes  # 16 octets
    ck: Secret
    ik: Secret


@dataclass(frozen=True, slots=True)
class Masked:
    """What leaves instead, and the key that nobody but the UE can derive from it."""

    message: bytes
    k_m: Secret  # 32 octets


def read_challenge(data: bytes) -> Sensitive | None:
    """Return the challenge to mask; None for one without a marker, which goes as it is.

    Raises NotMaskable for whatever cannot be read with certainty: a marker might be in it.
    """
    try:
        response = parse_message(data)
        if not isinstance(response, Response):
            raise NotMaskable("it is no response")
        found = [(name, parse_challenge(value)) for name in _HEADERS for value in response.all(name)]
        marked = [(name, challenge, rand) for name, challenge in found if (rand := _marked_rand(challenge))]
    except ParseError as problem:
        raise NotMaskable(f"it cannot be read: {problem}") from None
    if not marked:
        return None
    if len(found) > 1:
        raise NotMaskable("it has several challenges")
    header, challenge, rand = marked[0]
    return Sensitive(response, header, challenge, rand, _key(challenge, "ck"), _key(challenge, "ik"))


def mask(found: Sensitive, impi: Impi) -> Masked:
    """Derive CK', IK' and K_M, and write the challenge anew with the former. Raises NotMaskable."""
    keys = access_keys(found.ck, found.ik, found.rand, impi)
    new = {"ck": keys.ck.reveal().hex(), "ik": keys.ik.reveal().hex()}
    parameters = tuple([(name, new.get(name, value)) for name, value in found.challenge.parameters])
    try:
        value = build_challenge(found.challenge.with_parameters(parameters))
        message = build_message(found.response.replacing(found.header, value))
    except KeyferryError:
        raise NotMaskable("it cannot be written again") from None
    _check_gone(message, found)
    return Masked(message, application_master_key(found.ck, found.ik, found.rand, impi))


def refusal(data: bytes) -> bytes | None:
    """Return the 500 that leaves instead of a challenge that may not; None where its octets cannot be read at all."""
    try:
        response = parse_message(data)
        if not isinstance(response, Response):
            return None
        kept = tuple((name, value) for name in _KEPT for value in response.all(name))
        return build_message(Response(500, "Server Internal Error", (*kept, ("Retry-After", "5")), b""))
    except KeyferryError:
        return None


def _marked_rand(challenge: Challenge) -> bytes | None:
    """Return RAND of a nonce that says that CK', IK' are in use."""
    try:
        nonce = parse_aka_nonce(challenge.nonce)
    except ParseError:
        return None  # no AKA nonce: a password's, and there are no keys beside it
    marker = parse_marker(nonce.server_data)
    return nonce.rand if marker is not None and marker.access_keys else None


def _key(challenge: Challenge, name: str) -> Secret:
    value = challenge.parameter(name)
    if value is None or not _KEY.fullmatch(value):
        raise NotMaskable(f"{name} is not there, or is not 16 octets in hexadecimal")
    return Secret(bytes.fromhex(value))


def _check_gone(message: bytes, found: Sensitive) -> None:
    """Look for the keys themselves in what would leave, wherever they may stand and however they are written."""
    lower = message.lower()
    for key in (found.ck, found.ik):
        octets = key.reveal()
        if octets in message or octets.hex().encode() in lower:
            raise NotMaskable("it holds a key in another place, too")
