# SPDX-License-Identifier: Apache-2.0
"""Where pushes arrive: the SIP side of one or many application servers at one SIP URI, over one key store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keyferry.config.ipsec import ReceivingSide
from keyferry.config.reading import SipSide, split_address
from keyferry.ports import KeyStore, PeerCheck, SipHandler, SipPeer
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.keypush import SKEW
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.protocol.trusted import TrustedHosts
from keyferry.roles.appserver import PUSHER_ROLE, KeyAgent, Pusher
from keyferry.roles.reg_event_subscriber import RegEventSubscriber, SubscriberProfile
from keyferry.transports.ipsec import IpsecSource
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.ipsec import ipsec_source, protected
from keyferry.wiring.ipsec_guard import pairs_of_server, watch_rules
from keyferry.wiring.isc import OpeningKeys, OpeningKeysOfAll
from keyferry.wiring.services import Services
from keyferry.wiring.watching import SWEEP, AsWatch, Tasks


def skew_of(pushers: Iterable[str], ours: Iterable[str]) -> float:
    """Return by how many seconds the clock of one of these pushers may be ahead: those that run on this machine have ours."""
    return SKEW if set(pushers) - set(ours) else 0.0


async def start_key_agent(
    services: Services, settings: ReceivingSide, as_ids: Sequence[AsId], keys: KeyStore, pushers: Iterable[str], *, shown: str
) -> KeyAgent:  # fmt: skip
    """Listen for pushes of keys for these AS_IDs, and keep them. Raises ConfigError, StateError, TransportError."""
    over_tls, pushers = settings.protection == "tls", frozenset(pushers)
    source = await ipsec_source(services, settings) if settings.protection == "ipsec" else None
    if source is not None:
        watch_rules(services, source.view, pairs_of_server(services.config, source), "as", shown)
    trusted = TrustedHosts(settings.trusted_peers)
    agent = KeyAgent(
        frozenset(as_ids), {name: _pusher(services, name, as_ids, settings) for name in pushers}, keys, services.clock, services.log,
        services.metrics, over_tls=over_tls, through_ipsec=source is not None, trusted=trusted,
        registered=lambda register: watch.registered(register) if settings.reg_event else None,
    )  # fmt: skip
    handler: SipHandler = lambda request, peer: watch.handle(request, peer)  # noqa: E731
    if settings.protection == "loopback" and not TrustedHosts().holds(split_address(settings.listen_sip or "", "listen_sip")[0]):
        handler = services.trusting(trusted, handler)  # what reaches a loopback address comes from this machine, whatever its own
    node = services.node(
        f"AS {shown}", protected(services, source, handler), trusted=trusted,
        believes=lambda peer: is_scscf(settings, peer, source),
    )  # fmt: skip
    watch = _watch(services, settings, node, agent, None if source is None else lambda peer: source.may_ask(peer, pushers))
    name = parse_sip_uri(settings.sip_uri).host
    if over_tls:
        tls = services.identity(node, name, "as")
        await services.serve_sip("as", node, name, settings.listen_sips or "", shown=shown, over=("TLS",), tls=tls)
    else:
        await services.serve_sip("as", node, name, settings.listen_sip or "", shown=shown)
    services.every(60.0, lambda: keys.sweep(services.clock.now()))
    return agent


def is_scscf(settings: SipSide, peer: SipPeer, source: IpsecSource | None) -> bool:
    """Tell whether a peer is an S-CSCF, as far as ISC's protection says who is."""
    if settings.protection == "tls":
        return peer.role == PUSHER_ROLE
    return source.knows(peer) if source is not None else TrustedHosts(settings.trusted_peers).holds(peer.host)


def _watch(services: Services, settings: SipSide, node: SipNode, agent: KeyAgent, check: PeerCheck | None) -> AsWatch:
    subscriber = RegEventSubscriber(
        sip=node, profile=SubscriberProfile(settings.sip_uri, settings.sip_uri, asserts=True), on_news=lambda news: watch.heard(news),
        clock=services.clock, random=services.random, log=services.log, counter=services.metrics, resolver=services.resolver,
        check=check,
    )  # fmt: skip
    watch = AsWatch(agent, subscriber, services.resolver, Tasks(services.log))
    if settings.reg_event:
        services.every(SWEEP, subscriber.sweep)
    services.exit.push_async_callback(subscriber.aclose)
    services.exit.push_async_callback(watch.tasks.aclose)
    return watch


def _pusher(services: Services, name: str, as_ids: Sequence[AsId], settings: SipSide) -> Pusher:
    keys = OpeningKeysOfAll({as_id: OpeningKeys(as_id, services.isc_keys(name, as_id)) for as_id in as_ids})
    home = services.config.network.home_domain
    return Pusher(name=name, realm=home, transport_keys=keys, domains=frozenset({home}), unsealed_end=name in settings.unsealed_ends)
