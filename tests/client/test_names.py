# SPDX-License-Identifier: Apache-2.0
"""DESIGN §3: an AS_ID is what goes over the wire, however a URL or a table writes it."""

from __future__ import annotations

import httpx
import pytest

from keyferry.client.names import as_id_of, by_host, host_of, is_for
from keyferry.errors import ParseError
from keyferry.protocol.identity import parse_as_id

BOOKS = parse_as_id("xn--bcher-kva.example")


@pytest.mark.parametrize("host", ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE.", "bücher.example."])
def test_both_forms_of_a_name_are_one(host: str) -> None:
    url = httpx.URL(f"https://{host}:8443/notes")
    assert as_id_of(url) == host_of(url) == BOOKS
    assert is_for(url, BOOKS)
    assert by_host({host: 1}) == {BOOKS: 1}


def test_what_goes_over_the_wire_decides() -> None:
    """IDNA 2008, as httpx does it, has names that IDNA 2003 writes otherwise: that is another server."""
    url = httpx.URL("https://xn--strae-oqa.example/")
    assert as_id_of(url) == "xn--strae-oqa.example"
    assert not is_for(url, parse_as_id("strasse.example"))


@pytest.mark.parametrize(
    "url", ["http://bücher.example/", "https://127.0.0.1/", "https://[::1]/", "https:///x", "/x", "https://b.example/"]
)
def test_a_key_goes_nowhere_else(url: str) -> None:
    assert not is_for(httpx.URL(url), BOOKS)


def test_a_table_may_hold_what_is_no_host_name() -> None:
    assert by_host({"127.0.0.1": "a", "Under_Score": "b"}) == {"127.0.0.1": "a", "under_score": "b"}
    assert host_of(httpx.URL("https://127.0.0.1/")) == "127.0.0.1"
    with pytest.raises(ParseError):
        as_id_of(httpx.URL("https://127.0.0.1/"))
