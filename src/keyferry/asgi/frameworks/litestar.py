# SPDX-License-Identifier: Apache-2.0
"""Litestar: `request.user` works as it is; a guard, a dependency, and what the OpenAPI document says of the scheme.

@get("/me", guards=[sim_required], security=SECURITY)
async def me(request: Request) -> str: ...

app = Litestar([me], openapi_config=OpenAPIConfig("Notes", "1", components=COMPONENTS))
"""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers.base import BaseRouteHandler
from litestar.openapi.spec import Components, SecurityScheme

from keyferry.asgi.identity import SimUser, user_of

SCHEME = "SimLogin"
COMPONENTS = Components(
    security_schemes={SCHEME: SecurityScheme(type="http", scheme="digest", description="SIM login: HTTP Digest, RFC 7616.")}
)
SECURITY: list[dict[str, list[str]]] = [{SCHEME: []}]


def sim_user(connection: ASGIConnection[Any, Any, Any, Any]) -> SimUser:
    """Return who sent a request or opened a websocket; on an open path perhaps nobody. Raises LocalProtocolError."""
    return user_of(connection.scope)


def sim_required(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Let nobody in without a login, on an open path too. Raises NotAuthorizedException: 401, which SimLogin makes a challenge of."""
    if not sim_user(connection).is_authenticated:
        raise NotAuthorizedException("Log in with a SIM")
