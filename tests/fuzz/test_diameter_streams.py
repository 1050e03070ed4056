# SPDX-License-Identifier: Apache-2.0
"""Any octets from a Diameter peer, before its CER or after, in any pieces: no exception escapes, nothing hangs, others are served."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import result_of
from keyferry.protocol.diameter.message import render_message
from protocol.diameter.cxkit import SCSCF, answers, base_messages, requests
from transports.diameterkit import Answering, Net, a_mar, an_maa

CER = render_message(base.build_cer(SCSCF, ["127.0.0.1"]).with_ids(1, 1))
GOOD = [render_message(message) for message in (*requests().values(), *answers().values(), *base_messages().values())]

pieces = st.lists(
    st.one_of(
        st.sampled_from(GOOD),
        st.tuples(st.sampled_from(GOOD), st.integers(0, 400), st.binary(min_size=1, max_size=8)),
        st.binary(max_size=64),
    ),
    max_size=8,
)


def octets_of(piece: Any) -> bytes:
    """Return a message, or one that was overwritten somewhere."""
    if isinstance(piece, bytes):
        return piece
    message, at, over = piece
    at %= len(message)
    return bytes(message[:at] + over + message[at + len(over) :])


async def hear(octets: bytes, cut: int, *, greeted: bool) -> None:
    """Send octets to a server, in pieces, and then be another peer that wants to be served."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    net, handler = Net(), Answering()
    server, port = await net.server(handler)
    wire = await net.wire(port)
    stream = CER + octets if greeted else octets
    for at in range(0, len(stream), cut):
        wire.send(stream[at : at + cut])
        await asyncio.sleep(0)
    await net.settles()
    await net.passes(1.0)
    other = await net.wire(port)
    assert result_of(await other.hello()).success
    other.send(a_mar().with_ids(5, 5))
    assert (await other.read()).hop_by_hop == 5
    await net.passes(70.0, step=10.0)  # watchdogs
    await net.aclose()
    assert not problems, problems
    assert not server._connections and not server._strangers and not server._of_host


async def answer_badly(octets: bytes, cut: int) -> None:
    """Be a server that answers with these octets, and then with the right answer if it still may."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    net = Net()
    listener = await net.listener()
    client = await net.client(listener.port)
    wire = await listener.wire()
    await wire.welcome()
    task = asyncio.ensure_future(client.send(a_mar(), timeout=5.0))
    asked = await wire.read()
    for at in range(0, len(octets), cut):
        if wire.writer.transport.is_closing():
            break
        wire.send(octets[at : at + cut])
        await asyncio.sleep(0)
    if not wire.writer.transport.is_closing():
        wire.send(an_maa(asked))
    await net.until(task.done, step=0.5)
    if task.exception() is None:
        assert task.result() == an_maa(asked)
    await net.aclose()
    assert not problems, problems


FUZZ = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@FUZZ
@given(pieces, st.integers(1, 500), st.booleans())
def test_a_server_takes_any_octets(sent: list[Any], cut: int, greeted: bool) -> None:
    asyncio.run(asyncio.wait_for(hear(b"".join(map(octets_of, sent)), cut, greeted=greeted), 60))


@FUZZ
@given(pieces, st.integers(1, 500))
def test_a_client_takes_any_octets(sent: list[Any], cut: int) -> None:
    asyncio.run(asyncio.wait_for(answer_badly(b"".join(map(octets_of, sent)), cut), 60))
