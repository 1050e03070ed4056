# SPDX-License-Identifier: Apache-2.0
"""Log in as a UE, whatever becomes of its registration: every authentication yields new keys (DESIGN §5 step 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

import httpx

from keyferry.client.http_auth import WAITS, SimDigest
from keyferry.client.psk_policy import PSK, PskPolicy, asking, why_not
from keyferry.client.ue import HttpCredentials, UeClient, http_credentials, registered
from keyferry.errors import LocalProtocolError, TransportError
from keyferry.ports import Log, RandomSource
from keyferry.protocol.identity import AsId


class UeLogin(httpx.Auth):
    """Authenticate each request to one AS with the key of the registration of the moment; for httpx.AsyncClient.

    The first request of a key goes without a challenge (first nonce), once over all processes that share the UE's state.
    With `psk` a request first asks for TLS-PSK, which only a `PskOrCertificate` transport understands. "prefer" goes on to Digest over
    a verified certificate where that cannot be, and the log says so; "require" never does.
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
        self._without_psk = ""  # the key id that was refused
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
        if self._psk != "off" and self._found is not None and self._without_psk != self._key_id:
            waits = iter(self._waits if self._psk == "require" else ())
            while True:
                problem = why_not((yield asking(request, self._found)))
                if problem is None:
                    return
                wait = next(waits, None)
                if wait is None:
                    break
                await self._sleep(wait)
            self._refused(problem)
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

    def _refused(self, problem: str) -> None:
        """Say that TLS-PSK was not to be had: a server that lacks the key, or somebody who wants a certificate to be believed instead."""
        if self._log is not None:
            self._log.warning("psk-refused", as_id=self._as_id, problem=problem, then="nothing" if self._psk == "require" else "digest")
        if self._psk == "require":
            raise TransportError(self._as_id, f"TLS-PSK is required and cannot be: {problem}")
        self._without_psk = self._key_id

    async def _current(self) -> SimDigest:
        if self._sim is not None and self._client.renewing:
            return self._sim
        state = registered(await self._client.settled(), self._client.clock.now())
        found = http_credentials(state, self._as_id)
        if self._sim is None or found.username != self._key_id:
            key_id = self._key_id = found.username
            self._found = found
            store, clock = self._client.store, self._client.clock
            self._sim = SimDigest(
                key_id=key_id, as_id=self._as_id, k_ua=found.k_ua, random=self._random, waits=self._waits,
                claim_first=lambda: store.claim_first(key_id, clock.now()), integrity=self._integrity,
            )  # fmt: skip
        return self._sim
