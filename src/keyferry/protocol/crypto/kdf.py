# SPDX-License-Identifier: Apache-2.0
"""The generic key derivation function (TS 33.220 annex B.2, Release 17)."""

from __future__ import annotations

import hmac

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.secret import Secret

MAX_PARAMETER = 0xFFFF
"""Octets; Li is written in two octets (TS 33.220 §B.2.1)."""


def kdf(key: Secret, fc: bytes, *parameters: bytes) -> Secret:
    """Return HMAC-SHA-256(key, FC || P0 || L0 || P1 || L1 …), 32 octets.

    FC has one octet, or two where its first is 0xFF. Raises LocalProtocolError.
    """
    if len(fc) != 1 and not (len(fc) == 2 and fc[0] == 0xFF):
        raise LocalProtocolError("FC has one octet, or two from FF00 on")
    pieces = [fc]
    for parameter in parameters:
        if len(parameter) > MAX_PARAMETER:
            raise LocalProtocolError(f"a KDF parameter is over {MAX_PARAMETER} octets")
        pieces += (parameter, len(parameter).to_bytes(2, "big"))
    return Secret(hmac.digest(key.reveal(), b"".join(pieces), "sha256"))
