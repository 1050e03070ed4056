# SPDX-License-Identifier: Apache-2.0
"""A UE that a test plays by hand, straight to the S-CSCF; and what to look for in a ladder."""

from __future__ import annotations

from typing import Any

from keyferry.protocol.aka import Usim, algorithm_of
from keyferry.protocol.digest import Credentials, build_credentials, hash_a1, parse_aka_nonce, parse_challenge, respond
from keyferry.protocol.identity import Impu
from keyferry.protocol.ims.ifc import OnMethod, ServicePointTrigger, TriggerPoint
from keyferry.protocol.sip.message import Request, Response
from roles.home import REALM, Home, subscriber

SIP_ALICE, TEL_ALICE = Impu("sip:alice@home1.net"), Impu("tel:+15550510")
DEVICE = '<sip:alice@192.0.2.1>;+sip.instance="<urn:uuid:9>";+g.keyferry.release="6"'


def on(*types: int) -> TriggerPoint:
    return TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnMethod("REGISTER", types)),))


def requests(home: Home, sender: str, receiver: str) -> list[Request]:
    return [message for message in home.network.sent(sender, receiver) if isinstance(message, Request)]


def answers(home: Home, sender: str, receiver: str) -> list[Response]:
    return [message for message in home.network.sent(sender, receiver) if isinstance(message, Response)]


class Manual:
    """A UE that a test plays by hand, straight to the S-CSCF."""

    def __init__(self, home: Home, user: str = "alice") -> None:
        self.home, self.cseq = home, 0
        own = subscriber(user)
        self.impi, self.impu = own.impi, own.impus[0].impu
        self.usim = Usim(algorithm_of("milenage", own.k, own.opc))

    async def send(
        self, credentials: Credentials | None = None, *, contact: str | None = DEVICE, expires: str = "600", **more: str
    ) -> Response:
        self.cseq += 1
        first = Credentials(self.impi, REALM, "", f"sip:{REALM}", "")
        fields: dict[str, str | None] = {
            "Max-Forwards": "70", "From": f"<{self.impu}>;tag=1", "To": f"<{self.impu}>", "Call-ID": "c", "CSeq": f"{self.cseq} REGISTER",
            "Contact": contact, "Expires": expires, "Path": "<sip:pcscf1.visited1.net;lr>",
            "Authorization": build_credentials(credentials or first), **more,
        }  # fmt: skip
        headers = tuple((name, value) for name, value in fields.items() if value is not None)
        return await self.home.network.carry("X", Request("REGISTER", f"sip:{REALM}", headers), self.home.network.peer("S"))

    def answer(self, challenged: Response) -> Credentials:
        challenge = parse_challenge(challenged.get("WWW-Authenticate") or "")
        nonce = parse_aka_nonce(challenge.nonce)
        res = self.usim.authenticate(nonce.rand, nonce.autn).res
        cnonce, qop, nc = ("c" * 32, "auth", "00000001") if challenge.qop else (None, None, None)
        ha1 = hash_a1("AKAv1-MD5", self.impi, REALM, res)
        uri = f"sip:{REALM}"
        response = respond("AKAv1-MD5", ha1, method="REGISTER", uri=uri, nonce=challenge.nonce, qop=qop, nc=nc, cnonce=cnonce)
        return Credentials(self.impi, REALM, challenge.nonce, uri, response, "AKAv1-MD5", cnonce, qop=qop, nc=nc)

    async def procedure(self, **fields: Any) -> Response:
        """REGISTER > 401 > REGISTER > the answer."""
        return await self.send(self.answer(await self.send(**fields)), **fields)
