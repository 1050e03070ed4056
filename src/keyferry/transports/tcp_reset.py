# SPDX-License-Identifier: Apache-2.0
"""End a TCP connection so that nothing that the peer has not taken reaches it any more (socket(7), SO_LINGER)."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Final

_AT_ONCE: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Send a RST; after a mere close the kernel goes on trying to deliver for minutes."""
    # uvloop's socket object has no options; a second one for the same connection has.
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()
