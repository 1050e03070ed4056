# SPDX-License-Identifier: Apache-2.0
"""The plan of a lab: namespaces, links with delay and loss, who runs where, and the commands of iproute2 that make all of it.

Addresses are of 198.18.0.0/15, which is for measurements and nobody's (RFC 2544 appendix C.2.2); every lab has the same, in namespaces
of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from keyferry.errors import ConfigError, KeyferryError

HOME: Final = "home1.net"
AS_ID: Final = "xcap.home1.net"
AS_SIP: Final = "xcap-as.home1.net"
IMPI: Final = "user1_private@home1.net"
IMPU: Final = "sip:user1_public1@home1.net"
DOCUMENT: Final = f"simservs.ngn.etsi.org/users/{IMPU}/simservs.xml"

Side = Literal["ue", "visited", "home", "as"]
SIDES: Final[tuple[Side, ...]] = ("ue", "visited", "home", "as")
Shaping = Literal["netem", "relay", "none"]
Isc = Literal["tls", "ipsec"]

MAX_DELAY: Final = 5_000.0
"""Milliseconds one way; SIP gives up after 32 s (64*T1)."""
MAX_LOSS: Final = 50.0
"""Per cent of packets."""
QUEUE: Final = 10_000
"""Packets under way on a link in one direction; netem's own 1,000 would drop under load what nobody asked to drop."""
_ID: Final = re.compile(r"[a-z0-9]{1,8}")
_DELAY: Final = re.compile(r"(?P<number>[0-9]{1,5}(?:\.[0-9]{1,3})?)(?P<unit>ms|s)?")
_LOSS: Final = re.compile(r"(?P<number>[0-9]{1,2}(?:\.[0-9]{1,3})?)%?")


class LabFailed(KeyferryError):
    """Say what a lab could not do, and what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return self.problem + (f". {self.remedy}" if self.remedy else "")


class End(NamedTuple):
    """One end of a link: in whose namespace, and its address."""

    side: Side
    address: str


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two namespaces; delay and loss are those of each direction."""

    name: str
    near: End
    far: End
    delay: float  # milliseconds
    loss: float  # per cent of packets

    @property
    def ends(self) -> tuple[tuple[End, End], tuple[End, End]]:
        """Return each end with the one on the other side."""
        return (self.near, self.far), (self.far, self.near)


@dataclass(frozen=True, slots=True)
class Part:
    """One process of `keyferry serve`."""

    name: str  # its role
    side: Side
    host: str
    address: str
    admin: int  # port of /health and /metrics on the loopback address of its namespace

    @property
    def command(self) -> tuple[str, ...]:
        """Return its arguments besides those for its files."""
        return ("serve", "--role", self.name, "--role", "admin", "--log", "json")


LINKS: Final = (
    Link("access", End("ue", "198.18.1.1"), End("visited", "198.18.1.2"), 20.0, 1.0),
    Link("interconnect", End("visited", "198.18.2.1"), End("home", "198.18.2.2"), 10.0, 0.1),
    Link("core", End("home", "198.18.3.1"), End("as", "198.18.3.2"), 2.0, 0.0),
)
PARTS: Final = (
    Part("hss", "home", f"hss.{HOME}", "198.18.20.3", 8081),
    Part("as", "as", AS_SIP, "198.18.30.1", 8081),
    Part("scscf", "home", f"scscf1.{HOME}", "198.18.20.2", 8082),
    Part("icscf", "home", f"icscf.{HOME}", "198.18.20.1", 8083),
    Part("pcscf", "visited", f"pcscf1.{HOME}", "198.18.10.1", 8081),
)
"""In the order of their start: backwards along the path of a REGISTER."""
DOOR: Final = End("as", "198.18.30.2")
"""Where UEs find the AS: with IPsec, everything between the S-CSCF's machine and the address for pushes goes through its tunnel."""
_ROUTES: Final = (
    ("ue", "default", "visited", ""),
    ("visited", "default", "home", "198.18.10.1"),
    ("home", "default", "visited", "198.18.20.1"),
    ("home", "198.18.30.0/24", "as", "198.18.20.2"),
    ("as", "default", "home", "198.18.30.1"),
)
"""Namespace, network, next namespace, and the address that connections from here come from: the one that trusted_peers has."""
_UPLINK: Final[dict[str, str]] = {"visited": "home", "home": "as", "as": "home"}
_ROUTERS: Final[tuple[Side, ...]] = ("visited", "home")

