# SPDX-License-Identifier: Apache-2.0
"""Third-party REGISTER from the S-CSCF to an application server (TS 24.229 §5.4.1.7, §5.4.1.7A, §7.6, Release 17)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from keyferry.errors import ParseError
from keyferry.protocol import xmlsafe
from keyferry.protocol.digest_header import build_credentials, parse_credentials
from keyferry.protocol.identity import Impu, parse_impu
from keyferry.protocol.ims.multipart import Part, build_multipart, parse_content_type, parse_multipart
from keyferry.protocol.sip.headers import parse_cseq, parse_expires, parse_name_addr
from keyferry.protocol.sip.message import Request, build_message, parse_message

IMS_BODY = "application/3gpp-ims+xml"
SIP_BODY = "message/sip"

_WHAT = "third-party REGISTER"
_MIXED = "multipart/mixed"
_CREDENTIALS = ("Authorization", "Proxy-Authorization")
_PROOFS = ("Authentication-Info", "Proxy-Authentication-Info", "WWW-Authenticate", "Proxy-Authenticate")


@dataclass(frozen=True, slots=True)
class ThirdPartyRegister:
    """What an AS reads in a third-party REGISTER."""

    impu: Impu
    scscf: str  # the URI in From; a claim, whoever sent it
    expires: int  # seconds
    call_id: str
    cseq: int
    service_info: str | None = field(default=None, repr=False)  # may hold keys
    register: bytes | None = field(default=None, repr=False)  # the UE's REGISTER
    response: bytes | None = field(default=None, repr=False)  # the 200 OK to it


def build_third_party_register(
    *,
    server_name: str,
    scscf_uri: str,
    impu: str,
    expires: int,
    call_id: str,
    cseq: int,
    from_tag: str,
    service_info: str | None = None,
    register: bytes | None = None,
    response: bytes | None = None,
    p_access_network_info: str | None = None,
    p_visited_network_id: str | None = None,
    p_charging_vector: str | None = None,
    p_associated_uri: tuple[str, ...] = (),
    boundary: str | None = None,
) -> Request:
    """Return the REGISTER without a Via (§5.4.1.7 a to k); `expires` in seconds, 0 for a de-registration.

    `service_info` is put in as text, escaped; the copies of the UE's messages lose what proves its identity (`redact_register`).
    Raises LocalProtocolError, and ParseError for a copy that is no SIP message.
    """
    content_type, body = _body(service_info, register, response, boundary)
    optional = (
        ("P-Access-Network-Info", p_access_network_info),
        ("P-Visited-Network-ID", p_visited_network_id),
        ("P-Charging-Vector", p_charging_vector),
        ("P-Associated-URI", ", ".join([f"<{uri}>" for uri in p_associated_uri]) or None),
        ("Content-Type", content_type),
    )
    headers = [
        ("Max-Forwards", "70"),
        ("From", f"<{scscf_uri}>;tag={from_tag}"),
        ("To", f"<{impu}>"),
        ("Call-ID", call_id),
        ("CSeq", f"{cseq} REGISTER"),
        ("Contact", f"<{scscf_uri}>"),
        ("Expires", str(expires)),
    ]
    headers += [(name, value) for name, value in optional if value is not None]
    return Request("REGISTER", server_name, tuple(headers), body)


def _body(service_info: str | None, register: bytes | None, response: bytes | None, boundary: str | None) -> tuple[str | None, bytes]:
    parts = []
    if service_info is not None:
        parts.append(Part(IMS_BODY, build_ims_body(service_info)))
    parts += [Part(SIP_BODY, redact_register(copy)) for copy in (register, response) if copy is not None]
    if not parts:
        return None, b""
    if len(parts) == 1:
        return parts[0]
    boundary, body = build_multipart(parts, boundary)
    return f'{_MIXED};boundary="{boundary}"', body


def build_ims_body(service_info: str) -> bytes:
    """Return the body of §7.6: `<service-info>` is xs:string, so what it holds is text.

    Raises LocalProtocolError.
    """
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\r\n'
        f'<ims-3gpp version="1"><service-info>{xmlsafe.escape(service_info)}</service-info></ims-3gpp>'
    ).encode()


def parse_ims_body(body: bytes) -> str | None:
    """Return the text of `<service-info>`, None if there is none, as with an alternative-service.

    Kamailio puts markup in unescaped: child elements are given back as text. The version attribute may be missing (Clearwater),
    and what is not known is passed over (xs:any). Raises ParseError.
    """
    root = xmlsafe.parse(body, what="ims-3gpp body")
    if root.tag.rpartition("}")[2] != "ims-3gpp":
        raise ParseError("ims-3gpp body", "is another document")
    space = root.tag[: -len("ims-3gpp")]
    info = xmlsafe.child(root, f"{space}service-info", "ims-3gpp body")
    if info is None:
        return None
    if any(True for _ in info):
        return xmlsafe.serialise_content(info)
    return xmlsafe.text(info, "ims-3gpp body")


def parse_third_party_register(request: Request) -> ThirdPartyRegister:
    """Read a third-party REGISTER that `check_request` let pass.

    A body of a type that is not known is passed over. Raises ParseError.
    """
    if request.method != "REGISTER":
        raise ParseError(_WHAT, "has another method", status=405)
    service_info, copies = _read_body(request)
    requests = [copy for copy in copies if not copy.startswith(b"SIP/")]
    responses = [copy for copy in copies if copy.startswith(b"SIP/")]
    if len(requests) > 1 or len(responses) > 1:
        raise ParseError(_WHAT, "repeats a body")
    return ThirdPartyRegister(
        impu=parse_impu(parse_name_addr(_single(request, "To")).uri),
        scscf=parse_name_addr(_single(request, "From")).uri,
        expires=parse_expires(_single(request, "Expires")),
        call_id=_single(request, "Call-ID"),
        cseq=parse_cseq(_single(request, "CSeq")).number,
        service_info=service_info,
        register=requests[0] if requests else None,
        response=responses[0] if responses else None,
    )


def _single(request: Request, name: str) -> str:
    values = request.all(name)
    if len(values) != 1:
        raise ParseError(_WHAT, f"has no {name}, or several")
    return values[0]


def _read_body(request: Request) -> tuple[str | None, list[bytes]]:
    """Return the text of service-info and the copies of SIP messages."""
    if not request.body:
        return None, []
    if request.get("Content-Encoding") not in {None, "identity"}:
        raise ParseError(_WHAT, "has a body with a content encoding", status=415)
    media_type, parameters = parse_content_type(_single(request, "Content-Type"))
    parts = parse_multipart(request.body, parameters.get("boundary", "")) if media_type == _MIXED else [Part(media_type, request.body)]
    ims = [part.content for part in parts if part.media_type == IMS_BODY]
    if len(ims) > 1:
        raise ParseError(_WHAT, "repeats a body")
    return (parse_ims_body(ims[0]) if ims else None), [part.content for part in parts if part.media_type == SIP_BODY]


def redact_register(data: bytes) -> bytes:
    """Return a SIP message without what proves an identity or could be used to guess a password.

    The Digest `response` is emptied and `cnonce`, `auts` go; credentials that cannot be read, Authentication-Info and challenges go whole.
    Raises ParseError if it is no SIP message.
    """
    message = parse_message(data)
    for name in _CREDENTIALS:
        values = message.all(name)
        if values:
            message = message.replacing(name, *[shown for value in values if (shown := _without_proof(value)) is not None])
    for name in _PROOFS:
        if message.get(name) is not None:
            message = message.without(name)
    return build_message(message)


def _without_proof(value: str) -> str | None:
    try:
        credentials = parse_credentials(value)
    except ParseError:
        return None
    return build_credentials(dataclasses.replace(credentials, response="", cnonce=None, auts=None))
