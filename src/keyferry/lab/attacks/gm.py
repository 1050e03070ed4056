# SPDX-License-Identifier: Apache-2.0
"""Attackers on Gm, where the first REGISTER is not protected yet, and strangers with addresses of their own (DESIGN §5)."""

from __future__ import annotations

import asyncio

from keyferry.errors import KeyferryError
from keyferry.lab.attacks.attack import Attack, Outcome
from keyferry.lab.attacks.pcscf_answers import answers
from keyferry.lab.attacks.town import Town
from keyferry.protocol.ims.marker import RELEASE_TAG
from keyferry.protocol.sip.message import Request, Response

FLOOD = 2_000  # REGISTERs: two seconds at 1,000/s
ADDRESSES = 16  # of the stranger's; per address and user 64 challenges are kept
AT_ONCE = 8  # per address


async def strip_first(town: Town) -> Outcome:
    """Take the release out of SM1 only; SM7, under the Gm keys, cannot be changed."""

    async def up(request: Request) -> Request:
        if answers(request):
            return request
        return request.replacing("Contact", (request.get("Contact") or "").partition(f";{RELEASE_TAG}")[0])

    town.middle.from_ue = up
    state = await town.alice.register()
    keys = sum(len(push.keys) for push in town.opened())
    alarms = town.count("scscf_capability_lost")
    happened = f"registered without keys ({state.no_keys_because if state else 'not registered'}); {keys} pushed, {alarms:.0f} alarm"
    return Outcome(happened, state is not None and state.k_m is None and not keys and alarms == 1)


async def flood(town: Town) -> Outcome:
    """Send REGISTERs for the victim's IMPI between its SM1 and SM7, from many addresses."""
    sent: list[float] = []

    async def down(request: Request, response: Response) -> Response:
        if response.status == 401 and not answers(request) and not sent:
            sent.append(await _pour(town, request))
        return response

    town.middle.to_ue = down
    state = await town.alice.register()
    first = town.count("scscf_challenge_unknown") == 0  # it answers the challenge that it was sent before the flood
    ok = state is not None and state.k_m is not None and first
    rate = FLOOD / sent[0] if sent and sent[0] else 0.0
    happened = (
        f"{FLOOD} challenges drawn from {ADDRESSES} addresses, {rate:,.0f}/s; the victim {'registered with keys' if ok else 'was kept out'}"
    )
    return Outcome(happened, ok and bool(sent))


async def _pour(town: Town, first: Request) -> float:
    """Send the flood to the P-CSCF; return how many seconds it took."""
    hop, started = town.peer("pcscf"), town.clock.monotonic()
    kept = first.without("Via")

    async def one(address: int) -> None:
        node = town.node(f"stranger {address}")
        await node.listen(f"127.0.1.{address + 1}", 0, ("UDP",))
        for batch in range(FLOOD // ADDRESSES // AT_ONCE + 1):
            work = [
                node.send(kept.replacing("Call-ID", f"flood-{address}-{batch}-{place}"), hop)
                for place in range(min(AT_ONCE, FLOOD // ADDRESSES - batch * AT_ONCE))
            ]
            for result in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, KeyferryError):
                    raise result

    await asyncio.gather(*(one(address) for address in range(ADDRESSES)))
    return town.clock.monotonic() - started


ATTACKS = (
    Attack("gm-strip-release", "Gm attacker", "takes the release out of the unprotected first REGISTER", strip_first),
    Attack("flood-challenges", "stranger", "draws 2,000 challenges for a victim's IMPI between its two REGISTERs", flood),
)
