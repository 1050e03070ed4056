# SPDX-License-Identifier: Apache-2.0
"""SIGHUP to a process that serves, or is about to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from system.serving import EVENT_LIMIT, RUN_LIMIT, START_LIMIT, Lab, Served, keyferry, make_lab, serving, ue, until

CAROL = """
[[subscribers]]
impi = "carol_private@home1.net"
impus = ["sip:carol@home1.net"]
k = "00112233445566778899aabbccddeeff"
opc = "ffeeddccbbaa99887766554433221100"
"""


def lines(served: Served, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, served.log.read_text().splitlines()) if line["event"] == event]


def reload(served: Served, event: str = "configuration-read-again") -> dict[str, Any]:
    """Send SIGHUP; return the line that says what came of it."""
    before = len(lines(served, event))
    served.process.send_signal(signal.SIGHUP)
    until(lambda: len(lines(served, event)) > before, seconds=EVENT_LIMIT, what=event)
    return lines(served, event)[-1]


def edit(lab: Lab, change: Callable[[str], str]) -> None:
    before = lab.serve.read_text("utf-8")
    after = change(before)
    assert after != before
    lab.serve.write_text(after, "utf-8")


def registers(lab: Lab, name: str, k: str, folder: Path) -> bool:
    """Register a subscriber of this name with this K."""
    text = lab.ue.read_text("utf-8").replace("user1_private@", f"{name}_private@").replace("user1_public1@", f"{name}@")
    text = text.replace("465b5ce8b199b49faa5f0a2ee238a6bc", k).replace(
        "cd63cb71954a9f4e48a5994e37a02baf", "ffeeddccbbaa99887766554433221100"
    )
    file = folder / f"{name}-{k[:4]}.toml"
    file.write_text(text, "utf-8")
    return keyferry("ue", "register", "--config", file, "--state", file.with_suffix("")).returncode == 0


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path)


def caught(process: subprocess.Popen[bytes]) -> int:
    """Return the signals that a process handles, as a mask."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


def test_a_process_that_is_still_starting_is_not_ended(tmp_path: Path) -> None:
    """Whoever copies certificates does not know how far it is."""
    lab = make_lab(tmp_path)
    command = (sys.executable, "-m", "keyferry", "serve", "--config", str(lab.serve), "--state", str(lab.state), "--log", "none")
    # Where coverage is measured, it takes SIGTERM long before the process does.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            mask = 1 << (signal.SIGTERM - 1)
            until(lambda: caught(process) & mask, seconds=START_LIMIT, what="a process that takes signals")
            process.send_signal(signal.SIGHUP)
            assert process.stdout is not None
            assert b'"ready"' in process.stdout.readline()
        finally:
            process.terminate()
            assert process.wait(RUN_LIMIT) == 0


def test_subscribers_come_and_change_with_the_file(lab: Lab, tmp_path: Path) -> None:
    """Added, with another K, and gone: who is gone is named, and still there."""
    with serving(lab.serve, lab.state, "--log", "json") as served:
        assert not registers(lab, "carol", "00112233445566778899aabbccddeeff", tmp_path)
        edit(lab, lambda text: text + CAROL)
        reload(served)
        assert registers(lab, "carol", "00112233445566778899aabbccddeeff", tmp_path)
        edit(lab, lambda text: text.replace("00112233", "99112233"))
        reload(served)
        assert not registers(lab, "carol", "00112233445566778899aabbccddeeff", tmp_path)
        assert registers(lab, "carol", "99112233445566778899aabbccddeeff", tmp_path)
        edit(lab, lambda text: text.replace(CAROL.replace("00112233", "99112233"), ""))
        reload(served)
        assert registers(lab, "carol", "99112233445566778899aabbccddeeff", tmp_path)
    told = [(line["added"], line["changed"], line["impis"]) for line in lines(served, "subscribers-read-again")]
    assert told == [(1, 0, "carol_private@home1.net"), (0, 1, "carol_private@home1.net"), (0, 0, "")]
    (gone,) = lines(served, "subscribers-not-in-file")
    assert (gone["number"], gone["impis"], gone["level"]) == (1, "carol_private@home1.net", "warning")
    assert not any(octets in served.log.read_text() for octets in ("99112233", "00112233", "ffeeddcc"))


def test_the_log_level_changes_with_the_file(lab: Lab, tmp_path: Path) -> None:
    """Nothing below it is logged, and what is above still is."""
    with serving(lab.serve, lab.state, "--log", "json") as served:
        elsewhere = 'listen = "127.0.0.1:0"'
        edit(lab, lambda text: text.replace(f'listen = "127.0.0.1:{lab.ports["5060"]}"', elsewhere) + '\n[log]\nlevel = "warning"\n')
        reload(served, "configuration-needs-restart")
        quiet = len(served.log.read_text().splitlines())
        assert ue(lab, "register", state=tmp_path / "phone")["registered"] is True
        assert len(served.log.read_text().splitlines()) == quiet
        edit(lab, lambda text: text.replace('level = "warning"', 'level = "info"'))
        assert reload(served)["level"] == "info"
        assert ue(lab, "register", state=tmp_path / "phone")["registered"] is True
    assert lines(served, "register")


