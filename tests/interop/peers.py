# SPDX-License-Identifier: Apache-2.0
"""Programs that keyferry did not write; a test whose peer is absent is skipped and says what to install."""

from __future__ import annotations

import shutil

import pytest

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
    "kamailio": "kamailio kamailio-ims-modules kamailio-python3-modules kamailio-presence-modules kamailio-sqlite-modules",
}


def program(name: str) -> str:
    """Return the path of a peer, or skip."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; on Debian: apt install {PACKAGES[name]}")
    return path
