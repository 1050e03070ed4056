# SPDX-License-Identifier: Apache-2.0
"""SIP over TCP in the process that serves, with the event loop that it uses (RFC 3261 §18.1)."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from system.serving import Lab, make_lab, serving, ue


def test_a_ue_registers_over_tcp_and_large_pushes_arrive(tmp_path: Path) -> None:
    """RFC 3261 §18.1.1: the pushes are over 1,300 octets, so the S-CSCF opens TCP connections whatever the URI says."""
    lab = make_lab(
        tmp_path,
        lambda text: text.replace('app = "xcap" ', f'service_info = "{"x" * 1000}"\napp = "xcap" '),
        lambda text: text.replace('transport = "udp"', 'transport = "tcp"'),
    )
    with serving(lab.serve, lab.state) as served:
        for expected in (1, 1):
            shown = ue(lab, "register")
            assert shown["keys"], shown["no_keys_because"]
            assert served.health()["registrations"] == expected
            assert set(served.health()["keys"]) == {"xcap.home1.net", "notes.home1.net"}
        answer = ue(lab, "get", "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml")
        assert answer["status"] == 200
        ue(lab, "deregister")
        assert served.health() == {"ok": True, "registrations": 0, "keys": {"xcap.home1.net": 0, "notes.home1.net": 0}}
        assert "not-delivered" not in served.log.read_text()


def test_a_stranger_cannot_take_every_connection(lab: Lab) -> None:
    """Limits.per_source: who holds 200 connections gets no more, and others register over TCP."""
    lab.ue.write_text(lab.ue.read_text().replace('transport = "udp"', 'transport = "tcp"'))
    with serving(lab.serve, lab.state) as served, contextlib.ExitStack() as held:
        address = ("127.0.0.1", served.port("pcscf", proto="tcp"))
        for _ in range(210):
            held.enter_context(socket.create_connection(address, 5.0, ("127.0.0.9", 0)))
        assert ue(lab, "register")["keys"]
        assert 'keyferry_sip_dropped_total{reason="too-many-of-source"} 10.0' in served.admin("/metrics")[1]
