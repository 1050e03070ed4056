# SPDX-License-Identifier: Apache-2.0
"""One S-CSCF of a process: authentication, registrar, pushes, reg event package and the look for what has expired."""

from __future__ import annotations

from typing import NamedTuple

from keyferry.config import Scscf as Settings
from keyferry.ports import CxClient, PeerCheck, RegistrationStore
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims.user_profile import cached_user_profile
from keyferry.protocol.ims.verdicts import Reason
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.protocol.trusted import TrustedHosts
from keyferry.roles.scscf.as_notifier import AsNotifier, PushPolicy
from keyferry.roles.scscf.authenticator import Authenticator, AuthPolicy
from keyferry.roles.scscf.diagnosis import Diagnosis
from keyferry.roles.scscf.node import Scscf
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.roles.scscf.reg_event import RegEventNotifier, RegEventPolicy
from keyferry.roles.scscf.registrar import Registrar, RegistrarPolicy
from keyferry.roles.scscf.repush import Repusher, RepushPolicy
from keyferry.stores.isc_keys import LiveIscKeys
from keyferry.stores.sqlite.registrations import SqliteRegistrationStore
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.criteria import shared_criteria
from keyferry.wiring.ipsec import IpsecWatch, ipsec_watch, policies_by_as_id
from keyferry.wiring.ipsec_guard import pairs_of_scscf, watch_rules
from keyferry.wiring.isc import SealingKeys
from keyferry.wiring.measuring import MeasuredPushes
from keyferry.wiring.services import Services, only_listed, only_tls, server_name_of
from keyferry.wiring.tracing import short_name


class ScscfParts(NamedTuple):
    """One S-CSCF, put together."""

    server_name: str
    registrar: Registrar
    registrations: RegistrationStore
    repusher: Repusher
    serving: ScscfServing


async def start_scscf(services: Services, cx: CxClient, settings: Settings, diagnosis: Diagnosis) -> ScscfParts:
    """Start one S-CSCF. Raises ConfigError, StateError, TransportError."""
    first = settings.name == services.config.scscf.name
    services.metrics.expect("scscf_failures", [reason.value for reason in Reason])
    trusted, subscribers = TrustedHosts(settings.trusted_peers), _subscribers(services, settings)
    handler = services.trusting(trusted, lambda request, peer: scscf.handle(request, peer), subscribers=subscribers)
    node = services.node("S-CSCF" if first else f"S-CSCF {short_name(settings.name)}", handler, sheds=True, trusted=trusted)
    database = services.database("scscf" if first else f"scscf-{settings.name}")
    registrations = SqliteRegistrationStore(database, services.state.keyring)
    server_name = server_name_of(settings)
    ipsec = ipsec_watch(services, settings)
    servers = frozenset(server.sip_uri for server in services.config.application_servers)
    notifier = AsNotifier(
        sip=MeasuredPushes(node, services.metrics, services.clock, services.log, servers),
        resolver=services.resolver, registrations=registrations, clock=services.clock, random=services.random,
        log=services.log, counter=services.metrics, policy=_push_policy(services, settings, server_name, ipsec),
        targets_of=lambda registration: registrar.targets_of(registration),
        terminate=lambda impi, reg: registrar.network_deregister(impi, reg), told=diagnosis.push,
    )  # fmt: skip
    reg_event = _reg_event(services, node, registrations, settings, subscribers, None if ipsec is None else ipsec.toward)
    auth_policy = _auth_policy(services, settings, server_name)
    registrar = Registrar(
        authenticator=Authenticator(cx, services.clock, auth_policy, services.log, services.metrics, diagnosis),
        notifier=notifier, registrations=registrations,
        cx=cx, clock=services.clock, random=services.random, log=services.log, counter=services.metrics,
        policy=RegistrarPolicy(
            settings.min_expires, settings.max_expires, associated=settings.p_associated_uri, reauth_age=settings.reauth_age,
            shared_ifc=shared_criteria(services.config),
        ),
        # Where Gm is not protected nobody can say that it is; and this machine's own users can reach the loopback addresses.
        trusts=lambda peer: str(services.config.network.gm) != "off" and trusted.holds(peer.host),
        changed=reg_event.changed,
    )  # fmt: skip
    scscf = Scscf(registrar, reg_event)
    await registrar.take_up()
    services.exit.push_async_callback(reg_event.aclose)
    services.exit.push_async_callback(notifier.aclose)
    over_tls = any(str(server.protection) == "tls" for server in services.config.application_servers)
    tls = services.identity(node, settings.name, "scscf") if over_tls else None
    await services.serve_sip("scscf", node, settings.name, settings.listen, tls=tls)
    services.exit.push_async_callback(registrar.reports.aclose)
    services.every(settings.sweep, scscf.sweep, first=0.0)  # beside the start: what has ended while we were away keeps nobody out
    if ipsec is not None:
        ipsec.release = lambda name: notifier.gate(name).try_now()
        ipsec.abandon = node.abandon
        services.exit.push_async_callback(ipsec.aclose)
        await ipsec.start()
        watch_rules(services, ipsec.view, pairs_of_scscf(services.config, settings.name), "scscf", settings.name)
    repusher = await _start_repusher(services, settings, node, notifier, registrar)
    serving = ScscfServing(registrar, reg_event.forget, limit=settings.hss_requests)
    return ScscfParts(server_name, registrar, registrations, repusher, serving)


