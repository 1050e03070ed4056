# SPDX-License-Identifier: Apache-2.0
"""packaging/systemd, sysusers.d, tmpfiles.d, logrotate: they agree with each other and with the command line; systemd has no complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployment.units import PACKAGING, PROGRAM, UNITS, check_command, options_of, settings
from interop.ipseckit import skipped

MUST = {
    "Type": "notify", "User": "keyferry", "ProtectSystem": "strict", "ProtectHome": "yes", "NoNewPrivileges": "yes", "PrivateTmp": "yes",
    "PrivateDevices": "yes", "MemoryDenyWriteExecute": "yes", "LimitCORE": "0", "UMask": "0077", "RestrictNamespaces": "yes",
    "StateDirectory": "keyferry", "StateDirectoryMode": "0700", "LoadCredential": "kek:/etc/keyferry/kek", "RestartPreventExitStatus": "2",
}  # fmt: skip
OF_PROXY = {
    "User": "keyferry-proxy", "Group": "keyferry-proxy", "StateDirectory": "keyferry-proxy/%i", "LoadCredential": None,
    "LogsDirectory": "keyferry-proxy", "RuntimeDirectory": "keyferry-proxy/%i", "InaccessiblePaths": "-/var/lib/keyferry -/etc/keyferry",
}  # fmt: skip
"""It faces users, and asks the agent for keys: it has nothing of the HSS's, not even the user."""
MAX_EXPOSURE = 20
"""Tenths, of `systemd-analyze security`: it calls up to 2.0 OK or better."""

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


def test_there_is_a_unit_for_each_server() -> None:
    names = [unit.name for unit in UNITS]
    assert names == ["keyferry-agent.service", "keyferry-proxy@.service", "keyferry.service", "keyferry@.service"]


@each_unit
def test_it_starts_a_command_that_there_is(unit: Path) -> None:
    (line,) = settings(unit)["ExecStart"]
    assert line.startswith(f"{PROGRAM} ")
    check_command(line)
    assert f"--state /var/lib/{settings(unit)['StateDirectory'][0]} " in line
    assert "--log json" in line


@pytest.mark.parametrize(("name", "command"), [("keyferry-proxy@.service", "proxy"), ("keyferry@.service", "serve")])
def test_the_example_of_options_has_some_that_there_are(name: str, command: str) -> None:
    """In the comment that tells what the file of a unit with a name looks like; ExecStart takes its variable."""
    text = (PACKAGING / "systemd" / name).read_text("utf-8")
    example = re.search(rf"^# KEYFERRY_{command.upper()}=(.*)$", text, re.MULTILINE)
    assert example is not None
    words = {word for word in example[1].split() if word.startswith("--")}
    assert words
    assert words <= options_of(command)
    assert f"$KEYFERRY_{command.upper()}" in text


@each_unit
def test_it_may_do_little(unit: Path) -> None:
    found = settings(unit)
    proxy = "proxy" in unit.name
    for name, value in (MUST | (OF_PROXY if proxy else {})).items():
        assert found.get(name) == (None if value is None else [value]), name
    capabilities = "CAP_NET_BIND_SERVICE" if proxy else ""
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == [capabilities]
    assert found["SystemCallFilter"][:2] == ["@system-service", "~@privileged"]
    assert found["StartLimitIntervalSec"] == ["0"]


@each_unit
def test_systemd_has_no_complaint(unit: Path, tmp_path: Path) -> None:
    """systemd-analyze verify, and how much is left open; the program need not be installed."""
    if shutil.which("systemd-analyze") is None:
        skipped("systemd-analyze is not here: it is in Debian's package systemd")
    copy = tmp_path / unit.name.replace("@.", "@one.")
    copy.write_text(unit.read_text("utf-8").replace(f"={PROGRAM} ", f"={sys.executable} -m keyferry "), "utf-8")
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in verified.stderr.splitlines() if "keyferry" in line]
    assert (verified.returncode, complaints) == (0, [])
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MAX_EXPOSURE}", copy],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert rated.returncode == 0, rated.stdout[-300:]


def test_user_and_paths_are_the_same_everywhere() -> None:
    """Who owns the state, where the sockets are, who may read the KEK."""
    users = [line for line in (PACKAGING / "sysusers.d/keyferry.conf").read_text().splitlines() if line and line[0] != "#"]
    assert users == [
        'u keyferry - "keyferry" /var/lib/keyferry', 'u keyferry-proxy - "keyferry proxy" /var/lib/keyferry-proxy',
        "g keyferry-agent -", "m keyferry keyferry-agent", "m keyferry-proxy keyferry-agent",
    ]  # fmt: skip
    rows = [line.split() for line in (PACKAGING / "tmpfiles.d/keyferry.conf").read_text().splitlines() if line and line[0] != "#"]
    placed = {row[1]: (row[0], *row[2:5]) for row in rows}
    assert placed["/run/keyferry"] == ("d", "0755", "keyferry", "keyferry")
    assert placed["/var/lib/keyferry"] == ("d", "0700", "keyferry", "keyferry")
    assert placed["/etc/keyferry/kek"] == ("z", "0600", "root", "root")
    assert placed["/etc/keyferry"] == ("d", "0750", "root", "keyferry")
    assert placed["/etc/keyferry-proxy"] == ("d", "0750", "root", "keyferry-proxy")
    for unit in UNITS:
        found = settings(unit)
        assert found.get("ReadWritePaths") == (None if "proxy" in unit.name else ["/run/keyferry"])
        assert found["Group"] == found["User"]
    admin = (PACKAGING / "bin/keyferry-admin").read_text()
    assert "LoadCredential=kek:/etc/keyferry/kek" in admin
    assert "KEYFERRY_STATE=/var/lib/keyferry" in admin
    rotation = (PACKAGING / "bin/keyferry-rotate-kek").read_text()
    assert "/etc/keyferry/kek" in rotation
    check_command(next(line for line in rotation.splitlines() if "keys rotate" in line).partition("env ")[2])
    logs = re.findall(
        r"^/var/log/([\w-]+)/\*\.jsonl \{\n    su ([\w-]+) ([\w-]+)$", (PACKAGING / "logrotate/keyferry").read_text(), re.MULTILINE
    )
    assert logs == [("keyferry",) * 3, ("keyferry-proxy",) * 3]  # as root, logrotate would follow what these users plant


@pytest.mark.parametrize("script", sorted((PACKAGING / "bin").iterdir()), ids=lambda path: path.name)
def test_the_scripts_are_shell_and_may_be_run(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", script], check=False, timeout=60).returncode == 0
