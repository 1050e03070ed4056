# SPDX-License-Identifier: Apache-2.0
"""FastAPI: a dependency that names the user, and shows the scheme in the OpenAPI document and at /docs.

@app.get("/me")
async def me(user: Annotated[SimUser, Security(sim_user)]) -> str: ...
"""

from __future__ import annotations

from fastapi import HTTPException
from fastapi.openapi.models import HTTPBase
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from keyferry.asgi.identity import SimUser, user_of

_DESCRIPTION = "SIM login: HTTP Digest (RFC 7616) with a key of the caller's IMS registration, or a TLS connection made with it."


class SimSecurity(SecurityBase):
    """A dependency for Security(): whoever logged in; 401 if nobody did, which SimLogin makes a challenge of."""

    def __init__(self, *, scheme_name: str = "SimLogin", description: str = _DESCRIPTION) -> None:
        self.model = HTTPBase(scheme="digest", description=description)
        self.scheme_name = scheme_name

    async def __call__(self, connection: HTTPConnection) -> SimUser:
        """Return the user. Raises HTTPException, and LocalProtocolError without SimLogin."""
        user = user_of(connection.scope)
        if not user.is_authenticated:
            raise HTTPException(401, "Log in with a SIM")
        return user


class OptionalSimSecurity(SimSecurity):
    """The same for an open path: nobody is welcome, too."""

    async def __call__(self, connection: HTTPConnection) -> SimUser:
        """Return the user; one without an id if nobody logged in. Raises LocalProtocolError."""
        return user_of(connection.scope)


sim_user = SimSecurity()
optional_sim_user = OptionalSimSecurity()
