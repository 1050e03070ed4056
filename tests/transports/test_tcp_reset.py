# SPDX-License-Identifier: Apache-2.0
"""What a peer has not taken is gone with the connection. Where that matters: tests/transports/test_diameter_connection.py."""

from __future__ import annotations

import asyncio
import socket

import pytest

from keyferry.transports.tcp_reset import reset


async def test_a_peer_gets_nothing_but_what_it_had() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        transport.write(bytes(1_000_000))
        reset(transport)
        await asyncio.sleep(0)
        taken = 0
        with pytest.raises(ConnectionResetError):
            while data := peer.recv(65_536):
                taken += len(data)
        assert taken < 1_000_000