def test_the_level_of_the_command_line_stays(lab: Lab) -> None:
    edit(lab, lambda text: text + '\n[log]\nlevel = "error"\n')
    with serving(lab.serve, lab.state, "--log", "json", "--log-level", "info") as served:
        assert reload(served)["level"] == "info"
    assert lines(served, "stopping")
    done = keyferry("serve", "--config", lab.serve, "--state", lab.state, "--log-level", "loud")
    assert (done.returncode, "'loud' is not info, warning or error" in done.stderr) == (2, True)


def test_what_needs_a_restart_is_named_with_its_line(lab: Lab, tmp_path: Path) -> None:
    """Nothing of it happens: a phone registers where the P-CSCF was; each SIGHUP names it, until it is as it was."""
    port = lab.ports["5060"]
    with serving(lab.serve, lab.state, "--log", "json") as served:
        edit(lab, lambda text: text.replace(f'listen = "127.0.0.1:{port}"', 'listen = "127.0.0.1:9"'))
        edit(lab, lambda text: text.replace('app = "notes"', 'app = "xcap"'))
        edit(lab, lambda text: text + '[[profiles]]\nname = "silver"\napplication_servers = []\n' + CAROL + 'profile = "silver"\n')
        for _ in range(2):
            reload(served, "configuration-needs-restart")
        said = lines(served, "configuration-needs-restart")
        text = lab.serve.read_text("utf-8").splitlines()
        at = [
            next(n for n, line in enumerate(text, 1) if line.startswith(begin))
            for begin in ('listen = "127.0.0.1:9"', "[[profiles]]", "profile =")
        ]
        app = max(n for n, line in enumerate(text, 1) if line.startswith("app ="))
        keys = [f"{at[0]}: pcscf.listen", f"{app}: application_servers[1].app", f"{at[1]}: profiles", f"{at[2]}: subscribers[2].profile"]
        assert said[0]["keys"].split(", ") == [f"{lab.serve}:{key}" for key in keys]
        assert said[1]["keys"] == said[0]["keys"]
        assert ue(lab, "register", state=tmp_path / "phone")["registered"] is True
        assert not registers(lab, "carol", "00112233445566778899aabbccddeeff", tmp_path)  # without her profile she would have no services
        edit(
            lab,
            lambda text: (
                text.split("[[profiles]]")[0].replace('"127.0.0.1:9"', f'"127.0.0.1:{port}"').replace('app = "xcap"      ', 'app = "xcap"')
            ),
        )
        edit(lab, lambda text: 'app = "notes"'.join(text.rsplit('app = "xcap"', 1)))
        reload(served)
    assert len(lines(served, "configuration-needs-restart")) == 2


@pytest.mark.parametrize(
    ("broken", "number", "said"),
    [
        ("[pcscf\n", 1, "is not TOML"),
        ('[scscff]\nname = "a"\n', 1, "scscf"),
        ('[[subscribers]]\nimpi = "user1_private@home1.net"\nimpus = ["sip:x@home1.net"]\nk = "00"\nopc = "00"\n', 4, "subscribers[2].k"),
    ],
)
def test_a_broken_file_changes_nothing_and_ends_nothing(lab: Lab, tmp_path: Path, broken: str, number: int, said: str) -> None:
    """What is wrong and where is in the log; the next SIGHUP takes the mended file."""
    with serving(lab.serve, lab.state, "--log", "json", "--log-level", "error") as served:
        good = lab.serve.read_text("utf-8")
        lab.serve.write_text(good + broken, "utf-8")
        line = reload(served, "configuration-not-read-again")
        assert line["problem"].startswith(f"{lab.serve}:{len(good.splitlines()) + number}:")
        assert (said in line["problem"], line["level"]) == (True, "error")
        assert ue(lab, "register", state=tmp_path / "phone")["registered"] is True
        lab.serve.unlink()
        assert "cannot be read" in reload(served, "configuration-not-read-again")["problem"]
        lab.serve.write_text(good + CAROL, "utf-8")
        served.process.send_signal(signal.SIGHUP)
        key = "00112233445566778899aabbccddeeff"
        until(lambda: registers(lab, "carol", key, tmp_path), seconds=EVENT_LIMIT, what="a subscriber of the mended file")


def test_a_door_shows_a_new_certificate_without_a_restart(lab: Lab) -> None:
    """And takes a login that names it; one that does not go with its key changes nothing."""
    with serving(lab.serve, lab.state, "--log", "json") as served:
        port, files = (
            served.port("as", "notes.home1.net", "https"),
            [lab.state / "pki" / f"as-notes.home1.net.{end}" for end in ("pem", "key")],
        )
        first = _shown(port)
        assert ue(lab, "register", state=lab.state)["registered"] is True
        for file in files:
            file.unlink()
        served.process.send_signal(signal.SIGHUP)
        until(lambda: _shown(port) != first, seconds=EVENT_LIMIT, what="another certificate")
        done = keyferry("ue", "put", "--config", lab.ue, "--state", lab.state, f"https://notes.home1.net:{port}/", "-", stdin="hello")
        assert done.returncode == 0, done.stderr
        second = _shown(port)
        shutil.copy(lab.state / "pki" / "as-xcap.home1.net.key", files[1])
        assert "does not go with its key" in reload(served, "door-certificate-unusable")["problem"]
        assert _shown(port) == second


def _shown(port: int) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
