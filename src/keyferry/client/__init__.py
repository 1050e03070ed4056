# SPDX-License-Identifier: Apache-2.0
"""The UE as a library: registration and HTTP with the ferried key.

    from keyferry.client import Ue

    async with Ue.open("ue.toml") as ue:
        await ue.register()
        async with ue.http("https://notes.home1.net:8444/") as http:
            response = await http.get("/")

library.py    Ue, for programs            ue.py, stay.py    a UE and how it stays registered
http_auth.py  Digest for httpx            login.py          the same, following the UE's registration
session.py    a UE from its files         proxy.py          a forward proxy that logs browsers in
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyferry.client.http_auth import SimDigest
    from keyferry.client.library import Status, Ue

__all__ = ["SimDigest", "Status", "Ue"]


def __getattr__(name: str) -> Any:
    """Import what a program asks for, and nothing else: a web test that needs SimDigest alone loads no SIP."""
    if name == "SimDigest":
        from keyferry.client.http_auth import SimDigest

        return SimDigest
    if name in ("Status", "Ue"):
        from keyferry.client import library

        return getattr(library, name)
    raise AttributeError(f"module 'keyferry.client' has no attribute {name!r}")
