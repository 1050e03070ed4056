# SPDX-License-Identifier: Apache-2.0
"""One subscriber followed through every function of a process that serves."""

from __future__ import annotations

import json
import subprocess
import sys

from system.serving import STOP_LIMIT, Lab, Served, environment, ue

IMPI = "user1_private@home1.net"


def test_a_registration_is_followed_live_and_the_end_of_the_process_ends_it(served: Served, lab: Lab) -> None:
    """UE → P → I → S → AS, each message once, no key, and no wait for the follower when the process stops."""
    command = [sys.executable, "-m", "keyferry", "trace", "--follow", IMPI, "--admin", f"127.0.0.1:{served.port('admin')}", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as follower:
        try:
            assert follower.stderr is not None
            assert follower.stderr.readline().startswith(f"keyferry: following {IMPI}")
            assert ue(lab, "register")["keys"]
            served.process.terminate()
            served.process.wait(STOP_LIMIT)
            assert "Traceback" not in served.log.read_text()  # an answer still open after three seconds would be cut off with one
            lines, _ = follower.communicate(timeout=STOP_LIMIT)
            assert follower.returncode == 0
        finally:
            follower.kill()
    steps = [json.loads(line) for line in lines.splitlines()]
    assert len(steps) == 16
    ways = {(step["source"], step["target"]) for step in steps}
    assert {("UE", "P-CSCF"), ("P-CSCF", "I-CSCF"), ("I-CSCF", "S-CSCF"), ("S-CSCF", "AS xcap"), ("AS notes", "S-CSCF")} <= ways
    assert [step["note"] for step in steps].count("marker: release 6, flags 7; no ck, ik") == 1
    for name in ('response="', "ck=", "cnonce"):
        assert name not in lines
