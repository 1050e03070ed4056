# SPDX-License-Identifier: Apache-2.0
"""Which usual mistake explains a wrong Digest AKA response (RFC 3310 §3.3, RFC 7616 §3.4, RFC 4169 §3; *ours*).

Used after a failure only. A response that a mistake yields is that mistake's proof, since the hash has 128 bits; one that none
yields stays unexplained. Nothing here leaves but verdicts.
"""

from __future__ import annotations

import hmac
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from keyferry.errors import DigestRejected, LocalProtocolError, ParseError
from keyferry.protocol.aka import AkaName, algorithm_of
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import derive_topc
from keyferry.protocol.digest import Credentials, aka_v2_password, encode_base64, hash_a1, parse_aka_nonce, respond
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.notes import plain
from keyferry.protocol.ims.registration import AKA_ALGORITHM, MIN_CNONCE
from keyferry.protocol.ims.verdicts import Analysis, Reason, Verdict

MAX_HASHED: Final = 1_024
"""Characters of an answer's fields together, some 300 are usual: bounds what one trial hashes to under a megabyte."""
MAX_EARLIER: Final = 4
"""Earlier challenges of a user that are tried."""
MAX_SHOWN: Final = 80
"""Characters of a name in a verdict."""
SHORT_RES: Final = (4, 8)
"""Octets to which implementations cut RES."""


_NC = re.compile(r"[0-9A-Fa-f]{8}")


class WrongAnswer(NamedTuple):
    """An answer to a challenge that did not verify, and the challenge; no key."""

    impi: Impi
    impu: Impu
    realm: str  # of the challenge
    nonce: str  # of the challenge, which the answer echoes
    masked: bool
    credentials: Credentials
    earlier: tuple[str, ...] = ()  # nonces of challenges that the user got before, the newest first
    method: str = "REGISTER"

    def __repr__(self) -> str:
        return f"WrongAnswer(impi={self.impi!r})"


class Password(NamedTuple):
    """What may stand for RES in A1, and what is to blame if it does; nothing for RES itself."""

    blamed: Verdict | None
    secret: Secret


class _Hashed(NamedTuple):
    """The inputs of the hash."""

    password: Secret
    username: str
    realm: str
    uri: str
    nonce: str
    qop: str | None
    nc: str | None
    cnonce: str | None
    algorithm: str


class _Wrong(NamedTuple):
    """One way in which an input may have been wrong."""

    blamed: Verdict
    change: Mapping[str, Any]  # fields of _Hashed


def shown(text: str) -> str:
    """Return a name as one may print it: in quotes, short, no control character, nothing that may be a key."""
    return f'"{"".join(c if c.isprintable() else "?" for c in plain(text[:MAX_SHOWN]))}"'


def differences(answer: WrongAnswer) -> tuple[Verdict, ...]:
    """Return what an answer openly says otherwise than its challenge; no hash is computed."""
    given = answer.credentials
    found: list[Verdict] = []
    if given.username != answer.impi:
        found.append(Verdict(Reason.USERNAME, f"{shown(given.username)} is stated"))
    if given.realm != answer.realm:
        found.append(Verdict(Reason.REALM, f"the answer says {shown(given.realm)}, the challenge {shown(answer.realm)}"))
    if given.algorithm is None and answer.masked:
        found.append(Verdict(Reason.ALGORITHM, "none is stated, which means MD5"))
    elif given.algorithm is not None and given.algorithm.lower() != AKA_ALGORITHM.lower():
        found.append(Verdict(Reason.ALGORITHM, f"{shown(given.algorithm)} is stated"))
    return tuple(found) + _qop_differences(given, masked=answer.masked)


def _qop_differences(given: Credentials, *, masked: bool) -> tuple[Verdict, ...]:
    asked = "auth" if masked else given.qop if given.qop in {None, "auth", "auth-int"} else "auth"
    if given.qop != asked:
        problem = f"qop {shown(given.qop)} is stated" if given.qop else "no qop is stated"
    elif given.qop is None:
        return ()
    elif not _NC.fullmatch(given.nc or ""):
        problem = "nc is not eight hexadecimal digits"
    elif masked and given.nc != "00000001":
        problem = "nc is not 00000001"
    elif len(given.cnonce or "") < (MIN_CNONCE if masked else 1):
        problem = f"cnonce has {len(given.cnonce or '')} characters"
    else:
        return ()
    return (Verdict(Reason.QOP, problem),)


