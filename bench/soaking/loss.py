# SPDX-License-Identifier: Apache-2.0
"""A network namespace of this process's own, in which the kernel drops a share of the packets: UDP and TCP, both ways, no root needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

INSIDE = "KEYFERRY_SOAK_NAMESPACE"
"""Environment variable that says that this process is inside."""


def enter() -> str:
    """Begin this program anew in a namespace, and do not return; inside, or where there is none, return "" or why not."""
    if os.environ.get(INSIDE):
        return ""
    missing = [name for name in ("unshare", "nft", "ip") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    prefix = ["unshare", "--user", "--map-root-user", "--net"]
    probe = subprocess.run([*prefix, "sh", "-c", f"ip link set lo up && {_rules(0.01)}"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"the kernel does not let us: {probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else probe.returncode}"
    sys.stdout.flush()
    os.execvpe(prefix[0], [*prefix, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


def loopback_up() -> None:
    """Bring the namespace's loopback up: a new one has it down."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def drop(share: float) -> None:
    """Drop a share of all packets that arrive, from now on."""
    subprocess.run(["sh", "-c", _rules(share)], check=True)


def dropped() -> int:
    """Return how many packets were dropped."""
    done = subprocess.run(["nft", "list", "chain", "inet", "soak", "input"], capture_output=True, text=True, check=True)
    return int(done.stdout.partition("packets ")[2].split()[0])


def _rules(share: float) -> str:
    rule = f"numgen random mod 100000 lt {round(share * 100_000)} counter drop"
    return (
        "nft add table inet soak && nft 'add chain inet soak input { type filter hook input priority 0; }'"
        f" && nft 'add rule inet soak input {rule}'"
    )
