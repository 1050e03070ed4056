# SPDX-License-Identifier: Apache-2.0
"""A registration as a capture, each message of which a test may change, drop or repeat."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence

from keyferry.lab.trace import Trace, trace_capture
from keyferry.protocol.capture.diameter import VENDOR_3GPP
from keyferry.protocol.capture.packets import Endpoint
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import parse_aka_nonce
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.keypush import Push, seal_push
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.sip.message import Message, Request, Response
from protocol.capture.capturekit import AS, HSS, ICSCF, PCSCF, SCSCF, START, UE, avp, diameter, ethernet, nonce, pcap, sent, udp

IMPI, IMPU = "user1_private@home1.net", "sip:user1_public1@home1.net"
CK, IK = "c0ffee" + "0" * 26, "deadbeef" + "0" * 24
RESPONSE, AUTS = "5ec2e7" + "a" * 26, "c2VjcmV0LWF1dHMhISE="  # 14 octets
SECRETS = (CK, IK, RESPONSE, AUTS)
PATH = (UE, PCSCF, ICSCF, SCSCF)

Edit = Callable[[str, Message], Message | None]
Frames = list[tuple[float, bytes]]


def keep(_label: str, message: Message) -> Message:
    """Change nothing."""
    return message


def credentials(rest: str, *, number: str = "", user: str = IMPI) -> tuple[str, str]:
    return ("Authorization", f'Digest username="{user}", realm="home1.net", uri="sip:home1.net", {rest}{number}')


def register(hop: int, cseq: int, authorization: tuple[str, str] | None, *, call_id: str = "call-1", expires: str = "600000") -> Request:
    """A REGISTER as the sender on a hop sends it; hop 0 is Gm."""
    vias = [("Via", f"SIP/2.0/UDP {PATH[place].host}:{PATH[place].port};branch=z9hG4bK{cseq}{place}") for place in range(hop, -1, -1)]
    own = [] if authorization is None else [authorization]
    if hop and own:
        own = [(own[0][0], own[0][1] + ', integrity-protected="no"')]
    path = [("Path", "<sip:pcscf1.home1.net;lr>")] if hop else []
    return Request(
        "REGISTER",
        "sip:home1.net",
        (
            *vias, *path, ("From", f"<{IMPU}>;tag=a"), ("To", f"<{IMPU}>"), ("Call-ID", call_id), ("CSeq", f"{cseq} REGISTER"),
            ("Contact", '<sip:10.0.0.1:40000>;+g.keyferry.release="6"'), ("Expires", expires), *own,
        ),
    )  # fmt: skip


def response(hop: int, cseq: int, status: int, *headers: tuple[str, str], call_id: str = "call-1") -> Response:
    """A response as it comes back on a hop."""
    request = register(hop, cseq, None, call_id=call_id)
    kept = [row for row in request.headers if row[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
    return Response(status, {200: "OK", 401: "Unauthorized", 403: "Forbidden"}.get(status, "Odd"), (*kept, *headers))


def challenge(hop: int, text: str, *, keys: bool | None = None) -> tuple[str, str]:
    """A challenge; beyond Gm with ck and ik."""
    carried = hop > 0 if keys is None else keys
    rest = f', ck="{CK}", ik="{IK}"' if carried else ""
    return ("WWW-Authenticate", f'Digest realm="home1.net", nonce="{text}", algorithm=AKAv1-MD5, qop="auth"{rest}')


def answer(text: str, rest: str = "") -> tuple[str, str]:
    """Good credentials."""
    return credentials(f'nonce="{text}", response="{RESPONSE}", algorithm=AKAv1-MD5, cnonce="{"c" * 32}", qop=auth, nc=00000001{rest}')


def third_party(*, expires: int = 600_000, plain: bool = False, large: bool = False) -> Request:
    """A third-party REGISTER with a key block."""
    push = Push(1, Impi(IMPI), AsId("xcap.home1.net"), Reg("abcdefghijkl"), (), (Impu(IMPU),), None)
    sealed = seal_push(push, transport_key=Secret(bytes(64)), scscf="scscf1.home1.net", kid="t1")
    if plain:
        sealed = '<kf:push xmlns:kf="urn:keyferry:isc:1" seq="1" impi="a@b.c" as="xcap.home1.net" reg="abcdefghijkl"></kf:push>'
    request = build_third_party_register(
        server_name="sip:xcap-as.home1.net", scscf_uri="sip:scscf1.home1.net", impu=IMPU, expires=expires, call_id="push-1", cseq=1,
        from_tag="t",
        service_info=sealed, p_access_network_info="x" * 1_000 if large else None,
    )  # fmt: skip
    return request.prepending("Via", f"SIP/2.0/UDP {SCSCF.host}:{SCSCF.port};branch=z9hG4bKpush")


def push_answer(status: int = 200) -> Response:
    """The answer of the AS."""
    request = third_party()
    kept = [row for row in request.headers if row[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
    return Response(status, {200: "OK", 403: "Forbidden"}.get(status, "Odd"), tuple(kept))


def registration(edit: Edit = keep, *, text: str = "", at: float = START) -> Frames:
    """A whole registration, what `edit` returns for each message; labels are those of the ladder, hop 0 being Gm."""
    text = text or nonce()
    rspauth = ("Authentication-Info", f'qop=auth, rspauth="{"b" * 32}", cnonce="c", nc=00000001')
    empty = credentials('nonce="", response=""')
    rows: list[tuple[str, Endpoint, Endpoint, Message]] = []
    rows += [(f"sm1-{hop}", PATH[hop], PATH[hop + 1], register(hop, 1, empty)) for hop in range(3)]
    rows += [(f"401-{hop}", PATH[hop + 1], PATH[hop], response(hop, 1, 401, challenge(hop, text))) for hop in (2, 1, 0)]
    rows += [(f"sm7-{hop}", PATH[hop], PATH[hop + 1], register(hop, 2, answer(text))) for hop in range(3)]
    rows += [("push", SCSCF, AS, third_party()), ("push-200", AS, SCSCF, push_answer())]
    rows += [(f"200-{hop}", PATH[hop + 1], PATH[hop], response(hop, 2, 200, rspauth)) for hop in (2, 1, 0)]
    return drawn(rows, edit, at)


def drawn(rows: Sequence[tuple[str, Endpoint, Endpoint, Message]], edit: Edit = keep, at: float = START) -> Frames:
    """Return frames, a millisecond from each to the next."""
    frames: Frames = []
    for label, source, target, message in rows:
        changed = edit(label, message)
        if changed is not None:
            frames.append((at + len(frames) / 1000, sent(source, target, changed)))
    return frames


def cx(at: float, server_data: bytes = b"", *, resync: bool = False) -> Frames:
    """A MAR with its MAA."""
    public, name = avp(601, IMPU.encode(), VENDOR_3GPP), avp(1, IMPI.encode())
    wanted = avp(608, b"Digest-AKAv1-MD5", VENDOR_3GPP) + (avp(610, bytes(30), VENDOR_3GPP) if resync else b"")
    rand, autn, _ = parse_aka_nonce(nonce())
    given = avp(609, rand + autn + server_data, VENDOR_3GPP) + avp(610, b"XRES-XRES"[:8], VENDOR_3GPP)
    given += avp(625, bytes.fromhex(CK), VENDOR_3GPP) + avp(626, bytes.fromhex(IK), VENDOR_3GPP)
    mar = diameter(303, name + public + avp(612, wanted, VENDOR_3GPP))
    maa = diameter(303, avp(268, struct.pack(">I", 2001)) + avp(612, given, VENDOR_3GPP), request=False)
    return cx_exchange(at, mar, maa)


def cx_exchange(at: float, request: bytes, answer: bytes, *, first: int = 0) -> Frames:
    """A Diameter request of the S-CSCF's machine, and its answer; `first` is the request's TSN."""
    client = Endpoint(SCSCF.host, 33_000)
    sctp = [(client, HSS, request), (HSS, client, answer)]
    return [(at + place / 1000, _sctp(*row, first + place)) for place, row in enumerate(sctp)]


def _sctp(source: Endpoint, target: Endpoint, data: bytes, sequence: int) -> bytes:
    chunk = struct.pack(">BBHIHHI", 0, 3, 16 + len(data), sequence, 0, 0, 46) + data
    packet = bytearray(udp(source, target, b""))
    packet[9] = 132
    content = struct.pack(">HHII", source.port, target.port, 0, 0) + chunk
    packet[2:4] = struct.pack(">H", 20 + len(content))
    return ethernet(bytes(packet[:20]) + content)


def traced(frames: Frames, *, impi: str = "", late: bool = True) -> Trace:
    """Trace frames; with `late` the capture ends a while after them."""
    frames = [*frames, (frames[-1][0] + 60, ethernet(b""))] if late and frames else frames
    return trace_capture(io.BytesIO(pcap(frames)), impi=impi)


def hints(frames: Frames) -> list[str]:
    """Return the hints of the one subscriber."""
    (one,) = traced(frames).subscribers
    return [hint.text for hint in one.hints]
