# SPDX-License-Identifier: Apache-2.0
"""Whether IPsec protects the way to a peer: charon's list-sa, judged (RFC 4301 §4.4; TS 33.210 §5.3, Release 17; DESIGN §6)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from keyferry.errors import ProtectionUnmet
from keyferry.protocol.vici import Section, Value

AEAD: Final = frozenset({"AES_GCM_16", "AES_GCM_12", "AES_CCM_16", "AES_CCM_12", "CHACHA20_POLY1305"})
"""Encryption that is integrity, too."""
ENCRYPTION: Final = frozenset({"AES_CBC", "AES_CTR", "CAMELLIA_CBC", "CAMELLIA_CTR"})
"""Encryption that needs integrity beside it. What is on neither list (NULL, NULL_AES_GMAC, DES, 3DES) protects no key."""
INTEGRITY: Final = frozenset({"HMAC_SHA2_256_128", "HMAC_SHA2_384_192", "HMAC_SHA2_512_256", "AES_XCBC_96", "AES_CMAC_96", "HMAC_SHA1_96"})
UP: Final = frozenset({"INSTALLED", "REKEYING"})
"""States of a CHILD_SA in which the kernel has both directions; REKEYING: until the next one is there."""
ABSENT: Final = frozenset({"CREATED", "ROUTED", "RETRYING"})
"""States of a CHILD_SA in which the kernel has nothing that carries packets."""
UNLISTED: Final = "(cannot be listed)"
"""State, of our own, of a CHILD_SA that may be there: charon drops an answer about an IKE_SA that has too many."""
IKE_UP: Final = frozenset({"ESTABLISHED", "REKEYING"})
"""States of an IKE_SA in which both sides are authenticated."""
SERVICES: Final = {"sip": 5060, "sip-tls": 5061, "sips": 5061, "http-alt": 8080, "http": 80, "https": 443, "diameter": 3868}
"""charon writes a port by its name in /etc/services. A name that is not here covers nothing."""
PROTOCOLS: Final = {"tcp": "TCP", "6": "TCP", "udp": "UDP", "17": "UDP", "0": "", "ip": ""}
"""charon's names of those that SIP goes over; "" any, which it writes where a selector has ports and no protocol."""

APART: Final = ("if-id-in", "if-id-out", "mark-in", "mark-out", "label")
"""Who sends through a CHILD_SA with one of these does so by an interface, a firewall mark or a label of its own: our packets have none."""

ALL_PORTS: Final = (0, 65_535)
OTHER: Final = "other"
"""A protocol that SIP does not go over."""

_SELECTOR = re.compile(r"([0-9a-fA-F.:]+)(?:/(\d{1,3})|\.\.([0-9a-fA-F.:]+))(?:\[([a-z0-9-]+)(?:/([a-z0-9()-]+))?\])?", re.ASCII)
_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)


class _Selector(NamedTuple):
    """A traffic selector."""

    first: tuple[int, int]  # version of IP and address
    last: tuple[int, int]
    transport: str  # "" any
    ports: tuple[int, int] | None  # the first and the last; None: nobody can read which


class ChildSa(NamedTuple):
    """One CHILD_SA, and the IKE_SA that it is of, as charon names things."""

    name: str  # in the configuration
    ike_state: str
    identity: str  # of the other side, authenticated where ike_state is in IKE_UP
    state: str
    protocol: str
    spi_in: str  # hexadecimal, "" or zeros: that direction is not there
    spi_out: str
    encryption: str
    integrity: str
    local: tuple[str, ...]  # traffic selectors
    remote: tuple[str, ...]
    apart: tuple[str, ...] = ()  # what packets need besides, to go through it
    ike: str = ""  # name of the IKE_SA


class Pass(NamedTuple):
    """A policy of charon's that lets packets past every SA (`mode = pass`; those of its plugin bypass-lan)."""

    local: tuple[str, ...]  # traffic selectors
    remote: tuple[str, ...]


class Wanted(NamedTuple):
    """What the configuration demands."""

    child: str
    identity: str


class Ends(NamedTuple):
    """Two addresses, and the CHILD_SA that whatever goes between them is to go through."""

    child: str
    local: str  # numeric
    remote: str


class Way(NamedTuple):
    """Which packets are to be protected."""

    transport: str  # "UDP" or "TCP"
    local: str  # numeric
    local_port: int  # 0: any
    remote: str
    remote_port: int


def ike_sas(event: Section) -> dict[str, Section]:
    """Return the IKE_SAs of an event, by their names."""
    return {name: ike for name, ike in event.items() if isinstance(ike, dict)}


def child_sas(event: Section) -> list[ChildSa]:
    """Read a list-sa event, or one of those that tell of a change; what is missing is "", which satisfies nothing."""
    found: list[ChildSa] = []
    for name, ike in ike_sas(event).items():
        children = ike.get("child-sas")
        for child in children.values() if isinstance(children, dict) else ():
            if isinstance(child, dict):
                both = [each for each in (child.get("old"), child.get("new")) if isinstance(each, dict)]  # child-rekey has two
                found += [_child(name, ike, each) for each in both or [child]]
    return found


