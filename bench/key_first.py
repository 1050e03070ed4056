# SPDX-License-Identifier: Apache-2.0
"""Measure how often the key is at the AS before the 200 reaches the UE, against the packets lost between S-CSCF and AS.

    python bench/key_first.py
    python bench/key_first.py --transport udp --loss 0,5,20 --registrations 100 --json

A whole network over loopback sockets in this process; only what goes between S-CSCF and AS is lost, in both directions, at random.
Packets are dropped by iptables in a network namespace of our own (unshare -rn; no privileges, nothing else on the machine sees it), so
TCP loses segments as on a real network. Where that is not to be had, --by relay drops datagrams in a relay: UDP only.

With names as long as 3GPP's a push is over 1,300 octets and goes over TCP (RFC 3261 §18.1.1). Here that limit is lifted for the figures
over UDP, which loopback allows, and 0 for those over TCP, as the names are short.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from keyferry.client.ue import Isim, UeClient, http_credentials, open_ue
from keyferry.config import ApplicationServer, Config, Icscf, Network, Pcscf, Scscf, Subscriber
from keyferry.errors import KeyferryError
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_impi, parse_impu
from keyferry.protocol.sip.message import Response
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.sip_context import Limits
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from loopback import free_port

HOME = "home1.net"
AS_ID = AsId(f"xcap.{HOME}")
INSIDE = "KEYFERRY_KEY_FIRST_INSIDE"  # set in the process that runs in the namespace
LOSSES = "0,1,2,5,10,20"
LOSE = "-m statistic --mode random"
NO_LIMIT = 60_000  # octets of a datagram


@dataclass(frozen=True)
class Point:
    """One line of the table."""

    transport: str
    loss_percent: float  # in each direction
    registrations: int
    failed: int
    key_first: float  # share of the registrations
    p50_ms: float  # of a registration, both round trips
    p99_ms: float


class Recorder(StructLog):
    """Note when the AS had stored which key."""

    def __init__(self) -> None:
        super().__init__("none")
        self.stored: dict[str, float] = {}  # fingerprint → seconds

    def info(self, event: str, **fields: object) -> None:
        """Take an event."""
        keys = fields.get("keys")
        if event == "push-taken" and isinstance(keys, list):
            now = time.monotonic()
            for fingerprint in keys:
                self.stored.setdefault(fingerprint, now)


@dataclass
class Phone:
    """One UE; `answered_at` is when its last 200 came out of the socket."""

    client: UeClient
    answered_at: float = 0.0
    times: list[float] = field(default_factory=list)


# ---- loss


class Relay(asyncio.DatagramProtocol):
    """Stand between S-CSCF and AS and lose datagrams."""

    def __init__(self, target: tuple[str, int], loss: float) -> None:
        self.target, self.loss = target, loss
        self.chance = SystemRandom()
        self.source: tuple[str, int] | None = None
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Pass on or lose."""
        if addr != self.target:
            self.source = addr
        to = self.target if addr != self.target else self.source
        if to is not None and self.transport is not None and int.from_bytes(self.chance.octets(4)) >= self.loss * 2**32:
            self.transport.sendto(data, to)


@contextmanager
def lossy(transport: str, port: int, loss: float) -> Iterator[None]:
    """Drop packets to and from a port, in this namespace."""
    rules = [f"INPUT -p {transport} {side} {port} {LOSE} --probability {loss:.6f} -j DROP" for side in ("--dport", "--sport")]
    for rule in rules if loss else ():
        iptables("-A", rule)
    try:
        yield
    finally:
        for rule in rules if loss else ():
            iptables("-D", rule)


def iptables(action: str, rule: str) -> None:
    """Add or delete a rule; in INPUT, as a sender learns of what is dropped in OUTPUT."""
    subprocess.run(["iptables", action, *rule.split()], check=True)


def can_use_namespace() -> bool:
    """Tell whether iptables drops packets at random in a network namespace of ours."""
    if shutil.which("unshare") is None or shutil.which("iptables") is None or shutil.which("ip") is None:
        return False
    tried = f"ip link set lo up && iptables -A INPUT -p udp --dport 9 {LOSE} --probability 0.5 -j DROP"
    command = ["unshare", "-rn", "sh", "-c", tried]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# ---- the network


def config_of(users: int, port: int) -> Config:
    """Return a network with one AS."""
    any_port = "127.0.0.1:0"
    server = ApplicationServer(as_id=AS_ID, sip_uri=f"sip:xcap-as.{HOME}", listen_sip=f"127.0.0.1:{port}", listen_https=any_port)
    subscribers = [
        Subscriber(impi=f"u{n}@{HOME}", impus=[f"sip:u{n}@{HOME}"], k=secret(f"k{n}"), opc=secret(f"opc{n}")) for n in range(users)
    ]
    return Config(
        network=Network(home_domain=HOME, overload="off"),
        pcscf=Pcscf(name=f"pcscf1.{HOME}", listen=any_port, icscf=f"sip:icscf.{HOME}"),
        icscf=Icscf(name=f"icscf.{HOME}", listen=any_port, scscf=f"sip:scscf1.{HOME}"),
        scscf=Scscf(name=f"scscf1.{HOME}", listen=any_port, as_probe=0),
        application_servers=[server],
        subscribers=subscribers,
    )


def secret(label: str) -> Secret:
    """Make a key that belongs to a name."""
    return Secret(hashlib.sha256(label.encode()).digest()[:16])


