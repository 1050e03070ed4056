# SPDX-License-Identifier: Apache-2.0
"""An AS that claims another one's AS_ID, and two devices of one user (DESIGN §6 "who may receive", §7)."""

from __future__ import annotations

from dataclasses import replace

from keyferry.lab.attacks.attack import Attack, Outcome
from keyferry.lab.attacks.town import NOTES, SCSCF, XCAP, Setting, Town
from keyferry.protocol.ims.keypush import seal_push
from keyferry.protocol.ims.third_party import parse_third_party_register


async def claim_as_id(town: Town) -> Outcome:
    """Ask for another's keys in the filter criteria, push under its name, and use its own key at the other's door."""
    state = await town.alice.register()
    to_notes = {block.as_id for request, block in town.pushes() if "notes-as" in request.uri}
    own = next((push for push in town.opened() if push.as_id == NOTES and push.keys), None)
    statuses, doors = [], True
    if own is not None:
        own = replace(own, seq=own.seq + 1, as_id=XCAP)
        for name in (XCAP, NOTES):
            block = seal_push(own, transport_key=town.transport_key(NOTES), scscf=SCSCF, kid="t1")
            statuses.append(await town.inject(XCAP, block.replace(f'as="{XCAP}"', f'as="{name}"')))
        key = own.keys[0]
        record = await next(one for one in town.system.servers if one.as_id == XCAP).keys.lookup(key.key_id, XCAP, town.clock.now())
        doors = record is None
    works = state is not None and await town.opens(state)
    asked = ", ".join(sorted(to_notes)) or "nothing"
    happened = f"its SIP URI was pushed keys of {asked}; its own pushes as {XCAP} were answered {statuses or 'not possible'}"
    return Outcome(happened, XCAP not in to_notes and set(statuses) <= {403} and doors and works)


async def two_devices(town: Town) -> Outcome:
    """Register a second device of one user; its end and its keys must not touch the first one's, nor the other way round."""
    first = await town.alice.register()
    tablet = await town.phone("alice", 2)
    second = await tablet.register()
    if first is None or second is None or first.k_m is None or second.k_m is None:
        return Outcome("a device did not register", held=False)
    both = await town.opens(first) and await town.opens(second)
    await tablet.client.deregister()
    left, gone = await town.opens(first), not await town.opens(second)
    regs = {parse_third_party_register(request).impu for request, _ in town.pushes()}
    happened = f"keys differ, both open; after the second's end the first {'opens' if left else 'is locked out'}, the second does not"
    return Outcome(happened, first.k_m != second.k_m and both and left and gone and len(regs) == 1)


ATTACKS = (
    Attack(
        "claim-as-id", "AS", "asks for another's AS_ID with naf=, and pushes in its name", claim_as_id,
        Setting(notes_service_info=f"naf={XCAP}"),
    ),
    Attack("claim-as-id-sealed", "AS", "seals its users' keys as if they were another AS's", claim_as_id),
    Attack("two-devices", "second device", "shares the IMPI, registers and de-registers beside the first", two_devices),
)  # fmt: skip