_MAKE: Final = 'ip link set lo alias "$0" && exec ip netns attach "$1" $$'

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A lab that may be made."""

    id: str
    links: tuple[Link, ...] = LINKS
    isc: Isc = "tls"  # what protects key pushes
    kamailio: bool = False  # the S-CSCF is not ours
    kamailio_icscf: bool = False  # nor is the I-CSCF

    @property
    def kamailios(self) -> tuple[str, ...]:
        """Return the roles that a stock Kamailio has, in the order of their start."""
        return ("scscf",) * self.kamailio + ("icscf",) * self.kamailio_icscf

    def namespace(self, side: Side) -> str:
        """Return the name of a namespace."""
        return f"kf-{self.id}-{side}"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Return the names of all."""
        return tuple(self.namespace(side) for side in SIDES)

    def part(self, name: str) -> Part:
        """Return the part of this name."""
        return next(part for part in PARTS if part.name == name)

    def addresses(self, side: Side) -> tuple[str, ...]:
        """Return every address of a namespace, those of its functions first."""
        functions = [part.address for part in PARTS if part.side == side] + ([DOOR.address] if DOOR.side == side else [])
        return (*functions, *(end.address for link in self.links for end in (link.near, link.far) if end.side == side))

    def inside(self, side: Side, *words: str) -> Command:
        """Return the command that runs another one in a namespace; it keeps the process id."""
        return ("ip", "netns", "exec", self.namespace(side), *words)

    def making(self, mark: str) -> Iterator[Command]:
        """Yield what makes one namespace each, which has the mark before it has its name: whose it is can always be told."""
        return (("unshare", "--net", "sh", "-c", _MAKE, mark, name) for name in self.namespaces)

    def cabling(self, shaping: Shaping) -> Iterator[Command]:
        """Yield what connects the namespaces; with `relay` the devices are there already, made by the process that relays."""
        for number, link in enumerate(self.links):
            if shaping == "relay":
                for (end, other), device in zip(link.ends, self.relay_devices(number), strict=True):
                    yield ("ip", "link", "set", device, "netns", self.namespace(end.side), "name", other.side)
                continue
            near, far = link.near.side, link.far.side
            peer = ("peer", "name", near, "netns", self.namespace(far))
            yield ("ip", "link", "add", far, "netns", self.namespace(near), "type", "veth", *peer)

    def relay_devices(self, number: int) -> tuple[str, str]:
        """Return what the two ends of a link are called until they are in their namespaces."""
        return f"kf{self.id}{number}a", f"kf{self.id}{number}b"

    def addressing(self) -> Iterator[Command]:
        """Yield what gives addresses and routes to everybody."""
        for side in SIDES:
            yield ("ip", "-n", self.namespace(side), "link", "set", "lo", "up")
        for link in self.links:
            for end, other in link.ends:
                name = self.namespace(end.side)
                yield ("ip", "-n", name, "address", "add", end.address, "peer", other.address, "dev", other.side)
                yield ("ip", "-n", name, "link", "set", other.side, "up")
        for part in PARTS:  # at a link, and not at lo: charon takes no address of lo for one that others reach
            device = _UPLINK[part.side]
            yield ("ip", "-n", self.namespace(part.side), "address", "add", f"{part.address}/32", "dev", device)
        yield ("ip", "-n", self.namespace(DOOR.side), "address", "add", f"{DOOR.address}/32", "dev", _UPLINK[DOOR.side])
        for side, network, via, source in _ROUTES:
            come_from = ("src", source) if source else ()
            gateway = next(other.address for link in self.links for end, other in link.ends if (end.side, other.side) == (side, via))
            yield ("ip", "-n", f"kf-{self.id}-{side}", "route", "add", network, "via", gateway, "dev", via, *come_from)
        for side in _ROUTERS:
            yield self.inside(side, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def netem(self) -> Iterator[Command]:
        """Yield what delays and loses packets where the kernel can: at both ends of each link, on the way out."""
        for link in self.links:
            if link.delay or link.loss:
                for end, other in link.ends:
                    shape = ("delay", f"{link.delay:g}ms", "loss", f"{link.loss:g}%", "limit", str(QUEUE))
                    yield ("tc", "-n", self.namespace(end.side), "qdisc", "add", "dev", other.side, "root", "netem", *shape)

    def ending(self, name: str) -> Command:
        """Return what ends a namespace; its links and addresses go with it."""
        return ("ip", "netns", "delete", name)


def make_plan(
    lab: str,
    delays: Sequence[str] = (),
    losses: Sequence[str] = (),
    isc: Isc = "tls",
    *,
    kamailio: bool = False,
    kamailio_icscf: bool = False,
) -> Plan:
    """Return a plan; each delay and loss is that of every link, or of one: `25ms`, `access=40ms`, `1%`, `core=0%`. Raises ConfigError."""
    if not _ID.fullmatch(lab):
        raise ConfigError("--id", f"{lab!r} is no name of a lab", "Write 1 to 8 lower-case letters and digits")
    delay = _values("--delay", delays, _delay)
    loss = _values("--loss", losses, _loss)
    links = [
        Link(link.name, link.near, link.far, delay.get(link.name, link.delay), loss.get(link.name, link.loss)) for link in LINKS
    ]  # fmt: skip
    return Plan(lab, tuple(links), isc, kamailio, kamailio_icscf)


def _values(option: str, texts: Sequence[str], parse: Callable[[str, str], float]) -> Mapping[str, float]:
    """Return a value for each link that is named; what names none is for all others, wherever it stands."""
    names = [link.name for link in LINKS]
    found: dict[str, float] = {}
    for text in sorted(texts, key=lambda each: "=" in each):
        name, equals, value = text.rpartition("=")
        if equals and name not in names:
            raise ConfigError(option, f"{name!r} is no link", f"There are {', '.join(names)}")
        found.update(dict.fromkeys([name] if equals else names, parse(option, value)))
    return found


def _delay(option: str, text: str) -> float:
    match = _DELAY.fullmatch(text)
    number = float(match["number"]) * (1000 if match["unit"] == "s" else 1) if match else MAX_DELAY + 1
    if number > MAX_DELAY:
        raise ConfigError(option, f"{text!r} is no delay", "Write milliseconds or seconds up to 5 s: 25ms, 0.2s, access=40ms")
    return number


def _loss(option: str, text: str) -> float:
    match = _LOSS.fullmatch(text)
    number = float(match["number"]) if match else MAX_LOSS + 1
    if number > MAX_LOSS:
        raise ConfigError(option, f"{text!r} is no loss", "Write per cent of packets up to 50: 1%, 0.1%, access=3%")
    return number
