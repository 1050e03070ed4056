# SPDX-License-Identifier: Apache-2.0
"""P-CSCF that replays, forges, delays and exchanges what the home network answers (DESIGN §5)."""

from __future__ import annotations

from keyferry.lab.attacks.attack import Attack, Outcome
from keyferry.lab.attacks.closure import View, closure
from keyferry.lab.attacks.judge import foreign_keys, pcscf_view, runs, world_of
from keyferry.lab.attacks.pcscf_marker import COMPLETE, forged_200, with_server_data
from keyferry.lab.attacks.town import ALICE, NOTES, XCAP, Town
from keyferry.ports import UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import build_challenge, parse_challenge, parse_credentials
from keyferry.protocol.ims.activation import MAX_ANSWER_TIME
from keyferry.protocol.ims.marker import RELEASE_TAG
from keyferry.protocol.sip.headers import build_cseq, parse_cseq
from keyferry.protocol.sip.message import Request, Response

PARTY = "P-CSCF"
BOGUS = 'qop=auth,rspauth="00000000000000000000000000000000",cnonce="{cnonce}",nc=00000001'


def answers(request: Request) -> bool:
    """Tell whether a REGISTER answers a challenge."""
    return 'nonce=""' not in (request.get("Authorization") or "")


async def replay_401(town: Town) -> Outcome:
    """Answer the second registration with the 401 of the first, again and again."""
    old: list[str] = []

    async def down(request: Request, response: Response) -> Response:
        del request
        if response.status == 401:
            old.append(response.get("WWW-Authenticate") or "")
            return response.replacing("WWW-Authenticate", old[0])
        return response

    town.middle.to_ue = down
    first = await town.alice.register()
    before = len(town.middle.seen)
    again = await town.alice.register()
    active = await town.alice.has_keys()
    nonce = parse_challenge(old[0]).nonce
    given = [parse_credentials(one.get("Authorization") or "") for one in town.middle.seen[before:] if isinstance(one, Request)]
    reused = any(one.nonce == nonce and one.response and one.auts is None for one in given)
    happened = (
        f"first registration {'with' if first and first.k_m else 'without'} keys; to the old 401 the UE answered with "
        f"{'RES' if reused else 'AUTS'}{' and gave up' if again is None else ''}"
    )
    return Outcome(happened, first is not None and again is None and not active and not reused)


async def forge_200(town: Town) -> Outcome:
    """Answer the first REGISTER, then SM7 without a proof, then SM7 with a guessed one."""
    active = []
    for bogus, early in ((False, True), (False, False), (True, False)):

        async def down(request: Request, response: Response, *, bogus: bool = bogus, early: bool = early) -> Response:
            if not (early or answers(request)):
                return response
            cnonce = _between(request.get("Authorization") or "", 'cnonce="')
            return forged_200(request, *([("Authentication-Info", BOGUS.format(cnonce=cnonce))] if bogus else []))

        town.middle.to_ue = down
        state = await town.alice.register()
        active.append(state is not None and state.k_m is not None)
    return Outcome(f"200 to SM1, to SM7 without rspauth, to SM7 with a guess: keys activated {sum(active)} of 3 times", not any(active))


async def late_rspauth(town: Town) -> Outcome:
    """Hold the true 200 back until one second after the UE's limit; then let the UE hear of it once more."""
    late: list[Response] = []

    async def down(request: Request, response: Response) -> Response:
        del request
        if response.status == 200:
            town.alice.clock.ahead += MAX_ANSWER_TIME + 1
            late.append(response)
        return response

    town.middle.to_ue = down
    state = await town.alice.register()
    reason = state.no_keys_because if state else "not registered"
    return Outcome(f"the true rspauth came 33 s after SM7: {reason}", len(late) == 1 and not await town.alice.has_keys())


async def alter_keys(town: Town) -> Outcome:
    """Change ck and ik in the 401, as if another P-CSCF function were to protect Gm with keys of the attacker's choice."""

    async def down(request: Request, response: Response) -> Response:
        del request
        if response.status != 401:
            return response
        challenge = parse_challenge(response.get("WWW-Authenticate") or "")
        chosen = tuple((name, "00" * 16 if name in {"ck", "ik"} else value) for name, value in challenge.parameters)
        return response.replacing("WWW-Authenticate", build_challenge(challenge.with_parameters(chosen)))

    town.middle.from_home = down
    state = await town.alice.register()
    if state is None or town.middle.pcscf is None:
        return Outcome("the UE is not registered", held=False)
    held, mine = town.middle.pcscf.fingerprint(state.impi, state.contact), state.gm_keys.fingerprint() if state.gm_keys else None
    apart = mine != held == Secret(bytes(32)).fingerprint()
    works = state.k_m is not None and await town.opens(state)
    happened = (
        f"UE and P-CSCF hold {'different' if apart else 'the same'} Gm keys, a protected SM7 would not arrive; "
        f"AS keys do not depend on them: the UE's {'opens' if works else 'does not open'}"
    )
    return Outcome(happened, apart and works)


