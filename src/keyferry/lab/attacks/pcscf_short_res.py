# SPDX-License-Identifier: Apache-2.0
"""P-CSCF that searches a short RES: 2^32 hashes against the response of SM7, then it can forge rspauth (DESIGN §5 step 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from keyferry.lab.attacks.attack import Attack, Outcome
from keyferry.lab.attacks.pcscf_marker import COMPLETE, forged_200, with_server_data
from keyferry.lab.attacks.town import Town
from keyferry.ports import CxClient, Resync, ServerAssignment
from keyferry.protocol.aka import AkaAlgorithm, AuthVector, Usim, algorithm_of
from keyferry.protocol.crypto.functions import F2345
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import AuthenticationInfo, build_authentication_info, hash_a1, parse_credentials, rspauth_of
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.sip.message import Request, Response

SHORT = 4  # octets: the least that TS 33.102 §6.3.7 allows


@dataclass(frozen=True, slots=True)
class ShortRes:
    """AKA functions whose RES has 4 octets."""

    whole: AkaAlgorithm

    def f1(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-A."""
        return self.whole.f1(rand, sqn, amf)

    def f1_star(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-S."""
        return self.whole.f1_star(rand, sqn, amf)

    def f2345(self, rand: bytes) -> F2345:
        """Return a short RES, CK, IK and AK."""
        return _short(self.whole.f2345(rand))

    def f5_star(self, rand: bytes) -> bytes:
        """Return AK*."""
        return self.whole.f5_star(rand)

    def vector(self, rand: bytes, sqn: bytes, amf: bytes) -> tuple[bytes, F2345]:
        """Return MAC-A and f2…f5."""
        mac, made = self.whole.vector(rand, sqn, amf)
        return mac, _short(made)


def _short(made: F2345) -> F2345:
    return made._replace(res=Secret(made.res.reveal()[:SHORT]))


@dataclass(frozen=True, slots=True)
class ShortCx:
    """An HSS whose vectors have an XRES of 4 octets; the attacker has it after the search."""

    whole: CxClient
    found: list[Secret]

    async def user_authorization(
        self, impi: Impi, impu: Impu, visited_network: str, kind: AuthorizationType = AuthorizationType.REGISTRATION
    ) -> UserAuthorization:
        """UAR."""
        return await self.whole.user_authorization(impi, impu, visited_network, kind)

    async def location_info(self, impu: Impu) -> str:
        """LIR."""
        return await self.whole.location_info(impu)

    async def multimedia_auth(
        self, impi: Impi, impu: Impu, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        """MAR."""
        vector = await self.whole.multimedia_auth(impi, impu, server_name, resync, masked=masked)
        self.found.append(Secret(vector.xres.reveal()[:SHORT]))
        return replace(vector, xres=self.found[-1])

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment) -> bytes:
        """SAR."""
        return await self.whole.server_assignment(impi, impu, server_name, assignment)


async def short_res(town: Town) -> Outcome:
    """Let both sides use the short RES; then, RES found, promise keys and forge the 200 with the right rspauth."""
    found: list[Secret] = []
    registrar, card = town.system.registrar, town.alice.card
    if registrar is None:
        return Outcome("no S-CSCF", held=False)
    authenticator = replace(registrar.authenticator, cx=ShortCx(registrar.authenticator.cx, found))
    object.__setattr__(registrar, "authenticator", authenticator)  # the running S-CSCF is frozen; the instrument exchanges its HSS
    town.alice.client.ue.usim = Usim(ShortRes(algorithm_of(card.algorithm, card.k, card.opc)))
    honest = await town.alice.register()

    async def down(request: Request, response: Response) -> Response:
        if response.status == 401 and 'nonce=""' in (request.get("Authorization") or ""):
            return with_server_data(response, COMPLETE)[0]
        credentials = parse_credentials(request.get("Authorization") or "")
        for res in found[-3:]:
            ha1 = hash_a1("AKAv1-MD5", credentials.username, credentials.realm, res)
            proof = rspauth_of(ha1, credentials, algorithm="AKAv1-MD5")
            info = AuthenticationInfo(rspauth=proof, qop=credentials.qop, cnonce=credentials.cnonce, nc=credentials.nc)
            if res is found[1]:  # the vector that the UE answered
                return forged_200(request, ("Authentication-Info", build_authentication_info(info)))
        return response

    town.middle.to_ue = down
    forged = await town.alice.register()
    reason = forged.no_keys_because if forged else "no registration"
    proven = forged is not None and forged.rspauth
    keys = sum(len(push.keys) for push in town.opened())
    happened = f"{keys} keys pushed; forged rspauth {'verified' if proven else 'refused'}, {reason}"
    return Outcome(happened, honest is not None and honest.k_m is None and proven and not keys and not await town.alice.has_keys())


ATTACKS = (Attack("short-res", "P-CSCF", "finds a RES of 4 octets by search, promises keys and forges rspauth", short_res),)
