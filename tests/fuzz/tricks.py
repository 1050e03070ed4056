# SPDX-License-Identifier: Apache-2.0
"""What a hostile P-CSCF, or an attacker on an unprotected Gm, does to one registration (DESIGN §5): tricks that can be combined."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from keyferry.lab.attacks.middle import HostilePcscf
from keyferry.lab.attacks.pcscf_marker import forged_200, with_server_data
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    AuthenticationInfo,
    Challenge,
    Credentials,
    build_authentication_info,
    build_challenge,
    build_credentials,
    encode_base64,
    hash_a1,
    parse_aka_nonce,
    parse_challenge,
    parse_credentials,
    rspauth_of,
)
from keyferry.protocol.ims.activation import MAX_ANSWER_TIME
from keyferry.protocol.ims.marker import RELEASE_TAG, Marker, build_marker
from keyferry.protocol.sip.message import Request, Response
from roles.network import FakeClock

Up: TypeAlias = Callable[[Request], Awaitable[Request]]
Down: TypeAlias = Callable[[Request, Response], Awaitable[Response]]

MOST_OLD = 64  # 401s and 200s that the attacker keeps for later
MARKERS = {
    "strip-marker": b"",
    "complete-marker": build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=True)),
    "raw-marker": build_marker(Marker(6, access_keys=False, as_keys=True, rspauth=True)),
    "no-proof-marker": build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=False)),
    "long-marker": build_marker(Marker(255, access_keys=True, as_keys=True, rspauth=True)) + bytes(44),
}


async def _up(request: Request) -> Request:
    return request


async def _down(request: Request, response: Response) -> Response:
    return response


@dataclass(frozen=True, slots=True)
class Trick:
    """Three places to change what passes."""

    from_ue: Up = _up
    from_home: Down = _down
    to_ue: Down = _down


@dataclass(slots=True)
class Plot:
    """The attacker's memory, and what it can do."""

    middle: HostilePcscf
    clock: FakeClock
    other_instances: dict[str, str]  # instance → another one of the same user
    other_users: dict[str, str]  # IMPI → another IMPI
    res_of: Callable[[bytes, str], Secret | None]  # (RAND, IMPI) → RES, where a search finds it
    challenges: list[str] = field(default_factory=list)  # WWW-Authenticate as the UEs got them
    firsts: list[Request] = field(default_factory=list)  # SM1s
    proofs: list[str] = field(default_factory=list)  # Authentication-Info
    claims_protected: bool = False  # towards the home network

    def begin(self, names: Sequence[str]) -> None:
        """Take up these tricks; none for an honest P-CSCF."""
        tricks = [TRICKS[name](self) for name in names]
        self.claims_protected = "claim-protected" in names

        async def from_ue(request: Request) -> Request:
            if not answers(request):
                self.firsts = [*self.firsts[1 - MOST_OLD :], request]
            for trick in tricks:
                request = await trick.from_ue(request)
            return request

        async def from_home(request: Request, response: Response) -> Response:
            for trick in tricks:
                response = await trick.from_home(request, response)
            return response

        async def to_ue(request: Request, response: Response) -> Response:
            self.challenges = [*self.challenges, *response.all("WWW-Authenticate")][-MOST_OLD:]
            self.proofs = [*self.proofs, *response.all("Authentication-Info")][-MOST_OLD:]
            for trick in tricks:
                response = await trick.to_ue(request, response)
            return response

        self.middle.from_ue, self.middle.from_home, self.middle.to_ue = from_ue, from_home, to_ue


def answers(request: Request) -> bool:
    """Tell whether a REGISTER answers a challenge."""
    return bool(credentials_of(request).nonce)


def credentials_of(request: Request) -> Credentials:
    return parse_credentials(request.get("Authorization") or "")


def with_credentials(request: Request, credentials: Credentials) -> Request:
    return request.replacing("Authorization", build_credentials(credentials))


def _marker(data: bytes, *, undo: bool = True) -> Callable[[Plot], Trick]:
    """Change the server-specific data on the way to the UE, and undo it on the way back."""

    def made(plot: Plot) -> Trick:
        before: dict[str, str] = {}

        async def down(request: Request, response: Response) -> Response:
            if response.status == 401:
                response, old, new = with_server_data(response, data)
                before[new] = old
            return response

        async def up(request: Request) -> Request:
            credentials = credentials_of(request)
            return with_credentials(request, replace(credentials, nonce=before.get(credentials.nonce, credentials.nonce)))

        return Trick(from_ue=up if undo else _up, to_ue=down)

    return made


