# SPDX-License-Identifier: Apache-2.0
"""The kernel's rules that stop what would go between a pair's addresses in clear: what is written, and whether it is in force."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from keyferry.config.ipsec import IKE_PORTS

Side = Literal["scscf", "as"]
NFT_TABLE: Final = "keyferry_isc"
"""What the name of every pair's table begins with."""
LIMIT: Final = 10.0
"""Seconds for nft."""
NEIGHBOURS: Final = (133, 134, 135, 136, 137)
"""ICMPv6 types of neighbour discovery (RFC 4861 §4): without it IKE finds nobody, nor does what IKE protects."""
_NUMBERS: Final = {  # whatever nft calls them
    "esp": 50, "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137,
}  # fmt: skip


class Pair(NamedTuple):
    """One S-CSCF's address and one application server's: what one CHILD_SA is between."""

    child: str
    scscf: str  # identity
    scscf_address: str
    scscf_port: int
    server: str  # identity
    server_address: str
    server_port: int

    def ends(self, side: Side) -> tuple[str, str, str, str]:
        """Return our identity and address, and those of the other side."""
        ours, theirs = (self.scscf, self.scscf_address), (self.server, self.server_address)
        return (*ours, *theirs) if side == "scscf" else (*theirs, *ours)


def table_of(pair: Pair, side: Side) -> str:
    """Return the name of a pair's table on one side: of each pair its own, so that to load one takes no other's away."""
    _, own, _, peer = pair.ends(side)
    return f"{NFT_TABLE}_{own}_{peer}".replace(":", "-")


def drop_rules(pairs: Sequence[Pair], side: Side) -> str:
    """Return rules for nftables that let nothing but IKE and ESP pass between the addresses of a pair in clear, charon or no charon."""
    return f"""#!/usr/sbin/nft -f
# Written by `keyferry ipsec write`. Load it BEFORE charon, and at every start of the machine: nft -f isc.nft
# Between the addresses below nothing passes in clear but IKE and ESP, whether charon runs, hangs or was killed: in user space its TUN
# device and its routes go with it, and packets would go out over the ordinary route. `keyferry serve` asks charon before each packet;
# these rules stand behind that, for what happens between the answer and the packet, and for what TCP in the kernel sends again.
{"".join(_table(pair, side) for pair in pairs)}"""


def _table(pair: Pair, side: Side) -> str:
    _, own, _, peer = pair.ends(side)
    name, family = table_of(pair, side), _family(own)
    neighbours = ""
    if family == "ip6":  # RFC 4861 §6.1, §7.1, §8.1: with hop limit 255 it is of this link, and with another it is none
        types = ", ".join(map(str, NEIGHBOURS))
        neighbours = f"    ip6 hoplimit 255 icmpv6 type {{ {types} }} icmpv6 code 0 accept   # neighbour discovery\n"
    passing = f"""\
    udp sport {{ 500, 4500 }} udp dport {{ 500, 4500 }} accept   # IKE, and ESP in UDP
    meta l4proto esp accept
{neighbours}"""
    return f"""
table inet {name}
delete table inet {name}
table inet {name} {{
  chain out {{
    type filter hook output priority filter; policy accept;
    {family} saddr {own} {family} daddr {peer} jump to_peer
  }}
  chain to_peer {{
{passing}    oifname "ipsec*" accept               # into charon's TUN device
    rt ipsec exists accept                # to be transformed by the kernel
    counter drop
  }}
  chain in {{
    type filter hook input priority filter; policy accept;
    {family} saddr {peer} {family} daddr {own} jump from_peer
  }}
  chain from_peer {{
{passing}    iifname "ipsec*" accept
    meta ipsec exists accept              # was transformed by the kernel
    counter drop
  }}
}}
"""


class Rules(NamedTuple):
    """What was found of the drop rules."""

    problem: str  # "" none
    read: bool = True  # whether anybody could look


def rules_found(pairs: Sequence[Pair], side: Side) -> Rules:
    """Look at the drop rules of this machine, or network namespace."""
    path = nft()
    if path is None:
        return Rules("nft is not installed", read=False)
    found = [_found(path, pair, side) for pair in pairs]
    return min(filter(lambda each: each.problem, found), key=lambda each: not each.read, default=Rules(""))


