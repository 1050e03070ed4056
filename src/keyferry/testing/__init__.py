# SPDX-License-Identifier: Apache-2.0
"""Test an application behind SimLogin: real keys, real Digest, the real middleware; no network, no sockets, no waiting.

    def test_my_page(sim):                                    # the pytest fixture, there as soon as keyferry is installed
        client = sim.client(sim.login(app), "alice")          # Starlette's TestClient, logged in
        assert client.get("/").status_code == 200

sims.py    SIMs, their keys and the store that an S-CSCF would push to        logged_in.py    a client's login before an ASGI application
plugin.py  the fixture `sim`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyferry.testing.logged_in import LoggedIn
    from keyferry.testing.sims import Sim, Sims, TestClock

__all__ = ["LoggedIn", "Sim", "Sims", "TestClock"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: pytest loads the plugin in every run, also in those that use nothing of it."""
    if name not in __all__:
        raise AttributeError(f"module 'keyferry.testing' has no attribute {name!r}")
    from keyferry.testing import logged_in, sims

    return getattr(logged_in if name == "LoggedIn" else sims, name)
