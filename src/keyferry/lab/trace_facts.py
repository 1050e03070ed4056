# SPDX-License-Identifier: Apache-2.0
"""What a trace tells of one message: identities, the nonce and its marker, the Digest parameters, the key block. Keys are lengths only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keyferry.errors import KeyferryError
from keyferry.protocol.capture import diameter
from keyferry.protocol.capture.diameter import Avp, DiameterMessage, describe, find_avp, group_of
from keyferry.protocol.digest import (
    Challenge,
    Credentials,
    decode_base64,
    parse_aka_nonce,
    parse_authentication_info,
    parse_challenge,
    parse_credentials,
)
from keyferry.protocol.ims.attribution import Traits, traits_of
from keyferry.protocol.ims.keypush import Push, SealedPush, parse_service_info
from keyferry.protocol.ims.marker import RELEASE_TAG, parse_marker
from keyferry.protocol.ims.notes import note_of, plain, word
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.headers import Via, parse_cseq, parse_name_addr_list, parse_via_list
from keyferry.protocol.sip.message import Message, Request
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.wiring.tracing import printable

SHORT_CNONCE = 16  # characters: below, a masked vector's answer is refused (DESIGN §5)
FLAGS = ("access keys CK', IK' in use", "AS keys will be pushed", "rspauth will be sent")
AUTS_OCTETS = 14

NO_TRAITS = Traits("", "", "", "", "", (), False)
_HEX = re.compile(r"[0-9a-fA-F]+")
_NC = re.compile(r"[0-9a-fA-F]{8}")


class MarkerFacts(NamedTuple):
    """The release marker, decoded."""

    octets: str  # hexadecimal, all of the server-specific data
    release: int
    flags: int
    further: str  # hexadecimal, octets after the fourth


class ChallengeFacts(NamedTuple):
    """A challenge of a 401; RAND and AUTN go over the air in clear and are no secret."""

    realm: str
    algorithm: str
    qop: tuple[str, ...]
    nonce: str
    octets: int  # of the nonce, decoded; 0: it is no AKA nonce
    rand: str
    sqn_xor_ak: str
    amf: str
    mac: str
    server_data: str
    marker: MarkerFacts | None
    keys: tuple[tuple[str, int], ...]  # names and hexadecimal digits of ck, ik


class AnswerFacts(NamedTuple):
    """Credentials; of response, cnonce and auts the length."""

    username: str
    realm: str
    nonce: str
    uri: str
    response: int  # characters
    auts: int | None  # octets
    algorithm: str | None
    qop: str | None
    nc: str | None
    cnonce: int | None  # characters
    protected: str | None  # integrity-protected
    problems: tuple[str, ...]


class BlockFacts(NamedTuple):
    """The header of a key block."""

    sealed: bool
    scscf: str
    as_id: str
    kid: str
    octets: int  # V || C


class Result(NamedTuple):
    """How a Diameter request ended: a code of the base protocol (RFC 6733 §7.1), or of its application (TS 29.229 §6.2)."""

    code: int
    experimental: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """One message, its octets forgotten."""

    request: bool
    method: str  # of a response: that of CSeq; Diameter: the command, such as MAR
    status: int = 0
    reason: str = ""
    note: str = ""
    traits: Traits = NO_TRAITS
    cseq: int = 0
    vias: tuple[Via, ...] = ()
    server: str = ""  # host of the Request-URI
    uri: str = ""
    release: str | None = None  # stated in Contact
    expires: str = ""
    path: bool = False
    rspauth: bool = False
    challenge: ChallengeFacts | None = None
    answer: AnswerFacts | None = None
    block: BlockFacts | None = None
    diameter: DiameterMessage | None = field(default=None, repr=False)
    result: Result | None = None  # of a Diameter answer

    @property
    def what(self) -> str:
        """What stands above the arrow."""
        return self.method if self.request or self.diameter else f"{self.status} {self.reason}".rstrip()


def facts_of(message: Message) -> Facts:
    """Return what a trace tells of a SIP message; what cannot be read is left out, the note says so."""
    traits, note, vias = traits_of(message), note_of(message), _vias(message)
    try:
        cseq = parse_cseq(message.get("CSeq") or "")
    except KeyferryError:
        cseq = None
    number = cseq.number if cseq else 0
    if isinstance(message, Request):
        return Facts(
            request=True, method=message.method, note=note, traits=traits, cseq=number, vias=vias, server=_host(message.uri),
            uri=message.uri, release=_release(message), expires=message.get("Expires") or "", path=message.get("Path") is not None,
            answer=_answer(message), block=_block(message) if traits.third_party else None,
        )  # fmt: skip
    return Facts(
        request=False, method=cseq.method if cseq else "", status=message.status, reason=message.reason, note=note, traits=traits,
        cseq=number, vias=vias, rspauth=_rspauth(message), challenge=_challenge(message),
    )  # fmt: skip


# ---- SIP


def _vias(message: Message) -> tuple[Via, ...]:
    try:
        return tuple(via for row in message.all("Via") for via in parse_via_list(row))
    except KeyferryError:
        return ()


def _host(uri: str) -> str:
    try:
        return parse_sip_uri(uri).host
    except KeyferryError:
        return ""


def _release(request: Request) -> str | None:
    contact = request.get("Contact") or "*"
    try:
        return None if contact == "*" else parse_name_addr_list(contact)[0].parameter(RELEASE_TAG)
    except KeyferryError:
        return None


def _rspauth(message: Message) -> bool:
    text = message.get("Authentication-Info")
    try:
        return bool(text and parse_authentication_info(text).rspauth)
    except KeyferryError:
        return False


def _challenge(message: Message) -> ChallengeFacts | None:
    text = message.get("WWW-Authenticate")
    try:
        return challenge_facts(parse_challenge(text)) if text else None
    except KeyferryError:
        return None


def challenge_facts(challenge: Challenge) -> ChallengeFacts:
    """Return what a challenge says."""
    keys = tuple((name, len(value)) for name, value in challenge.parameters if name in ("ck", "ik"))
    try:
        rand, autn, data = parse_aka_nonce(challenge.nonce)
    except KeyferryError:
        empty = ("",) * 5
        return ChallengeFacts(challenge.realm, challenge.algorithm, challenge.qop, challenge.nonce, 0, *empty, None, keys)
    known = parse_marker(data)
    marker = MarkerFacts(data.hex(), known.release, data[3], data[4:].hex()) if known else None
    return ChallengeFacts(
        challenge.realm, challenge.algorithm, challenge.qop, challenge.nonce, 32 + len(data), rand.hex(), autn[:6].hex(), autn[6:8].hex(),
        autn[8:].hex(), data.hex(), marker, keys,
    )  # fmt: skip


def _answer(request: Request) -> AnswerFacts | None:
    text = request.get("Authorization")
    try:
        found = parse_credentials(text) if text else None
    except KeyferryError:
        return None
    if found is None:
        return None
    auts = None if found.auts is None else _decoded(found.auts)
    cnonce = None if found.cnonce is None else len(found.cnonce)
    return AnswerFacts(
        found.username, found.realm, found.nonce, found.uri, len(found.response), auts, found.algorithm, found.qop, found.nc, cnonce,
        found.parameter("integrity-protected"), tuple(_implausible(found, auts)),
    )  # fmt: skip


def _decoded(text: str) -> int:
    try:
        return len(decode_base64(text, "auts"))
    except KeyferryError:
        return 0


def _implausible(found: Credentials, auts: int | None) -> list[str]:
    """Say which Digest parameters cannot be right (RFC 7616 §3.4; RFC 3310 §3.3, §3.4)."""
    problems = []
    if auts is not None and auts != AUTS_OCTETS:
        problems.append(f"auts is not the base64 of {AUTS_OCTETS} octets")
    if not found.response or not found.nonce:
        return problems
    digits = 64 if "256" in (found.algorithm or "") else 32
    if len(found.response) != digits or not _HEX.fullmatch(found.response):
        problems.append(f"response is not {digits} hexadecimal digits")
    return problems + _implausible_qop(found)


def _implausible_qop(found: Credentials) -> list[str]:
    if not found.qop:
        return ["cnonce or nc without qop"] if found.cnonce or found.nc else []
    problems = [] if _NC.fullmatch(found.nc or "") else ["nc is not 8 hexadecimal digits"]
    if not found.cnonce:
        problems.append("qop without cnonce")
    elif len(found.cnonce) < SHORT_CNONCE:
        problems.append(f"cnonce of {len(found.cnonce)} characters: an S-CSCF that masks keys wants {SHORT_CNONCE}")
    return problems


def _block(request: Request) -> BlockFacts | None:
    try:
        info = parse_third_party_register(request).service_info
        block = parse_service_info(info) if info else None
    except KeyferryError:
        return None
    if isinstance(block, SealedPush):
        return BlockFacts(True, block.scscf, block.as_id, block.kid, len(block.blob))
    return BlockFacts(False, "", block.as_id, "", 0) if isinstance(block, Push) else None


# ---- Diameter


def diameter_facts(message: DiameterMessage, impi: str) -> Facts:
    """Return what a trace tells of a Diameter message; `impi` is that of its request."""
    return Facts(
        request=message.request, method=message.name, note=_diameter_note(message), traits=NO_TRAITS._replace(username=impi),
        diameter=DiameterMessage(message.command, message.request, message.application, message.hop_by_hop, message.end_to_end, ()),
        challenge=_of_item(message), result=None if message.request else _result(message),
    )  # fmt: skip


def _result(message: DiameterMessage) -> Result | None:
    base, own = message.find(diameter.RESULT_CODE), message.find(diameter.EXPERIMENTAL_RESULT)
    inner = find_avp(group_of(own), diameter.EXPERIMENTAL_RESULT_CODE) if own else None
    found = inner or base
    return Result(found.number, experimental=found is inner) if found is not None and found.number is not None else None


def _item(message: DiameterMessage) -> tuple[Avp, ...]:
    item = message.find(diameter.AUTH_DATA_ITEM, diameter.VENDOR_3GPP)
    return group_of(item) if item else ()


def _of_item(message: DiameterMessage) -> ChallengeFacts | None:
    """Return the vector of a MAA as the challenge that will carry it, so that the two can be compared."""
    found = find_avp(_item(message), diameter.AUTHENTICATE, diameter.VENDOR_3GPP)
    if found is None or message.request or len(found.data) < 32:
        return None
    data = found.data
    return ChallengeFacts(
        "", "", (), "", len(data), data[:16].hex(), data[16:22].hex(), data[22:24].hex(), data[24:32].hex(), data[32:].hex(), None, ()
    )


def _diameter_note(message: DiameterMessage) -> str:
    notes = [describe(avp) for avp in message.avps if avp.code in _TOLD and avp.vendor in (0, diameter.VENDOR_3GPP)]
    authorization = find_avp(_item(message), diameter.AUTHORIZATION, diameter.VENDOR_3GPP)
    if message.request and authorization is not None:
        notes.append("RAND and AUTS: resynchronisation")
    return "; ".join(notes)


_TOLD = frozenset(
    {
        diameter.RESULT_CODE, diameter.EXPERIMENTAL_RESULT, diameter.PUBLIC_IDENTITY, diameter.SERVER_NAME, diameter.AUTH_DATA_ITEM,
        diameter.ASSIGNMENT_TYPE, 606, 607, 623,
    }
)  # fmt: skip


# ---- as data, as lines


def explained(facts: Facts) -> dict[str, Any]:
    """Return what `--json` says of a message beyond its step; empty if there is nothing."""
    found: dict[str, Any] = {}
    if facts.challenge is not None:
        challenge = facts.challenge
        marker = challenge.marker
        found["challenge"] = {
            **challenge._asdict(),
            "realm": plain(challenge.realm),
            "algorithm": word(challenge.algorithm) if challenge.algorithm else "",
            "qop": [word(value) for value in challenge.qop],
            "nonce": challenge.nonce if challenge.octets else "",
            "keys": {name: digits // 2 for name, digits in challenge.keys},  # octets
            "marker": None
            if marker is None
            else {**marker._asdict(), "meaning": {name: bool(marker.flags >> bit & 1) for bit, name in enumerate(FLAGS)}},
        }
    if facts.answer is not None:
        answer = facts.answer
        found["answer"] = {
            **answer._asdict(),
            **{name: plain(getattr(answer, name)) for name in ("username", "realm", "nonce", "uri")},
            **{name: word(value) for name in ("algorithm", "qop", "nc", "protected") if (value := getattr(answer, name)) is not None},
        }
    if facts.block is not None:
        found["key_block"] = facts.block._asdict()
    return found


def lines_of_challenge(challenge: ChallengeFacts) -> list[str]:
    """Say what a challenge holds, bit by bit."""
    if not challenge.octets:
        return [f"nonce of {len(challenge.nonce)} characters: no RAND and AUTN in it"]
    lines = [
        f"nonce {challenge.octets} octets: RAND {challenge.rand}",
        f"AUTN: SQN xor AK {challenge.sqn_xor_ak} (SQN cannot be told without K), AMF {challenge.amf}"
        f"{_amf(challenge.amf)}, MAC {challenge.mac}",
    ]
    if challenge.marker is not None:
        lines += lines_of_marker(challenge.marker)
    elif challenge.server_data:
        lines.append(f"server data {challenge.server_data}: no release marker, so Release 5")
    if challenge.algorithm:
        qop = ",".join(map(word, challenge.qop)) or "not offered"
        lines.append(f"{word(challenge.algorithm)}, qop {qop}, realm {printable(plain(challenge.realm))}")
    if challenge.keys:
        lines.append(" ".join(f"{name}: {digits // 2} octets, not shown." for name, digits in challenge.keys))
    return lines


def lines_of_marker(marker: MarkerFacts) -> list[str]:
    """Say a marker bit by bit (DESIGN §4)."""
    lines = [f'marker {marker.octets}: magic 3347 ("3G"), release {marker.release}, flags {marker.flags:08b}']
    lines += [f"  bit {bit} {name}: {'yes' if marker.flags >> bit & 1 else 'no'}" for bit, name in enumerate(FLAGS)]
    if marker.flags >> len(FLAGS):
        lines.append(f"  bits {len(FLAGS)} to 7: not 0, a meaning of a later release")
    if marker.further:
        lines.append(f"  further octets {marker.further}: not known here, ignored")
    return lines


def lines_of_answer(answer: AnswerFacts) -> list[str]:
    """Say the Digest parameters of credentials."""
    parts = [f"response {answer.response} characters"] if answer.response else []
    parts += [f"auts {answer.auts} octets"] if answer.auts is not None else []
    parts += [f"{name} {word(value)}" for name, value in (("qop", answer.qop), ("nc", answer.nc), ("algorithm", answer.algorithm)) if value]
    parts += [f"cnonce {answer.cnonce} characters"] if answer.cnonce is not None else []
    lines = [f"Digest: {', '.join(parts)}"] if parts and answer.nonce else []
    return lines + [f"implausible: {problem}" for problem in answer.problems]


def lines_of_block(block: BlockFacts) -> list[str]:
    """Say the header of a key block."""
    if not block.sealed:
        return [f"KEY BLOCK IN CLEAR for {printable(block.as_id)}: whoever sees this message has the keys"]
    return [
        f"sealed key block from {printable(block.scscf)}, as {printable(block.as_id)}, kid {printable(block.kid)}, {block.octets} octets"
    ]


def _amf(amf: str) -> str:
    return " (separation bit set)" if amf and int(amf, 16) & 0x8000 else ""
