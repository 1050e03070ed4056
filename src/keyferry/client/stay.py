# SPDX-License-Identifier: Apache-2.0
"""A UE that stays registered: it re-registers by itself and does what the network asks (TS 24.229 §5.1.1.3 to §5.1.1.7, Release 17)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keyferry.client.ue import UeClient
from keyferry.errors import KeyferryError, RegistrationFailed, RemoteProtocolError, StateError, TransportError
from keyferry.ports import Log, PeerCheck, RandomSource, SipPeer, UeState
from keyferry.protocol.ims.reginfo import ContactChange
from keyferry.protocol.ims.subscription import refresh_after
from keyferry.protocol.sip.message import Request, Response
from keyferry.roles.reg_event_subscriber import RegEventSubscriber, RegNews, SubscriberProfile
from keyferry.roles.ue import Ue

LOOK: Final = 1.0
"""Seconds between looks at what is due."""
RETRY_FIRST: Final = 30.0
RETRY_MOST: Final = 1800.0
"""Seconds before a failed re-registration is tried again, doubled up to the most (RFC 5626 §4.5)."""
LAST_WORD: Final = 1.0
"""Seconds that the last NOTIFY after a de-registration is waited for, so that nobody sends it to a closed port."""
DEFAULT_PROBATION: Final = 60.0
"""Seconds, where the network says "later" and not when."""
COMES_BACK: Final = frozenset({"deactivated", "expired"})
"""How a registration may end and be made anew at once; after `probation` later, after any other end not at all (RFC 3680 §5.1)."""

Tell = Callable[[str, float, Mapping[str, Any]], None]
"""Takes an event: its name, when it happened in seconds since the epoch, what is to be known of it."""


class Uncounted:
    """Implement ports.Counter for a UE, which has no metrics."""

    def count(self, name: str, reason: str = "") -> None:
        """Add nothing."""


@dataclass(frozen=True, slots=True)
class GmClient:
    """Send a UE's requests over its security associations where it has them."""

    ue: Ue

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        """Implement ports.SipClient."""
        if self.ue.security is not None:
            request, hop = self.ue.security.outgoing(request)
        return await self.ue.sip.send(request, hop, check=check)


