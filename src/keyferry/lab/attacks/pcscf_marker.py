# SPDX-License-Identifier: Apache-2.0
"""P-CSCF that changes what UE and S-CSCF tell each other about their releases (DESIGN §4; the table of §5)."""

from __future__ import annotations

from dataclasses import replace

from keyferry.lab.attacks.attack import Attack, Outcome
from keyferry.lab.attacks.town import Setting, Town
from keyferry.protocol.digest import aka_nonce, build_challenge, build_credentials, parse_aka_nonce, parse_challenge, parse_credentials
from keyferry.protocol.ims.marker import RELEASE_TAG, Marker, build_marker
from keyferry.protocol.sip.message import Request, Response, make_response

PARTY = "P-CSCF"
COMPLETE = build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=True))


def with_server_data(response: Response, data: bytes) -> tuple[Response, str, str]:
    """Return a 401 with other server-specific data in its nonce, the nonce as it was and as it is."""
    challenge = parse_challenge(response.get("WWW-Authenticate") or "")
    parts = parse_aka_nonce(challenge.nonce)
    changed = aka_nonce(parts.rand, parts.autn, data)
    text = build_challenge(replace(challenge, nonce=changed, qop=("auth",)))
    return response.replacing("WWW-Authenticate", text), challenge.nonce, changed


def forged_200(request: Request, *extra: tuple[str, str]) -> Response:
    """Return a 200 as a registrar would give it, but for the proof."""
    contact = request.get("Contact") or ""
    return make_response(request, 200, headers=(("Contact", f"{contact};expires=3600"), *extra), to_tag="forged")


def changing_marker(town: Town, data: bytes, *, forge: bool) -> None:
    """Change the marker on its way to the UE, undo it on the way back, and if asked forge the 200 that does not come."""
    before: dict[str, str] = {}

    async def down(request: Request, response: Response) -> Response:
        if response.status == 401:
            response, old, new = with_server_data(response, data)
            before[new] = old
        elif response.status != 200 and forge:
            return forged_200(request)
        return response

    async def up(request: Request) -> Request:
        credentials = parse_credentials(request.get("Authorization") or "")
        undone = replace(credentials, nonce=before.get(credentials.nonce, credentials.nonce))
        return request.replacing("Authorization", build_credentials(undone))

    town.middle.to_ue, town.middle.from_ue = down, up


async def _no_keys(town: Town, *, pushed: bool = False) -> Outcome:
    state = await town.alice.register()
    active = await town.alice.has_keys()
    keys = sum(len(push.keys) for push in town.opened())
    how = "the UE is not registered" if state is None else f"registered: {state.no_keys_because}"
    return Outcome(
        f"{how}; {keys} keys pushed, {'keys active' if active else 'no key active'} at the UE", not active and (pushed or not keys)
    )


async def strip_marker(town: Town) -> Outcome:
    """Take the marker out of every nonce, and put it back into the answers."""
    changing_marker(town, b"", forge=False)
    return await _no_keys(town)


async def insert_marker(town: Town) -> Outcome:
    """Promise keys in the name of a Release 5 S-CSCF, then forge its 200."""
    changing_marker(town, COMPLETE, forge=True)
    return await _no_keys(town)


async def change_marker(town: Town) -> Outcome:
    """Say flags 0 where the S-CSCF said 7, so that the UE protects Gm with raw keys."""
    changing_marker(town, build_marker(Marker(6, access_keys=False, as_keys=True, rspauth=True)), forge=True)
    return await _no_keys(town)


async def strip_release(town: Town) -> Outcome:
    """Take the UE's release out of every REGISTER: the P-CSCF gets raw keys."""

    async def up(request: Request) -> Request:
        return request.replacing("Contact", (request.get("Contact") or "").partition(f";{RELEASE_TAG}")[0])

    town.middle.from_ue = up
    return await _no_keys(town)


async def add_release(town: Town) -> Outcome:
    """State a release for a UE of Release 5: UE and P-CSCF then hold different Gm keys."""

    async def up(request: Request) -> Request:
        return request.replacing("Contact", f'{request.get("Contact")};{RELEASE_TAG}="6"')

    town.middle.from_ue = up
    return await _no_keys(town, pushed=True)


ATTACKS = (
    Attack("strip-marker", PARTY, "takes the release marker out of the nonce, and puts it back into the answer", strip_marker),
    Attack("insert-marker", PARTY, "adds a marker for a Release 5 S-CSCF and forges its 200", insert_marker, Setting(scscf_release=5)),
    Attack("change-marker", PARTY, "clears the marker's flag for access keys and forges the 200", change_marker),
    Attack("strip-release", PARTY, "takes the UE's release out of every REGISTER, so that it gets CK and IK", strip_release),
    Attack("add-release", PARTY, "states a release for a UE of Release 5", add_release, Setting(ue_release=None)),
)
