# SPDX-License-Identifier: Apache-2.0
"""Why a registration failed: a fixed set of reasons, each with a remedy (*ours*; docs/errors.md has the same table). Never a key."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Which input of AKA or of the Digest disagrees, or what else kept a UE out."""

    MAC = "mac"
    K_OR_OPC = "k-or-opc"
    OP_FOR_OPC = "op-for-opc"
    AMF = "amf"
    SQN_CLEAR = "sqn-clear"
    SQN = "sqn"
    RESYNC_LOOP = "resync-loop"
    AUTS = "auts"
    AUTS_AMF = "auts-amf"
    AUTS_AK = "auts-ak"
    RAND = "rand"
    RES = "res"
    NO_AKA = "no-aka"
    NONCE = "nonce"
    REALM = "realm"
    USERNAME = "username"
    URI = "uri"
    ALGORITHM = "algorithm"
    QOP = "qop"
    UNEXPLAINED = "unexplained"
    NOT_ANALYSED = "not-analysed"
    UNANSWERED = "unanswered"
    USER_UNKNOWN = "user-unknown"
    IDENTITIES = "identities"
    HSS = "hss"
    HSS_AWAY = "hss-away"
    REFUSED = "refused"
    PUSH = "push"


class Advice(NamedTuple):
    """What a reason means, and what to do."""

    says: str
    remedy: str


