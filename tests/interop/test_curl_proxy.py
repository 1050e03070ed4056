# SPDX-License-Identifier: Apache-2.0
"""curl without a word of SIM: `keyferry ue proxy` logs it in, over http:// and, by CONNECT, over https://."""

from __future__ import annotations

import subprocess

import pytest

from interop.peers import program
from system.proxying import proxying
from system.serving import Lab, Served

pytestmark = pytest.mark.interop


def test_curl_through_the_proxy(lab: Lab, served: Served) -> None:
    curl = program("curl")
    with proxying(lab) as ready:
        base = [curl, "--silent", "--show-error", "--fail-with-body", "--proxy", ready["proxy"], "--cacert", ready["ca"], "--noproxy", ""]
        for scheme in ("http", "https"):
            url = f"{scheme}://notes.home1.net:{lab.ports['8444']}/"
            put = subprocess.run([*base, "-T", "-", url], input=b"milk", capture_output=True, check=False)
            assert put.returncode == 0, put.stderr
            got = subprocess.run([*base, url], capture_output=True, check=False)
            assert (got.returncode, got.stdout) == (0, b"milk"), got.stderr
        elsewhere = subprocess.run([*base, "https://example.net/"], capture_output=True, check=False)
        assert elsewhere.returncode == 56  # CONNECT was refused