@asynccontextmanager
async def network(users: int, transport: str, relay_loss: float | None) -> AsyncIterator[tuple[list[Phone], Recorder, int]]:
    """Start everything; with a relay in front of the AS if `relay_loss` is given."""
    log, clock, chance, port = Recorder(), SystemClock(), SystemRandom(), free_port()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyferry-key-first-")))
        state = stack.enter_context(open_state(folder / "state", random=chance, exclusive=True))
        system = System(config_of(users, port), state, clock, chance, log, Metrics(), ("pcscf", "icscf", "scscf", "as"))
        system.services.limits["S-CSCF"] = Limits(datagram=NO_LIMIT if transport == "udp" else 0)
        stack.push_async_callback(system.stop)
        listeners = await system.start()
        if relay_loss is not None:
            loop = asyncio.get_running_loop()
            way, _ = await loop.create_datagram_endpoint(lambda: Relay(("127.0.0.1", port), relay_loss), local_addr=("127.0.0.1", 0))
            stack.callback(way.close)
            system.resolver.serve(f"xcap-as.{HOME}", *way.get_extra_info("sockname"))
        pcscf = next(one.port for one in listeners if one.role == "pcscf" and one.proto == "udp")
        phones = [await open_phone(stack, number, SipPeer("UDP", "127.0.0.1", pcscf)) for number in range(users)]
        yield phones, log, port


async def open_phone(stack: AsyncExitStack, number: int, pcscf: SipPeer) -> Phone:
    """Open one UE, closed with the stack."""
    phone: Phone

    def observe(event: SipEvent) -> None:
        if not event.outgoing and isinstance(event.message, Response) and event.message.status == 200:
            phone.answered_at = time.monotonic()

    opened = open_ue(
        UeProfile(parse_impi(f"u{number}@{HOME}"), parse_impu(f"sip:u{number}@{HOME}"), HOME),
        Isim("milenage", secret(f"k{number}"), secret(f"opc{number}")),
        pcscf=pcscf, store=MemoryUeStore(), clock=SystemClock(), random=SystemRandom(), log=StructLog("none"), observer=observe,
    )  # fmt: skip
    phone = Phone(await stack.enter_async_context(opened))
    return phone


async def measure(transport: str, loss: float, registrations: int, users: int, by: str) -> Point:
    """Let every UE register again and again."""
    async with network(users, transport, loss if by == "relay" else None) as (phones, log, port):
        for phone in phones:  # connections, caches
            await phone.client.register()
        first = failed = 0
        left = registrations

        async def run(phone: Phone) -> None:
            nonlocal first, failed, left
            while left > 0:
                left -= 1
                began = time.monotonic()
                try:
                    state = await phone.client.register()
                except KeyferryError:
                    failed += 1
                    continue
                phone.times.append(time.monotonic() - began)
                stored = log.stored.get(http_credentials(state, AS_ID).k_as.fingerprint())
                first += stored is not None and stored <= phone.answered_at

        if by == "relay":
            await asyncio.gather(*map(run, phones))
        else:
            with lossy(transport, port, loss):
                await asyncio.gather(*map(run, phones))
    times = sorted(each for phone in phones for each in phone.times)
    done = registrations - failed
    if not done:
        return Point(transport, 100 * loss, 0, failed, 0.0, 0.0, 0.0)
    p99 = times[int(0.99 * (len(times) - 1))]
    return Point(transport, 100 * loss, done, failed, first / done, 1000 * median(times), 1000 * p99)


# ---- the command


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", default="udp,tcp", help="udp, tcp, or both with a comma (default: %(default)s)")
    parser.add_argument("--loss", default=LOSSES, help="percent lost in each direction, comma-separated (default: %(default)s)")
    parser.add_argument("--registrations", type=int, default=400, help="for each line (default: %(default)s)")
    parser.add_argument("--users", type=int, default=4, help="UEs that register at the same time (default: %(default)s)")
    parser.add_argument("--by", choices=("auto", "namespace", "relay"), default="auto", help="what drops packets (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print, return the exit code."""
    options = parse(arguments)
    transports = options.transport.split(",")
    losses = [float(each) / 100 for each in options.loss.split(",")]
    if not set(transports) <= {"udp", "tcp"} or not all(0 <= loss < 1 for loss in losses) or min(options.registrations, options.users) < 1:
        sys.stderr.write("key_first: transports are udp and tcp, losses from 0 to under 100, counts above 0\n")
        return 2
    inside = INSIDE in os.environ
    by = "namespace" if inside or (options.by == "auto" and can_use_namespace()) else options.by
    if by == "namespace" and not inside:
        command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, __file__, *arguments]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    if by != "namespace" and "tcp" in transports:
        sys.stderr.write(
            "key_first: a relay cannot lose segments of TCP, and no network namespace with iptables is used: TCP is left out\n"
        )
        transports.remove("tcp")
    return report(options, transports, losses, "namespace" if inside else "relay")


def report(options: argparse.Namespace, transports: list[str], losses: list[float], by: str) -> int:
    """Measure line by line; return the exit code."""
    points = []
    for transport in transports:
        for loss in losses:
            points.append(asyncio.run(measure(transport, loss, options.registrations, options.users, by)))
            if not options.json:
                show(points[-1], header=len(points) == 1)
    if options.json:
        told: dict[str, Any] = {"by": by, "users": options.users, "points": [asdict(point) for point in points]}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return 0 if points and not any(point.failed for point in points) else 1


def show(point: Point, *, header: bool) -> None:
    """Print one line."""
    if header:
        sys.stdout.write("| transport | lost, each way | registrations | failed | key first | p50 | p99 |\n|---|---|---|---|---|---|---|\n")
    sys.stdout.write(
        f"| {point.transport} | {point.loss_percent:g} % | {point.registrations} | {point.failed} | {100 * point.key_first:.1f} % "
        f"| {point.p50_ms:.0f} ms | {point.p99_ms:.0f} ms |\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
