# SPDX-License-Identifier: Apache-2.0
"""The operator's view of registrations, on loopback alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from asgi.doorkit import call
from keyferry.asgi.admin import AdminApp
from keyferry.asgi.registrations import EndEvent, RegistrationsApp
from keyferry.errors import StoreError
from keyferry.protocol.identity import Impi, Reg

HERE: dict[str, Any] = {"client": ("127.0.0.1", 40_000), "host": "127.0.0.1:8080"}
PLACE = "/registrations/alice%40home1.net"
AS_JSON = [("content-type", "application/json")]


class Fake:
    """Operations that note what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def list(self, impi: Impi) -> Sequence[Mapping[str, object]]:
        if impi.startswith("broken"):
            raise StoreError("/secret/path")
        return [{"impi": impi}]

    async def page(self, after: str, limit: int) -> Mapping[str, object]:
        return {"registrations": [], "next": after, "limit": limit}

    async def pending(self, impi: Impi) -> Mapping[str, object]:
        return {"challenges": 0, "owed": [], "failures": []}

    async def deregister(self, impi: Impi, reg: Reg | None, event: EndEvent, retry_after: int | None) -> int:
        self.asked.append((impi, reg, event, retry_after))
        return 1

    async def reauthenticate(self, impi: Impi, reg: Reg | None, seconds: int) -> int:
        self.asked.append((impi, reg, seconds))
        return 2


def opened() -> tuple[AdminApp, Fake]:
    fake = Fake()

    async def health() -> Mapping[str, object]:
        return {"ok": True}

    return AdminApp(registry=CollectorRegistry(), health=health, registrations=RegistrationsApp(fake)), fake


async def test_a_users_registrations_are_listed() -> None:
    answer = await call(opened()[0], target="/registrations?impi=alice@home1.net", **HERE)
    assert (answer.status, json.loads(answer.body)) == (
        200,
        {"registrations": [{"impi": "alice@home1.net"}], "challenges": 0, "owed": [], "failures": []},
    )


@pytest.mark.parametrize(
    ("query", "after", "limit"),
    [("", "", 100), ("?limit=1000", "", 1000), ("?after=alice%40home1.net&limit=1", "alice@home1.net", 1), ("?after=", "", 100)],
)
async def test_without_an_impi_there_is_a_page_of_everybodys(query: str, after: str, limit: int) -> None:
    answer = await call(opened()[0], target=f"/registrations{query}", **HERE)
    assert (answer.status, json.loads(answer.body)) == (200, {"registrations": [], "next": after, "limit": limit})


@pytest.mark.parametrize(
    ("command", "body", "asked"),
    [
        ("deregister", b"", ("alice@home1.net", None, "deactivated", None)),
        ("deregister", b'{"reg": "r", "event": "probation", "retry_after": 60}', ("alice@home1.net", "r", "probation", 60)),
        ("deregister", b'{"event": "rejected"}', ("alice@home1.net", None, "rejected", None)),
        ("reauthenticate", b"{}", ("alice@home1.net", None, 60)),
        ("reauthenticate", b'{"seconds": 5, "reg": "r"}', ("alice@home1.net", "r", 5)),
    ],
)
async def test_commands(command: str, body: bytes, asked: tuple[object, ...]) -> None:
    """TS 24.229 §5.4.1.5, §5.4.1.6."""
    app, fake = opened()
    answer = await call(app, "POST", f"{PLACE}/{command}", body=body, headers=AS_JSON, **HERE)
    assert answer.status == 200
    assert fake.asked == [asked]


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("GET", "/registrations?limit=0", b"", [], 400),
        ("GET", "/registrations?limit=1001", b"", [], 400),
        ("GET", "/registrations?limit=\u0663", b"", [], 400),
        ("GET", "/registrations?limit=", b"", [], 400),
        ("GET", "/registrations?after=nobody", b"", [], 400),
        ("GET", "/registrations?after=a@b.net&after=c@b.net", b"", [], 400),
        ("GET", "/registrations?before=a@b.net", b"", [], 400),
        ("GET", "/registrations?" + "&".join(["limit=1"] * 9), b"", [], 400),
        ("GET", "/registrations?impi", b"", [], 400),
        ("GET", "/registrations?impi=", b"", [], 400),
        ("GET", "/registrations?impi=alice@home1.net&limit=5", b"", [], 400),
        ("GET", "/registrations?impi=nobody", b"", [], 400),
        ("GET", "/registrations?impi=broken@home1.net", b"", [], 503),
        ("GET", "/registrations?impi=" + "a" * 3000, b"", [], 400),
        ("POST", "/registrations", b"", AS_JSON, 405),
        ("GET", f"{PLACE}/deregister", b"", AS_JSON, 405),
        ("POST", f"{PLACE}/remove", b"", AS_JSON, 404),
        ("POST", PLACE, b"", AS_JSON, 404),
        ("POST", f"{PLACE}/deregister", b"{}", [], 415),
        ("POST", f"{PLACE}/deregister", b"{}", [("content-type", "text/plain")], 415),
        ("POST", f"{PLACE}/deregister", b"{", AS_JSON, 400),
        ("POST", f"{PLACE}/deregister", b"[]", AS_JSON, 400),
        ("POST", f"{PLACE}/deregister", b'{"event": "gone"}', AS_JSON, 400),
        ("POST", f"{PLACE}/deregister", b'{"seconds": 1}', AS_JSON, 400),
        ("POST", f"{PLACE}/reauthenticate", b'{"seconds": true}', AS_JSON, 400),
        ("POST", f"{PLACE}/reauthenticate", b'{"seconds": 0}', AS_JSON, 400),
        ("POST", f"{PLACE}/reauthenticate", b" " * 2000, AS_JSON, 413),
    ],
)
async def test_what_is_wrong_is_refused(method: str, target: str, body: bytes, headers: list[tuple[str, str]], status: int) -> None:
    app, fake = opened()
    answer = await call(app, method, target, body=body, headers=headers, **HERE)
    assert answer.status == status
    assert b"secret" not in answer.body
    assert fake.asked == []


@pytest.mark.parametrize("elsewhere", [{"client": ("192.0.2.1", 1)}, {"host": "evil.example"}])
async def test_only_this_machine_is_told(elsewhere: dict[str, Any]) -> None:
    app, fake = opened()
    for method, target in (("GET", "/registrations?impi=alice@home1.net"), ("POST", f"{PLACE}/deregister")):
        assert (await call(app, method, target, headers=AS_JSON, **{**HERE, **elsewhere})).status == 403
    assert fake.asked == []
