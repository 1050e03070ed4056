# SPDX-License-Identifier: Apache-2.0
"""What the script reads of a REGISTER (TS 24.229 §5.4.1, Release 17): strictly, because Kamailio reads the same octets by its own rules.

The IMPI is an input of K_M and names the owner of a key at the AS. If two readers took different ones from one message, a user could get
a key in the name of another: whatever could be read in two ways is refused before Kamailio's modules see it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

from keyferry.errors import ParseError
from keyferry.protocol.digest import Credentials
from keyferry.protocol.identity import Impi, Impu, Reg, parse_impu
from keyferry.protocol.ims.registration import read_register
from keyferry.protocol.sip.headers import parse_cseq, parse_expires, parse_name_addr, parse_name_addr_list, parse_via_list
from keyferry.protocol.sip.message import Message, Request, parse_message

_WHAT: Final = "REGISTER"
_IMPI: Final = re.compile(r"[A-Za-z0-9._~+-]{1,120}@[A-Za-z0-9.-]{1,120}")
"""No quote, escape, blank or parameter sign, of which two readers could make two names."""


class Registering(NamedTuple):
    """A REGISTER as the script sees it."""

    transaction: str  # its key, the same in its responses
    impi: Impi
    impu: Impu
    reg: Reg
    every_contact: bool  # Contact: *
    expires: int  # seconds asked for; 0 ends the registration
    credentials: Credentials | None  # None: no answer to a challenge


def read_registering(data: bytes, realm: str) -> Registering:
    """Read a REGISTER as it came from the network. Raises ParseError: malformed, or to be read in more than one way."""
    request = parse_message(data)
    if not isinstance(request, Request) or request.method != "REGISTER":
        raise ParseError(_WHAT, "has another method", status=405)
    authorizations = request.all("Authorization")
    if len(authorizations) > 1 or request.all("Proxy-Authorization"):
        raise ParseError(_WHAT, "has more than one Authorization")
    if any("\\" in text for text in authorizations):  # Kamailio takes an escape for two characters
        raise ParseError(_WHAT, "has an Authorization with an escape")
    if _is_folded(data, b"authorization") or len(request.all("To")) != 1:
        raise ParseError(_WHAT, "has an Authorization on several lines, or several To")
    view = read_register(request)
    credentials = view.credentials
    if (credentials is None) != (not authorizations) or (credentials is not None and credentials.realm != realm):
        raise ParseError(_WHAT, "has an Authorization of another scheme or realm")
    if not _IMPI.fullmatch(view.impi):
        raise ParseError(_WHAT, "names a private identity with unusual characters")
    _check_user(request, view.impu)
    _check_expires(request)
    answers = credentials is not None and credentials.nonce != "" and credentials.response != ""
    return Registering(
        transaction_of(request), view.impi, view.impu, view.reg, view.every_contact, view.expires, credentials if answers else None
    )


def _check_user(request: Request, impu: Impu) -> None:
    """Refuse a second name for the user: ims_isc takes the filter criteria of P-Asserted-Identity, or else of From, and never asks To."""
    names = request.all("From")
    if len(names) != 1 or request.all("P-Asserted-Identity") or parse_impu(parse_name_addr(names[0]).uri) != impu:
        raise ParseError(_WHAT, "names another user in From or P-Asserted-Identity than in To")


def _check_expires(request: Request) -> None:
    """Refuse what ends for one reader and goes on for another: ims_isc tells the AS the greater of both times, or 0 where there is none."""
    texts = list(request.all("Expires"))
    if len(texts) > 1:
        raise ParseError(_WHAT, "has several Expires")
    if "*" not in request.all("Contact"):
        texts += [own for text in request.all("Contact") for one in parse_name_addr_list(text) if (own := one.parameter("expires"))]
    if not texts or len({parse_expires(text) == 0 for text in texts}) > 1:
        raise ParseError(_WHAT, "says no time, or one to begin and one to end")


def transaction_of(message: Message) -> str:
    """Return the key that a request and its responses share (RFC 3261 §17.2.3, and Call-ID and CSeq besides).

    Raises ParseError.
    """
    vias, call_ids, cseqs = message.all("Via"), message.all("Call-ID"), message.all("CSeq")
    if not vias or len(call_ids) != 1 or len(cseqs) != 1:
        raise ParseError("message", "lacks Via, Call-ID or CSeq, or repeats one")
    via, cseq = parse_via_list(vias[0])[0], parse_cseq(cseqs[0])
    parts = (via.host, str(via.port), via.branch, call_ids[0], f"{cseq.number} {cseq.method}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def origin_of(message: Message) -> tuple[str, str]:
    """Return where a request, or that of a response, came from, and its Call-ID: hashed, since strangers choose both. Raises ParseError."""
    via = parse_via_list((message.all("Via") or ("",))[-1])[-1]
    return _hashed(via.parameter("received") or via.host), _hashed(message.get("Call-ID") or "")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _is_folded(data: bytes, name: bytes) -> bool:
    head = data.partition(b"\r\n\r\n")[0]
    return re.search(rb"(?i)(?:^|\n)" + name + rb"[ \t]*:[^\n]*\n[ \t]", head) is not None
