# SPDX-License-Identifier: Apache-2.0
"""A worker of an application: `agent_app.py AS_ID PORT CERTIFICATE KEY`; its keys come from the agent that the environment names."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from keyferry.asgi.auth import SimLogin


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Say who came, and by what name the application knows that user."""
    body = f"{scope['keyferry'].user} {scope['user'].id}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    as_id, port, certificate, key = sys.argv[1:]
    uvicorn.run(
        SimLogin(hello, as_id=as_id), host="127.0.0.1", port=int(port), ssl_certfile=certificate, ssl_keyfile=key,
        lifespan="off", log_level="warning", access_log=False,
    )  # fmt: skip
