# SPDX-License-Identifier: Apache-2.0
"""A UE that knows of no access keys: where the P-CSCF got CK', IK' it protects Gm with CK, IK (DESIGN §5 step 3)."""

from __future__ import annotations

from keyferry.client.ue import UeClient
from keyferry.protocol.ims.activation import AkaRun
from keyferry.protocol.ims.keys import AccessKeys
from keyferry.protocol.sip.message import Response
from keyferry.roles.ue import Ue


class RawKeysUe(Ue):
    """A UE whose SAs are made of CK, IK always."""

    __slots__ = ()

    def _agree(self, response: Response, run: AkaRun | None) -> None:
        if self.security is not None and run is not None:
            self.security.challenged(response, AccessKeys(run.ck, run.ik))


def raw_keys(client: UeClient) -> UeClient:
    """Return the same UE with raw keys on Gm; sockets and store are shared."""
    return UeClient(RawKeysUe(*(getattr(client.ue, name) for name in Ue.__slots__)), client.store, client.clock)
