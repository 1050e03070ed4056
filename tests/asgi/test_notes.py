# SPDX-License-Identifier: Apache-2.0
"""The notes application, and the example."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import AS_ID, Client, FakeClock, FakeKeys, FakeRandom, call, make_door, record
from keyferry.asgi import notes
from keyferry.asgi.auth import Identity, SimLogin
from keyferry.errors import LocalProtocolError
from keyferry.protocol.identity import Impu, KeyId


def who(name: str) -> Identity:
    return Identity((Impu(f"sip:{name}@home1.net"),), KeyId("k"), "digest")


async def test_each_user_has_one_note() -> None:
    """PUT, GET, DELETE."""
    app = notes.Notes()
    alice: dict[str, Any] = {"keyferry": who("alice")}
    bob: dict[str, Any] = {"keyferry": who("bob")}
    assert (await call(app, **alice)).status == 404
    assert (await call(app, "PUT", body=b"milk", **alice)).status == 201
    assert (await call(app, "PUT", body=[b"mil", b"k!"], **alice)).status == 200
    assert (await call(app, **bob)).status == 404
    assert (await call(app, **alice)).body == b"milk!"
    assert (await call(app, "DELETE", **alice)).status == 200
    assert (await call(app, "DELETE", **alice)).status == 404


async def test_notes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX_NOTE, MAX_NOTES."""
    monkeypatch.setattr(notes, "MAX_NOTES", 1)
    app = notes.Notes()
    assert (await call(app, "PUT", body=b"x" * (notes.MAX_NOTE + 1), keyferry=who("alice"))).status == 413
    assert (await call(app, "PUT", body=b"x", keyferry=who("alice"))).status == 201
    assert (await call(app, "PUT", body=b"x", keyferry=who("bob"))).status == 507
    assert (await call(app, "PUT", body=b"y", keyferry=who("alice"))).status == 200


async def test_other_methods_and_protocols_are_refused() -> None:
    """RFC 9110 §15.5.6."""
    answer = await call(notes.Notes(), "POST", keyferry=who("alice"))
    assert (answer.status, answer.get("allow")) == (405, "GET, HEAD, PUT, DELETE")
    with pytest.raises(LocalProtocolError):
        await call(notes.Notes(), type="websocket")


def _example() -> Any:
    path = Path(__file__).parents[2] / "examples" / "notes.py"
    spec = importlib.util.spec_from_file_location("example_notes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_example_works() -> None:
    """README."""
    held = record(as_id=AS_ID)._replace(as_id="notes.home1.net")  # type: ignore[arg-type]
    module, client = _example(), Client(held)

    class Keys(FakeKeys):
        async def lookup(self, key_id: Any, as_id: Any) -> Any:
            return self.records.get(key_id)

    door = module.door(Keys(held), FakeClock(), FakeRandom(), ())
    assert isinstance(door, SimLogin)
    challenge = (await call(door, host="notes.home1.net")).challenge()

    async def ask(method: str, count: int, body: bytes = b"") -> bytes:
        header = client.answer(challenge, count, method=method)
        answer = await call(door, method, headers=[header], body=body, host="notes.home1.net")
        assert answer.status == 200
        return answer.body

    await ask("PUT", 1, b"milk")
    assert await ask("GET", 2) == b"milk"
    await ask("DELETE", 3)
    assert await ask("GET", 4) == b""


async def test_the_notes_stand_behind_the_door() -> None:
    """DESIGN §7."""
    held = record()
    door, client = make_door(held), Client(held)
    door.door.app = notes.Notes()
    challenge = await door.challenge()
    put = await call(door.door, "PUT", headers=[client.answer(challenge, 1, method="PUT")], body=b"milk")
    assert (put.status, put.get("content-length")) == (201, "0")
    assert (await call(door.door, headers=[client.answer(challenge, 2)])).body == b"milk"
