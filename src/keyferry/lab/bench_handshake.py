# SPDX-License-Identifier: Apache-2.0
"""The load of the handshake benchmark: connections that are made and closed, several at a time, each a whole handshake of its own."""

from __future__ import annotations

import asyncio
import ssl
import sys
from time import perf_counter
from typing import Literal, NamedTuple, TypeAlias

from keyferry.lab.bench_http import AS_ID, Doors, http_user
from keyferry.lab.bench_register_load import Burst, quantiles
from keyferry.lab.bench_worker import Link, usage
from keyferry.protocol.ims.keys import psk_identity, ua_key
from keyferry.transports.tls_psk import DEFAULT_SUITE, VERSIONS, PskVersion, ua_id_of

Kind: TypeAlias = Literal["certificate", "psk13", "psk12"]


class HandshakeOrder(NamedTuple):
    """One burst."""

    kind: Kind
    seconds: float
    at_a_time: int


async def load_handshakes(link: Link) -> None:
    """Take the doors' addresses, then run orders."""
    doors: Doors = await link.receive()
    link.send(None)
    while isinstance(order := await link.receive(), HandshakeOrder):
        link.send(await _run(order, doors))


async def _run(order: HandshakeOrder, doors: Doors) -> Burst:
    latencies: list[float] = []
    problems: list[str] = []
    errors = 0
    contexts = [_context(order.kind, number, doors) for number in range(order.at_a_time)]
    before, began = usage(), perf_counter()
    until = began + order.seconds
    address = doors.login if order.kind == "certificate" else doors.psk[order.kind]

    async def again_and_again(context: ssl.SSLContext) -> None:
        nonlocal errors
        while True:  # once at least
            start = perf_counter()
            try:
                await _handshake(address, context)
            except OSError as problem:
                errors += 1
                problems.append(type(problem).__name__)
                await asyncio.sleep(0.01)
            else:
                latencies.append(perf_counter() - start)
            if perf_counter() >= until:
                return

    await asyncio.gather(*map(again_and_again, contexts))
    seconds, after = perf_counter() - began, usage()
    cpu = after.cpu_user + after.cpu_system - before.cpu_user - before.cpu_system
    return Burst(len(latencies), errors, seconds, *quantiles(latencies), cpu, problems=tuple(problems[:5]))


async def _handshake(address: tuple[str, int], context: ssl.SSLContext) -> None:
    """Connect, and close without a word: no session is kept, so none is resumed."""
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address, ssl=context, server_hostname=AS_ID)
    transport.abort()


def _context(kind: Kind, number: int, doors: Doors) -> ssl.SSLContext:
    """Return a client's context: it trusts the CA, or holds the key of one user."""
    if kind == "certificate":
        return ssl.create_default_context(cafile=doors.ca)
    version: PskVersion = "1.3" if kind == "psk13" else "1.2"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    if version == "1.2":
        context.set_ciphers(DEFAULT_SUITE)
    user, ua_id = http_user(number), ua_id_of(version, DEFAULT_SUITE)
    identity, key = psk_identity(ua_id, user.key_id), ua_key(user.k_as, ua_id)
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda _hint: (identity, key.reveal()))
    return context
