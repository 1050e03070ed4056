# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue proxy` between a program and `serve`."""

from __future__ import annotations

import ssl

import httpx
import pytest

from system.proxying import proxying
from system.serving import Lab, Served, keyferry, ue


@pytest.mark.parametrize("arguments", [(), ("--no-register",)])
def test_a_program_that_knows_nothing_of_sims_is_logged_in(lab: Lab, served: Served, arguments: tuple[str, ...]) -> None:
    """It registers and leaves at the end, or uses the registration that is there."""
    if arguments:
        ue(lab, "register")
    with proxying(lab, *arguments) as ready:
        trust = ssl.create_default_context(cafile=ready["ca"])
        with httpx.Client(proxy=ready["proxy"], verify=trust, trust_env=False) as client:
            for scheme in ("http", "https"):
                url = f"{scheme}://notes.home1.net:{lab.ports['8444']}/"
                assert client.put(url, content=b"milk").status_code in (200, 201)
                assert client.get(url).content == b"milk"
            assert client.get("http://elsewhere.net/").status_code == 403
        with httpx.Client(trust_env=False) as browser:
            assert "notes.home1.net" in browser.get(ready["pac"]).text
    assert served.health()["registrations"] == (1 if arguments else 0)


def test_what_cannot_be_is_said(lab: Lab) -> None:
    done = keyferry("ue", "proxy", "--config", lab.ue, "--state", lab.state, "--listen", "0.0.0.0:8899")
    assert (done.returncode, "loopback" in done.stderr) == (2, True)
    done = keyferry("ue", "proxy", "--config", lab.ue, "--state", lab.state, "--as", "10.0.0.1")
    assert done.returncode == 2
