# SPDX-License-Identifier: Apache-2.0
"""What a scrape looks at: registrations, pushes, keys, sockets, certificates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from keyferry.ports import Clock
from keyferry.protocol.identity import AsId
from keyferry.protocol.sip.overload import Load
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.wiring.measuring import OTHER
from keyferry.wiring.metrics import Metrics
from keyferry.wiring.readiness import Readiness
from keyferry.wiring.scscf import ScscfParts
from keyferry.wiring.services import Services

CERTIFICATES_FRESH: Final = 60.0
"""Seconds after which the files are read again."""


def show_services(services: Services) -> None:
    """Show what every process has: whether it is ready, its SIP nodes and its certificates."""
    metrics = services.metrics

    async def refresh() -> None:
        for name, node in services.nodes.items():
            metrics.set("sip_requests_in_progress", node.in_progress, name)
            metrics.set("sip_connections", node.connections, name)
            metrics.set("sip_shedding", node.load is Load.SHEDDING, name)

    metrics.source(refresh)
    show_ready(metrics, services.readiness)
    show_certificates(metrics, services.clock, services.pki.ends)


def show_ready(metrics: Metrics, readiness: Readiness) -> None:
    """Show what /ready says."""

    async def refresh() -> None:
        metrics.set("ready", (await readiness.report())["ready"] is True)

    metrics.source(refresh)


def show_certificates(metrics: Metrics, clock: Clock, ends: Callable[[], Sequence[tuple[str, str, float]]]) -> None:
    """Show when certificates end."""
    read_at: float | None = None

    async def refresh() -> None:
        nonlocal read_at
        if read_at is not None and clock.monotonic() < read_at + CERTIFICATES_FRESH:
            return
        read_at = clock.monotonic()
        metrics.clear("certificate_not_after_seconds")
        for name, role, end in ends():
            metrics.set("certificate_not_after_seconds", end, name, role)

    metrics.source(refresh)


def show_scscfs(metrics: Metrics, scscfs: Sequence[ScscfParts]) -> None:
    """Show who is registered, how many they are, and how the application servers stand with them."""

    async def refresh() -> None:
        totals: dict[str, list[int]] = {}
        for each in scscfs:
            metrics.set("registrations", await each.registrations.count(), parse_sip_uri(each.server_name).host)
            notifier = each.registrar.notifier
            for server in notifier.policy.as_ids:
                totals.setdefault(server, [0, 0, 1])
            for server, standing in notifier.standings().items():
                total = totals.setdefault(server if server in notifier.policy.as_ids else OTHER, [0, 0, 1])
                total[0] += standing.pending
                total[1] += standing.refused
                total[2] &= int(standing.answers)
        for server, (pending, refused, answers) in totals.items():
            metrics.set("isc_pushes_pending", pending, server)
            metrics.set("isc_pushes_refused", refused, server)
            metrics.set("isc_server_up", answers, server)

    metrics.source(refresh)


def show_keys(metrics: Metrics, clock: Clock, stores: Mapping[AsId, SqliteKeyStore]) -> None:
    """Show how many keys application servers have, and how old they are."""

    async def refresh() -> None:
        for as_id, keys in stores.items():
            span = await keys.span(clock.now(), as_id)
            metrics.set("as_keys", span.keys, as_id)
            metrics.set("as_oldest_key_seconds", span.oldest, as_id)
            metrics.set("as_youngest_key_seconds", span.youngest, as_id)

    metrics.source(refresh)
