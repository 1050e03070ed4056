# SPDX-License-Identifier: Apache-2.0
"""`ue.psk` against `serve`: the policy with real handshakes (DESIGN §7)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from system.serving import Lab, Served, keyferry, ue

needs_psk = pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")


def with_policy(lab: Lab, folder: Path, policy: str, port: int) -> Path:
    """Write the UE's file anew, with a policy and a port for the notes."""
    file = folder / f"{policy}{port}.toml"
    text = lab.ue.read_text("utf-8").replace("[hosts]", f'psk = "{policy}"\n\n[psk_ports]\n"notes.home1.net" = {port}\n\n[hosts]', 1)
    file.write_text(text, "utf-8")
    return file


@needs_psk
def test_a_ue_uses_the_key_instead_of_a_certificate_and_never_anything_else_unsaid(lab: Lab, served: Served, tmp_path: Path) -> None:
    ue(lab, "register")
    (tmp_path / "note").write_text("milk")
    url = f"https://notes.home1.net:{lab.ports['8444']}/"
    keyed, certified, nobody = lab.ports["8454"], lab.ports["8444"], 9

    def put(policy: str, port: int) -> tuple[int, str]:
        file = with_policy(lab, tmp_path, policy, port)
        done = keyferry("ue", "put", "--config", file, "--state", lab.state, url, tmp_path / "note")
        return done.returncode, done.stderr

    for policy in ("require", "prefer"):
        assert put(policy, keyed) == (0, "")
    log = served.log.read_text()
    assert "psk" in served.admin("/metrics")[1] or "psk" in log  # it went there
    for port in (certified, nobody):  # a server that shows a certificate instead; none at all
        status, said = put("prefer", port)
        assert (status, "psk-refused" in said) == (0, True), said
        status, said = put("require", port)
        assert (status, "TLS-PSK is required" in said) == (1, True), said


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python has TLS-PSK")
def test_an_old_python_says_so(lab: Lab, served: Served, tmp_path: Path) -> None:
    ue(lab, "register")
    (tmp_path / "note").write_text("milk")
    file = with_policy(lab, tmp_path, "require", 9)
    url = f"https://notes.home1.net:{lab.ports['8444']}/"
    done = keyferry("ue", "put", "--config", file, "--state", lab.state, url, tmp_path / "note")
    assert (done.returncode, "3.13" in done.stderr) == (1, True)
