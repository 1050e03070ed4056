# SPDX-License-Identifier: Apache-2.0
"""Digest and Digest AKA: the hashes and the AKA nonce (RFC 7616 §3.4, RFC 3310, RFC 4169), shared by SIP and HTTP.

The header fields themselves are read and written in `digest_header`, and can be imported from here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from keyferry.errors import DigestRejected, LocalProtocolError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest_header import (
    AuthenticationInfo,
    Challenge,
    Credentials,
    build_authentication_info,
    build_challenge,
    build_credentials,
    is_digest,
    parse_authentication_info,
    parse_challenge,
    parse_credentials,
    with_parameter,
    without_parameter,
)

__all__ = [
    "AkaNonce",
    "AuthenticationInfo",
    "Challenge",
    "Credentials",
    "aka_nonce",
    "aka_v2_keys",
    "aka_v2_password",
    "body_hasher",
    "build_authentication_info",
    "build_challenge",
    "build_credentials",
    "check_response",
    "check_rspauth",
    "decode_base64",
    "encode_base64",
    "hash_a1",
    "is_digest",
    "parse_aka_nonce",
    "parse_authentication_info",
    "parse_challenge",
    "parse_credentials",
    "respond",
    "rspauth_of",
    "with_parameter",
    "without_parameter",
]

RAND_OCTETS = 16
AUTN_OCTETS = 16
MIN_NONCE = RAND_OCTETS + AUTN_OCTETS
MAX_NONCE = 96
"""Octets, decoded; RFC 3310 §3.2 gives no limit to the server-specific data, 64 octets are more than ever seen."""

_NC = re.compile(r"[0-9A-Fa-f]{8}")


class AkaNonce(NamedTuple):
    """The contents of an AKA nonce (RFC 3310 §3.2)."""

    rand: bytes  # 16 octets
    autn: bytes  # 16 octets
    server_data: bytes


class _Algorithm(NamedTuple):
    """One value of the `algorithm` parameter."""

    digest: Callable[[bytes], str]
    hash_name: str
    session: bool


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()  # RFC 3310 and phones ask for it; the flag lets it run under a FIPS policy


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_HASHES = {"md5": _md5, "sha-256": _sha256}
_ALGORITHMS = {
    f"{version}{name}{session}": _Algorithm(digest, name.replace("-", ""), bool(session))
    for version in ("", "akav1-", "akav2-")
    for name, digest in _HASHES.items()
    for session in ("", "-sess")
}


def hash_a1(algorithm: str, username: str, realm: str, password: Secret) -> Secret:
    """Return the hex of H(username ":" realm ":" password); the password is octets: RES itself for AKAv1 (RFC 3310 §3.3).

    Raises ParseError for an unknown algorithm.
    """
    a1 = b"%b:%b:%b" % (_octets(username), _octets(realm), password.reveal())
    return Secret(_algorithm(algorithm).digest(a1).encode("ascii"))


def respond(
    algorithm: str,
    ha1: Secret,
    *,
    method: str,
    uri: str,
    nonce: str,
    qop: str | None = None,
    nc: str | None = None,
    cnonce: str | None = None,
    body: bytes = b"",
    body_hash: str | None = None,
) -> str:
    """Return the request-digest (RFC 7616 §3.4.1), or with an empty method the response-digest of rspauth (§3.5).

    `body`, or `body_hash` in its stead, counts with qop auth-int only. A session algorithm takes this nonce and cnonce as those of its
    session.
    Raises ParseError for an unknown algorithm or qop, LocalProtocolError if nc or cnonce is missing.
    """
    return _respond(_algorithm(algorithm), ha1, method, uri, nonce, qop, nc, cnonce, body, body_hash)


def body_hasher(algorithm: str) -> hashlib._Hash:
    """Return a new hash for the body of a message, which may be fed as it arrives; its hexdigest is `body_hash` elsewhere.

    Raises ParseError for an unknown algorithm.
    """
    return hashlib.new(_algorithm(algorithm).hash_name, usedforsecurity=False)


def check_response(
    ha1: Secret, credentials: Credentials, *, algorithm: str, method: str, body: bytes = b"", body_hash: str | None = None
) -> None:
    """Check the response of credentials, in constant time, by the algorithm that was offered.

    `body` or its hash counts with qop auth-int only.
    Whether the nonce is ours and fresh, the uri is the request's, and a qop was required, is for the caller to check.
    Raises DigestRejected.
    """
    named = credentials.algorithm
    if named is not None and named != algorithm and named.lower() != algorithm.lower():
        raise DigestRejected("algorithm is not the one offered")
    if credentials.qop is not None and not (credentials.nc and _NC.fullmatch(credentials.nc)):
        raise DigestRejected("nc is not eight hexadecimal digits")
    expected = _respond_to(ha1, credentials, algorithm, method, body, body_hash)
    if not hmac.compare_digest(expected.encode("ascii"), _octets(credentials.response)):
        raise DigestRejected("response is wrong")


def rspauth_of(ha1: Secret, credentials: Credentials, *, algorithm: str, body: bytes = b"", body_hash: str | None = None) -> str:
    """Return the rspauth that answers credentials already checked; `body` or its hash is the response's.

    Raises DigestRejected for credentials that none can answer.
    """
    return _respond_to(ha1, credentials, algorithm, "", body, body_hash)


def check_rspauth(
    info: AuthenticationInfo, ha1: Secret, credentials: Credentials, *, algorithm: str, body: bytes = b"", integrity: bool = True
) -> None:
    """Check that the server proved the password for these very credentials (RFC 7616 §3.5), in constant time.

    "The server SHOULD use the same value for the [qop] directive in the response as was sent by the client", so it may answer auth-int
    with auth: that is taken without `integrity` alone, as it leaves the body of the answer unproven.
    Raises DigestRejected.
    """
    if info.rspauth is None:
        raise DigestRejected("rspauth is missing")
    if (info.cnonce, info.nc) != (credentials.cnonce, credentials.nc):
        raise DigestRejected("rspauth answers another request")
    if info.qop != credentials.qop:
        if (credentials.qop, info.qop) != ("auth-int", "auth"):
            raise DigestRejected("rspauth is of another qop")
        if integrity:
            raise DigestRejected("the server did not sign the body of its answer")
        credentials = replace(credentials, qop="auth")
    if not hmac.compare_digest(rspauth_of(ha1, credentials, algorithm=algorithm, body=body).encode("ascii"), _octets(info.rspauth)):
        raise DigestRejected("rspauth is wrong")


def aka_v2_password(algorithm: str, res: Secret, ck: Secret, ik: Secret) -> Secret:
    """Return the AKAv2 password, base64 of PRF(RES || IK || CK, …) (RFC 4169 §3).

    Raises ParseError for an unknown algorithm.
    """
    key = res.reveal() + ik.reveal() + ck.reveal()
    return Secret(base64.b64encode(_prf(algorithm, key, b"http-digest-akav2-password")))


def aka_v2_keys(algorithm: str, ck: Secret, ik: Secret) -> tuple[Secret, Secret]:
    """Return CK', IK' that AKAv2 uses in place of CK, IK (RFC 4169 §4.2); they are as long as the hash.

    Raises ParseError for an unknown algorithm.
    """
    ck_prime = _prf(algorithm, ck.reveal(), b"http-digest-akav2-cipherkey")
    return Secret(ck_prime), Secret(_prf(algorithm, ik.reveal(), b"http-digest-akav2-integritykey"))


def aka_nonce(rand: bytes, autn: bytes, server_data: bytes = b"") -> str:
    """Return base64(RAND || AUTN || server-specific data), padded (RFC 3310 §3.2).

    Raises LocalProtocolError.
    """
    if len(rand) != RAND_OCTETS or len(autn) != AUTN_OCTETS or len(server_data) > MAX_NONCE - MIN_NONCE:
        raise LocalProtocolError(f"RAND and AUTN have 16 octets each, the server-specific data at most {MAX_NONCE - MIN_NONCE}")
    return encode_base64(rand + autn + server_data)


def parse_aka_nonce(text: str) -> AkaNonce:
    """Return the contents of an AKA nonce, reverse of `aka_nonce`.

    Raises ParseError.
    """
    octets = decode_base64(text, "AKA nonce", MAX_NONCE)
    if len(octets) < MIN_NONCE:
        raise ParseError("AKA nonce", f"decodes to fewer than {MIN_NONCE} octets")
    return AkaNonce(octets[:RAND_OCTETS], octets[RAND_OCTETS:MIN_NONCE], octets[MIN_NONCE:])


def encode_base64(octets: bytes) -> str:
    """Return padded base64 (RFC 4648 §4), as `auts` is written (RFC 3310 §3.4)."""
    return binascii.b2a_base64(octets, newline=False).decode("ascii")


def decode_base64(text: str, what: str = "base64", maximum: int = MAX_NONCE) -> bytes:
    """Return at most `maximum` octets, reverse of `encode_base64`.

    Only the one canonical text is taken: padded, no white space, trailing bits zero. Raises ParseError that names `what`.
    """
    if len(text) > (maximum + 2) // 3 * 4:
        raise ParseError(what, f"decodes to more than {maximum} octets")
    try:
        octets = binascii.a2b_base64(text)
    except ValueError:
        raise ParseError(what, "not base64") from None
    if len(octets) > maximum or encode_base64(octets) != text:
        raise ParseError(what, "too long, or not canonical base64")
    return octets


def _respond_to(ha1: Secret, credentials: Credentials, algorithm: str, method: str, body: bytes, body_hash: str | None) -> str:
    """Return what `respond` gives for the peer's own parameters; whatever is wrong with them is the peer's fault."""
    given = credentials
    try:
        return _respond(
            _algorithm(algorithm), ha1, method, given.uri, given.nonce, given.qop, given.nc, given.cnonce, body, body_hash
        )  # fmt: skip
    except ParseError as problem:
        raise DigestRejected(str(problem)) from None
    except LocalProtocolError:
        raise DigestRejected("nc or cnonce is missing") from None


def _respond(
    rules: _Algorithm, ha1: Secret, method: str, uri: str, nonce: str, qop: str | None, nc: str | None, cnonce: str | None,
    body: bytes, body_hash: str | None,
) -> str:  # fmt: skip
    digest = rules.digest
    a2 = f"{method}:{uri}"
    if qop == "auth-int":
        a2 = f"{a2}:{digest(body) if body_hash is None else body_hash}"
    elif qop is not None and qop != "auth":
        raise ParseError("Digest qop", "neither auth nor auth-int")
    if (qop is not None and nc is None) or ((qop is not None or rules.session) and cnonce is None):
        raise LocalProtocolError("nc and cnonce go with a qop, cnonce with a session algorithm")
    key = ha1.reveal()
    if rules.session:
        key = digest(b"%b:%b" % (key, _octets(f"{nonce}:{cnonce}"))).encode("ascii")
    hashed = digest(_octets(a2))
    middle = f"{nonce}:{hashed}" if qop is None else f"{nonce}:{nc}:{cnonce}:{qop}:{hashed}"
    return digest(b"%b:%b" % (key, _octets(middle)))


def _algorithm(name: str) -> _Algorithm:
    try:
        return _ALGORITHMS[name.lower()]
    except KeyError:
        raise ParseError("Digest algorithm", "not supported") from None


def _prf(algorithm: str, key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, _algorithm(algorithm).hash_name)


def _octets(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair: no octets decode to it
        raise DigestRejected("a field holds a character that no header can carry") from None
