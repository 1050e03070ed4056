# SPDX-License-Identifier: Apache-2.0
"""What matters in a SIP message of a registration, in one line for a ladder (TS 24.229 §5, Release 17). Never a key."""

from __future__ import annotations

import re

from keyferry.errors import KeyferryError
from keyferry.protocol.digest import parse_aka_nonce, parse_authentication_info, parse_challenge, parse_credentials
from keyferry.protocol.ims.keypush import Push, SealedPush, parse_service_info
from keyferry.protocol.ims.marker import RELEASE_TAG, parse_marker
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.headers import parse_name_addr, parse_name_addr_list
from keyferry.protocol.sip.message import Message, Request, Response

_WORD = re.compile(r"[A-Za-z0-9.-]{1,20}")
_KEY_LIKE = re.compile(r"[0-9A-Fa-f]{24}")


def word(text: str) -> str:
    """Return a value that ought to be a short token, or that it is none: a damaged header field may have a key in any place."""
    return text if _WORD.fullmatch(text) else "(odd value)"


def plain(text: str) -> str:
    """Return an identity, a realm or a URI, or that it holds what may be a key."""
    return "(not shown: it may hold a key)" if _KEY_LIKE.search(text) else text


def note_of(message: Message) -> str:
    """Say what matters in a message; what cannot be read is said so."""
    try:
        return _of_request(message) if isinstance(message, Request) else _of_response(message)
    except KeyferryError as problem:
        return f"not readable: {problem}"


def is_third_party(request: Request) -> bool:
    """Tell whether a REGISTER is one of a S-CSCF to an AS (TS 24.229 §5.4.1.7): not the user's own, it says who sends it in From.

    A UE's has the same identity in From and To (RFC 3261 §10.2), or credentials.
    """
    if request.method != "REGISTER" or request.get("Authorization") is not None:
        return False
    try:
        sender, user = (parse_name_addr(request.get(name) or "").uri for name in ("From", "To"))
    except KeyferryError:
        return False
    return sender != user


def _of_request(request: Request) -> str:
    if request.method != "REGISTER":
        return ""
    if is_third_party(request):
        return _of_push(request)
    notes = ["de-registers"] if request.get("Expires") == "0" else []
    contact = request.get("Contact")
    if contact and contact != "*":
        release = parse_name_addr_list(contact)[0].parameter(RELEASE_TAG)
        notes.append(f"states release {word(release)}" if release else "states no release")
    if request.get("Authorization"):
        notes += _of_credentials(request.get("Authorization") or "")
    if request.get("Path"):
        notes.append("Path")
    return "; ".join(notes)


def _of_credentials(text: str) -> list[str]:
    credentials = parse_credentials(text)
    protected = credentials.parameter("integrity-protected")
    notes = [f"integrity-protected={word(protected)}"] if protected else []
    if credentials.auts:
        notes.append("auts: SQN not fresh")
    elif credentials.response:
        notes.append("answers: response" + (f", qop={word(credentials.qop)}" if credentials.qop else ""))
    elif credentials.nonce:
        notes.append("empty response: MAC wrong")
    return notes


def _of_push(request: Request) -> str:
    register = parse_third_party_register(request)
    block = parse_service_info(register.service_info) if register.service_info else None
    ends = "ends the keys: " if register.expires == 0 else ""
    if isinstance(block, SealedPush):
        return f"{ends}key block for {block.as_id}, sealed by {block.scscf}, kid {block.kid}"
    if isinstance(block, Push):
        return f"{ends}key block for {block.as_id} IN CLEAR"
    return ends + ("service-info without a key block" if register.service_info else "no service-info")


def _of_response(response: Response) -> str:
    challenge_text = response.get("WWW-Authenticate")
    if challenge_text:
        challenge = parse_challenge(challenge_text)
        if not challenge.algorithm.lower().startswith("akav"):
            return f"challenge: {word(challenge.algorithm)}, no AKA"
        marker = parse_marker(parse_aka_nonce(challenge.nonce).server_data)
        if marker is None:
            shown = "no marker: Release 5"
        else:
            flags = marker.access_keys | marker.as_keys << 1 | marker.rspauth << 2
            shown = f"marker: release {marker.release}, flags {flags}"
        carried = {name.lower() for name, _ in challenge.parameters} & {"ck", "ik"}
        masked = "CK', IK'" if marker and marker.access_keys else "CK, IK"
        return f"{shown}; " + (f"{masked} for the P-CSCF" if carried else "no ck, ik")
    info = response.get("Authentication-Info")
    if info and parse_authentication_info(info).rspauth:
        return "rspauth: the S-CSCF proves itself"
    return ""
