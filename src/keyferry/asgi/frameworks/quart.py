# SPDX-License-Identifier: Apache-2.0
"""Quart: `sim_user()` in a view, `@sim_required` before one; the middleware is `app.asgi_app = SimLogin(app.asgi_app, ...)`."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from quart import abort, has_websocket_context, request, websocket

from keyferry.asgi.identity import SimUser, user_of

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def sim_user() -> SimUser:
    """Return who sent the request or opened the websocket; on an open path perhaps nobody. Raises LocalProtocolError."""
    return user_of(websocket.scope if has_websocket_context() else request.scope)


def sim_required(view: Callable[Arguments, Awaitable[Answer]]) -> Callable[Arguments, Awaitable[Answer]]:
    """Let nobody in without a login, on an open path too: 401, which SimLogin makes a challenge of."""

    @functools.wraps(view)
    async def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        if not sim_user().is_authenticated:
            abort(401)
        return await view(*args, **kwargs)

    return guarded
