# SPDX-License-Identifier: Apache-2.0
"""The HSS of a process: its subscribers and their filter criteria."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyferry.config import Subscriber
from keyferry.config.profiles import DEFAULT
from keyferry.ports import CxServing, CxServings, Log, SubscriberStore
from keyferry.ports import SubscribedImpu as PortImpu
from keyferry.ports import Subscriber as PortSubscriber
from keyferry.ports.scripts import ScriptStore
from keyferry.protocol.aka import algorithm_of, opc_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, parse_impi, parse_impu
from keyferry.roles.hss import OWED_AGAIN, Hss
from keyferry.stores.sqlite.scripts import SqliteScriptStore
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.wiring.criteria import ProfileCriteria, profile_criteria
from keyferry.wiring.services import Services, server_name_of

TOGETHER: Final = 500
"""Subscribers of the file that are stored at a time."""
NAMED: Final = 10
"""Subscribers that a line of the log names."""


@dataclass(slots=True)
class Servings:
    """Implement ports.CxServings for the S-CSCFs of this process, and for those that ask over Diameter."""

    by_name: dict[str, CxServing] = field(default_factory=dict)  # by Server-Name
    remote: CxServings | None = None

    def at(self, server_name: str) -> CxServing | None:
        """Return the S-CSCF of this Server-Name, None if it is neither here nor connected."""
        found = self.by_name.get(server_name)
        return self.remote.at(server_name) if found is None and self.remote is not None else found


class HssParts(NamedTuple):
    """The HSS, put together."""

    hss: Hss
    subscribers: SubscriberStore
    servings: Servings  # empty: an S-CSCF is put into it when it starts
    profiles: Mapping[str, ProfileCriteria]
    scripts: ScriptStore  # for Kamailios that are S-CSCFs


async def start_hss(services: Services) -> HssParts:
    """Open the subscribers' store and provision the file's. Raises ConfigError, StateError, ParseError."""
    database = services.database("hss")
    subscribers = SqliteSubscriberStore(database, services.state.keyring)
    scripts = SqliteScriptStore(database, services.state.keyring)
    profiles = profile_criteria(services.config)
    amf_bit = services.config.network.amf_bit
    own = [server_name_of(settings) for settings in services.config.scscfs] if services.config.further_scscfs else []
    several = services.config.hss.scscfs or own
    servings = Servings()
    hss = Hss(
        subscribers, {name: each.own for name, each in profiles.items()}, services.random, services.log, services.metrics, services.clock,
        scscfs=several, amf_bit=amf_bit, shared_ifc_sets={name: each.shared for name, each in profiles.items()}, servings=servings,
    )  # fmt: skip
    services.exit.push_async_callback(hss.aclose)
    services.every(OWED_AGAIN, hss.sweep)
    await report_gone(subscribers, services.config.subscribers, services.log)
    await provision(subscribers, services.config.subscribers)
    return HssParts(hss, subscribers, servings, profiles, scripts)


def subscriber_of(settings: Subscriber) -> PortSubscriber:
    """Return what the HSS stores, OPc derived where the file gives OP. Raises ParseError."""
    opc = settings.opc
    if opc is None:
        opc = opc_of(settings.algorithm, settings.k, settings.op or Secret(b""))
    algorithm_of(settings.algorithm, settings.k, opc)
    barred = {parse_impu(text) for text in settings.barred}
    impus = tuple(PortImpu(parse_impu(text), parse_impu(text) in barred) for text in settings.impus)
    amf, profile = bytes.fromhex(settings.amf), settings.profile or DEFAULT
    return PortSubscriber(parse_impi(settings.impi), impus, settings.algorithm, settings.k, opc, amf, profile, settings.release)


class Provisioned(NamedTuple):
    """The IMPIs of those who were stored."""

    added: list[Impi]
    changed: list[Impi]


async def provision(store: SubscriberStore, subscribers: Sequence[Subscriber]) -> Provisioned:
    """Store the file's subscribers where they differ from what is there; SEQ is kept, and a profile of which the file says nothing."""
    done = Provisioned([], [])
    for start in range(0, len(subscribers), TOGETHER):  # in one transaction where the store can: a disk has time for few of them a second
        await asyncio.gather(*[_provision(store, settings, done) for settings in subscribers[start : start + TOGETHER]])
    came = await store.from_file()
    if new := [impi for impi in map(_impi_of, subscribers) if impi not in came]:
        await store.note_from_file(new)
    return done


async def gone_from_file(store: SubscriberStore, subscribers: Sequence[Subscriber]) -> list[Impi]:
    """Return who came from the configuration file and is not in it any more, sorted."""
    return sorted(set(await store.from_file()) - set(map(_impi_of, subscribers)))


async def report_gone(store: SubscriberStore, subscribers: Sequence[Subscriber], log: Log) -> None:
    """Warn of those in one line: they can register until somebody removes them."""
    if gone := await gone_from_file(store, subscribers):
        named = ", ".join(gone[:NAMED]) + (", …" if len(gone) > NAMED else "")
        log.warning("subscribers-not-in-file", number=len(gone), impis=named, remedy="keyferry subscriber prune removes them")


def _impi_of(settings: Subscriber) -> Impi:
    return parse_impi(settings.impi)


async def _provision(store: SubscriberStore, settings: Subscriber, done: Provisioned) -> None:
    wanted = subscriber_of(settings)
    stored = await store.get(wanted.impi)
    if stored is not None and settings.profile is None:
        wanted = wanted._replace(profile=stored.profile)
    if stored != wanted:
        await store.replace(wanted)
        (done.added if stored is None else done.changed).append(wanted.impi)