def _forge(info: Callable[[Plot, Credentials], str | None], *, early: bool = False) -> Callable[[Plot], Trick]:
    """Answer 200 in the home network's place."""

    def made(plot: Plot) -> Trick:
        async def down(request: Request, response: Response) -> Response:
            if not (early or answers(request)):
                return response
            text = info(plot, credentials_of(request))
            return forged_200(request, *([("Authentication-Info", text)] if text else []))

        return Trick(to_ue=down)

    return made


def _guess(plot: Plot, credentials: Credentials) -> str:
    return build_authentication_info(AuthenticationInfo(rspauth="0" * 32, qop="auth", cnonce=credentials.cnonce, nc="00000001"))


def _old_proof(plot: Plot, credentials: Credentials) -> str | None:
    return plot.proofs[0] if plot.proofs else None


def _searched(plot: Plot, credentials: Credentials) -> str | None:
    """What an attacker can say who found RES: only a short one is ever found."""
    res = plot.res_of(parse_aka_nonce(credentials.nonce).rand, credentials.username)
    if res is None or credentials.qop is None:
        return None
    ha1 = hash_a1("AKAv1-MD5", credentials.username, credentials.realm, res)
    proof = rspauth_of(ha1, credentials, algorithm="AKAv1-MD5")
    return build_authentication_info(AuthenticationInfo(rspauth=proof, qop="auth", cnonce=credentials.cnonce, nc=credentials.nc))


def _release(change: Callable[[str], str], *, first: bool = True, second: bool = True) -> Callable[[Plot], Trick]:
    """Change what the UE's Contact says in SM1, SM7 or both."""

    def made(plot: Plot) -> Trick:
        async def up(request: Request) -> Request:
            wanted = second if answers(request) else first
            return request.replacing("Contact", change(request.get("Contact") or "")) if wanted else request

        return Trick(from_ue=up)

    return made


def _stripped(contact: str) -> str:
    return contact.partition(f";{RELEASE_TAG}")[0]


def _challenge(change: Callable[[Challenge], Challenge], *, at_home: bool = False) -> Callable[[Plot], Trick]:
    """Change a 401, as it comes or as it goes."""

    def made(plot: Plot) -> Trick:
        async def down(request: Request, response: Response) -> Response:
            text = response.get("WWW-Authenticate")
            return response if text is None else response.replacing("WWW-Authenticate", build_challenge(change(parse_challenge(text))))

        return Trick(from_home=down) if at_home else Trick(to_ue=down)

    return made


def _keys_zero(challenge: Challenge) -> Challenge:
    return challenge.with_parameters(tuple((name, "00" * 16 if name in {"ck", "ik"} else value) for name, value in challenge.parameters))


def _answer(change: Callable[[Plot, Credentials], Credentials]) -> Callable[[Plot], Trick]:
    """Change the credentials of SM7."""

    def made(plot: Plot) -> Trick:
        async def up(request: Request) -> Request:
            return with_credentials(request, change(plot, credentials_of(request))) if answers(request) else request

        return Trick(from_ue=up)

    return made


def _longer(plot: Plot, credentials: Credentials) -> Credentials:
    octets = b"".join(parse_aka_nonce(credentials.nonce))[:90]
    return replace(credentials, nonce=encode_base64(octets + bytes(6)))


def _shorter(plot: Plot, credentials: Credentials) -> Credentials:
    return replace(credentials, nonce=encode_base64(b"".join(parse_aka_nonce(credentials.nonce))[:32]))


def _other_user(plot: Plot, credentials: Credentials) -> Credentials:
    return replace(credentials, username=plot.other_users[credentials.username])


def _old_401(place: int) -> Callable[[Plot], Trick]:
    def made(plot: Plot) -> Trick:
        async def down(request: Request, response: Response) -> Response:
            old = plot.challenges[place] if plot.challenges and response.status == 401 else None
            return response if old is None else response.replacing("WWW-Authenticate", old)

        return Trick(to_ue=down)

    return made