def res_passwords(xres: Secret) -> list[Password]:
    """Return RES and the forms in which implementations spoil it: what an S-CSCF can try, that has no key of the user's."""
    octets = xres.reveal()
    found = [Password(None, xres), Password(Verdict(Reason.MAC, "an empty password was hashed"), Secret(b""))]
    spoilt = {
        "hexadecimal text": octets.hex().encode("ascii"),
        "hexadecimal text in capitals": octets.hex().upper().encode("ascii"),
        "base64 text": encode_base64(octets).encode("ascii"),
        "filled up with zeros to 16 octets": octets.ljust(16, b"\0"),
        "cut at its first zero octet": octets.split(b"\0")[0],
        **{f"its first {length} octets": octets[:length] for length in SHORT_RES},
    }
    return found + [Password(Verdict(Reason.RES, form), Secret(value)) for form, value in spoilt.items() if value != octets]


def key_passwords(name: AkaName, k: Secret, opc: Secret, answer: WrongAnswer) -> list[Password]:
    """Return RES and what takes K to try: what an HSS adds.

    Raises ParseError for keys or a nonce of the wrong length.
    """
    rand = parse_aka_nonce(answer.nonce).rand
    right = algorithm_of(name, k, opc).f2345(rand)
    of_op = algorithm_of(name, k, derived(name, k, opc)).f2345(rand).res
    found = [
        Password(None, right.res),
        Password(Verdict(Reason.OP_FOR_OPC, OP_AT_HSS), of_op),
        Password(Verdict(Reason.ALGORITHM, "the password of AKAv2"), aka_v2_password("AKAv2-MD5", right.res, right.ck, right.ik)),
        Password(Verdict(Reason.NO_AKA, "K as hexadecimal text"), Secret(k.reveal().hex().encode("ascii"))),
        Password(Verdict(Reason.NO_AKA, "K itself"), k),
    ]
    for place, nonce in enumerate(answer.earlier[:MAX_EARLIER], 1):
        old = parse_aka_nonce(nonce).rand
        found.append(Password(Verdict(Reason.RAND, f"{place} before the one asked"), algorithm_of(name, k, opc).f2345(old).res))
    return found


OP_AT_HSS: Final = "what the HSS holds as OPc is OP for the UE"


def derived(name: AkaName, k: Secret, op: Secret) -> Secret:
    """Return OPc or TOPc of what may be OP or TOP."""
    return derive_opc(k, op) if name == "milenage" else derive_topc(k, op)


def explain_response(answer: WrongAnswer, passwords: Sequence[Password]) -> Analysis | None:
    """Find the mistakes that yield the response: every single one that does, else every pair; None where none does.

    `passwords` begins with RES itself. An answer that is right but for what it openly states has those differences as its cause.
    """
    if _length(answer.credentials) > MAX_HASHED:
        return Analysis(((Verdict(Reason.NOT_ANALYSED, f"its fields have over {MAX_HASHED} characters"),),))
    given, stated = answer.credentials, differences(answer)
    right = _Hashed(
        passwords[0].secret, given.username, given.realm, given.uri, given.nonce, given.qop, given.nc, given.cnonce, AKA_ALGORITHM
    )  # fmt: skip
    if _yields(answer, right):
        return Analysis((stated,)) if stated else None
    inputs = _inputs(answer, passwords)
    for count in (1, 2):
        found = [(*stated, *blamed) for blamed in _mistaken(answer, right, inputs, count)]
        if found:
            return Analysis(tuple(dict.fromkeys(found)))
    return None


def _length(given: Credentials) -> int:
    fields = (given.username, given.realm, given.nonce, given.uri, given.cnonce, given.nc, given.qop)
    return sum(len(field or "") for field in fields)