@dataclass(slots=True)
class Stay:
    """Register, watch the registration, renew it, and end it on the way out; `tell` gets every event, never a key."""

    client: UeClient
    tell: Tell
    random: RandomSource
    log: Log
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _subscriber: RegEventSubscriber | None = None
    _due: float = 0.0  # seconds since the epoch: the next REGISTER
    _over: ContactChange | None = None  # how the network ended the registration
    _served_by: tuple[str, ...] = ()  # Service-Route: which S-CSCF has our subscription
    _pause: float = RETRY_FIRST
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Stay registered until cancelled; return when the network wants us no more. Raises RegistrationFailed, TransportError."""
        await self._register()
        while True:
            await self._wait()
            if self._over is None:
                await self._again()
            elif not await self._after_the_end(self._over):
                return

    async def leave(self) -> None:
        """De-register, if registered, and say so; a registration that another process has made since is left to it.

        Raises RegistrationFailed, TransportError, StateError.
        """
        try:
            state = await self.client.settled()
            if state is not None and state.expires_at > self.client.clock.now() and self.client.ue.is_of(state):
                await self.client.deregister()
                self._say("deregistered", {})
                await self._last_word()
        finally:
            if self._subscriber is not None:
                await self._subscriber.aclose()

    def _say(self, event: str, details: Mapping[str, Any]) -> None:
        self.tell(event, self.client.clock.now(), details)

    # ---- REGISTER

    async def _register(self) -> None:
        self._over = None
        state = await self.client.register()
        now = self.client.clock.now()
        self._due, self._pause = now + refresh_after(state.expires_at - now), RETRY_FIRST
        seconds = int(state.expires_at - now)
        keys = {"keys": state.k_m is not None, "no_keys_because": state.no_keys_because}
        self._say("registered", {"seconds": seconds, "again_in": int(self._due - now), **keys})
        await self._subscribe(state)

    async def _again(self) -> None:
        """Re-register (§5.1.1.4); a network that does not answer, or has trouble of its own, is asked again later.

        So is a state that another process keeps.
        """
        try:
            await self._register()
        except (RegistrationFailed, TransportError, StateError) as problem:
            if isinstance(problem, RegistrationFailed) and not (problem.status == 408 or 500 <= problem.status < 600):
                raise
            if self.client.ue.security is not None and not isinstance(problem, StateError):
                self.client.ue.security.released()  # the next try begins without (§5.1.1.4)
            self._say("retry", {"problem": str(problem), "in": self._pause})
            self._due = self.client.clock.now() + self._pause
            self._pause = min(2 * self._pause, RETRY_MOST)

    async def _after_the_end(self, over: ContactChange) -> bool:
        """Drop the keys; tell whether to go on (§5.1.1.7; RFC 3680 §5.1)."""
        event = over.contact.event
        await self.client.drop_keys(f"the network ended the registration: {event}")
        self._say("ended-by-network", {"reason": event, "retry_after": over.contact.retry_after})
        if event == "probation":
            self._over = None
            self._due = self.client.clock.now() + (over.contact.retry_after or DEFAULT_PROBATION)
            await self._wait()
        elif event not in COMES_BACK:
            return False
        await self._again()
        return True

    # ---- reg event package

    async def _subscribe(self, state: UeState) -> None:
        """Watch our own registration (§5.1.1.3); a network that refuses can still end it, and we learn at the next REGISTER."""
        default = next((uri for uri in state.associated if uri.startswith("sip:")), state.impu)
        ue = self.client.ue
        if self._subscriber is None:
            self._subscriber = RegEventSubscriber(
                sip=GmClient(ue), profile=SubscriberProfile(default, ue.contact_uri, asserts=False, max_subscriptions=1),
                on_news=self._heard, clock=self.client.clock, random=self.random, log=self.log, counter=Uncounted(),
            )  # fmt: skip
            self.client.notified = self._subscriber.handle_notify
        if self._subscriber.watches(default) and state.service_route == self._served_by:
            return
        self._served_by = state.service_route
        self._subscriber.abandon(default)
        host = f"[{ue.pcscf.host}]" if ":" in ue.pcscf.host else ue.pcscf.host
        route = (f"<sip:{host}:{ue.pcscf.port};lr>", *state.service_route)
        try:
            await self._subscriber.subscribe(default, ue.pcscf, route)
        except RemoteProtocolError as problem:
            self._say("not-subscribed", {"status": problem.status})
        except KeyferryError as problem:
            self._say("not-subscribed", {"problem": str(problem)})
        else:
            self._say("subscribed", {"to": default})

    def _heard(self, news: RegNews) -> None:
        """Take what a NOTIFY says of our own contact."""
        for change in news.changes:
            contact = change.contact
            if contact.uri != self.client.ue.contact_uri or change.aor != news.resource:
                continue
            if contact.state == "terminated":
                self._over = change
                self._news.set()
            elif contact.event == "shortened" and contact.expires is not None:
                now = self.client.clock.now()
                self._due = min(self._due, now + refresh_after(max(0.0, contact.expires - now)))
                self._say("asked-to-authenticate", {"seconds": int(contact.expires - now), "again_in": int(self._due - now)})
                self._news.set()

    async def _wait(self) -> None:
        """Wait until the next REGISTER is due or the network has said something; keep the subscription alive meanwhile."""
        while self._over is None and self.client.clock.now() < self._due:
            self._news.clear()
            await self._one_look(min(LOOK, self._due - self.client.clock.now()))
            if self._subscriber is not None:
                await self._subscriber.sweep()

    async def _one_look(self, seconds: float) -> None:
        heard = asyncio.ensure_future(self._news.wait())
        slept = asyncio.ensure_future(self.sleep(seconds))
        try:
            await asyncio.wait((heard, slept), return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard.cancel()
            slept.cancel()

    async def _last_word(self) -> None:
        slept = 0.0
        while self._subscriber is not None and self._subscriber.count and slept < LAST_WORD:
            await self.sleep(0.05)
            slept += 0.05
