# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5, invariants S1 to S4, and §6: random interleavings of devices, faults, crashes and attacks.

Two users with two devices each, one of them perhaps with a card whose RES is short, on a network whose P-CSCF is hostile when it likes;
strangers draw challenges, somebody on ISC sends pushes again, elsewhere and changed, and one AS claims another's AS_ID. After every step
the judge looks at every message and store; in between, a registration that nobody disturbs succeeds, and whoever may have keys has them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fuzz.judge import LEAST_RES, Judge, Tap
from fuzz.profiles import SHARDS, STEPS
from fuzz.tricks import TRICKS, Plot
from keyferry.errors import KeyferryError
from keyferry.lab.attacks.middle import HostilePcscf
from keyferry.lab.attacks.pcscf_short_res import SHORT, ShortRes
from keyferry.ports import CxClient, DeregistrationReason, Resync, ServerAssignment, SipPeer, UeState
from keyferry.protocol.aka import AkaAlgorithm, AuthVector, Usim, algorithm_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import build_credentials, parse_challenge, parse_credentials
from keyferry.protocol.identity import Impi, KeyId
from keyferry.protocol.ims.keypush import GRACE, SealedPush, open_push, parse_service_info, seal_push
from keyferry.protocol.ims.marker import RELEASE_TAG
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.sip.message import Request
from keyferry.roles.scscf.profile_update import ScscfServing
from roles.home import NICKS, NOTES, SCSCF, SIP_OF, XCAP, Device, Home, criterion, open_home, subscriber, transport_key
from roles.network import Client, Fault, settle

T = TypeVar("T")
USERS = ("alice", "bobby")
SERVERS = (XCAP, NOTES)
LIFE = 3600  # seconds that the devices ask for
STEPS_EACH = 50  # of one example
EXAMPLES = 25  # of one round
MUST_HAPPEN = (
    "undisturbed",
    "masked challenges",
    "raw challenges",
    "keys pushed",
    "keys activated",
    "keys used",
    "stranger challenges",
    "closures",
    "profiles changed",
    "ended by the HSS",
)
CLOSURE_EVERY = 32  # examples: a closure takes as long as hundreds of steps
NO_FAULT: st.SearchStrategy[list[Fault]] = st.just([])
FAULTS = NO_FAULT | NO_FAULT | st.lists(st.sampled_from(list(Fault)), max_size=4)
WHOLE_PLOTS = (
    ["complete-marker", "forge-200-searched-res"],
    ["complete-marker", "forge-200"],
    ["strip-release", "marker-not-undone"],
    ["strip-release-of-sm1", "complete-marker", "forge-200-old-proof"],
    ["second-challenge-marked", "forge-200-guess"],
)
PLOTS = st.lists(st.sampled_from(list(TRICKS)), min_size=1, max_size=3, unique=True) | st.sampled_from(WHOLE_PLOTS)
PLACES = st.integers(0, 3)
PROFILES = {"default": SERVERS, "xcap": (XCAP,), "notes": (NOTES,), "none": ()}  # what an HSS may give a user
CHANGES = ("nothing", "other AS", "other user", "other as", "other from", "other kid", "flipped", "expires 0")

TALLY: Counter[str] = Counter()
"""What happened in all examples, so that a test can tell that it tested something."""


