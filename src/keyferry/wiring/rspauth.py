# SPDX-License-Identifier: Apache-2.0
"""The socket where the script of a Kamailio gets rspauth from our HSS, if one is configured."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from keyferry.config.kamailio import Kamailio
from keyferry.errors import StateError
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.identity import Impi
from keyferry.roles.cx_rspauth import RspauthBook
from keyferry.transports.rspauth_server import RspauthServer
from keyferry.transports.unix_socket import group_id, main_group, user_id
from keyferry.wiring.services import Services


async def start_rspauth(services: Services) -> Callable[[Impi, AuthVector, bytes], None] | None:
    """Listen, and return what is to be told of every vector with a marker. Raises StateError."""
    settings = services.config.kamailio
    if settings.rspauth_socket is None:
        return None
    book = RspauthBook(services.clock)
    user = user_id(settings.user)
    server = RspauthServer(book.prove, {0, os.geteuid(), user}, services.log, services.metrics, _group(settings, user))
    services.exit.push_async_callback(server.aclose)
    await server.listen(Path(settings.rspauth_socket))
    return book.remember


def _group(settings: Kamailio, user: int) -> int | None:
    """Return the group that may open the socket; None where this very user, or root, runs Kamailio. Raises StateError."""
    if settings.rspauth_group is None and user in {0, os.geteuid()}:
        return None
    group = main_group(user) if settings.rspauth_group is None else group_id(settings.rspauth_group)
    if os.geteuid() != 0 and group not in {os.getegid(), *os.getgroups()}:
        remedy = "Make the HSS's user a member of it (usermod -aG), or name another in kamailio.rspauth_group"
        raise StateError(f"group {group}", "cannot be given the socket where Kamailio asks for rspauth", remedy)
    return group
