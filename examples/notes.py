# SPDX-License-Identifier: Apache-2.0
"""One note per SIM: a whole application in ten lines, forgotten at the end of the process."""

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import read_body

notes: dict[str, bytes] = {}


async def app(scope, receive, send):
    user, body = scope["keyferry"].user, b""
    if scope["method"] == "PUT":
        notes[user] = await read_body(receive, 4096)
    elif scope["method"] == "DELETE":
        notes.pop(user, None)
    else:
        body = notes.get(user, b"")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def door(keys, clock, random, certificate_hashes):
    return SimLogin(app, as_id="notes.home1.net", keys=keys, clock=clock, random=random, certificate_hashes=certificate_hashes)