async def _start_repusher(services: Services, settings: Settings, node: SipNode, notifier: AsNotifier, registrar: Registrar) -> Repusher:
    repusher = Repusher(
        sip=node, resolver=services.resolver, registrations=registrar.registrations, notifier=notifier, owe_again=registrar.owe_again,
        clock=services.clock, random=services.random, log=services.log, counter=services.metrics,
        policy=RepushPolicy(probe=settings.as_probe, rate=settings.repush_rate),
    )  # fmt: skip
    notifier.heard = repusher.heard
    services.exit.push_async_callback(repusher.aclose)
    await repusher.start()
    return repusher


def _reg_event(
    services: Services, node: SipNode, registrations: RegistrationStore, settings: Settings, subscribers: TrustedHosts,
    check: PeerCheck | None,
) -> RegEventNotifier:  # fmt: skip
    return RegEventNotifier(
        sip=node, resolver=services.resolver, registrations=registrations, owner_of=registrations.of_impu,
        trusts=lambda peer: subscribers.holds(peer.host), clock=services.clock, random=services.random, log=services.log,
        counter=services.metrics, policy=RegEventPolicy(server_name_of(settings), shared_ifc=shared_criteria(services.config)),
        profile_of=cached_user_profile, check=check,
    )  # fmt: skip


def _subscribers(services: Services, settings: Settings) -> TrustedHosts:
    """Return who may SUBSCRIBE to registration states: whom Mw trusts, and the application servers' side of ISC."""
    return TrustedHosts(settings.trusted_peers + [peer for server in services.config.application_servers for peer in server.trusted_peers])


def _auth_policy(services: Services, settings: Settings, server_name: str) -> AuthPolicy:
    return AuthPolicy(
        realm=services.config.network.home_domain, server_name=server_name, release=settings.release, release_info=settings.release_info,
        marker_octets=settings.marker_octets, mask=settings.mask, reg_await_auth=settings.reg_await_auth,
    )  # fmt: skip


def _push_policy(services: Services, settings: Settings, server_name: str, ipsec: IpsecWatch | None) -> PushPolicy:
    as_ids: dict[str, tuple[AsId, ...]] = {}
    live: dict[AsId, LiveIscKeys] = {}
    protection: dict[AsId, PeerCheck] = {**policies_by_as_id(services, ipsec)}
    for server in services.config.application_servers:
        as_id = parse_as_id(server.as_id)
        as_ids[server.sip_uri] = (*as_ids.get(server.sip_uri, ()), as_id)
        live[as_id] = services.isc_keys(settings.name, as_id)
        if str(server.protection) == "tls":
            protection[as_id] = only_tls(parse_sip_uri(server.sip_uri).host)
        elif server.trusted_peers:
            protection[as_id] = only_listed(TrustedHosts(server.trusted_peers))
    return PushPolicy(
        scscf_uri=server_name, scscf_name=settings.name, as_ids=as_ids, transport_keys=SealingKeys(live),
        check_peer=only_listed(TrustedHosts()), protection=protection, key_max_age=settings.key_max_age, push_wait=settings.push_wait,
    )  # fmt: skip