def _late(plot: Plot) -> Trick:
    async def down(request: Request, response: Response) -> Response:
        if response.status == 200:
            plot.clock.time += MAX_ANSWER_TIME + 1
        return response

    return Trick(to_ue=down)


def _second(*, marked: bool, after: bool) -> Callable[[Plot], Trick]:
    """Draw another vector in the UE's name, without its release, and hand that challenge to the UE: in place of its own, or after SM7."""

    def made(plot: Plot) -> Trick:
        drawn: list[str] = []

        async def down(request: Request, response: Response) -> Response:
            if drawn or response.status not in {200, 401} or (response.status == 200) is not after or plot.middle.pcscf is None:
                return response
            first = plot.firsts[-1].replacing("Contact", _stripped(plot.firsts[-1].get("Contact") or ""))
            injected = await plot.middle.pcscf.handle(first.replacing("Call-ID", f"second-{len(plot.middle.seen)}"), plot.middle.address)
            text = injected.get("WWW-Authenticate")
            if text is None:
                return response
            drawn.append(text)
            shaped = Response(401, "Unauthorized", (*forged_200(request).without("Contact").headers, ("WWW-Authenticate", text)))
            return with_server_data(shaped, MARKERS["complete-marker"])[0] if marked else shaped

        return Trick(to_ue=down)

    return made


def _instance(*, first: bool) -> Callable[[Plot], Trick]:
    def made(plot: Plot) -> Trick:
        async def up(request: Request) -> Request:
            contact = request.get("Contact") or ""
            for own, other in plot.other_instances.items():
                if own in contact and (first or answers(request)):
                    return request.replacing("Contact", contact.replace(own, other))
            return request

        return Trick(from_ue=up)

    return made


def _ends(plot: Plot) -> Trick:
    async def up(request: Request) -> Request:
        return request.replacing("Expires", "0") if answers(request) else request

    return Trick(from_ue=up)


def _twice(plot: Plot) -> Trick:
    async def down(request: Request, response: Response) -> Response:
        info = response.all("Authentication-Info")
        return response.replacing("Authentication-Info", *info, *info) if info else response

    return Trick(to_ue=down)


def _honest(plot: Plot) -> Trick:
    return Trick()


TRICKS: dict[str, Callable[[Plot], Trick]] = {
    **{name: _marker(data) for name, data in MARKERS.items()},
    "marker-not-undone": _marker(MARKERS["complete-marker"], undo=False),
    "forge-200-to-sm1": _forge(lambda plot, credentials: None, early=True),
    "forge-200": _forge(lambda plot, credentials: None),
    "forge-200-guess": _forge(_guess),
    "forge-200-old-proof": _forge(_old_proof),
    "forge-200-searched-res": _forge(_searched),
    "double-proof": _twice,
    "late-200": _late,
    "strip-release": _release(_stripped),
    "strip-release-of-sm1": _release(_stripped, second=False),
    "strip-release-of-sm7": _release(_stripped, first=False),
    "add-release": _release(lambda contact: f'{_stripped(contact)};{RELEASE_TAG}="6"'),
    "add-release-to-sm7": _release(lambda contact: f'{_stripped(contact)};{RELEASE_TAG}="255"', first=False),
    "alter-keys": _challenge(_keys_zero, at_home=True),
    "no-qop": _challenge(lambda challenge: replace(challenge, qop=())),
    "other-realm": _challenge(lambda challenge: replace(challenge, realm="visited1.net")),
    "old-401": _old_401(0),
    "last-401": _old_401(-1),
    "second-challenge": _second(marked=False, after=False),
    "second-challenge-marked": _second(marked=True, after=False),
    "second-challenge-after": _second(marked=True, after=True),
    "nonce-longer": _answer(_longer),
    "nonce-shorter": _answer(_shorter),
    "other-user": _answer(_other_user),
    "garbage-auts": _answer(lambda plot, credentials: replace(credentials, auts=encode_base64(bytes(14)))),
    "no-response": _answer(lambda plot, credentials: replace(credentials, response="")),
    "guessed-response": _answer(lambda plot, credentials: replace(credentials, response="0" * 32)),
    "other-instance": _instance(first=True),
    "other-instance-in-sm7": _instance(first=False),
    "deregister": _ends,
    "claim-protected": _honest,  # what it does is done towards the home network
}
