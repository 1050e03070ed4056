# SPDX-License-Identifier: Apache-2.0
"""Log in as a UE, whatever becomes of its registration: every authentication yields new keys (DESIGN §5 step 6)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence

import httpx

from keyferry.client.http_auth import WAITS, SimDigest
from keyferry.client.ue import UeClient, http_credentials, registered
from keyferry.errors import LocalProtocolError
from keyferry.ports import RandomSource
from keyferry.protocol.identity import AsId


class UeLogin(httpx.Auth):
    """Authenticate each request to one AS with the key of the registration of the moment; for httpx.AsyncClient.

    The first request of a key goes without a challenge (first nonce), once over all processes that share the UE's state.
    """

    def __init__(self, client: UeClient, as_id: AsId, random: RandomSource, *, waits: Sequence[float] = WAITS) -> None:
        """Take a UE, the AS, and the seconds to wait before each new try while the AS does not know the key."""
        self._client = client
        self._as_id = as_id
        self._random = random
        self._waits = waits
        self._sim: SimDigest | None = None
        self._key_id = ""

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:  # noqa: ARG002 - httpx's signature
        """Refuse httpx.Client: the UE lives in an event loop.

        Raises LocalProtocolError.
        """
        raise LocalProtocolError("a UE's login needs httpx.AsyncClient")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do what `SimDigest` does. Raises RegistrationFailed if there is no key, else what `SimDigest` raises."""
        flow = (await self._current()).async_auth_flow(request)
        try:
            outgoing = await anext(flow)
            while True:
                response = yield outgoing
                outgoing = await flow.asend(response)
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()

    async def _current(self) -> SimDigest:
        if self._sim is not None and self._client.renewing:
            return self._sim
        async with self._client.turn:
            state = registered(await self._client.state(), self._client.clock.now())
        found = http_credentials(state, self._as_id)
        if self._sim is None or found.username != self._key_id:
            key_id = self._key_id = found.username
            store, clock = self._client.store, self._client.clock
            self._sim = SimDigest(
                key_id=key_id, as_id=self._as_id, k_ua=found.k_ua, random=self._random, waits=self._waits,
                claim_first=lambda: store.claim_first(key_id, clock.now()),
            )  # fmt: skip
        return self._sim
