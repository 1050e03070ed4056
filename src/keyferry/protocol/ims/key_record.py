# SPDX-License-Identifier: Apache-2.0
"""Whose a key is, and what a source of keys lets a client prove (*ours*, DESIGN §7).

They are here, and not in `ports`, because an application behind the door needs them and nothing of SIP or XML.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg


class KeyRecord(NamedTuple):
    """A key of one application server that is valid now, and whose it is."""

    key_id: KeyId
    as_id: AsId
    impi: Impi
    reg: Reg
    impus: tuple[Impu, ...]  # the default first
    k_as: Secret
    not_before: float  # seconds since the epoch
    not_after: float  # seconds since the epoch
    superseded: bool  # a newer key of the same device is there, not yet used


class Offer(NamedTuple):
    """What a KeySource lets a client prove at one application server."""

    mechanism: str  # "ims-as-key", "static"; later "gba", "akma"
    realm: str  # of Digest; a list with ";" where a client may choose (TS 24.109 §5.2)
    psk_prefix: str  # of a TLS-PSK identity: prefix ";" Ua id in hex ";" identifier
    handsets: bool  # for phones of today: offered alone and with MD5 to a User-Agent that says 3gpp-gba; never true for pushed keys


PSK_SCOPE: Final = "keyferry.psk"
"""Key of an ASGI scope: the `PskProof` of its connection. Our HTTP protocol class sets it, and no octet of a request can."""


class PskProof(NamedTuple):
    """Who proved a key in the TLS handshake of a connection."""

    record: KeyRecord  # as it was then: a connection may live longer than its key
    source: str  # Offer.mechanism of the source that knew it
    ua_id: bytes
    suite: str  # as OpenSSL names it
