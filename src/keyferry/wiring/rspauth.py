# SPDX-License-Identifier: Apache-2.0
"""The socket where the script of a Kamailio gets rspauth, and who was ended, from our HSS, if one is configured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from keyferry.config.kamailio import Kamailio
from keyferry.errors import StateError
from keyferry.roles.cx_ended import EndedBook
from keyferry.roles.cx_rspauth import RspauthBook
from keyferry.transports.rspauth_server import RspauthServer
from keyferry.transports.unix_socket import group_id, is_our_turn, main_group, turn_file, user_id
from keyferry.wiring.services import Services

TAKE_OVER: Final = 2.0
"""Seconds between two looks whether the process that listens at the socket is still there."""


async def start_rspauth(services: Services, book: RspauthBook, ended: EndedBook) -> None:
    """Listen, if a socket is configured; where another process of the HSS does, when that ends. Raises StateError."""
    settings = services.config.kamailio
    if settings.rspauth_socket is None:
        return
    user = user_id(settings.user, "kamailio.user")
    users = {0, os.geteuid(), user}
    server = RspauthServer(book.prove, users, services.log, services.metrics, ended.since, group_of(settings, user))
    path = Path(settings.rspauth_socket)
    turn = turn_file(path)
    services.exit.callback(os.close, turn)  # after the socket's end: until then nobody else listens
    services.exit.push_async_callback(server.aclose)
    if is_our_turn(path, turn):
        await server.listen(path)
        return
    services.log.warning("rspauth-standby", socket=str(path))

    async def take_over() -> None:
        if not server.is_listening and is_our_turn(path, turn):
            await server.listen(path)
            services.log.warning("rspauth-taken-over", socket=str(path))

    services.every(TAKE_OVER, take_over)


def group_of(settings: Kamailio, user: int) -> int | None:
    """Return the group that may open the socket; None where this very user, or root, runs Kamailio. Raises StateError."""
    if settings.rspauth_group is None and user in {0, os.geteuid()}:
        return None
    group = main_group(user) if settings.rspauth_group is None else group_id(settings.rspauth_group)
    if os.geteuid() != 0 and group not in {os.getegid(), *os.getgroups()}:
        remedy = "Make the HSS's user a member of it (usermod -aG), or name another in kamailio.rspauth_group"
        raise StateError(f"group {group}", "cannot be given the socket where Kamailio asks for rspauth", remedy)
    return group
