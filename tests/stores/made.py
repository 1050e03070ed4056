# SPDX-License-Identifier: Apache-2.0
"""Records that the tests of the stores store."""

from __future__ import annotations

import hashlib

from keyferry.ports import PendingPush, Registration, SubscribedImpu, Subscriber, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.protocol.ims.keys import key_id

IMPI = Impi("001010000000001@ims.example")
IMPU = Impu("sip:alice@ims.example")
TEL = Impu("tel:+15550001")
AS_ID = AsId("xcap.ims.example")
REG = Reg("AAAAAAAAAAAA")
OTHER_REG = Reg("BBBBBBBBBBBB")
PUSHER = "scscf.ims.example"
REALM = "ims.example"
NOW = 1_000_000.0


class CountedRandom:
    """Octets that differ from call to call and are the same in every run; `fail_at` is the call that does not return."""

    def __init__(self, fail_at: int = 0) -> None:
        self.calls = 0
        self.fail_at = fail_at

    def octets(self, count: int) -> bytes:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return hashlib.shake_256(b"%d" % self.calls).digest(count)


def key(name: str, octets: int = 32) -> Secret:
    return Secret(hashlib.shake_256(name.encode()).digest(octets))


def subscriber(number: int = 1, **changes: object) -> Subscriber:
    fields: dict[str, object] = {
        "impi": Impi(f"00101000000000{number}@ims.example"),
        "impus": (SubscribedImpu(Impu(f"sip:user{number}@ims.example")), SubscribedImpu(Impu(f"tel:+1555000{number}"), barred=True)),
        "algorithm": "milenage",
        "k": key(f"k{number}", 16),
        "opc": key(f"opc{number}", 16),
        "amf": b"\x80\x00",
        "profile": "default",
    }
    return Subscriber(**{**fields, **changes})  # type: ignore[arg-type]


def registration(impi: Impi = IMPI, reg: Reg = REG, **changes: object) -> Registration:
    fields: dict[str, object] = {
        "impi": impi,
        "reg": reg,
        "impu": IMPU,
        "contact": '<sip:alice@192.0.2.1>;+sip.instance="<urn:x>"',
        "path": ("<sip:pcscf.ims.example;lr>",),
        "call_id": "call",
        "cseq": 2,
        "realm": REALM,
        "expires_at": NOW + 600,
        "aka_time": NOW,
        "key_not_before": NOW,
        "release": 6,
        "k_m": key("k_m"),
        "user_data": b"<IMSSubscription/>",
    }
    return Registration(**{**fields, **changes})  # type: ignore[arg-type]


def pending(seq: int, impi: Impi = IMPI, reg: Reg = REG, **changes: object) -> PendingPush:
    fields: dict[str, object] = {
        "impi": impi,
        "as_id": AS_ID,
        "reg": reg,
        "seq": seq,
        "erase": False,
        "server_name": "sip:as.ims.example",
        "impu": IMPU,
        "give_up_at": NOW + 60,
    }
    return PendingPush(**{**fields, **changes})  # type: ignore[arg-type]


def pushed_key(name: str, *, start: float = NOW, end: float = NOW + 3600, realm: str = REALM) -> PushedKey:
    return PushedKey(key_id(key(name), realm), key(name), int(start), int(end))


def push(seq: int, *names: str, impi: Impi = IMPI, reg: Reg = REG, as_id: AsId = AS_ID, impus: tuple[Impu, ...] = (IMPU, TEL)) -> Push:
    return Push(seq, impi, as_id, reg, tuple([pushed_key(name) for name in names]), impus, "naf=xcap.ims.example")


def ue_state(**changes: object) -> UeState:
    fields: dict[str, object] = {
        "impi": IMPI,
        "seq_ms": tuple(range(32)),
        "call_id": "call",
        "cseq": 7,
        "contact": "<sip:alice@192.0.2.1>",
        "impu": IMPU,
        "realm": REALM,
        "expires_at": NOW,
        "release_marker": b"3G\x06\x07",
        "masked": True,
        "rspauth": True,
        "k_m": key("k_m"),
        "gm_keys": key("gm"),
        "no_keys_because": "",
        "associated": (IMPU, TEL),
        "service_route": ("<sip:scscf.ims.example;lr>",),
        "pinned": (REALM,),
    }
    return UeState(**{**fields, **changes})  # type: ignore[arg-type]
