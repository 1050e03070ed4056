# SPDX-License-Identifier: Apache-2.0
"""The judge knows every secret and says which of the invariants S1 to S4 (DESIGN §5) an attack broke."""

from __future__ import annotations

import re
from typing import NamedTuple

from keyferry.lab.attacks.closure import View, World, closure
from keyferry.lab.attacks.town import ALICE, HOME, NOTES, XCAP, Town
from keyferry.ports import UeState
from keyferry.protocol.aka import algorithm_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import parse_aka_nonce, parse_challenge
from keyferry.protocol.identity import AsId, Impi, KeyId, parse_impi
from keyferry.protocol.ims.keys import access_keys, application_master_key, as_key, key_id
from keyferry.protocol.ims.marker import parse_marker
from keyferry.protocol.sip.message import Response, build_message

AS_IDS = (XCAP, NOTES)
HEX_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


class Run(NamedTuple):
    """One vector that went out in a 401 of the S-CSCF."""

    user: str
    rand: bytes
    masked: bool  # the 401 carried CK', IK'
    ck: Secret
    ik: Secret
    k_m: Secret


def runs(town: Town) -> list[Run]:
    """Return every vector that the S-CSCF sent out, as the messages show it."""
    found = []
    for event in town.events:
        message = event.message
        if event.node != "S-CSCF" or not event.outgoing or event.retransmission:
            continue
        if not isinstance(message, Response) or message.status != 401:
            continue
        challenge = parse_challenge(message.get("WWW-Authenticate") or "")
        rand = parse_aka_nonce(challenge.nonce).rand
        user = next(name for name in town.cards if f"sip:{name}@" in (message.get("To") or ""))
        card, impi = town.cards[user], parse_impi(town.impi(user))
        f2345 = algorithm_of(card.algorithm, card.k, card.opc).f2345(rand)
        pair = access_keys(f2345.ck, f2345.ik, rand, impi)
        masked = (challenge.parameter("ck"), challenge.parameter("ik")) == (pair.ck.reveal().hex(), pair.ik.reveal().hex())
        found.append(Run(user, rand, masked, f2345.ck, f2345.ik, application_master_key(f2345.ck, f2345.ik, rand, impi)))
    return found


async def broken(town: Town, *, depth: int = 1) -> list[str]:
    """Return what is wrong, one line each; nothing if S1 to S4 hold."""
    states = [state for phone in town.phones.values() if (state := await phone.client.state()) is not None]
    return [*_s1(town), *_s2(town, states), *_s3(town), *await _s4(town, states, depth=depth)]


def _s1(town: Town) -> list[str]:
    sent = runs(town)
    rands = [run.rand for run in sent]
    problems = ["S1: one vector went into two challenges"] if len(set(rands)) < len(rands) else []
    allowed: set[KeyId] = {key_id(as_key(run.k_m, as_id), HOME) for run in sent if run.masked for as_id in AS_IDS}
    for push in town.opened():
        if any(key.key_id not in allowed for key in push.keys):
            problems.append(f"S1: {push.as_id} was pushed a key of a vector that was not masked")
    return problems


def _s2(town: Town, states: list[UeState]) -> list[str]:
    good = {run.k_m.reveal() for run in runs(town) if run.masked}
    problems = []
    for state in states:
        if state.k_m is None:
            continue
        marker = parse_marker(state.release_marker)
        if not (state.masked and state.rspauth and marker is not None and marker.complete and state.k_m.reveal() in good):
            problems.append("S2: a UE activated AS keys without the proof")
    return problems


def _s3(town: Town) -> list[str]:
    secret = {octets.reveal().hex().encode() for run in runs(town) if run.masked for octets in (run.ck, run.ik)}
    for event in town.events:
        if secret.intersection(HEX_KEY.findall(build_message(event.message))):
            return ["S3: CK or IK of a masked vector was in a message"]
    return []


def pcscf_view(town: Town) -> View:
    """Return what the hostile P-CSCF saw and holds."""
    view = View("P-CSCF")
    for message in town.middle.seen:
        view.add_message(message)
    for held in town.middle.pcscf.gm_keys.values() if town.middle.pcscf else ():
        view.add(held.reveal())
    return view


def as_view(town: Town, as_id: AsId) -> View:
    """Return what an AS knows: its transport key, the pushes it opens, its users' HTTP in clear."""
    view = View(f"AS {as_id}")
    view.add(town.transport_key(as_id).reveal())
    for push in town.opened():
        if push.as_id == as_id:
            for key in push.keys:
                view.add(key.k_as.reveal())
                view.octets.add(key.key_id.encode())
    for place, value in town.http:
        if place == as_id:
            view.add_header(value)
    return view


def ue_view(town: Town, user: str) -> View:
    """Return what another user's UE and card hold, K included."""
    view, card = View(f"UE {user}"), town.cards[user]
    for secret in (card.k, card.opc):
        view.add(secret.reveal())
    for run in runs(town):
        if run.user == user:
            for secret in (run.ck, run.ik, run.k_m):
                view.add(secret.reveal())
            view.rands.add(run.rand)
    return view


def observer_view(town: Town) -> View:
    """Return what lies on the wires as ciphertext."""
    view = View("observer")
    for _, block in town.pushes():
        view.octets.add(block.blob)  # whole: no part of a ciphertext is a key
    return view


def foreign_keys(town: Town, as_id: AsId, states: list[UeState]) -> set[bytes]:
    """Return Alice's keys for one AS that count: pushed, or active at her UE."""
    alice = Impi(town.impi(ALICE))
    keys = {key.k_as.reveal() for push in town.opened() if (push.as_id, push.impi) == (as_id, alice) for key in push.keys}
    return keys | {as_key(state.k_m, as_id).reveal() for state in states if state.impi == alice and state.k_m is not None}


def world_of(town: Town) -> World:
    """Return the names that are public."""
    return World(tuple(parse_impi(town.impi(user)) for user in town.cards), AS_IDS, (HOME,))


async def _s4(town: Town, states: list[UeState], *, depth: int) -> list[str]:
    problems, world = [], world_of(town)
    pcscf = pcscf_view(town)
    for as_id, other in ((XCAP, NOTES), (NOTES, XCAP)):
        foreign = foreign_keys(town, as_id, states)
        view = pcscf | as_view(town, other) | observer_view(town) | ue_view(town, "bob")
        if foreign and foreign & closure(view, world, depth=depth, keys_only=True):
            problems.append(f"S4: a key for {as_id} follows from what {view.name} know together")
    return problems
