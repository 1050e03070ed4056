# SPDX-License-Identifier: Apache-2.0
"""curl as the HTTP client of a ferried key (RFC 7616; DESIGN §7): an ordinary client needs nothing of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from interop.peers import program
from system.serving import EXAMPLES, Lab, Served, ue

pytestmark = pytest.mark.interop

DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
CURL_LIMIT = 30.0  # seconds


def test_curl_reads_the_document_with_the_ferried_key(served: Served, lab: Lab, tmp_path: Path) -> None:
    """TS 24.623 §5.2; RFC 7616 §3.9."""
    ue(lab, "register")
    assert ue(lab, "put", DOCUMENT, EXAMPLES / "simservs.xml")["ok"]
    shown = ue(lab, "status", "--show-http-password", "xcap.home1.net")
    got = tmp_path / "got.xml"
    status, headers = _curl(served, shown["username"], shown["password"], "-o", str(got))
    assert status == 200
    assert got.read_bytes() == (EXAMPLES / "simservs.xml").read_bytes()
    assert "rspauth=" in headers.lower()


def test_curl_with_another_password_gets_nothing(served: Served, lab: Lab, tmp_path: Path) -> None:
    """RFC 7616 §3.3."""
    ue(lab, "register")
    shown = ue(lab, "status", "--show-http-password", "xcap.home1.net")
    notes = ue(lab, "status", "--show-http-password", "notes.home1.net")
    got = tmp_path / "got.xml"
    for username, password in ((shown["username"], notes["password"]), (notes["username"], notes["password"])):
        status, headers = _curl(served, username, password, "-o", str(got))
        assert status == 401
        assert "retry-after: 1" in headers.lower()
        assert b"simservs" not in got.read_bytes()


def _curl(served: Served, username: str, password: str, *arguments: str) -> tuple[int, str]:
    """Return the last status and every response header; the password stands in no command line."""
    port = served.port("as", "xcap.home1.net", "https")
    command = [
        program("curl"), "--disable", "--config", "-", "--noproxy", "*", "--silent", "--show-error", "--digest",
        "--cacert", str(served.ca), "--resolve", f"xcap.home1.net:{port}:127.0.0.1", "--dump-header", "-", *arguments,
        f"https://xcap.home1.net:{port}/{DOCUMENT}",
    ]  # fmt: skip
    done = subprocess.run(
        command, input=f'user = "{username}:{password}"\n', capture_output=True, text=True, timeout=CURL_LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("HTTP/")]
    return statuses[-1], done.stdout
