# SPDX-License-Identifier: Apache-2.0
"""The operator's view of failures, on loopback alone (docs/errors.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from asgi.doorkit import call
from keyferry.asgi.admin import AdminApp
from keyferry.asgi.failures import FailuresApp
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.failures import MAX_FAILURES, Failure, FailureBook
from keyferry.protocol.ims.verdicts import ADVICE, Reason, because

HERE: dict[str, Any] = {"client": ("127.0.0.1", 40_000), "host": "127.0.0.1:8080"}


def opened(*, apps: bool = True) -> AdminApp:
    async def health() -> Mapping[str, object]:
        return {"ok": True}

    book = FailureBook()
    book.note(Failure(1_800_000_000.25, "S-CSCF", Impi("alice@home1.net"), because(Reason.REALM, "x"), status=403, source="192.0.2.1"))
    book.note(Failure(1_800_000_001.0, "S-CSCF", Impi("bobby@home1.net"), because(Reason.PUSH, "y"), server="sip:as1", problem="500"))
    return AdminApp(registry=CollectorRegistry(), health=health, failures=FailuresApp(book) if apps else None)


async def asked(target: str, status: int = 200) -> Any:
    answer = await call(opened(), target=target, **HERE)
    assert answer.status == status, answer.body
    return json.loads(answer.body)["failures"] if status == 200 else answer.body


async def test_all_are_listed_the_newest_first() -> None:
    found = await asked("/failures")
    assert [one["impi"] for one in found] == ["bobby@home1.net", "alice@home1.net"]
    assert found[1] == {
        "at": "2027-01-15T08:00:00.250+00:00", "count": 1, "function": "S-CSCF", "impi": "alice@home1.net", "reg": None,
        "source": "192.0.2.1", "status": 403, "server": None, "reasons": ["realm"], "because": f"{ADVICE[Reason.REALM].says}: x",
        "remedy": ADVICE[Reason.REALM].remedy, "problem": "",
    }  # fmt: skip
    assert (found[0]["server"], found[0]["problem"], found[0]["status"]) == ("sip:as1", "500", None)
    assert len(await asked("/failures?limit=1")) == 1


async def test_one_users_are_listed() -> None:
    assert [one["reasons"] for one in await asked("/failures?impi=alice%40home1.net")] == [["realm"]]
    assert await asked("/failures?impi=eve@home1.net") == []


@pytest.mark.parametrize(
    "query",
    [
        "impi=", "impi=no", "limit=0", f"limit={MAX_FAILURES + 1}", "limit=x", "limit=-1",  "other=1", "impi=a@b.c&impi=b@b.c",
        "limit=\uff11", "x" * 3_000, "&".join(f"a{number}=1" for number in range(20)),
    ],
)  # fmt: skip
async def test_an_odd_query_is_400(query: str) -> None:
    answer = await call(opened(), target=f"/failures?{query}", **HERE)
    if query == "impi=":  # parse_qs leaves an empty value out
        assert answer.status == 200
    else:
        assert answer.status == 400


async def test_other_places_methods_and_machines_get_nothing() -> None:
    """It names subscribers."""
    assert (await call(opened(), target="/failures/x", **HERE)).status == 404
    assert (await call(opened(), "POST", "/failures", **HERE)).status == 405
    assert (await call(opened(apps=False), target="/failures", **HERE)).status == 404
    for client, host in (("192.0.2.9", "127.0.0.1:8080"), ("127.0.0.1", "evil.example")):
        assert (await call(opened(), target="/failures", client=(client, 1), host=host)).status == 403
