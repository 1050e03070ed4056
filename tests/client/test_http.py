# SPDX-License-Identifier: Apache-2.0
"""HTTP clients that go to the addresses of a table and keep the names."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from keyferry.client.http import HostsTransport, open_http, trust
from keyferry.errors import ConfigError
from keyferry.transports.clock import SystemRandom


async def test_a_name_of_the_table_goes_to_its_address_and_stays_in_host_and_sni() -> None:
    """RFC 6066 §3; RFC 9110 §7.2."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    transport = HostsTransport(httpx.MockTransport(answer), {"Xcap.home1.net": "127.0.0.1"})
    async with httpx.AsyncClient(transport=transport) as client:
        response = await client.get("https://xcap.home1.net:8443/a%2540b?c")
        await client.get("https://other.net/")
    assert str(seen[0].url) == "https://127.0.0.1:8443/a%2540b?c"
    assert seen[0].headers["host"] == "xcap.home1.net:8443"
    assert seen[0].extensions["sni_hostname"] == "xcap.home1.net"
    assert response.request.url.host == "xcap.home1.net"
    assert seen[1].url.host == "other.net"


@pytest.mark.parametrize("host", ["bücher.example", "xn--bcher-kva.example"])
@pytest.mark.parametrize("table", ["Bücher.example", "xn--bcher-kva.example"])
async def test_a_name_of_the_table_may_have_u_labels_and_the_wire_has_a_labels(host: str, table: str) -> None:
    """RFC 5890; RFC 6066 §3."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    async with httpx.AsyncClient(transport=HostsTransport(httpx.MockTransport(answer), {table: "127.0.0.1"})) as client:
        await client.get(f"https://{host}/")
    sent = (seen[0].url.host, seen[0].headers["host"], seen[0].extensions["sni_hostname"])
    assert sent == ("127.0.0.1", "xn--bcher-kva.example", "xn--bcher-kva.example")


def test_a_ca_file_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keyferry pki"):
        trust(tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="not a readable CA"):
        trust(tmp_path / "ca.pem")


@pytest.mark.parametrize("url", ["http://xcap.home1.net/", "xcap.home1.net", "https:///x"])
def test_only_https_urls_are_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not an https URL"):
        open_http(None, url, ca=tmp_path / "ca.pem", hosts={}, random=SystemRandom())
