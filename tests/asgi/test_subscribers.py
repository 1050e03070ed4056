# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2: PPR and RTR at an operator's word, on loopback alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from asgi.doorkit import call
from keyferry.asgi.admin import AdminApp
from keyferry.asgi.subscribers import SubscribersApp
from keyferry.errors import RemoteProtocolError, StoreError
from keyferry.ports import DeregistrationReason
from keyferry.protocol.identity import Impi

HERE: dict[str, Any] = {"client": ("127.0.0.1", 40_000), "host": "127.0.0.1:8080"}
PLACE = "/subscribers/alice%40home1.net"
AS_JSON = [("content-type", "application/json")]


class Fake:
    """Operations that note what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def profiles(self) -> Mapping[str, Sequence[str]]:
        return {"default": ("xcap.home1.net",), "none": ()}

    async def push_profile(self, impi: Impi) -> Mapping[str, object]:
        if impi.startswith("broken"):
            raise StoreError("/secret/path")
        if impi.startswith("nobody"):
            raise RemoteProtocolError(f"{impi} is not a subscriber of this process.", 404)
        self.asked.append((impi,))
        return {"told": True}

    async def terminate(self, impi: Impi, reason: DeregistrationReason, info: str) -> Mapping[str, object]:
        self.asked.append((impi, reason, info))
        return {"told": True}


def opened(fake: Fake | None) -> AdminApp:
    async def health() -> Mapping[str, object]:
        return {"ok": True}

    return AdminApp(registry=CollectorRegistry(), health=health, subscribers=None if fake is None else SubscribersApp(fake))


async def test_profiles_are_listed_with_their_application_servers() -> None:
    answer = await call(opened(Fake()), target="/profiles", **HERE)
    assert (answer.status, json.loads(answer.body)) == (200, {"profiles": {"default": ["xcap.home1.net"], "none": []}})


@pytest.mark.parametrize(
    ("command", "body", "asked"),
    [
        ("push-profile", b"", ("alice@home1.net",)),
        ("push-profile", b"{}", ("alice@home1.net",)),
        ("terminate", b"{}", ("alice@home1.net", DeregistrationReason.PERMANENT_TERMINATION, "")),
        (
            "terminate",
            b'{"reason": "server-change", "info": "' + b"x" * 300 + b'"}',
            ("alice@home1.net", DeregistrationReason.SERVER_CHANGE, "x" * 200),
        ),
        ("terminate", b'{"reason": "remove-s-cscf"}', ("alice@home1.net", DeregistrationReason.REMOVE_S_CSCF, "")),
        ("terminate", b'{"reason": "new-server-assigned"}', ("alice@home1.net", DeregistrationReason.NEW_SERVER_ASSIGNED, "")),
    ],
)
async def test_commands(command: str, body: bytes, asked: tuple[object, ...]) -> None:
    """TS 29.228 §6.1.3, §6.2.2."""
    fake = Fake()
    answer = await call(opened(fake), "POST", f"{PLACE}/{command}", body=body, headers=AS_JSON, **HERE)
    assert (answer.status, json.loads(answer.body), fake.asked) == (200, {"told": True}, [asked])


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("POST", "/profiles", b"", AS_JSON, 405),
        ("GET", "/subscribers", b"", [], 404),
        ("GET", f"{PLACE}/push-profile", b"", AS_JSON, 405),
        ("POST", f"{PLACE}/remove", b"", AS_JSON, 404),
        ("POST", PLACE, b"", AS_JSON, 404),
        ("POST", "/subscribers/nobody/terminate", b"", AS_JSON, 400),
        ("POST", "/subscribers/nobody@home1.net/push-profile", b"", AS_JSON, 404),
        ("POST", "/subscribers/broken@home1.net/push-profile", b"", AS_JSON, 503),
        ("POST", f"{PLACE}/terminate", b"{}", [], 415),
        ("POST", f"{PLACE}/terminate", b'{"reason": "boredom"}', AS_JSON, 400),
        ("POST", f"{PLACE}/terminate", b'{"reason": 1}', AS_JSON, 400),
        ("POST", f"{PLACE}/push-profile", b'{"profile": "none"}', AS_JSON, 400),
    ],
)
async def test_what_is_wrong_is_refused(method: str, target: str, body: bytes, headers: list[tuple[str, str]], status: int) -> None:
    fake = Fake()
    answer = await call(opened(fake), method, target, body=body, headers=headers, **HERE)
    assert answer.status == status
    assert b"secret" not in answer.body
    assert fake.asked == []


@pytest.mark.parametrize("elsewhere", [{"client": ("192.0.2.1", 1)}, {"host": "evil.example"}])
async def test_only_this_machine_is_served(elsewhere: dict[str, Any]) -> None:
    fake = Fake()
    for method, target in (("GET", "/profiles"), ("POST", f"{PLACE}/terminate")):
        assert (await call(opened(fake), method, target, headers=AS_JSON, **{**HERE, **elsewhere})).status == 403
    assert fake.asked == []


async def test_a_process_without_an_hss_says_so() -> None:
    answer = await call(opened(None), target="/profiles", **HERE)
    assert (answer.status, answer.body) == (404, b"This process has no HSS.\n")
