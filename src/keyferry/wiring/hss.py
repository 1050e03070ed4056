# SPDX-License-Identifier: Apache-2.0
"""The HSS of a process: its subscribers and their filter criteria."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keyferry.config import Subscriber
from keyferry.ports import SubscribedImpu as PortImpu
from keyferry.ports import Subscriber as PortSubscriber
from keyferry.ports import SubscriberStore
from keyferry.protocol.aka import algorithm_of, opc_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.roles.hss import Hss
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.wiring.criteria import own_criteria
from keyferry.wiring.services import Services, server_name_of


class HssParts(NamedTuple):
    """The HSS, put together."""

    hss: Hss
    subscribers: SubscriberStore


async def start_hss(services: Services) -> HssParts:
    """Open the subscribers' store and provision the file's. Raises ConfigError, StateError, ParseError."""
    subscribers = SqliteSubscriberStore(services.database("hss"), services.state.keyring)
    profiles = {"default": own_criteria(services.config)}
    shared = {"default": [one.id for one in services.config.shared_ifc]}
    amf_bit = services.config.network.amf_bit
    several = [server_name_of(settings) for settings in services.config.scscfs] if services.config.further_scscfs else []
    hss = Hss(
        subscribers, profiles, services.random, services.log, services.metrics, scscfs=several, amf_bit=amf_bit, shared_ifc_sets=shared
    )
    await provision(subscribers, services.config.subscribers)
    return HssParts(hss, subscribers)


def subscriber_of(settings: Subscriber) -> PortSubscriber:
    """Return what the HSS stores, OPc derived where the file gives OP. Raises ParseError."""
    opc = settings.opc
    if opc is None:
        opc = opc_of(settings.algorithm, settings.k, settings.op or Secret(b""))
    algorithm_of(settings.algorithm, settings.k, opc)
    barred = {parse_impu(text) for text in settings.barred}
    impus = tuple(PortImpu(parse_impu(text), parse_impu(text) in barred) for text in settings.impus)
    return PortSubscriber(parse_impi(settings.impi), impus, settings.algorithm, settings.k, opc, bytes.fromhex(settings.amf))


async def provision(store: SubscriberStore, subscribers: Sequence[Subscriber]) -> None:
    """Store the file's subscribers where they differ from what is there; SEQ is kept."""
    for settings in subscribers:
        wanted = subscriber_of(settings)
        if await store.get(wanted.impi) != wanted:
            await store.replace(wanted)
