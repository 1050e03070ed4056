# SPDX-License-Identifier: Apache-2.0
"""Log in as a UE, whatever becomes of its registration: every authentication yields new keys (DESIGN §5 step 6)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

import httpx

from keyferry.client.http_auth import WAITS, SimDigest
from keyferry.client.psk_policy import PSK, RETRY, PskPolicy, Refusal, asking, why_not
from keyferry.client.ue import HttpCredentials, UeClient, http_credentials, registered
from keyferry.errors import LocalProtocolError, TransportError
from keyferry.ports import Log, RandomSource
from keyferry.protocol.identity import AsId


class UeLogin(httpx.Auth):
    """Authenticate each request to one AS with the key of the registration of the moment; for httpx.AsyncClient.

    The first request of a key goes without a challenge (first nonce), once over all processes that share the UE's state.
    With `psk` a request first asks for TLS-PSK, which only a `PskOrCertificate` transport understands. "prefer" goes on to Digest over
    a verified certificate where that cannot be, for a minute, and the log says so; "require" never does.
    """

    def __init__(
        self, client: UeClient, as_id: AsId, random: RandomSource, *, waits: Sequence[float] = WAITS, psk: PskPolicy = "off",
        log: Log | None = None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, integrity: bool = False,
    ) -> None:  # fmt: skip
        """Take a UE, the AS, and the seconds to wait before each new try while the AS does not know the key; `integrity` as SimDigest."""
        self._client = client
        self._as_id = as_id
        self._random = random
        self._waits = waits
        self._psk = psk
        self._log = log
        self._sleep = sleep
        self._integrity = integrity
        self._sim: SimDigest | None = None
        self._found: HttpCredentials | None = None
        self._psk_again = 0.0  # when to try TLS-PSK again, in seconds of the monotonic clock; 0: it was not refused
        self._key_id = ""

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:  # noqa: ARG002 - httpx's signature
        """Refuse httpx.Client: the UE lives in an event loop.

        Raises LocalProtocolError.
        """
        raise LocalProtocolError("a UE's login needs httpx.AsyncClient")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do what `SimDigest` does, or less over TLS-PSK.

        Raises RegistrationFailed if there is no key, TransportError if TLS-PSK is required and cannot be, else what `SimDigest` raises.
        """
        sim = await self._current()
        found = self._found
        if found is not None and self._tries_psk():
            waits = iter(self._waits if self._psk == "require" else ())
            while (refusal := why_not((yield asking(request, found)))) is not None:
                wait = next(waits, None)
                if wait is None:
                    break
                await self._sleep(wait)
            self._learn(found, refusal)
            if refusal is None:
                return
            request.extensions = {name: value for name, value in request.extensions.items() if name != PSK}
        flow = sim.async_auth_flow(request)
        try:
            outgoing = await anext(flow)
            while True:
                response = yield outgoing
                outgoing = await flow.asend(response)
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()

    def _tries_psk(self) -> bool:
        """Tell whether a request asks for TLS-PSK; once it was refused, one of each minute does, and the others do not wait for that."""
        if self._psk == "off":
            return False
        now = self._client.clock.monotonic()
        if now < self._psk_again:
            return False
        if self._psk_again:
            self._psk_again = now + RETRY
        return True

    def _learn(self, found: HttpCredentials, refusal: Refusal | None) -> None:
        """Remember whether TLS-PSK was to be had with a key, and say where not.

        It may be a server that lacks the key, or somebody who wants a certificate to be believed instead. Raises TransportError.
        """
        if refusal is not None:
            self._say_refused(refusal)
        if found.username != self._key_id:
            return  # that key is over meanwhile, and says nothing of the new one
        if refusal is None:
            self._psk_again = 0.0
        else:
            self._psk_again = math.inf if refusal.lasting else self._client.clock.monotonic() + RETRY

    def _say_refused(self, refusal: Refusal) -> None:
        then = "nothing" if self._psk == "require" else "digest"
        if self._log is not None:
            self._log.warning("psk-refused", as_id=self._as_id, problem=refusal.problem, lasting=refusal.lasting, then=then)
        if self._psk == "require":
            raise TransportError(self._as_id, f"TLS-PSK is required and cannot be: {refusal.problem}")

    async def _current(self) -> SimDigest:
        state = None
        if self._sim is not None and self._client.renewing:
            state = await self._client.state()
            if state is None or state.k_m is None:
                return self._sim  # between the challenge and its 2xx; before that another process may have left newer keys
        if state is None or state.expires_at <= self._client.clock.now():
            state = await self._client.settled()
        state = registered(state, self._client.clock.now())
        found = http_credentials(state, self._as_id)
        if self._sim is None or found.username != self._key_id:
            key_id = self._key_id = found.username
            self._found, self._psk_again = found, 0.0
            store, clock = self._client.store, self._client.clock
            self._sim = SimDigest(
                key_id=key_id, as_id=self._as_id, k_ua=found.k_ua, random=self._random, waits=self._waits,
                claim_first=lambda: store.claim_first(key_id, clock.now()), integrity=self._integrity, proven=found.proven,
            )  # fmt: skip
        return self._sim
