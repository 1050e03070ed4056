# SPDX-License-Identifier: Apache-2.0
"""Measure how many MARs a second an HSS can answer: the node of python-diameter, and our DiameterServer, over TCP and TLS.

    python bench/diameter_node.py
    python bench/diameter_node.py --requests 20000 --window 64 --json

Each server is a process of its own that answers every MAR with the same vector, so that what is measured is Diameter alone; this process
asks, over one connection on the loopback, with so many requests under way as the window says, and reads every answer. Servers take turns.
The load is bare, a protocol without time-outs or memory, the same for both servers; then it is our DiameterClient, as an S-CSCF has it.
`cpu` is the server's processor time for one request: where `client` is near 100 %, the load and not the server is the limit of the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import uvloop

from keyferry.errors import CxError
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import DiameterIdentity, Identifiers
from keyferry.protocol.diameter.message import DiameterMessage, Framer, parse_message, render_message
from keyferry.protocol.diameter.peer import Deliver, Opened, PeerMachine, Send
from keyferry.protocol.identity import Impi, Impu
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import Admission, RemotePeer
from keyferry.transports.diameter_server import DiameterServer
from keyferry.transports.pki import MutualTls, Pki, mutual_tls
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.serving import spare_the_collector

HSS, SCSCF = DiameterIdentity("hss.home1.net", "home1.net"), DiameterIdentity("scscf1.home1.net", "home1.net")
IMPI, IMPU, SERVER = Impi("user1_private@home1.net"), Impu("sip:user1_public1@home1.net"), "sip:scscf1.home1.net:6060"
VECTOR = AuthVector(bytes(range(16)), bytes(range(16)), Secret(bytes(8)), Secret(bytes(16)), Secret(bytes(16)))
ROUNDS = 3
STATE = "KEYFERRY_BENCH_STATE"  # environment: the directory of this run's CA
LIMIT = 60.0  # seconds, for a server to begin or a round to end


class Row(NamedTuple):
    """What was measured of one server."""

    server: str
    load: str
    per_second: float  # median of the rounds
    cpu_us: float  # of the server, a request
    client_percent: float  # of this process


class Connection(asyncio.Protocol):
    """One Diameter connection of the load: what a transport does, without its time-outs."""

    def __init__(self, machine: PeerMachine, deliver: Callable[[Connection, DiameterMessage], None]) -> None:
        self.machine = machine
        self.opened = asyncio.Event()
        self._deliver = deliver
        self._framer = Framer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        self._do(self.machine.start(time.monotonic()))

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        now = time.monotonic()
        for frame in self._framer.feed(data):
            self._do(self.machine.received(parse_message(frame), now))

    def send(self, message: DiameterMessage) -> None:
        """Write a message."""
        if self._transport is not None:
            self._transport.write(render_message(message))

    def close(self) -> None:
        """End."""
        if self._transport is not None:
            self._transport.close()

    def _do(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.send(action.message)
                case Deliver():
                    self._deliver(self, action.message)
                case Opened():
                    self.opened.set()


async def maa(request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
    """Answer a MAR."""
    del peer
    mar = cx.parse_mar(request)
    return cx.build_maa(request, cx.Maa(mar.impi, mar.impu, (cx.AuthItem(VECTOR),)), HSS)


def serve_keyferry(listening: socket.socket) -> None:
    """Answer MARs by a DiameterServer until standard input ends."""
    _serve(listening, None)


def serve_keyferry_tls(listening: socket.socket) -> None:
    """Do the same over mutual TLS."""
    _serve(listening, certificate(HSS.origin_host, "hss"))


def certificate(name: str, role: str) -> MutualTls:
    """Return the contexts of a certificate of the CA that this run made."""
    pki = Pki(Path(os.environ[STATE]), SystemClock())
    return mutual_tls(pki.ensure(name, role), pki.ca_file)


def _serve(listening: socket.socket, tls: MutualTls | None) -> None:
    port = listening.getsockname()[1]
    listening.close()

    async def run() -> None:
        allowed, log = Admission.of([SCSCF.origin_host], ["scscf"]), StructLog("none")
        server = DiameterServer(HSS, maa, allowed=allowed, clock=SystemClock(), random=SystemRandom(), log=log, counter=Metrics())
        await server.listen("127.0.0.1", port, tls=tls)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.aclose()

    spare_the_collector()
    uvloop.run(run())


def serve_library(listening: socket.socket) -> None:
    """Answer MARs by the library's node, as its documentation does it, until standard input ends."""
    from diameter.message import Avp, Message
    from diameter.message import constants as code
    from diameter.node import Node
    from diameter.node.application import SimpleThreadingApplication

    vendor = code.VENDOR_TGPP
    logging.getLogger("diameter").setLevel(logging.CRITICAL)  # it warns of each connection that ends

    def answer(application: object, request: Message) -> Message:
        del application
        made = request.to_answer()
        made.session_id, made.result_code, made.auth_session_state = request.session_id, 2001, 1
        made.origin_host, made.origin_realm = b"hss.home1.net", b"home1.net"
        made.public_identity = request.public_identity[0]
        made.append_avp(Avp.new(code.AVP_USER_NAME, value=request.user_name))
        made.append_avp(Avp.new(code.AVP_TGPP_3GPP_SIP_NUMBER_AUTH_ITEMS, vendor, value=1))
        values = (
            (code.AVP_TGPP_3GPP_SIP_ITEM_NUMBER, 1),
            (code.AVP_TGPP_3GPP_SIP_AUTHENTICATION_SCHEME, "Digest-AKAv1-MD5"),
            (code.AVP_TGPP_3GPP_SIP_AUTHENTICATE, VECTOR.rand + VECTOR.autn),
            (code.AVP_TGPP_3GPP_SIP_AUTHORIZATION, VECTOR.xres.reveal()),
            (code.AVP_TGPP_CONFIDENTIALITY_KEY, VECTOR.ck.reveal()),
            (code.AVP_TGPP_INTEGRITY_KEY, VECTOR.ik.reveal()),
        )
        item = [Avp.new(number, vendor, value=value) for number, value in values]
        made.append_avp(Avp.new(code.AVP_TGPP_3GPP_SIP_AUTH_DATA_ITEM, vendor, value=item))
        return made

    port = listening.getsockname()[1]
    listening.close()  # the node opens its own
    node = Node("hss.home1.net", "home1.net", ip_addresses=["127.0.0.1"], tcp_port=port)
    node.vendor_ids = [10415, 13019]  # its set has no order
    node.validate_received_request_avps = False  # else it refuses a MAR of 3GPP
    peer = node.add_peer("aaa://scscf1.home1.net", "home1.net")
    node.add_application(SimpleThreadingApplication(code.APP_3GPP_CX, is_auth_application=True, request_handler=answer), [peer])
    node.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # its own end takes as long as it sleeps between looks at its timers, six seconds