def configured_sas(event: Section, name: str, ike: Section) -> list[ChildSa]:
    """Return what CHILD_SAs an IKE_SA may have that charon cannot list, by a list-conn event: each as wide as it is configured.

    A narrower one may be there (RFC 7296 §2.9), and a wider one not.
    """
    children = ike_sas(event).get(name, {}).get("children")
    found = []
    for child, settings in children.items() if isinstance(children, dict) else ():
        if isinstance(settings, dict):
            local, remote = (
                tuple(each for text in _list(settings.get(f"{side}-ts")) for each in _resolved(text, ike, side))
                for side in ("local", "remote")
            )
            found.append(_child(name, ike, {"name": child, "state": UNLISTED})._replace(local=local, remote=remote))
    return found or [_child(name, ike, {"name": name, "state": UNLISTED})._replace(local=("",), remote=("",))]  # of which nobody knows


def _resolved(text: str, ike: Section, side: str) -> list[str]:
    """Return the selectors of one that may be `dynamic`: the virtual addresses, or else the address, of that side."""
    if not text.startswith("dynamic"):
        return [text]
    addresses = [*_list(ike.get(f"{side}-vips")), _text(ike, f"{side}-host")]
    return [f"{each}/{128 if ':' in each else 32}" for each in addresses if each]


def touches(sa: ChildSa, ends: Ends) -> bool:
    """Tell whether a CHILD_SA may carry anything between two addresses, whatever port and protocol; without the second: is of the name."""
    return _takes_in(sa.local, ends.local) and _takes_in(sa.remote, ends.remote) if ends.remote else sa.name == ends.child


@lru_cache(maxsize=16_384)  # others' SAs change hundreds of times a second, and their selectors do not
def _takes_in(selectors: tuple[str, ...], address: str) -> bool:
    return any(_selects(text, "", address, 0, whole=False) for text in selectors)


def is_single(selector: str) -> bool:
    """Tell whether a traffic selector is for one address."""
    try:
        found = _selector(selector)
    except ValueError:
        return False
    return found.first == found.last


def is_alone(sas: Sequence[ChildSa], ends: Ends) -> bool:
    """Tell whether nothing but CHILD_SAs of the right name may carry anything between two addresses, and charon can list these."""
    return all(sa.state in ABSENT or (sa.name == ends.child and sa.state != UNLISTED) for sa in sas)


def passes(event: Section) -> list[Pass]:
    """Read one list-policy event."""
    return [Pass(_list(each.get("local-ts")), _list(each.get("remote-ts"))) for each in event.values() if isinstance(each, dict)]


def check_passes(found: Sequence[Pass], way: Way) -> None:
    """Raise ProtectionUnmet where a policy lets any of these packets out, or in, in clear."""
    if any(_covers(each, way, whole=False) for each in found):
        raise ProtectionUnmet(f"{way.transport.lower()}:{way.remote}:{way.remote_port}", "a policy of charon's lets it past every CHILD_SA")


def check_way(sas: Sequence[ChildSa], wanted: Wanted, way: Way) -> None:
    """Say why a way is not protected as wanted, if it is not. Raises ProtectionUnmet.

    Every CHILD_SA that is in the kernel and covers any of these packets must be one that is wanted: with two that cover them nobody but the
    kernel knows which one is taken.
    """
    covering = [sa for sa in sas if sa.state not in ABSENT and _covers(sa, way, whole=False)]
    good = [sa for sa in covering if sa.state in UP]
    problems = [*(_strange(sa, wanted) for sa in covering), *(_weak(sa) for sa in good)]
    problem = next(filter(None, problems), "")
    if problem or not any(_covers(sa, way, whole=True) for sa in good):
        raise ProtectionUnmet(f"{way.transport.lower()}:{way.remote}:{way.remote_port}", problem or _why(sas, wanted, way))


def who_is_behind(sas: Sequence[ChildSa], child: str, way: Way) -> str:
    """Return the identity that the other end of a way has proven, by a CHILD_SA of a name. Raises ProtectionUnmet.

    As for `check_way`, every CHILD_SA that covers any of these packets has to be of that name and that identity, and protect: who may
    claim which identity is another thing in another connection.
    """
    sa = next((sa for sa in sas if sa.state in UP and _covers(sa, way, whole=True)), None)
    if sa is None:
        unlisted = (
            _strange(each, Wanted(child, each.identity)) for each in sas if each.state == UNLISTED and _covers(each, way, whole=False)
        )
        problem = next(unlisted, "no CHILD_SA covers what comes from there")
        raise ProtectionUnmet(f"{way.transport.lower()}:{way.remote}:{way.remote_port}", problem)
    check_way(sas, Wanted(child, sa.identity), way)
    return sa.identity


def _why(sas: Sequence[ChildSa], wanted: Wanted, way: Way) -> str:
    named = [sa for sa in sas if sa.name == wanted.child]
    if not named:
        return f"there is no CHILD_SA {wanted.child!r}"
    if not any(sa.state in UP for sa in named):
        return f"the CHILD_SA {wanted.child!r} is not INSTALLED"
    return f"the CHILD_SA {wanted.child!r} does not cover {way.transport} from {way.local} to {way.remote}:{way.remote_port}"


