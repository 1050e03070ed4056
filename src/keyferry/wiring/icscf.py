# SPDX-License-Identifier: Apache-2.0
"""The I-CSCF of a process."""

from __future__ import annotations

from collections.abc import Callable

from keyferry.errors import CxError
from keyferry.ports import CxClient
from keyferry.protocol.identity import Impi
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.protocol.trusted import TrustedHosts
from keyferry.roles.icscf import ANSWER_WITHIN, Icscf
from keyferry.wiring.readiness import reaches
from keyferry.wiring.services import Services, server_name_of


async def start_icscf(services: Services, cx: CxClient, refused: Callable[[Impi, CxError, int], None] | None = None) -> Icscf:
    """Start the I-CSCF; `refused` takes whom the HSS does not let in. Raises ConfigError, TransportError."""
    settings = services.config.icscf
    trusted = TrustedHosts(settings.trusted_peers)
    handler = services.trusting(trusted, lambda request, peer: icscf.handle(request, peer))
    node = services.node("I-CSCF", handler, sheds=True, trusted=trusted, answer_within=ANSWER_WITHIN)
    patience = settings.patience if services.config.further_scscfs else None
    icscf = Icscf(
        cx=cx, sip=node, resolver=services.resolver, default_scscf=settings.scscf, log=services.log, clock=services.clock,
        counter=services.metrics, name=settings.name, patience=patience, refused=refused,
        warnings=services.config.network.warnings,
    )  # fmt: skip
    await services.serve_sip("icscf", node, settings.name, settings.listen)
    for server in [server_name_of(scscf) for scscf in services.config.scscfs] if services.config.further_scscfs else [settings.scscf]:
        name = parse_sip_uri(server).host
        services.readiness.check(f"S-CSCF {name}", reaches(node, services.resolver, services.random, server, settings.name))
    return icscf