async def second_challenge(town: Town) -> Outcome:
    """Draw another vector in the UE's name, without its release and so with raw CK, IK, and hand that challenge to the UE."""
    active = []
    for marked, instead in ((False, True), (True, True), (False, False)):

        async def down(request: Request, response: Response, *, marked: bool = marked, instead: bool = instead) -> Response:
            if instead and response.status == 401 and not answers(request):
                return await _drawn(town, request, marked=marked)
            if not instead and response.status == 200:
                town.middle.to_ue = _pass
                return await _drawn(town, request, marked=marked)  # after SM7 of the true vector
            return forged_200(request) if marked and response.status != 200 else response

        town.middle.to_ue = down
        state = await town.alice.register()
        active.append(state is not None and state.k_m is not None)
    happened = "the injected vector instead of the UE's own, with a marker added, and after SM7"
    return Outcome(f"{happened}: keys activated {sum(active)} of 3 times", not any(active))


async def _pass(request: Request, response: Response) -> Response:
    del request
    return response


async def _drawn(town: Town, request: Request, *, marked: bool) -> Response:
    """Send the UE's first REGISTER once more, without its release; return the 401 as if it answered `request`."""
    assert town.middle.pcscf is not None  # noqa: S101 - a town always has one
    first = next(one for one in town.middle.seen if isinstance(one, Request) and not answers(one))
    cseq = parse_cseq(request.get("CSeq") or "")
    own = first.replacing("Contact", (first.get("Contact") or "").partition(f";{RELEASE_TAG}")[0])
    own = own.replacing("CSeq", build_cseq(cseq._replace(number=cseq.number + 1)))
    response = await town.middle.pcscf.handle(own, town.middle.address)
    challenge = response.get("WWW-Authenticate") or ""
    shaped = Response(401, "Unauthorized", ()).with_headers(
        (*((name, value) for name, value in forged_200(request).headers if name != "Contact"), ("WWW-Authenticate", challenge))
    )
    return with_server_data(shaped, COMPLETE)[0] if marked else shaped


async def guess_keys(town: Town) -> Outcome:
    """Register and use both servers, then try every derivation on everything that everybody else holds."""
    bob = town.phones["bob"]
    states = [await phone.register() for phone in (town.alice, bob)]
    for state in states:
        if state is not None:
            for as_id in (XCAP, NOTES):
                await town.status(state, as_id)
    view, world = pcscf_view(town), world_of(town)
    have = all(state is not None and state.k_m is not None for state in states)
    tried = f"{len(view.octets)} values of the P-CSCF alone, {len(view.rands)} RANDs, {len(world.impis)} IMPIs"
    if _follows_twice(town, states[0]):
        return Outcome("a key follows from CK', IK', taken for what they are not", held=False)
    return Outcome(f"{tried}, and with the other AS, the other UE and the wires: K_AS is not among what follows", have)


def _follows_twice(town: Town, state: UeState | None) -> bool:
    """Tell whether a key of the UE's follows from its Gm keys and RANDs with every result taken for a key of another kind too."""
    if state is None or state.gm_keys is None:
        return False
    held = View("Gm keys", rands={run.rand for run in runs(town) if run.user == ALICE})
    held.add(state.gm_keys.reveal())
    found = closure(held, world_of(town), depth=2)
    return any(foreign_keys(town, as_id, [state]) & found for as_id in (XCAP, NOTES))


def _between(text: str, start: str) -> str:
    return text.partition(start)[2].partition('"')[0]


ATTACKS = (
    Attack("replay-401", PARTY, "answers a registration with the 401 of an earlier one", replay_401),
    Attack("forge-200", PARTY, "forges the 200: without a challenge, without rspauth, with a guessed one", forge_200),
    Attack("late-rspauth", PARTY, "passes the true 200 on after 33 s", late_rspauth),
    Attack("alter-keys", PARTY, "sets ck and ik of the 401 to values of its own", alter_keys),
    Attack("second-challenge", PARTY, "draws a second, raw vector in the UE's name and injects its challenge", second_challenge),
    Attack("guess-keys", PARTY, "computes everything that follows from what it and all others hold", guess_keys),
)
