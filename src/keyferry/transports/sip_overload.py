# SPDX-License-Identifier: Apache-2.0
"""Measure how loaded a node is, and refuse what it may (RFC 3261 §21.5.4; DESIGN §11)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

from keyferry.ports import SipPeer
from keyferry.protocol.sip.message import Response
from keyferry.protocol.sip.overload import (
    Glance,
    IssuedNonces,
    LetIn,
    Load,
    OverloadControl,
    OverloadPolicy,
    Refusal,
    deregisters,
    glance,
    refusal,
)
from keyferry.transports.sip_context import ESP, Flow, SipContext

PROBE: Final = 0.02
"""Seconds between two looks at the event loop's lag, while there is work."""
KEPT: Final = 10
"""One in so many requests in progress (Limits.in_progress) is for those that are never refused: load may come faster than `patience`."""

Sheddable: TypeAlias = Callable[[bytes], bool]
"""Whether a message, whole and unparsed, may be refused under load; it must cost little."""


class OverloadGate:
    """Feed the control with the time datagrams wait, the lag of the loop and the number of requests in progress."""

    def __init__(
        self,
        context: SipContext,
        policy: OverloadPolicy,
        sheddable: Sheddable | None,
        in_progress: Callable[[], int],
        *,
        core: bool = False,
        registered: Callable[[SipPeer], bool] = lambda _peer: False,
    ) -> None:
        self._context = context
        self._policy = policy
        self._sheddable = sheddable
        self._in_progress = in_progress
        self._full = context.limits.in_progress - context.limits.in_progress // KEPT
        self._core = core  # our peers are proxies, whose word on protection counts
        self._registered = registered  # whether a registered device sends from an address and port
        self._issued = IssuedNonces()
        self._let_in = LetIn()
        self._control = OverloadControl(policy)
        self._key = context.random.octets(32)
        self._seen: Glance | None = None  # the last message, as far as it was looked at
        self._waited = 0.0
        self._lag = 0.0
        self._busy = False
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None

    @property
    def state(self) -> Load:
        """What the control thinks."""
        return self._control.state

    @property
    def shedding(self) -> bool:
        """Whether new work is refused."""
        return self._control.shedding

    def waited(self, seconds: float) -> None:
        """Note how long a datagram has waited; 0 when none does."""
        self._waited = seconds
        self._busy = True
        self._observe()
        if self._handle is None:
            self._probe_later()

    def sheds(self, data: bytes, flow: Flow) -> bool:
        """Tell whether this message is to be refused."""
        if not self._control.shedding and self._in_progress() < self._full:
            return False
        if self._sheddable is not None:
            return self._sheddable(data)
        self._seen = seen = glance(data)
        if seen is None or self._goes_on(seen, flow):
            return False
        return (seen.initial or not self._issued.answered_by(seen)) and not deregisters(data)  # whose end frees what it takes

    def let_in(self, data: bytes) -> None:
        """Note a message that is served, so that it is known when it is sent again."""
        self._let_in.note(data, self._context.clock.monotonic())

    def was_let_in(self, data: bytes) -> bool:
        """Tell whether a message may be one that is served, or was, sent again."""
        return data in self._let_in

    def challenged(self, response: Response) -> None:
        """Note what a 401 asks, since its answer is not to be refused."""
        for value in response.all("WWW-Authenticate"):
            self._issued.issued(value, self._context.clock.monotonic())

    def refusal(self, data: bytes, flow: Flow) -> Refusal | None:
        """Return the 503 to a message, None if it is so unusual that it must be parsed to be answered."""
        peer = flow.peer
        self._context.count("sip_shed", "initial")
        seen = self._seen if self._seen is not None and self._seen.data is data else glance(data)
        return None if seen is None else refusal(seen, host=peer.host, port=peer.port, retry_after=self._policy.retry_after, key=self._key)

    @property
    def retry_after(self) -> int:
        """Return what a 503 that is not built here says, seconds."""
        return self._policy.retry_after

    def close(self) -> None:
        """Stop measuring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _goes_on(self, seen: Glance, flow: Flow) -> bool:
        """Tell whether a REGISTER comes from who is registered, whatever nonce it states: none, or an older one (TS 24.229 §5.1.1.4.1)."""
        return flow.peer.transport == ESP or (self._core and seen.protected) or self._registered(flow.peer)

    def _observe(self) -> None:
        before = self._control.state
        after = self._control.observe(max(self._waited, self._lag), self._in_progress(), self._context.clock.monotonic())
        if after is before:
            return
        if after is Load.SHEDDING and before is Load.STRAINED:
            self._context.count("sip_overload", "begun")
            self._context.log.warning("sip-overload-begun", node=self._context.name, in_progress=self._in_progress())
        elif after is Load.CALM and before is Load.WARY:
            self._context.log.info("sip-overload-ended", node=self._context.name)

    def _probe_later(self) -> None:
        self._due = self._context.clock.monotonic() + PROBE
        self._handle = asyncio.get_running_loop().call_later(PROBE, self._probe)

    def _probe(self) -> None:
        self._handle = None
        self._lag = max(0.0, self._context.clock.monotonic() - self._due)
        self._observe()
        if self._busy or self._control.state is not Load.CALM or self._in_progress():
            self._busy = False
            self._probe_later()
        else:
            self._lag = 0.0
