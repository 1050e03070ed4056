# SPDX-License-Identifier: Apache-2.0
"""The socket where the script of a Kamailio gets rspauth from our HSS, if one is configured."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from keyferry.protocol.aka import AuthVector
from keyferry.protocol.identity import Impi
from keyferry.roles.cx_rspauth import RspauthBook
from keyferry.transports.rspauth_server import RspauthServer
from keyferry.transports.unix_socket import user_id
from keyferry.wiring.services import Services


async def start_rspauth(services: Services) -> Callable[[Impi, AuthVector, bytes], None] | None:
    """Listen, and return what is to be told of every vector with a marker. Raises StateError."""
    settings = services.config.kamailio
    if settings.rspauth_socket is None:
        return None
    book = RspauthBook(services.clock)
    server = RspauthServer(book.prove, {0, os.geteuid(), user_id(settings.user)}, services.log, services.metrics)
    services.exit.push_async_callback(server.aclose)
    await server.listen(Path(settings.rspauth_socket))
    return book.remember