SERVERS = {"library": serve_library, "keyferry": serve_keyferry, "keyferry-tls": serve_keyferry_tls}
MEASURED = (("library", "bare"), ("keyferry", "bare"), ("library", "client"), ("keyferry", "client"), ("keyferry-tls", "client"))


def serve(name: str) -> None:
    """Be a server: say the port, serve, and say what processor time it took."""
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    SERVERS[name](listening)


@contextmanager
def running(name: str) -> Iterator[tuple[int, int]]:
    """Run a server, and give its port and process."""
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise OSError("no pipes")
        try:
            port = int(process.stdout.readline())
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"the server {name} did not begin")
            yield port, process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()


def cpu_of(pid: int) -> float:
    """Return the seconds of the processor that a process has had."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(port: int, requests: int, window: int) -> float:
    """Send MARs, read their answers, and return how many seconds it took."""
    loop = asyncio.get_running_loop()
    numbers, route = Identifiers(1, 1), cx.Route(SCSCF, "scscf1.home1.net;1;1", "home1.net")
    mar = cx.build_mar(cx.Mar(IMPI, IMPU, SERVER), route)
    done, left, waiting = loop.create_future(), requests, 0

    def fill(connection: Connection) -> None:
        nonlocal left, waiting
        while left and waiting < window:
            left, waiting = left - 1, waiting + 1
            connection.send(mar.with_ids(numbers.hop_by_hop(), numbers.end_to_end()))

    def answered(connection: Connection, answer: DiameterMessage) -> None:
        nonlocal waiting
        try:
            problem = cx.cx_error_of(answer)
        except CxError as found:
            problem = found
        if problem is not None and not done.done():
            done.set_exception(problem)
        waiting -= 1
        fill(connection)
        if not left and not waiting and not done.done():
            done.set_result(None)

    machine = PeerMachine(SCSCF, numbers, dials=True, addresses=["127.0.0.1"])
    _, connection = await loop.create_connection(lambda: Connection(machine, answered), "127.0.0.1", port)
    async with asyncio.timeout(LIMIT):
        await connection.opened.wait()
        began = time.perf_counter()
        fill(connection)
        await done
    took = time.perf_counter() - began
    connection.close()
    return took


async def ask_by_client(port: int, requests: int, window: int, *, tls: bool) -> float:
    """Do the same by a DiameterClient."""
    peer = DiameterPeer("127.0.0.1", port, HSS.origin_host, certificate(SCSCF.origin_host, "scscf") if tls else None)
    client = DiameterClient([peer], SCSCF, clock=SystemClock(), random=SystemRandom(), log=StructLog("none"), counter=Metrics())
    await client.start()
    left, route = requests, cx.Route(SCSCF, "scscf1.home1.net;1;1", "home1.net")

    async def one_after_the_other() -> None:
        nonlocal left
        while left:
            left -= 1
            problem = cx.cx_error_of(await client.send(cx.build_mar(cx.Mar(IMPI, IMPU, SERVER), route), timeout=LIMIT))
            if problem is not None:
                raise problem

    async with asyncio.timeout(LIMIT):
        await client.ready()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(window):
                group.create_task(one_after_the_other())
    took = time.perf_counter() - began
    await client.aclose()
    return took


def measure(requests: int, window: int) -> list[Row]:
    """Let the servers take turns; the first requests of each warm it up and do not count."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {both: [] for both in MEASURED}
    for _ in range(ROUNDS):
        for (name, load), rows in found.items():
            with running(name) as (port, pid):
                asked = ask if load == "bare" else partial(ask_by_client, tls=name == "keyferry-tls")
                uvloop.run(asked(port, min(requests, 500), window))
                before, own = cpu_of(pid), time.process_time()
                took = uvloop.run(asked(port, requests, window))
                rows.append((requests / took, (cpu_of(pid) - before) / requests * 1e6, (time.process_time() - own) / took * 100))
    return [Row(*both, *(median(column) for column in zip(*rows, strict=True))) for both, rows in found.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5_000, help="MARs in each of three rounds")
    parser.add_argument("--window", type=int, default=64, help="requests under way")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory() as state:
        os.environ[STATE] = state  # the servers' too
        rows = measure(options.requests, options.window)
    if options.json:
        sys.stdout.write(json.dumps([row._asdict() for row in rows]) + "\n")
        return
    sys.stdout.write(f"server        load      MAR/s  cpu µs  client    ({options.window} under way, Python {sys.version.split()[0]})\n")
    for row in rows:
        sys.stdout.write(f"{row.server:13} {row.load:6} {row.per_second:7.0f} {row.cpu_us:7.0f} {row.client_percent:5.0f} %\n")


if __name__ == "__main__":
    main()