def _child(name: str, ike: Section, child: Section) -> ChildSa:
    return ChildSa(
        ike=name,
        name=_text(child, "name"), ike_state=_text(ike, "state"), identity=_text(ike, "remote-id"), state=_text(child, "state"),
        protocol=_text(child, "protocol"), spi_in=_text(child, "spi-in"), spi_out=_text(child, "spi-out"),
        encryption=_text(child, "encr-alg"), integrity=_text(child, "integ-alg"),
        local=_list(child.get("local-ts")), remote=_list(child.get("remote-ts")),
        apart=tuple(each for each in APART if _text(child, each).strip("0")),
    )  # fmt: skip


def _text(section: Section, name: str) -> str:
    value = section.get(name)
    return value if isinstance(value, str) else ""


def _list(value: Value | None) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else ()


def _strange(sa: ChildSa, wanted: Wanted) -> str:
    """Return what makes it another CHILD_SA than the one wanted; "" nothing."""
    if sa.state == UNLISTED:
        return f"the IKE_SA {sa.ike!r} has so many CHILD_SAs that charon cannot list them, and one may cover the address: end some"
    # A route to its XFRM interface, or a firewall that marks packets, may lead ours into it: charon cannot say whether one does.
    apart = f", with {', '.join(sa.apart)}: let its traffic selectors leave that address out" if sa.apart else ""
    if sa.identity != wanted.identity:
        return f"a CHILD_SA of another identity than {wanted.identity!r} covers the address{apart}"  # which, its peer chose
    return "" if sa.name == wanted.child else f"a CHILD_SA of another name than {wanted.child!r} covers the address{apart}"


def _weak(sa: ChildSa) -> str:
    """Return why one does not authenticate, encrypt, and go both ways; "" if it does."""
    if sa.ike_state not in IKE_UP:
        return f"the IKE_SA of {sa.name!r} is not ESTABLISHED"
    if sa.protocol != "ESP":
        return f"the CHILD_SA {sa.name!r} is not of ESP"
    if not (sa.spi_in.strip("0") and sa.spi_out.strip("0")):
        return f"the CHILD_SA {sa.name!r} has one direction only"
    if sa.apart:
        return f"the CHILD_SA {sa.name!r} has {', '.join(sa.apart)}: the kernel takes no packet of ours for it"
    if sa.encryption not in AEAD and not (sa.encryption in ENCRYPTION and sa.integrity in INTEGRITY):
        return f"the CHILD_SA {sa.name!r} does not encrypt, or has no integrity, as TS 33.210 wants it"
    return ""


def _covers(sa: ChildSa | Pass, way: Way, *, whole: bool) -> bool:
    """Tell whether a CHILD_SA carries all of these packets (`whole`), or some of them.

    What cannot be read covers not all of anything, and may cover some of everything.
    """
    local = any(_selects(text, way.transport, way.local, way.local_port, whole=whole) for text in sa.local)
    return local and any(_selects(text, way.transport, way.remote, way.remote_port, whole=whole) for text in sa.remote)


def _selects(text: str, transport: str, address: str, port: int, *, whole: bool) -> bool:
    """Tell whether a traffic selector, as charon writes it, takes in a port of an address; 0: every port if `whole`, else one.

    Without a transport: whether it takes in any of those that SIP goes over.
    """
    try:
        selector, number = _selector(text), _number(address)
    except ValueError:
        return not whole
    if not selector.first <= number <= selector.last or selector.transport not in {"", transport or selector.transport} - {OTHER}:
        return False
    if selector.ports is None or not port:
        return not whole or selector.ports == ALL_PORTS
    return selector.ports[0] <= port <= selector.ports[1]


@lru_cache(maxsize=4_096)  # a packet is compared with every SA, which are the same as for the packet before
def _selector(text: str) -> _Selector:
    """Read one. Raises ValueError."""
    match = _SELECTOR.fullmatch(text)
    if match is None:
        raise ValueError("a form that is not known")
    if match[2] is not None:
        network = ipaddress.ip_network(f"{match[1]}/{match[2]}", strict=False)
        first, last = network[0], network[-1]
    else:
        first, last = ipaddress.ip_address(match[1]), ipaddress.ip_address(match[3])
    if first.version != last.version:
        raise ValueError("a range of two versions of IP")
    transport = "" if match[4] is None else PROTOCOLS.get(match[4], OTHER)
    ports = ALL_PORTS if match[5] is None else _ports(match[5])
    return _Selector((first.version, int(first)), (last.version, int(last)), transport, ports)


@lru_cache(maxsize=1_024)
def _number(address: str) -> tuple[int, int]:
    """Return what compares addresses of one version. Raises ValueError."""
    found = ipaddress.ip_address(address)
    return found.version, int(found)


def _ports(text: str) -> tuple[int, int] | None:
    """Return the first and the last port, None for what is none that is known."""
    among = _RANGE.fullmatch(text)
    if among is not None:
        return int(among[1]), int(among[2])
    found = int(text) if text.isdigit() else SERVICES.get(text)
    return None if found is None else (found, found)
