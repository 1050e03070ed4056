# SPDX-License-Identifier: Apache-2.0
"""The P-CSCF of a process, with what protects Gm."""

from __future__ import annotations

import ssl

from keyferry.config import split_address
from keyferry.roles.pcscf.proxy import ANSWER_WITHIN, Pcscf
from keyferry.roles.pcscf.security import SecurityAgreement
from keyferry.roles.reg_event_subscriber import RegEventSubscriber, SubscriberProfile
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.readiness import reaches
from keyferry.wiring.services import Listener, Services
from keyferry.wiring.watching import SWEEP, PcscfWatch, Tasks

EXPIRES = 604_800
"""Seconds that the P-CSCF asks for its subscriptions: more than a registration has."""


async def start_pcscf(services: Services) -> Pcscf:
    """Start the P-CSCF. Raises ConfigError, TransportError."""
    settings, network = services.config.pcscf, services.config.network
    node = services.node(
        "P-CSCF", lambda request, peer: pcscf.handle(request, peer), sheds=True, answer_within=ANSWER_WITHIN,
        registered=lambda peer: pcscf.bindings.is_source(peer, services.clock.now()),
    )  # fmt: skip
    pcscf = Pcscf(
        sip=node, resolver=services.resolver, uri=f"sip:{settings.name}", icscf=settings.icscf, clock=services.clock,
        random=services.random, visited_network=network.home_domain, log=services.log, counter=services.metrics, warnings=network.warnings,
    )  # fmt: skip
    tunnel = []
    if network.gm != "off":  # before anybody can ask
        sas = await node.protect(*split_address(settings.gm_listen, "pcscf.gm_listen"))
        tunnel = [Listener("pcscf", "esp", *sas.bound, settings.name)] if sas.bound else []
        pcscf.security = SecurityAgreement(sas, services.metrics, required=network.gm == "required")
    services.every(SWEEP, pcscf.sweep)
    if settings.reg_event:
        _watch(services, node, pcscf)
    await services.serve_sip("pcscf", node, settings.name, settings.listen)
    services.readiness.check("I-CSCF", reaches(node, services.resolver, services.random, settings.icscf, settings.name))
    services.listeners += tunnel
    if settings.listen_tls is not None:
        tls = services.identity(node, settings.name, "pcscf", clients=ssl.CERT_NONE)  # RFC 3261 §26.3.1: a phone has no certificate
        await services.serve_sip("pcscf", node, settings.name, settings.listen_tls, over=("TLS",), tls=tls)
    return pcscf


def _watch(services: Services, node: SipNode, pcscf: Pcscf) -> None:
    # The subscription outlives the registration (§5.2.3), so the UE's 600,000 s and some more.
    profile = SubscriberProfile(pcscf.uri, pcscf.uri, asserts=True, expires=EXPIRES)
    subscriber = RegEventSubscriber(
        sip=node, profile=profile, on_news=lambda news: watch.heard(news), clock=services.clock, random=services.random,
        log=services.log, counter=services.metrics, resolver=services.resolver,
    )  # fmt: skip
    watch = PcscfWatch(pcscf, subscriber, services.resolver, pcscf.icscf, Tasks(services.log))
    pcscf.registered, pcscf.dialogs.notified = watch.registered, subscriber.handle_notify
    services.every(SWEEP, subscriber.sweep)
    services.exit.push_async_callback(subscriber.aclose)
    services.exit.push_async_callback(watch.tasks.aclose)
