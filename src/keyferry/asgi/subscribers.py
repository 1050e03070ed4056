# SPDX-License-Identifier: Apache-2.0
"""Subscribers for operators: what an HSS asks of the S-CSCF that serves one, PPR and RTR (TS 29.228 §6.1.3, §6.2.2, Release 17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol
from urllib.parse import unquote

from keyferry.asgi.commands import path_of, read_command, respond_with, want_method
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.errors import RemoteProtocolError
from keyferry.ports import DeregistrationReason
from keyferry.protocol.identity import Impi, parse_impi

PROFILES: Final = "/profiles"
PATH: Final = "/subscribers"
MAX_INFO: Final = 200
"""Characters of a Reason-Info."""
FIELDS: Final[Mapping[str, Mapping[str, type]]] = {"push-profile": {}, "terminate": {"reason": str, "info": str}}
REASONS: Final = {reason.word: reason for reason in DeregistrationReason}


class SubscriberOperations(Protocol):
    """What an HSS lets its operator do; a command's outcome is an object, whether the S-CSCF was told or why not."""

    def profiles(self) -> Mapping[str, Sequence[str]]:
        """Return the AS_IDs of every profile, by its name."""

    async def push_profile(self, impi: Impi) -> Mapping[str, object]:
        """Bring a subscriber's profile to the S-CSCF. Raises RemoteProtocolError with 404 for nobody."""

    async def terminate(self, impi: Impi, reason: DeregistrationReason, info: str) -> Mapping[str, object]:
        """End a subscriber's registrations. Raises RemoteProtocolError with 404 for nobody."""


class SubscribersApp:
    """Answer GET /profiles, POST /subscribers/IMPI/push-profile and …/terminate. The caller checks who asks."""

    def __init__(self, operations: SubscriberOperations) -> None:
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one http scope."""
        await respond_with(send, "subscribers", self._answer(scope, receive))

    async def _answer(self, scope: Scope, receive: Receive) -> Mapping[str, object]:
        path = path_of(scope)
        if path == PROFILES:
            want_method(scope, "GET")
            return {"profiles": {name: list(as_ids) for name, as_ids in self._operations.profiles().items()}}
        parts = path.removeprefix(f"{PATH}/").split("/")
        if len(parts) != 2 or parts[1] not in FIELDS:
            raise RemoteProtocolError("There are /profiles, /subscribers/IMPI/push-profile and /subscribers/IMPI/terminate.", 404)
        want_method(scope, "POST")
        impi = parse_impi(unquote(parts[0]))
        command = await read_command(scope, receive, FIELDS[parts[1]])
        if parts[1] == "push-profile":
            return await self._operations.push_profile(impi)
        reason = REASONS.get(str(command.get("reason", "permanent-termination")))
        if reason is None:
            raise RemoteProtocolError(f"reason is one of {', '.join(REASONS)}.")
        return await self._operations.terminate(impi, reason, str(command.get("info", ""))[:MAX_INFO])
