# SPDX-License-Identifier: Apache-2.0
"""Starlette: `request.user`, `request.auth` and `@requires("sim")` work behind SimLogin as they are; this adds a typed accessor."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from keyferry.asgi.identity import SimUser, user_of


def sim_user(connection: HTTPConnection) -> SimUser:
    """Return who sent a request or opened a websocket; on an open path perhaps nobody. Raises LocalProtocolError."""
    return user_of(connection.scope)
