# SPDX-License-Identifier: Apache-2.0
"""What the AKA functions f1…f5* take and give, whichever algorithm computes them (TS 33.102 §6.3, Release 17)."""

from __future__ import annotations

from typing import NamedTuple

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.secret import Secret

RAND_OCTETS = 16
SQN_OCTETS = 6
AMF_OCTETS = 2


class F2345(NamedTuple):
    """The outputs of f2, f3, f4 and f5."""

    res: Secret
    ck: Secret
    ik: Secret
    ak: bytes  # 6 octets; conceals SQN, protects nothing else

    def __repr__(self) -> str:
        return f"F2345(res={self.res!r}, ck={self.ck!r}, ik={self.ik!r})"


def check_inputs(rand: bytes, sqn: bytes, amf: bytes) -> None:
    """Raise LocalProtocolError unless RAND has 16, SQN 6 and AMF 2 octets."""
    if len(rand) != RAND_OCTETS or len(sqn) != SQN_OCTETS or len(amf) != AMF_OCTETS:
        raise LocalProtocolError("RAND has 16 octets, SQN 6, AMF 2")


def check_rand(rand: bytes) -> None:
    """Raise LocalProtocolError unless RAND has 16 octets."""
    if len(rand) != RAND_OCTETS:
        raise LocalProtocolError("RAND has 16 octets")
