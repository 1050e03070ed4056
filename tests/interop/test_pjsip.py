# SPDX-License-Identifier: Apache-2.0
"""PJSIP registers, re-registers and de-registers with AKAv1-MD5 (RFC 3310), where KEYFERRY_PJSIP names a built client."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from interop.peer_table import meet
from system.serving import make_lab, serving

pytestmark = pytest.mark.interop

K = "0396eb317b6d1c36f19c1c84cd6ffd16"  # the second subscriber of examples/lab.toml
OP = "ff53bade17df5d4e793073ce9d7579fa"
LIMIT = 60.0  # seconds


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("octets", [4, 5, 48, 64])
def test_pjsip_registers_and_registers_again_and_leaves(octets: int, transport: str, tmp_path: Path) -> None:
    """RFC 3310 §3.2, §3.3; TS 24.229 §5.4.1: each time a challenge with a marker, which PJSIP sends back as it is."""
    meet("PJSIP")
    client = os.environ.get("KEYFERRY_PJSIP")
    if not client:
        pytest.skip("KEYFERRY_PJSIP names no client of PJSIP with AKA; tests/interop/pjsip/README.md says how to build akareg")
    lab = make_lab(tmp_path, lambda text: text.replace("\n[scscf]\n", f"\n[scscf]\nmarker_octets = {octets}\n"))
    with serving(lab.serve, lab.state) as served:
        pcscf = f"sip:127.0.0.1:{served.port('pcscf')};transport={transport};lr"
        command = [client, pcscf, "sip:home1.net", "user2_private@home1.net", "sip:user2_public1@home1.net", K, OP, "8000"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.stdout == "registered: 200\nregistered again: 200\nde-registered: 200\n", done.stdout + done.stderr
        assert done.returncode == 0
        _, metrics = served.admin("/metrics")
        assert 'keyferry_scscf_authenticated_total{reason="raw"} 3.0' in metrics
        assert "keyferry_scscf_bare_challenges_total" not in metrics
        assert served.health()["registrations"] == 0
