# SPDX-License-Identifier: Apache-2.0
"""The pages' commands that need sipp and curl, with all the others around them; and the support matrix of README.md."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from docs.console import ROOT, commands, run_page
from interop.peers import program
from system.serving import Lab, Served, keyferry, make_lab, serving, ue

pytestmark = pytest.mark.interop

DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
PAGES = (ROOT / "README.md", ROOT / "docs" / "getting-started.md")
WITH_REQUESTS = """
import json, socket, sys
import requests
url, ca, user, password = json.load(sys.stdin)
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: real("127.0.0.1", *rest, **more)
with requests.Session() as session:
    session.trust_env, session.verify = False, ca
    session.auth = requests.auth.HTTPDigestAuth(user, password)
    print([session.get(url).status_code for _ in range(2)])
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    """Those that need a peer too."""
    for name in sorted({need for command in commands(page) for need in command.needs}):
        program(name)
    assert run_page(page, tmp_path, peers=True) == []


@pytest.mark.parametrize("algorithms", ['["SHA-256"]', '["SHA-256", "MD5"]', '["MD5"]'])
def test_the_matrix_of_the_readme_is_true(algorithms: str, tmp_path: Path) -> None:
    """Pushed key by HTTP Digest: our client, curl, httpx."""
    lab = make_lab(tmp_path, lambda text: text.replace('app = "xcap" ', f'algorithms = {algorithms}\napp = "xcap" '))
    with serving(lab.serve, lab.state) as served:
        ue(lab, "register")
        shown = ue(lab, "status", "--show-http-password", "xcap.home1.net")
        _check_ours(lab, refused="SHA-256" not in algorithms)
        _check_httpx(served, shown["username"], shown["password"])
        _check_curl(served, shown["username"], shown["password"])


@pytest.mark.parametrize("algorithms", ['["SHA-256"]', '["SHA-256", "MD5"]', '["MD5"]'])
def test_requests_logs_in(algorithms: str, tmp_path: Path) -> None:
    """In a process of its own: the name is resolved by a patch, as requests has no table of hosts."""
    pytest.importorskip("requests", reason="requests is not installed; it is in requirements/test.txt")
    lab = make_lab(tmp_path, lambda text: text.replace('app = "xcap" ', f'algorithms = {algorithms}\napp = "xcap" '))
    with serving(lab.serve, lab.state) as served:
        ue(lab, "register")
        shown = ue(lab, "status", "--show-http-password", "xcap.home1.net")
        asked = json.dumps([_url(served), str(served.ca), shown["username"], shown["password"]])
        done = subprocess.run([sys.executable, "-c", WITH_REQUESTS], input=asked, capture_output=True, text=True, timeout=30, check=False)
        assert done.stdout == "[200, 200]\n", done.stderr


def _url(served: Served) -> str:
    return f"https://xcap.home1.net:{served.port('as', 'xcap.home1.net', 'https')}/{DOCUMENT}"


def _check_ours(lab: Lab, *, refused: bool) -> None:
    done = keyferry("ue", "get", "--config", lab.ue, "--state", lab.state, DOCUMENT)
    assert (done.returncode != 0) is refused, done.stderr
    assert not refused or "no SHA-256" in done.stderr


def _check_httpx(served: Served, user: str, password: str) -> None:
    context = ssl.create_default_context(cafile=str(served.ca))
    url = _url(served).replace("xcap.home1.net", "127.0.0.1", 1)
    with httpx.Client(verify=context, auth=httpx.DigestAuth(user, password), trust_env=False) as client:
        for _ in range(2):
            host = {"Host": httpx.URL(_url(served)).netloc.decode()}
            assert client.get(url, headers=host, extensions={"sni_hostname": "xcap.home1.net"}).status_code == 200


def _check_curl(served: Served, user: str, password: str) -> None:
    port = served.port("as", "xcap.home1.net", "https")
    command = [
        program("curl"), "--disable", "--config", "-", "--noproxy", "*", "--silent", "--digest", "--cacert", str(served.ca),
        "--resolve", f"xcap.home1.net:{port}:127.0.0.1", "--output", "/dev/null", "--write-out", "%{http_code}", _url(served),
    ]  # fmt: skip
    done = subprocess.run(command, input=f'user = "{user}:{password}"\n', capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "200", done.stderr
