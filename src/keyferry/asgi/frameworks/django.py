# SPDX-License-Identifier: Apache-2.0
"""Django under its ASGI handler: the user of a request is the one named by the SIM, by Django's own means for remote users.

    MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware", "keyferry.asgi.frameworks.django.SimUserMiddleware"]
    AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.RemoteUserBackend"]

The user name is `SimUser.id`; the public identities are in `request.sim_user`.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.middleware import RemoteUserMiddleware
from django.utils.functional import LazyObject

from keyferry.asgi.identity import user_of


class SimUserMiddleware(RemoteUserMiddleware):  # type: ignore[misc]  # Django has no types
    """RemoteUserMiddleware that takes the name from SimLogin, and never from a field of the request.

    Django's asynchronous path reads the request field Remote-User, which anybody may send; so both places are set here.
    A session that Django began for a user ends when a request comes without a login, as on an open path.
    """

    def process_request(self, request: Any) -> None:
        """Name the user of a request."""
        _name(request)
        super().process_request(request)

    async def aprocess_request(self, request: Any) -> None:
        """Name the user of a request."""
        _name(request)
        await super().aprocess_request(request)
        user = request.user
        if not isinstance(user, LazyObject):  # logged in or out just now; Django 5.2 keeps the answer of `auser()` from before

            async def auser() -> Any:
                return user

            request.auser = auser


def _name(request: Any) -> None:
    scope = getattr(request, "scope", None)
    user = request.sim_user = user_of(scope if scope is not None else {})
    for name in ("REMOTE_USER", "HTTP_REMOTE_USER"):
        request.META.pop(name, None)
        if user.is_authenticated:
            request.META[name] = user.id
