# SPDX-License-Identifier: Apache-2.0
"""What every framework's test does: a stock Digest client over TLS on the loopback address."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from asgi.doorkit import record
from asgi.stockclients import HOST, Site
from keyferry.asgi.identity import user_id
from keyferry.protocol.crypto.secret import Secret

ALICE = "sip:alice@home1.net"
ALICE_ID = user_id(Secret(bytes(32)), HOST, record(as_id=HOST).impi)
"""Her id at the site, as its fake source of keys has it."""
OPEN = ("/open", "/maybe", "/openapi.json", "/schema")


def browser(at: Site, *, login: bool = True, **options: Any) -> httpx.AsyncClient:
    """Return a client that knows alice's key id and password, or nobody's."""
    tls = ssl.create_default_context(cafile=str(at.ca))
    auth = httpx.DigestAuth(at.user, at.password) if login else None
    return httpx.AsyncClient(verify=tls, auth=auth, base_url=at.url, trust_env=False, **options)