def _mistaken(answer: WrongAnswer, right: _Hashed, inputs: Sequence[Sequence[_Wrong]], count: int) -> Iterator[tuple[Verdict, ...]]:
    """Yield what is to blame for each way to get `count` of the inputs wrong that yields the response."""
    for places in itertools.combinations(inputs, count):
        for wrong in itertools.product(*places):
            change = {name: value for one in wrong for name, value in one.change.items()}
            if _yields(answer, right._replace(**change)):
                yield tuple(one.blamed for one in wrong)


def _yields(answer: WrongAnswer, hashed: _Hashed) -> bool:
    try:
        ha1 = hash_a1(hashed.algorithm, hashed.username, hashed.realm, hashed.password)
        made = respond(
            hashed.algorithm, ha1, method=answer.method, uri=hashed.uri, nonce=hashed.nonce, qop=hashed.qop, nc=hashed.nc,
            cnonce=hashed.cnonce,
        )  # fmt: skip
    except (ParseError, LocalProtocolError, DigestRejected):  # a parameter that this way of hashing needs is missing
        return False
    return hmac.compare_digest(made.encode("ascii"), answer.credentials.response.encode("utf-8", "replace"))


def _inputs(answer: WrongAnswer, passwords: Sequence[Password]) -> list[list[_Wrong]]:
    """Return, for each input of the hash, what else it may have been."""
    given = answer.credentials
    user, _, domain = answer.impi.partition("@")
    public = answer.impu.partition(":")[2]
    public_user, _, public_domain = public.partition("@")
    names = (answer.impi, user, public, public_user, answer.impu, f"sip:{answer.impi}")
    realms = (answer.realm, domain, public_domain, f'"{given.realm}"', "")
    return [
        [_Wrong(one.blamed, {"password": one.secret}) for one in passwords if one.blamed is not None],
        _texts("username", Reason.USERNAME, given.username, names),
        _texts("realm", Reason.REALM, given.realm, realms),
        _texts("uri", Reason.URI, given.uri, _uris(answer, domain)),
        _nonces(answer),
        _qops(given),
        [_Wrong(Verdict(Reason.ALGORITHM, f"hashed with {name}"), {"algorithm": name}) for name in ("MD5-sess", "SHA-256")],
    ]


def _texts(name: str, reason: Reason, stated: str, others: Sequence[str]) -> list[_Wrong]:
    wrong = [text for text in dict.fromkeys(others) if text != stated]
    return [_Wrong(Verdict(reason, f"{shown(text)} was hashed"), {name: text}) for text in wrong]


def _uris(answer: WrongAnswer, domain: str) -> tuple[str, ...]:
    realm = answer.realm
    return f"sip:{realm}", f"sips:{realm}", realm, f"sip:{domain}", f"sip:{answer.impi}", answer.impu, f"sip:{realm}:5060", ""


def _nonces(answer: WrongAnswer) -> list[_Wrong]:
    nonce = answer.credentials.nonce
    octets = parse_aka_nonce(answer.nonce)
    found = {
        nonce.rstrip("="): "hashed without its padding",
        encode_base64(octets.rand + octets.autn): "hashed without its server data",
        **{earlier: "that of an earlier challenge was hashed" for earlier in answer.earlier[:MAX_EARLIER]},
    }
    return [_Wrong(Verdict(Reason.NONCE, how), {"nonce": text}) for text, how in found.items() if text != nonce]


def _qops(given: Credentials) -> list[_Wrong]:
    nc = given.nc or "00000001"
    # without a cnonce, implementations hash nothing in its place
    ways: dict[tuple[str | None, str | None, str | None], str] = {
        ("auth", nc, given.cnonce or ""): "hashed with qop=auth",
        ("auth-int", nc, given.cnonce or ""): "hashed with qop=auth-int",
    }
    if given.qop is not None:
        ways[None, given.nc, given.cnonce] = "hashed as if without qop"
        ways |= {(given.qop, other, given.cnonce): f"nc was hashed as {other}" for other in ("1", "00000001")}
    return [
        _Wrong(Verdict(Reason.QOP, how), dict(zip(("qop", "nc", "cnonce"), way, strict=True)))
        for way, how in ways.items()
        if way != (given.qop, given.nc, given.cnonce)
    ]
