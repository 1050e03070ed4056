# SPDX-License-Identifier: Apache-2.0
"""RFC 9110 §12.5.1: what a browser is shown where the door says no, and what everything else gets."""

from __future__ import annotations

import pytest

from asgi.doorkit import Answer, Client, call, make_door, record
from keyferry.errors import StoreError

KEY = record()
BROWSER = ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")


async def refused(status: int, *fields: tuple[str, str]) -> Answer:
    door = make_door(KEY)
    if status == 503:
        login = Client(KEY).answer(await door.challenge())
        door.keys.lookup_fails, door.keys.problem = True, StoreError("the disk of db7 is full")
        return await call(door.door, headers=[login, *fields])
    return await call(door.door, headers=fields, scheme="http" if status == 403 else "https")


@pytest.mark.parametrize(
    ("status", "says"), [(401, "register again"), (403, "its own https address"), (503, "Wait a moment")]
)  # fmt: skip
async def test_a_browser_is_shown_a_page_that_says_what_to_do(status: int, says: str) -> None:
    plain, page = await refused(status), await refused(status, BROWSER)
    assert plain.status == page.status == status
    assert plain.get("content-type") == "text/plain; charset=utf-8"
    assert page.get("content-type") == "text/html; charset=utf-8"
    assert page.get("content-length") == str(len(page.body))
    assert says in page.body.decode()
    assert b"db7" not in page.body
    assert page.get("cache-control") == "no-store"
    for name in ("www-authenticate", "retry-after"):
        assert len(page.all(name)) == len(plain.all(name))


@pytest.mark.parametrize(
    "accept",
    ["*/*", "", "text/plain", "application/json, text/*", "text/html;q=0", "text/html;level=1;q=0.0, */*", "xtext/html", "text/htmlx"],
)
async def test_who_does_not_ask_for_a_page_gets_text(accept: str) -> None:
    assert (await refused(401, ("Accept", accept))).get("content-type") == "text/plain; charset=utf-8"


@pytest.mark.parametrize("accept", ["text/html", "TEXT/HTML;q=0.1", "text/plain, text/html;level=1", "text/html;q=0.05, */*;q=0"])
async def test_every_way_to_ask_for_a_page_is_known(accept: str) -> None:
    assert (await refused(401, ("Accept", accept))).get("content-type") == "text/html; charset=utf-8"


async def test_the_page_of_a_wrong_key_is_that_of_no_key_at_all() -> None:
    door = make_door(KEY)
    wrong = Client(KEY).answer(await door.challenge(), ha1=Client(record("bob")).ha1)
    unknown = Client(record("eve")).answer(await door.challenge())
    pages = {(await call(door.door, headers=[*fields, BROWSER])).body for fields in ([wrong], [unknown], [])}
    assert len(pages) == 1
