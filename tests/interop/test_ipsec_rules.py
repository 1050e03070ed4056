# SPDX-License-Identifier: Apache-2.0
"""The drop rules in a real kernel: what passes, what does not, and whether `keyferry ipsec check` sees what was done to them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from interop.ipseckit import A6, LIMIT, S6, A, Charon, Namespace, S, namespaces, needed, run
from keyferry.wiring.ipsec_files import SWANCTL_FOLDERS, Choices, strongswan_conf, swanctl_conf
from keyferry.wiring.ipsec_rules import Pair, Side, drop_rules, table_of
from system.serving import environment, until

pytestmark = pytest.mark.interop
PAIR = Pair("isc", "scscf1.home1.net", S, 6060, "xcap-as.home1.net", A, 5090)
SIX = PAIR._replace(scscf_address=S6, server_address=A6)
OTHER = PAIR._replace(server="notes-as.home1.net", server_address="10.99.0.3")
SIDES: Final[tuple[Side, Side]] = ("scscf", "as")
LOOK = """
import sys
from keyferry.wiring.ipsec_rules import Pair, rules_found
*fields, side = sys.argv[1:]
pair = Pair(*[int(each) if each.isdigit() else each for each in fields])
print(rules_found([pair], side).problem)
"""
LISTEN = """
import socket, sys
_, host, port = sys.argv
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((host, int(port)))
print("bound", flush=True)
sock.settimeout(0.7)
try:
    print(sock.recv(100).decode())
except TimeoutError:
    print("nothing")
"""
SEND = """
import socket, sys
_, own, peer, port = sys.argv
sock = socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((own, int(port)))
try:
    sock.sendto(b"arrived", (peer, int(port)))
except PermissionError:
    pass  # the kernel says so to the sender when a rule drops on the way out
"""


@pytest.fixture(name="both")
def both_fixture() -> Iterator[tuple[Namespace, Namespace]]:
    with namespaces() as made:
        yield made


def load(namespace: Namespace, folder: Path, side: Side, *pairs: Pair) -> None:
    file = folder / "rules.nft"
    file.write_text(drop_rules(pairs, side))
    namespace.run(needed("nft"), "-f", str(file))


def look(namespace: Namespace, pair: Pair, side: Side) -> str:
    done = run(*namespace.inside(sys.executable, "-c", LOOK, *map(str, pair), side), env=environment())
    return done.stdout.strip()


def passes(source: Namespace, target: Namespace, own: str, peer: str, port: int) -> bool:
    """Tell whether a datagram arrives; nobody knows any neighbour's address before."""
    for each in (source, target):
        each.run(needed("ip"), "neigh", "flush", "dev", each.device, check=False)
    with subprocess.Popen(target.inside(sys.executable, "-c", LISTEN, peer, str(port)), stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "bound\n"
        source.run(sys.executable, "-c", SEND, own, peer, str(port))
        return listener.stdout.readline() == "arrived\n"


@pytest.mark.parametrize("pair", [PAIR, SIX], ids=["ipv4", "ipv6"])
def test_ike_passes_and_pushes_do_not_also_where_no_neighbour_is_known(
    both: tuple[Namespace, Namespace], tmp_path: Path, pair: Pair
) -> None:
    """RFC 4861: over IPv6 neighbours find each other by packets between the two addresses; without them IKE finds nobody."""
    home, far = both
    own, peer = pair.scscf_address, pair.server_address
    until(lambda: passes(home, far, own, peer, 5090), seconds=LIMIT, what="the wire is up")
    load(home, tmp_path, "scscf", pair)
    load(far, tmp_path, "as", pair)
    assert passes(home, far, own, peer, 500)
    assert passes(far, home, peer, own, 4500)
    assert not passes(home, far, own, peer, 5090)
    assert not passes(far, home, peer, own, 5090)
    home.run(needed("nft"), "delete", "table", "inet", table_of(pair, "scscf"))
    assert not passes(home, far, own, peer, 5090)  # the side that receives drops it, too
    far.run(needed("nft"), "delete", "table", "inet", table_of(pair, "as"))
    assert passes(home, far, own, peer, 5090)


def test_over_ipv6_ike_finds_its_neighbour_past_the_kernel_s_policies(both: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    """RFC 4861 §7.2: an advertisement goes between the two addresses, and no SA can be there before."""
    with ExitStack() as stack:
        charons = []
        for side, namespace in zip(SIDES, both, strict=True):
            charon = Charon(namespace, tmp_path / side)
            choices = Choices(side, "kernel", "psk", str(charon.socket))
            for name in ("", *SWANCTL_FOLDERS):
                (charon.folder / name).mkdir()
            (charon.folder / "strongswan.conf").write_text(strongswan_conf(choices))
            (charon.folder / "swanctl.conf").write_text(swanctl_conf([SIX], choices, []))
            stack.callback(charon.kill)
            charon.start()
            charons.append(charon)
        policies = [each.run(needed("ip"), "-6", "xfrm", "policy").stdout for each in both]
        assert all(f"src {S6}/128 dst {A6}/128" in text for text in policies)
        for side, namespace in zip(SIDES, both, strict=True):
            load(namespace, tmp_path / side, side, SIX)
        for each in both:
            each.run(needed("ip"), "neigh", "flush", "dev", each.device, check=False)
        words = ("--initiate", "--child", "isc", "--timeout", "10", "--uri", f"unix://{charons[0].socket}")
        said = run(needed("swanctl"), *words, check=False).stdout  # nobody has a key; that the peer answers is what counts
        assert f"received packet: from {A6}[500] to {S6}[500]" in said


def test_one_pair_s_rules_take_no_other_s_away(both: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    home, far = both
    load(home, tmp_path, "scscf", PAIR)
    load(home, tmp_path, "scscf", OTHER)
    load(home, tmp_path, "scscf", OTHER)
    assert [look(home, pair, "scscf") for pair in (PAIR, OTHER)] == ["", ""]
    assert not passes(home, far, S, A, 5090)


@pytest.mark.parametrize("pair", [PAIR, SIX], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("flush chain inet {table} out", "at the hook output at other packets"),
        ("flush chain inet {table} from_peer", "drops nothing at the hook input"),
        ("insert rule inet {table} to_peer tcp dport 5090 accept", "more than IKE and ESP through at the hook output"),
        ("insert rule inet {table} in accept", "or at others first"),
        ("add table inet {table} {{ flags dormant; }}", "is dormant|nft failed"),  # the flags of nft 1.0.6 are no JSON
        ("delete table inet {table}", "is not loaded"),
        ("add rule inet {table} to_peer accept", ""),  # after the drop: nothing comes there
    ],
)
def test_what_is_done_to_them_is_seen(
    both: tuple[Namespace, Namespace], tmp_path: Path, pair: Pair, command: str, says: str
) -> None:  # fmt: skip
    home, _ = both
    assert "is not loaded" in look(home, pair, "scscf")
    load(home, tmp_path, "as", pair)
    assert "is not loaded" in look(home, pair, "scscf")  # these are the other side's
    load(home, tmp_path, "scscf", pair)
    assert look(home, pair, "scscf") == ""
    home.run(needed("nft"), *command.format(table=table_of(pair, "scscf")).split())
    found = look(home, pair, "scscf")
    assert re.search(says, found)
    assert bool(found) is bool(says)