class ShortCx:
    """An HSS whose vectors for one user have a short XRES (the CxClient port)."""

    def __init__(self, whole: CxClient, impi: Impi) -> None:
        self.whole, self.impi = whole, impi

    async def user_authorization(
        self, impi: Impi, impu: Any, visited_network: str, kind: AuthorizationType = AuthorizationType.REGISTRATION
    ) -> UserAuthorization:
        return await self.whole.user_authorization(impi, impu, visited_network, kind)

    async def location_info(self, impu: Any) -> str:
        return await self.whole.location_info(impu)

    async def multimedia_auth(
        self, impi: Impi, impu: Any, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        vector = await self.whole.multimedia_auth(impi, impu, server_name, resync, masked=masked)
        return replace(vector, xres=Secret(vector.xres.reveal()[:SHORT])) if impi == self.impi else vector

    async def server_assignment(self, impi: Impi, impu: Any, server_name: str, assignment: ServerAssignment) -> bytes:
        return await self.whole.server_assignment(impi, impu, server_name, assignment)


class Servings:
    """Find the S-CSCF of now (the CxServings port)."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def at(self, server_name: str) -> ScscfServing | None:
        return ScscfServing(self.home.scscf, self.home.reg_event.forget) if server_name == SCSCF else None


class HostileNetwork(RuleBasedStateMachine):
    """The rules."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.opened: AbstractAsyncContextManager[Home] | None = None
        self.devices: list[Device] = []
        self.taps: dict[str, Tap] = {}
        self.past: dict[str, list[KeyId]] = {}  # device → key ids that it had for XCAP, the newest last
        self.sent = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(
        releases=st.tuples(*[st.sampled_from([6, 6, 6, None])] * 4),
        own_release=st.sampled_from([6, 6, 6, 6, 6, 5]),
        release_info=st.sampled_from(["always", "capable"]),
        mask=st.sampled_from([True, True, True, True, True, False]),
        short=st.sampled_from([None, None, None, None, *USERS]),
        trusted=st.booleans(),
    )
    def plug_in(
        self, releases: tuple[int | None, ...], own_release: int, release_info: str, mask: bool, short: str | None, trusted: bool
    ) -> None:
        self.opened = open_home(push={"push_wait": 0.0}, auth={"release": own_release, "release_info": release_info, "mask": mask})
        self.home = home = self.run(self.opened.__aenter__())
        self.makes_keys = own_release >= 6 and mask
        own = {user: subscriber(user) for user in USERS}
        self.short = own[short].impi if short else None
        self.cards: dict[Impi, AkaAlgorithm] = {}
        for each in own.values():
            whole = algorithm_of("milenage", each.k, each.opc)
            self.cards[each.impi] = ShortRes(whole) if each.impi == self.short else whole
        self._tamper_with_the_s_cscf()
        home.profiles.update({name: [criterion(as_id) for as_id in as_ids] for name, as_ids in PROFILES.items()})
        home.hss.servings = Servings(home)
        sip = home.network.attach("P", "pcscf1.visited1.net", lambda request, peer: middle.handle(request, peer))
        middle = HostilePcscf(sip=sip, address=home.network.peer("P"), pcscf=home.pcscf)
        home.pcscf.sip = middle
        self.stranger = home.network.attach("X", "stranger.visited1.net", None)
        if trusted:
            home.trusted.add(home.network.peer("I"))
        home.network.requests["P", "I"] = self._towards_home
        secrets = {each.impi: (each.k.reveal(), each.opc.reveal()) for each in own.values()}
        self.judge = Judge(home, middle, self.cards, secrets, TALLY)
        self.plot = Plot(middle, home.clock, {}, {own[a].impi: own[b].impi for a, b in (USERS, USERS[::-1])}, self._searched)
        for (user, number), release in zip([(user, number) for user in USERS for number in (1, 2)], releases, strict=True):
            self.devices.append(self._device(user, number, release))
        for left, right in ((0, 1), (1, 0), (2, 3), (3, 2)):
            self.plot.other_instances[self.devices[left].instance] = self.devices[right].instance

    def _device(self, user: str, number: int, release: int | None) -> Device:
        device = self.home.device(user, number, release=release, expires=LIFE)
        device.ue.usim = Usim(self.cards[device.impi])
        self.taps[device.name] = Tap(device.sip, self.home.clock)
        device.ue.sip = self.taps[device.name]

        async def keep(state: UeState) -> None:
            device.state = state

        device.ue.keep = keep
        return device

    def _tamper_with_the_s_cscf(self) -> None:
        if self.short is not None:
            home = self.home
            cx = ShortCx(home.hss, self.short)
            home.scscf = replace(home.scscf, cx=cx, authenticator=replace(home.scscf.authenticator, cx=cx))

    def _searched(self, rand: bytes, impi: str) -> Secret | None:
        res = self.cards[Impi(impi)].f2345(rand).res
        return res if len(res) < LEAST_RES else None

    def _towards_home(self, request: Request) -> Request:
        text = request.get("Authorization")
        if not self.plot.claims_protected or text is None:
            return request
        claimed = parse_credentials(text)
        rest = tuple(each for each in claimed.parameters if each[0] != "integrity-protected")
        return request.replacing("Authorization", build_credentials(replace(claimed, parameters=(*rest, ("integrity-protected", "yes")))))

    def teardown(self) -> None:
        if self.opened is None:  # the data was used up before anything began
            self.loop.close()
            return
        try:
            self.run(self.at_rest())
            self.judge.look(self.devices, self.taps)
            TALLY["examples"] += 1
            if TALLY["examples"] >= CLOSURE_EVERY * (TALLY["closures"] + 1):
                self.judge.closure()
        finally:
            self.run(self.opened.__aexit__(None, None, None))
            self.loop.close()

    # ---- what users do

    @rule(place=PLACES)
    def register(self, place: int) -> None:
        """Nobody disturbs it: it succeeds, and with keys where both sides can."""
        self.begin([], [], [], [])
        device = self.devices[place]
        state = self.run(device.register())
        self._note(device)
        able = self.makes_keys and device.ue.profile.release is not None and device.impi != self.short
        assert (state.k_m is not None) is able, state.no_keys_because
        TALLY["undisturbed"] += 1

    @rule(place=PLACES, tricks=PLOTS, to_s=FAULTS, to_as=FAULTS)
    def register_under_attack(self, place: int, tricks: list[str], to_s: list[Fault], to_as: list[Fault]) -> None:
        self.begin(tricks, [], to_s, to_as)
        self.attempt(self.devices[place].register())
        self._note(self.devices[place])
        TALLY.update(tricks)

    @rule(place=PLACES, to_p=FAULTS, to_s=FAULTS, to_as=FAULTS)
    def register_in_bad_weather(self, place: int, to_p: list[Fault], to_s: list[Fault], to_as: list[Fault]) -> None:
        self.begin([], to_p, to_s, to_as)
        self.attempt(self.devices[place].register())
        self._note(self.devices[place])

    @rule(places=st.lists(PLACES, min_size=2, max_size=4, unique=True), tricks=st.just([]) | PLOTS, to_s=FAULTS)
    def register_together(self, places: list[int], tricks: list[str], to_s: list[Fault]) -> None:
        self.begin(tricks, [], to_s, [])

        async def together() -> None:
            results = await asyncio.gather(*(self.devices[place].register() for place in places), return_exceptions=True)
            wrong = [each for each in results if isinstance(each, BaseException) and not isinstance(each, KeyferryError)]
            assert not wrong, wrong

        self.run(together())
        for place in places:
            self._note(self.devices[place])

    @rule(place=PLACES, tricks=st.just([]) | PLOTS, to_s=FAULTS)
    def deregister(self, place: int, tricks: list[str], to_s: list[Fault]) -> None:
        self.begin(tricks, [], to_s, [])
        if self.devices[place].state is not None:
            self.attempt(self.devices[place].deregister())

    @rule(place=PLACES)
    def change_phones(self, place: int) -> None:
        """The card goes into a phone of the other release, with the same instance id."""
        old = self.devices[place]
        new = self._device(old.impi.partition("@")[0], int(old.name[-1]), None if old.ue.profile.release else 6)
        new.ue.usim = old.ue.usim
        self.devices[place] = new

    @rule(place=PLACES, newest=st.booleans())
    def use_the_key(self, place: int, newest: bool) -> None:
        """At an AS's door. The newest key ends the older ones of the device; an older one lives on for a while, unused."""
        device, keys, now = self.devices[place], self.home.servers[XCAP].keys, self.home.clock.now()
        past = self.past.get(device.name, [])
        if len(past) < 2 and not (past and newest):
            return
        record = self.run(keys.lookup(past[-1] if newest else past[-2], XCAP, now))
        if record is None:
            return
        self.run(keys.used(record, now))
        TALLY["keys used"] += 1
        if not record.superseded:
            left = [each for each in past if (found := self.run(keys.lookup(each, XCAP, now))) is not None and found.reg == record.reg]
            assert left == [record.key_id], "an older key outlived the use of the newer one"

    # ---- what operators do, and what breaks

    @rule(what=st.sampled_from(["sweep", "network ends", "network asks", "s-cscf crashes"]), place=PLACES)
    def operate(self, what: str, place: int) -> None:
        home, device = self.home, self.devices[place]
        if what == "sweep":
            self.run(home.scscf.sweep())
            for server in home.servers.values():
                self.run(server.keys.sweep(home.clock.now()))
        elif what == "network ends":
            self.run(home.scscf.network_deregister(device.impi, device.reg))
        elif what == "network asks":
            self.run(home.scscf.shorten(device.impi, device.reg))
        else:
            self.run(home.restart_scscf())
            self._tamper_with_the_s_cscf()

    @rule(user=st.sampled_from(USERS), profile=st.sampled_from(list(PROFILES)))
    def the_hss_changes_a_profile(self, user: str, profile: str) -> None:
        """PPR. An AS that comes back has the key again that the last AKA run made for it, and no other."""
        own = subscriber(user, profile=profile)
        self.run(self.home.subscribers.replace(own))
        for registration in self.run(self.home.registrations.of_impi(own.impi)):
            self.judge.comes_back(registration, PROFILES[profile])
        if self.run(self.home.hss.update_profile(own.impi)) is not None:
            TALLY["profiles changed"] += 1

    @rule(user=st.sampled_from(USERS), reason=st.sampled_from(list(DeregistrationReason)))
    def the_hss_ends_registrations(self, user: str, reason: DeregistrationReason) -> None:
        """RTR: nothing of the user is left at the S-CSCF."""
        impi = subscriber(user).impi
        if self.run(self.home.hss.terminate(impi, reason)) is not None:
            TALLY["ended by the HSS"] += 1
            assert self.run(self.home.registrations.of_impi(impi)) == []

    @rule(place=st.integers(0, 7))
    def release_what_was_held(self, place: int) -> None:
        held = self.home.network.held
        if held:
            self.run(self.home.network.release(place % len(held)))

    @rule(seconds=st.sampled_from([0.001, 1.0, 60.0, GRACE + 1.0, LIFE + 1.0]))
    def time_passes(self, seconds: float) -> None:
        if seconds > GRACE:
            self.home.network.up(*NICKS.values())  # hundreds of attempts on one that is down tell nothing new
        self.run(self.home.clock.advance(seconds))

    @rule(nick=st.sampled_from(sorted(NICKS.values())), up=st.booleans())
    def an_as_goes_or_comes(self, nick: str, up: bool) -> None:
        (self.home.network.up if up else self.home.network.down)(nick)

    # ---- strangers

    @rule(user=st.sampled_from(USERS), count=st.integers(1, 4), stated=st.booleans(), answered=st.booleans())
    def a_stranger_draws_challenges(self, user: str, count: int, stated: bool, answered: bool) -> None:
        """In a victim's name, from an address of its own; perhaps it answers them wrongly, so that the victim's device is suspected."""
        victim = next((each for each in self.plot.firsts if f"{user}@" in (each.get("To") or "")), None)
        if victim is None:
            return
        self.begin([], [], [], [])
        contact = (victim.get("Contact") or "").partition(f";{RELEASE_TAG}")[0] + (f';{RELEASE_TAG}="6"' if stated else "")
        victim = victim.without("Via").replacing("Contact", contact)
        for _ in range(count):
            self.sent += 1
            first = victim.replacing("Call-ID", f"stranger-{self.sent}")
            response = self.run(self.stranger.send(first, self.home.network.peer("P")))
            text = response.get("WWW-Authenticate")
            if answered and text is not None:
                guess = replace(parse_credentials(first.get("Authorization") or ""), nonce=parse_challenge(text).nonce, response="0" * 32)
                status = self.run(
                    self.stranger.send(first.replacing("Authorization", build_credentials(guess)), self.home.network.peer("P"))
                ).status
                assert status in {401, 403}
        TALLY["stranger challenges"] += count

    @rule(place=st.integers(0, 63), change=st.sampled_from(CHANGES))
    def somebody_on_isc_sends_again(self, place: int, change: str) -> None:
        """A block that was on the wire, as it was or changed."""
        if not self.judge.blocks:
            return
        as_id, info, sent = self.judge.blocks[-1 - place % len(self.judge.blocks)]
        other = NOTES if as_id == XCAP else XCAP
        user = next(name for name in USERS if f"{name}@" in (sent.get("To") or ""))
        start = info.index(">") + 41
        edits = {
            "other as": info.replace(f'as="{as_id}"', f'as="{other}"'),
            "other from": info.replace('from="scscf1', 'from="scscf2'),
            "other kid": info.replace('kid="t1"', 'kid="t2"'),
            "flipped": info[:start] + ("A" if info[start] != "A" else "B") + info[start + 1 :],
        }
        user = next(name for name in USERS if name != user) if change == "other user" else user
        at = other if change in {"other AS", "other as"} else as_id
        status = self._inject(NICKS[at], SIP_OF[at], edits.get(change, info), user, expires=0 if change == "expires 0" else 600)
        empty = not open_push(_sealed(info), transport_key(as_id)).keys
        harmless = change == "nothing" or (empty and change in {"other user", "expires 0"})
        if sent.get("Expires") != "0" and harmless:
            assert status in {200, 403, 504}  # 403: it had held a key whose time is over, or that is another device's
        elif not harmless:
            assert status in {403, 504}, change
        TALLY[f"isc {change}"] += 1

    @rule(place=st.integers(0, 63), at=st.sampled_from(SERVERS), kid=st.sampled_from(["t1", "t2"]))
    def an_as_claims_another_as_id(self, place: int, at: Any, kid: str) -> None:
        """It seals keys that it was given, under its own transport key, as the other's."""
        other = NOTES if at == XCAP else XCAP
        own = [open_push(_sealed(info), transport_key(other)) for as_id, info, _ in self.judge.blocks if as_id == other]
        if not own:
            return
        push = own[-1 - place % len(own)]
        user = next(name for name in USERS if push.impi.startswith(name))
        claimed = replace(push, as_id=at, seq=push.seq + 1_000_000)
        for named in (at, other):
            info = seal_push(claimed, transport_key=transport_key(other), scscf="scscf1.home1.net", kid=kid)
            info = info.replace(f'as="{at}"', f'as="{named}"')
            assert self._inject(NICKS[at], SIP_OF[at], info, user) in {403, 504}
        TALLY["AS_ID claimed"] += 1

    def _inject(self, nick: str, uri: str, info: str, user: str, *, expires: int = 600) -> int:
        """Send a third-party REGISTER from the stranger's address; 504 if the AS is down."""
        self.sent += 1
        request = build_third_party_register(
            server_name=uri, scscf_uri="sip:scscf1.home1.net", impu=f"sip:{user}@home1.net", expires=expires, cseq=1,
            call_id=f"injected-{self.sent}", from_tag="t", service_info=info,
        )  # fmt: skip
        self.home.network.next_to(nick)
        return self.run(_status(self.stranger, request, self.home.network.peer(nick)))

    # ---- how it is done

    def begin(self, tricks: list[str], to_p: list[Fault], to_s: list[Fault], to_as: list[Fault]) -> None:
        self.plot.begin(tricks)
        self.home.network.next_to("P", *to_p)
        self.home.network.next_to("S", *to_s)
        for nick in NICKS.values():
            self.home.network.next_to(nick, *to_as)

    def attempt(self, procedure: Coroutine[Any, Any, Any]) -> None:
        async def tried() -> None:
            try:
                await procedure
            except KeyferryError:
                TALLY["failed"] += 1
                await settle()

        self.run(tried())

    def _note(self, device: Device) -> None:
        name = device.key_id(XCAP)
        if name is not None and name not in self.past.setdefault(device.name, []):
            self.past[device.name].append(name)

    # ---- what always holds

    @invariant()
    def s1_to_s4(self) -> None:
        TALLY["steps"] += 1
        self.judge.look(self.devices, self.taps)

    @rule()
    def rest(self) -> None:
        self.run(self.at_rest())

    async def at_rest(self) -> None:
        """Whatever was done: once it ends, no push is owed any more."""
        home = self.home
        self.begin([], [], [], [])
        home.network.up(*NICKS.values())
        while home.network.held:
            await home.network.release()
        await home.clock.advance(31)  # the longest pause between two attempts
        await home.scscf.sweep()
        await home.clock.advance(31)
        assert await home.owed() == []
        for user in USERS:
            own = await home.subscribers.get(subscriber(user).impi)
            assert own is not None
            self.judge.profile_holds(await home.registrations.of_impi(own.impi), PROFILES[own.profile])


def _sealed(info: str) -> SealedPush:
    block = parse_service_info(info)
    assert isinstance(block, SealedPush)
    return block


async def _status(client: Client, request: Request, hop: SipPeer) -> int:
    try:
        return (await client.send(request, hop)).status
    except KeyferryError:
        return 504


@pytest.mark.parametrize("shard", range(SHARDS))
def test_s1_to_s4_hold_whatever_is_lost_restarted_and_attacked(shard: int) -> None:
    """DESIGN §5, §6: 20,000 steps in all with the default profile, a million with `deep`."""
    steps, before, rounds = STEPS // SHARDS, TALLY.copy(), 0
    while (left := steps - TALLY["steps"] + before["steps"]) > 0:
        examples = min(EXAMPLES, -(-left // STEPS_EACH))
        own = settings(max_examples=examples, stateful_step_count=STEPS_EACH, suppress_health_check=list(HealthCheck))
        machine = type(f"HostileNetwork{shard}Round{rounds}", (HostileNetwork,), {})
        run_state_machine_as_test(hypothesis.seed(f"{shard}/{rounds}")(machine) if own.derandomize else machine, settings=own)
        rounds += 1
    happened = TALLY - before
    print(", ".join(f"{name} {count}" for name, count in sorted(happened.items())))
    assert happened["steps"] >= steps
    assert [name for name in MUST_HAPPEN if not happened[name]] == []
