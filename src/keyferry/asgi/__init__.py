# SPDX-License-Identifier: Apache-2.0
"""The HTTP doors of an application server; an application needs SimLogin alone.

auth.py        SimLogin, the middleware; docs/simlogin.md
identity.py    SimUser, what the application sees
session.py     SessionCookie: a login that lasts some hours
admission.py   TLS-PSK, Digest or the cookie: how a request proves who sent it
door.py        Digest of one AS_ID; also under the authentication proxy
paths.py names.py origin.py limits.py audit.py answers.py sockets.py watch.py sources.py    its parts
frameworks/    what is left to do for one framework or another
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyferry.asgi.audit import AuditLog as AuditLog
    from keyferry.asgi.auth import Identity as Identity
    from keyferry.asgi.auth import SimLogin as SimLogin
    from keyferry.asgi.identity import SimUser as SimUser
    from keyferry.asgi.limits import FailureLimits as FailureLimits
    from keyferry.asgi.session import SessionCookie as SessionCookie

_PLACES = {
    "AuditLog": "audit",
    "FailureLimits": "limits",
    "Identity": "auth",
    "SessionCookie": "session",
    "SimLogin": "auth",
    "SimUser": "identity",
}
__all__ = ["AuditLog", "FailureLimits", "Identity", "SessionCookie", "SimLogin", "SimUser"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used: most modules of this folder need only one of the others."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
