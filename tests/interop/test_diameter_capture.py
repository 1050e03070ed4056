# SPDX-License-Identifier: Apache-2.0
"""tshark, whose dissector shares no code with ours, follows what our client and our server say to each other (RFC 6733, TS 29.229)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from interop.capturing import capturing
from interop.test_diameter_tshark import tshark
from keyferry.protocol.diameter.base import result_of
from keyferry.transports.clock import SystemClock
from keyferry.transports.diameter_client import DiameterPeer
from keyferry.transports.pki import Pki
from protocol.diameter.cxkit import HSS, KEYS, SCSCF, requests
from transports.diameterkit import Answering, Net, a_mar, an_rtr
from transports.sipkit import PATIENCE
from transports.tlskit import tls_of

pytestmark = pytest.mark.interop

COMPLAINTS = ("alformed", "Unknown AVP", "Expert Info (Error", "Expert Info (Warning", "Data is empty", "Wrong")
COMMANDS = {"257", "280", "282", "303", "304"}  # CER, DWR, DPR, MAR, RTR


async def written(file: Path) -> None:
    """Wait until the capture grows no more: packets reach it in portions."""
    size, quiet = 0, 0
    async with asyncio.timeout(PATIENCE):
        while quiet < 5 or size < 2_000:
            await asyncio.sleep(0.1)
            quiet = quiet + 1 if file.stat().st_size == size else 0
            size = file.stat().st_size


async def talk(file: Path, *, pki: Pki | None = None) -> int:
    """Let a client and a server say everything once while it is captured; return the port."""
    net = Net()
    tls = None if pki is None else tls_of(pki, HSS.origin_host, "hss")
    server, port = await net.server(Answering(), tls=tls)
    with capturing(file, f"tcp port {port}"):
        mine = None if pki is None else tls_of(pki, SCSCF.origin_host, "scscf")
        client = await net.client(DiameterPeer("127.0.0.1", port, HSS.origin_host, mine), handler=Answering(SCSCF))
        await client.ready()
        await net.until(server.connected)
        answers = [await client.send(a_mar(), timeout=5.0), await server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)]
        assert all(result_of(answer).success for answer in answers)
        assert (await client.send(requests()["SAR"], timeout=5.0)).code == 301  # the handler cannot: an error answer
        await net.passes(33)  # watchdogs
        await net.settles()
        await net.aclose()  # DPR
        await written(file)
    return port


async def test_tshark_reads_a_whole_conversation_without_complaint(tmp_path: Path) -> None:
    capture = tmp_path / "cx.pcapng"
    port = await talk(capture)
    decode = ("-d", f"tcp.port=={port},diameter")
    shown = tshark(capture, *decode, "-V", "-Y", "diameter")
    for complaint in COMPLAINTS:
        assert complaint not in shown, shown
    fields = ("-Y", "diameter", "-T", "fields", "-e", "diameter.cmd.code", "-e", "diameter.flags.request", "-E", "separator=;")
    seen = set()
    for line in tshark(capture, *decode, *fields).splitlines():
        codes, flags = line.split(";")
        seen |= set(zip(codes.split(","), flags.split(","), strict=True))
    for kind in ({"1", "True"}, {"0", "False"}):
        assert {code for code, flag in seen if flag in kind} >= COMMANDS


async def test_over_tls_no_key_and_no_name_of_a_user_is_on_the_wire(tmp_path: Path) -> None:
    capture = tmp_path / "cx-tls.pcapng"
    await talk(capture, pki=Pki(tmp_path, SystemClock()))
    octets = capture.read_bytes()
    assert b"user1_private" not in octets
    for key in KEYS:
        assert key.reveal() not in octets
    plain = tmp_path / "cx.pcapng"
    await talk(plain)
    assert all(key.reveal() in plain.read_bytes() for key in KEYS)  # the search finds what is there
