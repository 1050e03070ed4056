# SPDX-License-Identifier: Apache-2.0
"""Programs that keyferry did not write; a test whose peer is absent is skipped and says what to install."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from interop.peer_table import meet

PACKAGES = {
    "sipp": "sip-tester",
    "tshark": "tshark",
    "dumpcap": "wireshark-common",
    "curl": "curl",
    "openssl": "openssl",
    "chromium": "chromium",
    "gnutls-cli": "gnutls-bin",
    "nginx": "nginx-light",
    "freeDiameterd": "freediameterd freediameter-extensions",
    "redis-server": "redis-server",
    "kamailio": "kamailio kamailio-ims-modules kamailio-python3-modules kamailio-presence-modules kamailio-sqlite-modules",
}


def program(name: str) -> str:
    """Return the path of a peer, or skip."""
    meet(name)
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; on Debian: apt install {PACKAGES[name]}")
    return path


def pyhss() -> tuple[Path, str]:
    """Return the folder of a copy of PyHSS and the Python that has what it needs, or skip."""
    meet("PyHSS")
    named = os.environ.get("KEYFERRY_PYHSS")
    if not named:
        pytest.skip("KEYFERRY_PYHSS names no copy of PyHSS; docs/how-to/pyhss.md says how to make one")
    copy = Path(named).absolute()
    python = os.environ.get("KEYFERRY_PYHSS_PYTHON", str(copy.with_name("pyhss-venv") / "bin" / "python"))
    for needed in (copy / "services" / "hssService.py", Path(python)):
        assert needed.exists(), f"KEYFERRY_PYHSS, KEYFERRY_PYHSS_PYTHON: there is no {needed}"
    return copy, python


def docker_open5gs() -> Path:
    """Return the folder of a copy of docker_open5gs, or skip."""
    meet("docker_open5gs")
    named = os.environ.get("KEYFERRY_DOCKER_OPEN5GS")
    if not named:
        pytest.skip("KEYFERRY_DOCKER_OPEN5GS names no copy of docker_open5gs; docs/how-to/open5gs.md says which")
    copy = Path(named).absolute()
    assert (copy / "scscf/kamailio_scscf.cfg").exists(), f"KEYFERRY_DOCKER_OPEN5GS: {copy} is no copy of docker_open5gs"
    return copy
