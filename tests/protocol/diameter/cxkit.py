# SPDX-License-Identifier: Apache-2.0
"""Cx messages of every kind, to be rendered, read, mutated."""

from __future__ import annotations

from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DiameterIdentity, Identifiers, Result
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.protocol.identity import Impi, Impu

HSS = DiameterIdentity("hss.home1.net", "home1.net")
SCSCF = DiameterIdentity("scscf1.home1.net", "home1.net", origin_state=7)
TO_HSS = cx.Route(SCSCF, "scscf1.home1.net;1;2", "home1.net", "hss.home1.net")
TO_SCSCF = cx.Route(HSS, "hss.home1.net;1;2", "home1.net", "scscf1.home1.net")

IMPI, IMPU, IMPU2 = Impi("user1_private@home1.net"), Impu("sip:user1_public1@home1.net"), Impu("tel:+4930123456")
SERVER = "sip:scscf1.home1.net:6060"
VECTOR = AuthVector(
    bytes(range(16)), bytes(range(16, 32)), Secret(b"\xc0\xff\xee\0res!"), Secret(b"C" * 15 + b"\xc1"), Secret(b"I" * 15 + b"\xc2")
)
KEYS = (VECTOR.xres, VECTOR.ck, VECTOR.ik)
RESYNCHRONISATION = cx.Resynchronisation(bytes(range(16)), bytes(range(100, 114)))
FIRST = Result(cx.CxResult.FIRST_REGISTRATION, experimental=True)

UAR = cx.Uar(IMPI, IMPU, "visited1.net", cx.UserAuthorizationType.REGISTRATION_AND_CAPABILITIES)
UAA = cx.Uaa(FIRST, None, cx.Capabilities((1, 2), (3,), (SERVER, "sip:scscf2.home1.net")))
LIR = cx.Lir(IMPU2)
LIA = cx.Lia(cx.SUCCESS, SERVER)
MAR = cx.Mar(IMPI, IMPU, SERVER, items=2, resynchronisation=RESYNCHRONISATION)
MAA = cx.Maa(IMPI, IMPU, (cx.AuthItem(VECTOR, b"3G\x06\x07"), cx.AuthItem(VECTOR)))
SAR = cx.Sar(IMPI, (IMPU, IMPU2), SERVER, cx.ServerAssignmentType.REGISTRATION, user_data_available=True)
SAA = cx.Saa(IMPI, b"<IMSSubscription/>", associated=(IMPI, Impi("other@home1.net")))
RTR = cx.Rtr(IMPI, (IMPU,), cx.ReasonCode.SERVER_CHANGE, "moved", (Impi("other@home1.net"),))
RTA = cx.Rta((Impi("other@home1.net"),))
PPR = cx.Ppr(IMPI, b"<IMSSubscription>\xc3\xa4</IMSSubscription>")


def requests() -> dict[str, DiameterMessage]:
    """Return one of each command."""
    return {
        "UAR": cx.build_uar(UAR, TO_HSS),
        "LIR": cx.build_lir(LIR, TO_HSS),
        "MAR": cx.build_mar(MAR, TO_HSS),
        "SAR": cx.build_sar(SAR, TO_HSS),
        "RTR": cx.build_rtr(RTR, TO_SCSCF),
        "PPR": cx.build_ppr(PPR, TO_SCSCF),
    }


def answers() -> dict[str, DiameterMessage]:
    """Return one answer to each of them."""
    asked = {name: request.with_ids(0xFFFF_FFFF, 5) for name, request in requests().items()}
    return {
        "UAA": cx.build_uaa(asked["UAR"], UAA, HSS),
        "LIA": cx.build_lia(asked["LIR"], LIA, HSS),
        "MAA": cx.build_maa(asked["MAR"], MAA, HSS),
        "SAA": cx.build_saa(asked["SAR"], SAA, HSS),
        "RTA": cx.build_rta(asked["RTR"], RTA, SCSCF),
        "PPA": cx.build_ppa(asked["PPR"], SCSCF),
    }


def base_messages() -> dict[str, DiameterMessage]:
    """Return the messages of the base protocol, and errors."""
    numbers = Identifiers(1, 1)
    cer = base.build_cer(SCSCF, ["127.0.0.1", "2001:db8::1"]).with_ids(numbers.hop_by_hop(), numbers.end_to_end())
    dpr = base.build_dpr(HSS, base.DisconnectCause.BUSY)
    return {
        "CER": cer,
        "CEA": base.build_cea(cer, HSS, ["192.0.2.1"]),
        "DWR": base.build_dwr(SCSCF),
        "DWA": base.build_dwa(base.build_dwr(SCSCF), HSS),
        "DPR": dpr,
        "DPA": base.build_dpa(dpr, SCSCF),
        "unknown peer": base.build_cea(cer, HSS, ["192.0.2.1"], base.ResultCode.UNKNOWN_PEER),
        "unsupported": base.error_answer(cer, 3001, HSS, failed=cer.avps[0], message="no such command"),
        "user unknown": cx.build_error(requests()["MAR"], cx.error_for(cx.CxResult.ERROR_USER_UNKNOWN), HSS),
    }


def every_message() -> dict[str, DiameterMessage]:
    """Return all of them by name."""
    return requests() | answers() | base_messages()
