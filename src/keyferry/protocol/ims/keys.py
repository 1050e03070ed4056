# SPDX-License-Identifier: Apache-2.0
"""The keys that grow from one IMS AKA run (*ours*; KDF of TS 33.220 annex B.2, Release 17).

CK, IK of the vector yield the access keys CK', IK' for Gm and the application master key K_M; K_M yields one AS key
K_AS per application server; K_AS yields its key id and one protocol key K_UA per way of using it over HTTP.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from keyferry.errors import LocalProtocolError, ParseError, PushRefused
from keyferry.protocol.crypto.kdf import kdf
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, KeyId

# Private FC values: TS 33.220 §B.2.2 allocates none of them.
_FC_ACCESS = b"\xff\xf0"
_FC_MASTER = b"\xff\xf1"
_FC_AS = b"\xff\xf2"
_FC_UA = b"\xff\xf3"
_FC_FIRST_NONCE = b"\xff\xf4"
_FC_KEY_ID = b"\xff\xf5"

UA_DIGEST = bytes.fromhex("0100000002")
"""Ua security protocol identifier of HTTP Digest (TS 33.220 annex H)."""
UA_TLS13_PSK = bytes.fromhex("0100000007")
"""Ua security protocol identifier of TLS 1.3 with a pre-shared key."""
UA_ID_OCTETS = 5
_UA_TLS = b"\x01\x00\x01"  # TS 33.220 annex H: and the cipher suite, two octets

TLS12_PSK_SUITES: Mapping[str, bytes] = MappingProxyType(
    {
        "ECDHE-PSK-CHACHA20-POLY1305": bytes.fromhex("ccac"),  # RFC 7905
        "ECDHE-PSK-AES128-CBC-SHA256": bytes.fromhex("c037"),  # RFC 5489
        "ECDHE-PSK-AES256-CBC-SHA384": bytes.fromhex("c038"),
    }
)
"""Suites of TLS 1.2 with a pre-shared key and forward secrecy, by the names that OpenSSL gives them."""

MECHANISM = "ims-as-key"
"""What logs and identities call a proof of a pushed key."""
PSK_PREFIX = "IMS-AS-key"
"""What a TLS-PSK identity begins with, before ";" (compare TS 33.222 §5.4)."""

_REALM_PREFIX = "IMS-AS-key@"
_PSK_IDENTITY = re.compile(r"([\x21-\x3a\x3c-\x7e]{1,64});([0-9a-fA-F]{10});([\x21-\x7e]{1,255})")


class AccessKeys(NamedTuple):
    """CK' and IK', 16 octets each: what the P-CSCF gets instead of CK and IK."""

    ck: Secret
    ik: Secret


def access_keys(ck: Secret, ik: Secret, rand: bytes, impi: Impi) -> AccessKeys:
    """Derive CK', IK' of one vector; they tell nothing about CK, IK or K_M."""
    octets = kdf(_ck_ik(ck, ik), _FC_ACCESS, b"ims-access", _rand(rand), _octets(impi)).reveal()
    return AccessKeys(Secret(octets[:16]), Secret(octets[16:]))


def application_master_key(ck: Secret, ik: Secret, rand: bytes, impi: Impi) -> Secret:
    """Derive K_M (32 octets) of one vector; CK and IK can then be dropped."""
    return kdf(_ck_ik(ck, ik), _FC_MASTER, b"ims-app-master", _rand(rand), _octets(impi))


def as_key(k_m: Secret, as_id: AsId) -> Secret:
    """Derive K_AS (32 octets), the key that is pushed to one application server."""
    return kdf(_key(k_m), _FC_AS, b"ims-as", _octets(as_id))


def ua_key(k_as: Secret, ua_id: bytes = UA_DIGEST) -> Secret:
    """Derive K_UA (32 octets) for one Ua security protocol, of 5 octets."""
    return kdf(_key(k_as), _FC_UA, b"ua", _ua_id(ua_id))


def first_nonce(k_ua: Secret) -> str:
    """Return the nonce of the first request, 32 characters; meant for HTTP Digest only."""
    return _base64url(kdf(_key(k_ua), _FC_FIRST_NONCE, b"first-nonce"), 24)


def key_id(k_as: Secret, realm: str) -> KeyId:
    """Return the name of K_AS: 24 characters, "@", the realm of the SIP challenge."""
    return KeyId(_base64url(kdf(_key(k_as), _FC_KEY_ID, b"key-id"), 18) + "@" + realm)


def check_key_id(claimed: KeyId, k_as: Secret, realm: str) -> None:
    """Check that a pushed key has the name it came with: nobody can file a key under another one's name.

    Raises PushRefused.
    """
    if not hmac.compare_digest(_octets(claimed), _octets(key_id(k_as, realm))):
        raise PushRefused("key-id")


def digest_realm(as_id: AsId) -> str:
    """Return the realm in which an application server asks for a pushed key over HTTP Digest."""
    return _REALM_PREFIX + as_id


def digest_password(k_ua: Secret) -> Secret:
    """Return the Digest password, base64 of K_UA: 44 ASCII characters."""
    return Secret(base64.b64encode(k_ua.reveal()))


def ua_tls12_psk(suite: str) -> bytes:
    """Return the Ua id of TLS 1.2 with a suite of `TLS12_PSK_SUITES`. Raises LocalProtocolError."""
    if suite not in TLS12_PSK_SUITES:
        raise LocalProtocolError("not a suite of TLS 1.2 with a pre-shared key and forward secrecy that we know")
    return _UA_TLS + TLS12_PSK_SUITES[suite]


def psk_identity(ua_id: bytes, name: KeyId) -> str:
    """Return the identity that a TLS client offers for the K_UA of `ua_id`."""
    return f"{PSK_PREFIX};{_ua_id(ua_id).hex()};{name}"


class PskIdentity(NamedTuple):
    """What a TLS client says of the key that it wants to use."""

    prefix: str
    ua_id: bytes
    name: str  # of the key: what a KeySource is asked for


def parse_psk_identity(text: str) -> PskIdentity:
    """Take an identity apart, reverse of `psk_identity`. Raises ParseError."""
    found = _PSK_IDENTITY.fullmatch(text)
    if found is None:
        raise ParseError("PSK identity", 'not PREFIX ";" Ua id in hexadecimal ";" key id')
    return PskIdentity(found[1], bytes.fromhex(found[2]), found[3])


def derive_keys(*, ck: Secret, ik: Secret, rand: bytes, impi: Impi, as_id: AsId, ua_id: bytes, realm: str) -> dict[str, str]:
    """Return the whole hierarchy of DESIGN §3 in the words of the test vectors, in clear: its purpose is to print keys."""
    access = access_keys(ck, ik, rand, impi)
    k_m = application_master_key(ck, ik, rand, impi)
    k_as = as_key(k_m, as_id)
    k_ua = ua_key(k_as, ua_id)
    name = key_id(k_as, realm)
    derived = {
        "ck_prime": access.ck.reveal().hex(),
        "ik_prime": access.ik.reveal().hex(),
        "k_m": k_m.reveal().hex(),
        "k_as": k_as.reveal().hex(),
        "k_ua": k_ua.reveal().hex(),
        "digest_password": digest_password(k_ua).reveal().decode("ascii"),
        "first_nonce": first_nonce(k_ua),
        "key_id": name,
        "psk_identity": psk_identity(ua_id, name),
    }
    if ua_id == UA_DIGEST:
        derived["digest_realm"] = digest_realm(as_id)
    return derived


def _ck_ik(ck: Secret, ik: Secret) -> Secret:
    if len(ck) != 16 or len(ik) != 16:
        raise LocalProtocolError("CK and IK have 16 octets each")
    return Secret(ck.reveal() + ik.reveal())


def _key(key: Secret) -> Secret:
    if len(key) != 32:
        raise LocalProtocolError("a derived key has 32 octets")
    return key


def _rand(rand: bytes) -> bytes:
    if len(rand) != 16:
        raise LocalProtocolError("RAND has 16 octets")
    return rand


def _ua_id(ua_id: bytes) -> bytes:
    if len(ua_id) != UA_ID_OCTETS:
        raise LocalProtocolError(f"a Ua id has {UA_ID_OCTETS} octets")
    return ua_id


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _base64url(key: Secret, octets: int) -> str:
    """Return the first octets, a multiple of three, so without padding."""
    return base64.urlsafe_b64encode(key.reveal()[:octets]).decode("ascii")
