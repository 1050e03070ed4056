# SPDX-License-Identifier: Apache-2.0
"""Attackers on ISC: they read sealed blocks, send them again, elsewhere, in another order, or late (DESIGN §6)."""

from __future__ import annotations

from keyferry.lab.attacks.attack import Attack, Outcome
from keyferry.lab.attacks.town import NOTES, SCSCF, XCAP, Town

PARTY = "ISC attacker"


async def rebind(town: Town) -> Outcome:
    """Send Alice's sealed block for Bob, to another AS, and with each readable attribute changed."""
    state = await town.alice.register()
    block = town.info_of(XCAP)
    statuses = [
        await town.inject(XCAP, block, user="bob"),
        await town.inject(NOTES, block),
        await town.inject(XCAP, block.replace(f'as="{XCAP}"', f'as="{NOTES}"')),
        await town.inject(NOTES, block.replace(f'as="{XCAP}"', f'as="{NOTES}"')),
        await town.inject(XCAP, block.replace(f'from="{SCSCF}"', 'from="scscf9.home1.net"')),
        await town.inject(XCAP, block.replace('kid="t1"', 'kid="t2"')),
        await town.inject(XCAP, _flipped(block)),
    ]
    works = state is not None and await town.opens(state)
    return Outcome(f"seven re-bound blocks were answered {_list(statuses)}; Alice's own key still opens", set(statuses) == {403} and works)


async def replay(town: Town) -> Outcome:
    """Send a push again, and an older one after a newer."""
    first = await town.alice.register()
    second = await town.alice.register()
    stale = await town.inject(XCAP, town.info_of(XCAP, 0))
    equal = await town.inject(XCAP, town.info_of(XCAP, -1))
    new, old = [state is not None and await town.opens(state) for state in (second, first)]
    happened = (
        f"answered {stale} and {equal}, ignored; the new key {'opens' if new else 'does not open'}, the old one is dead after its use"
    )
    return Outcome(happened, new and not old and town.count("as_pushes", "stale") == 1)


async def reorder(town: Town) -> Outcome:
    """Keep the first push back, let the second through, then deliver the first."""
    middleman = await town.between_isc(XCAP)
    middleman.hold = True
    first = await town.alice.register()
    middleman.hold = False
    second = await town.alice.register()
    status = (await middleman.deliver(middleman.held[0])).status if middleman.held else 0
    new, old = [state is not None and await town.opens(state) for state in (second, first)]
    return Outcome(f"the first push after the second: {status}, ignored; only the second key opens", status == 200 and new and not old)


async def hold_back(town: Town) -> Outcome:
    """Keep a push back until the user has de-registered, then deliver it."""
    middleman = await town.between_isc(XCAP)
    middleman.hold = True
    state = await town.alice.register()
    middleman.hold = False
    await town.alice.client.deregister()
    status = (await middleman.deliver(middleman.held[0])).status if middleman.held else 0
    revived = state is not None and await town.opens(state)
    return Outcome(
        f"delivered after the de-registration: {status}, the key is {'alive' if revived else 'not known'}", bool(status) and not revived
    )


def _flipped(block: str) -> str:
    """Change one character in the middle of the sealed octets."""
    start = block.index(">") + 41
    return block[:start] + ("A" if block[start] != "A" else "B") + block[start + 1 :]


def _list(statuses: list[int]) -> str:
    return ", ".join(str(status) for status in statuses)


ATTACKS = (
    Attack("isc-rebind", PARTY, "re-binds a sealed push to another user, AS, S-CSCF and key", rebind),
    Attack("isc-replay", PARTY, "sends a push again, and an old one after a newer", replay),
    Attack("isc-reorder", PARTY, "delivers the first push after the second", reorder),
    Attack("isc-hold-back", PARTY, "keeps a push back past the de-registration", hold_back),
)
