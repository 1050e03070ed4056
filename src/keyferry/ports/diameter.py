# SPDX-License-Identifier: Apache-2.0
"""What the roles need of a Diameter node (RFC 6733): send, and be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the codec's library costs 0.2 s, and is needed only where Cx goes over the wire
    from keyferry.protocol.diameter.message import DiameterMessage


class DiameterRemote(Protocol):
    """Who is at the other end of a connection, as CER or CEA and certificate say."""

    @property
    def origin_host(self) -> str:
        """Its Origin-Host, lower case."""

    @property
    def role(self) -> str:
        """Of its certificate: "scscf", "icscf", "hss"; "" without TLS."""

    @property
    def product(self) -> str:
        """Its Product-Name."""


class DiameterSender(Protocol):
    """Send requests to whoever of several peers can be asked."""

    async def send(self, request: DiameterMessage, *, timeout: float) -> DiameterMessage:  # noqa: ASYNC109 - one coarse timer
        """Return the answer, whatever its result. Raises TransportError: no answer in `timeout` seconds, or nobody to ask."""


class DiameterAsker(Protocol):
    """Send requests to one peer of those that are connected."""

    async def send_to(self, origin_host: str, request: DiameterMessage, *, timeout: float) -> DiameterMessage:  # noqa: ASYNC109
        """Return the answer, whatever its result. Raises TransportError: not connected, or no answer in `timeout` seconds."""
