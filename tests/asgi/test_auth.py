# SPDX-License-Identifier: Apache-2.0
"""DESIGN §7: what stands around the door."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from asgi.doorkit import Answer, Client, Door, call, make_door, record
from keyferry.asgi.exchange import Message
from keyferry.errors import ConfigError, LocalProtocolError, SealError, StoreError

ALICE_KEY = record()


async def logged_in(door: Door, client: Client, *, target: str = "/notes", method: str = "GET", **wrong: Any) -> Answer:
    challenge = await door.challenge()
    return await call(door.door, method, target, [client.answer(challenge, method=method, **wrong)])


@pytest.mark.parametrize("problem", [StoreError("broken"), SealError("the seal does not open")])
@pytest.mark.parametrize("what", ["lookup_fails", "used_fails"])
async def test_a_store_that_fails_admits_nobody(what: str, problem: Exception) -> None:
    """Fail closed, and say that it will pass."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    door.keys.problem = problem
    setattr(door.keys, what, True)
    answer = await logged_in(door, client)
    assert (answer.status, answer.get("retry-after"), door.app.scopes) == (503, "1", [])
    setattr(door.keys, what, False)
    assert (await logged_in(door, client)).status == 200
    assert door.keys.told == [ALICE_KEY.key_id]


async def test_lifespan_passes_and_everything_else_is_shut() -> None:
    """ASGI: a scope type of tomorrow must not be an open door."""
    door = make_door(ALICE_KEY)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await door.door({"type": "lifespan"}, receive, send)
    await door.door({"type": "websocket", "headers": []}, receive, send)
    assert [scope["type"] for scope in door.app.scopes] == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]
    with pytest.raises(LocalProtocolError):
        await door.door({"type": "webtransport"}, receive, send)


@pytest.mark.parametrize(
    "settings",
    [
        {"as_id": "127.0.0.1"},
        {"as_id": "XCAP.home1.net"},
        {"algorithms": ()},
        {"algorithms": ("MD4",)},
        {"algorithms": ("MD5", "MD5")},
        {"qop": ()},
        {"qop": ("auth-conf",)},
        {"certificate_hashes": (b"short",)},
    ],
)
def test_a_wrong_setting_is_refused_at_once(settings: dict[str, Any]) -> None:
    """Configuration errors do not wait for the first user."""
    with pytest.raises(ConfigError):
        make_door(**settings)


async def test_a_door_without_a_counter_works() -> None:
    """Counting is optional."""
    door = make_door()
    door.door._counter = None
    assert (await call(door.door)).status == 401


def test_the_door_imports_nothing_but_the_standard_library_and_cryptography() -> None:
    """DESIGN §12: `asgi` alone needs only cryptography."""
    code = (
        "import sys; before = set(sys.modules); import keyferry.asgi.auth\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'keyferry', 'cryptography', '_cffi_backend'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('keyferry.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign, own = done.stdout.splitlines()
    assert foreign == "[]"
    assert "keyferry.protocol.sip" not in own
    assert "keyferry.protocol.xmlsafe" not in own
    assert "keyferry.ports" not in own