ADVICE: Mapping[Reason, Advice] = {
    Reason.MAC: Advice(
        "the UE did not accept the MAC in AUTN: it answered without RES",
        "K, OPc or the AMF differ, or somebody changed the challenge: compare the card's with the HSS's. The UE knows more: "
        "`keyferry ue register` says which",
    ),
    Reason.K_OR_OPC: Advice(
        "the MAC in AUTN is wrong for this card, and no usual mistake explains it",
        "K or OPc differ, or somebody changed RAND or AUTN: compare K, OPc and the algorithm of the card with those of the HSS",
    ),
    Reason.OP_FOR_OPC: Advice(
        "one side takes OP where the other takes OPc",
        "OPc is made of OP and K, once: give the value as `op` or as `opc`, whichever it is, on the side named",
    ),
    Reason.AMF: Advice(
        "the MAC in AUTN was made for another AMF than AUTN shows",
        "somebody changed the AMF on its way, or the AuC signs another one than it sends: compare `amf` of the subscriber",
    ),
    Reason.SQN_CLEAR: Advice(
        "AUTN holds SQN in clear",
        "the AuC has to conceal SQN with AK, the output of f5 (TS 33.102 §6.3.2)",
    ),
    Reason.SQN: Advice(
        "the SQN of the challenge is not fresh for the card",
        "once is normal after an HSS was set up anew: it takes SQN_MS over and challenges again. Each time: two HSSs serve one card, "
        "or the HSS loses its SQN",
    ),
    Reason.RESYNC_LOOP: Advice(
        "two synchronisation failures in a row",
        "the HSS does not take SQN_MS from AUTS: look at its SQN, and at who else makes vectors for this card",
    ),
    Reason.AUTS: Advice(
        "MAC-S in AUTS is wrong, or AUTS has another form",
        "K or OPc differ, or somebody changed AUTS: an HSS must not believe it",
    ),
    Reason.AUTS_AMF: Advice(
        "MAC-S in AUTS was made for another AMF than zero",
        "for AUTS the card takes AMF* = 0000 (TS 33.102 §6.3.3), not the AMF of AUTN",
    ),
    Reason.AUTS_AK: Advice(
        "AUTS conceals SQN_MS in another way than with AK*",
        "for AUTS the card takes f5*, not f5 and not nothing (TS 33.102 §6.3.3)",
    ),
    Reason.RAND: Advice(
        "the UE computed with the RAND of an earlier challenge",
        "the UE has to run AKA again for each challenge and keep no RES",
    ),
    Reason.RES: Advice(
        "the response holds RES in another form",
        "the password of AKAv1 is RES itself, all its octets, zeros too (RFC 3310 §3.3)",
    ),
    Reason.NO_AKA: Advice(
        "the response was made with another password than RES",
        "the UE runs plain Digest: switch it to AKAv1-MD5 with K and OPc",
    ),
    Reason.NONCE: Advice(
        "the nonce is not, or not wholly, the one of the challenge",
        "the UE has to echo and to hash the nonce of the last 401 as it stands, padding and server data included (RFC 3310 §3.2)",
    ),
    Reason.REALM: Advice(
        "the realm is not the one of the challenge",
        "the UE has to take the realm of the 401; set its home network domain name",
    ),
    Reason.USERNAME: Advice(
        "the response was made for another username",
        "the username is the IMPI, whole, without `sip:`",
    ),
    Reason.URI: Advice(
        "the response was made for another uri than the one stated",
        "the UE has to hash the `uri` parameter as it sends it; a proxy must not change it",
    ),
    Reason.ALGORITHM: Advice(
        "the response was made by another algorithm than the one offered",
        "the UE has to answer AKAv1-MD5, and to say so",
    ),
    Reason.QOP: Advice(
        "qop, nc and cnonce are not those of the hash, or not those that the challenge asks for",
        "an answer to a challenge with qop=auth has qop=auth, nc=00000001 and a cnonce of 16 characters, and hashes them as sent",
    ),
    Reason.UNEXPLAINED: Advice(
        "the response is wrong, and no usual mistake explains it",
        "compare K and OPc of the UE with those of the HSS: a client that does not check AUTN notices nothing itself",
    ),
    Reason.NOT_ANALYSED: Advice(
        "the response is wrong; it was not analysed",
        "too many fail at the moment, or its fields are too long: look at a later one",
    ),
    Reason.UNANSWERED: Advice(
        "the challenge was never answered",
        "the 401 did not reach the UE, or the UE did not like it: look at the UE, and at `keyferry trace --follow`",
    ),
    Reason.USER_UNKNOWN: Advice(
        "the HSS does not know this IMPI",
        "add it (`keyferry subscriber add`), or correct the UE's IMPI",
    ),
    Reason.IDENTITIES: Advice(
        "the public identity is not one of this IMPI's",
        "compare the UE's IMPU with `keyferry subscriber show IMPI`",
    ),
    Reason.HSS: Advice(
        "the HSS refused or failed",
        "look at the HSS's own log for this time",
    ),
    Reason.HSS_AWAY: Advice(
        "the HSS could not be asked, or had too much to do",
        "see that it runs, at the address in `cx.peers`, and that both show the names that the other expects",
    ),
    Reason.REFUSED: Advice(
        "the network refused the registration",
        "the network knows why: `keyferry failures --impi IMPI` there, /ready, and the log of an S-CSCF that is not ours",
    ),
    Reason.PUSH: Advice(
        "an application server did not take its key, or the word of the registration",
        "see that the server runs, at its address, and what it answered; it is tried again while the user is registered",
    ),
}


class Verdict(NamedTuple):
    """One reason, with what is special about this case: names and distances, never a key, a response or a nonce."""

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        says = ADVICE[self.reason].says
        return f"{says}: {self.detail}" if self.detail else says


class Analysis(NamedTuple):
    """What explains a failure: alternatives, each of them one verdict or several that hold together."""

    causes: tuple[tuple[Verdict, ...], ...]

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every reason once, in order."""
        return tuple(dict.fromkeys(verdict.reason for cause in self.causes for verdict in cause))

    @property
    def text(self) -> str:
        """Say it in one line."""
        return "; or ".join("; and ".join(map(str, cause)) for cause in self.causes)

    @property
    def remedy(self) -> str:
        """Say what to do, in one line."""
        return "; ".join(ADVICE[reason].remedy for reason in self.reasons)


def because(reason: Reason, detail: str = "") -> Analysis:
    """Return an analysis that is one verdict."""
    return Analysis(((Verdict(reason, detail),),))
