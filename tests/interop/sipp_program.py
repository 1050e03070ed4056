# SPDX-License-Identifier: Apache-2.0
"""Run sipp, over a transport that it may not have been built with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interop.peers import program
from interop.tls_relay import tls_relay
from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import Pki
from system.serving import Served, free_port

PCSCF = "pcscf1.home1.net"  # in examples/lab.toml


@contextmanager
def over_tls(served: Served) -> Iterator[tuple[str, int]]:
    """Return sipp's word for its transport, and the port that it goes to; Debian's sipp is built without OpenSSL and gets a relay."""
    port = served.port("pcscf", proto="tls")
    if "-TLS" in subprocess.run([program("sipp"), "-v"], capture_output=True, text=True, check=False).stdout:
        yield "l1", port
        return
    with tls_relay(port, PCSCF, served.ca) as door:
        yield "t1", door


def sipp(
    port: int, transport: str, scenario: Path, messages: Path, *more: str, calls: int = 1, limit: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run a scenario with so many calls; what is sent and received goes to the file `messages`. `limit` in seconds."""
    certificate = []
    if transport == "l1":  # it wants to have one, which the P-CSCF does not ask for
        made = Pki(messages.parent, SystemClock()).ensure("sipp.example.com", "ue")
        certificate = ["-tls_cert", str(made.certificate), "-tls_key", str(made.key)]
    command = [
        program("sipp"), f"127.0.0.1:{port}", *certificate, "-sf", str(scenario), "-auth_uri", "home1.net", "-m", str(calls),
        "-t", transport, "-i", "127.0.0.1", "-p", str(free_port()), "-nostdin", "-timeout", f"{limit / 2:.0f}s", "-timeout_error",
        "-trace_msg", "-message_file", str(messages), *more,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=messages.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False
    )