def nft() -> str | None:
    """Return the path of nft, None where there is none."""
    return shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _found(path: str, pair: Pair, side: Side) -> Rules:
    table = table_of(pair, side)
    try:
        command = [path, "-j", "-n", "list", "table", "inet", table]
        surroundings = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT, env=surroundings)  # noqa: S603 - ours
        if done.returncode and os.strerror(errno.ENOENT) in done.stderr:
            return Rules(f"the table inet {table} is not loaded")
        if done.returncode:
            return Rules("this user may not look at the kernel's rules: be root", read=False)
        problem = loaded_problem(json.loads(done.stdout)["nftables"], pair, side)
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError, AttributeError) as failure:
        return Rules(f"nft failed: {type(failure).__name__}")
    return Rules(f"the table inet {table} {problem}; load it again" if problem else "")


def loaded_problem(objects: Sequence[dict[str, Any]], pair: Pair, side: Side) -> str:
    """Return why a table, as `nft -j` lists it, lets more through than it should; "" if it does not. Raises LookupError, TypeError.

    What is not as it was written is wrong, whatever it may do.
    """
    _, own, _, peer = pair.ends(side)
    if any(each["table"].get("flags") for each in objects if "table" in each):
        return "is dormant"
    return _direction(objects, "output", (own, peer)) or _direction(objects, "input", (peer, own))


def _direction(objects: Sequence[dict[str, Any]], hook: str, ends: tuple[str, str]) -> str:
    """Return what is wrong on the way out, or in."""
    bases = [each["chain"] for each in objects if each.get("chain", {}).get("hook") == hook]
    if [(chain["type"], chain["prio"]) for chain in bases] != [("filter", 0)]:
        return f"has no chain at the hook {hook}, or not at its place"
    first = next(iter(_rules(objects, bases[0]["name"])), [])
    target = first[-1].get("jump", {}).get("target", "") if first else ""
    if first[:-1] != _between(*ends) or not target:
        return f"looks at the hook {hook} at other packets than those from {ends[0]} to {ends[1]}, or at others first"
    for rule in _rules(objects, target):
        if rule == [{"drop": None}]:
            return ""
        if rule not in _passing(hook, _family(ends[0])):
            return f"lets more than IKE and ESP through at the hook {hook}"
    return f"drops nothing at the hook {hook}"


def _rules(objects: Sequence[dict[str, Any]], chain: str) -> list[list[dict[str, Any]]]:
    """Return what the rules of a chain say, in their order, without what they count."""
    found = [each["rule"]["expr"] for each in objects if each.get("rule", {}).get("chain") == chain]
    return [[_plain(part) for part in rule if "counter" not in part] for rule in found]


def _plain(part: dict[str, Any]) -> dict[str, Any]:
    """Write an address, a set and a number in the one form that can be compared."""
    match = part.get("match")
    if match is None:
        return part
    right = match["right"]
    values = right["set"] if isinstance(right, dict) else [right]
    return {"match": (match["op"], _name(match["left"]), frozenset(_value(value) for value in values))}


def _name(left: dict[str, Any]) -> str:
    (kind, what), *_ = left.items()
    return f"{what['protocol']} {what['field']}" if kind == "payload" else f"{kind} {what['key']}"


def _value(value: Any) -> str:
    text = str(_NUMBERS.get(value, value) if isinstance(value, str) else value)
    try:
        return str(ipaddress.ip_address(text)) if isinstance(value, str) else text
    except ValueError:
        return text


def _is(name: str, *values: object) -> dict[str, Any]:
    return {"match": ("==", name, frozenset(map(str, values)))}


def _between(source: str, destination: str) -> list[dict[str, Any]]:
    family = _family(source)
    return [_is(f"{family} saddr", ipaddress.ip_address(source)), _is(f"{family} daddr", ipaddress.ip_address(destination))]


def _passing(hook: str, family: str) -> list[list[dict[str, Any]]]:
    """Return what the rules may let through at a hook."""
    accept = {"accept": None}
    device, transformed = ("oifname", "rt ipsec") if hook == "output" else ("iifname", "meta ipsec")
    found = [
        [_is("udp sport", *IKE_PORTS), _is("udp dport", *IKE_PORTS), accept],
        [_is("meta l4proto", 50), accept],
        [_is(f"meta {device}", "ipsec*"), accept],
        [_is(transformed, True), accept],
    ]
    if family == "ip6":
        for types in (NEIGHBOURS, (135, 136)):  # the second is what earlier versions wrote
            found.append([_is("ip6 hoplimit", 255), _is("icmpv6 type", *types), _is("icmpv6 code", 0), accept])
    return found


def _family(address: str) -> str:
    return "ip" if ipaddress.ip_address(address).version == 4 else "ip6"
