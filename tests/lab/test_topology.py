# SPDX-License-Identifier: Apache-2.0
"""The plan of a lab: addresses, routes, options, commands."""

from __future__ import annotations

import ipaddress
import itertools

import pytest

from keyferry.errors import ConfigError
from keyferry.lab.topology import LINKS, PARTS, SIDES, Plan, make_plan


def test_every_address_is_there_once_and_is_of_the_range_for_measurements() -> None:
    """RFC 2544 appendix C.2.2: no lab takes an address of a real machine."""
    plan = make_plan("t1")
    addresses = [address for side in SIDES for address in plan.addresses(side)]
    assert len(set(addresses)) == len(addresses) == len(PARTS) + 1 + 2 * len(LINKS)
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network("198.18.0.0/15") for address in addresses)


def test_functions_of_one_namespace_have_ports_of_their_own_for_the_operator() -> None:
    places = [(part.side, part.admin) for part in PARTS]
    assert len(set(places)) == len(places)


def test_two_labs_share_no_name() -> None:
    """Neither of a namespace nor of a device; those of devices fit into the kernel's 15 octets (IFNAMSIZ)."""
    one, other = make_plan("12345678"), make_plan("b")
    assert not set(one.namespaces) & set(other.namespaces)
    assert one.namespaces == ("kf-12345678-ue", "kf-12345678-visited", "kf-12345678-home", "kf-12345678-as")
    devices = [device for plan in (one, other) for number in range(len(LINKS)) for device in plan.relay_devices(number)]
    assert len(set(devices)) == len(devices)
    assert max(map(len, devices)) <= 15


@pytest.mark.parametrize(
    ("delays", "losses", "expected"),
    [
        ((), (), [(20, 1), (10, 0.1), (2, 0)]),
        (("25ms",), ("1%",), [(25, 1), (25, 1), (25, 1)]),
        (("access=0.2s", "5"), ("core=3%", "0"), [(200, 0), (5, 0), (5, 3)]),
        (("core=0ms",), ("interconnect=50",), [(20, 1), (10, 50), (0, 0)]),
    ],
)
def test_delay_and_loss_are_of_all_links_or_of_one(
    delays: tuple[str, ...], losses: tuple[str, ...], expected: list[tuple[float, float]]
) -> None:
    """What names a link goes before what names none, in any order."""
    for order in (delays, delays[::-1]):
        assert [(link.delay, link.loss) for link in make_plan("t", order, losses).links] == expected


@pytest.mark.parametrize(
    ("lab", "delays", "losses", "said"),
    [
        ("T1", (), (), "--id: 'T1' is no name of a lab"),
        ("../x", (), (), "--id"),
        ("123456789", (), (), "1 to 8 lower-case"),
        ("", (), (), "--id"),
        ("t", ("25 ms",), (), "--delay: '25 ms' is no delay"),
        ("t", ("6s",), (), "up to 5 s"),
        ("t", ("-1ms",), (), "--delay"),
        ("t", ("\u0661ms",), (), "--delay"),
        ("t", ("radio=1ms",), (), "There are access, interconnect, core"),
        ("t", (), ("51%",), "--loss: '51%' is no loss"),
        ("t", (), ("much",), "--loss"),
        ("t", (), ("=1%",), "'' is no link"),
    ],
)
def test_an_option_that_means_nothing_is_refused_with_what_would(
    lab: str, delays: tuple[str, ...], losses: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        make_plan(lab, delays, losses)
    assert said in str(raised.value)


def test_each_link_is_a_pair_of_devices_named_after_the_other_side() -> None:
    words = [" ".join(command) for command in make_plan("t").cabling("netem")]
    assert words[0] == "ip link add visited netns kf-t-ue type veth peer name ue netns kf-t-visited"
    assert len(words) == len(LINKS)
    moved = [" ".join(command) for command in make_plan("t").cabling("relay")]
    assert moved[0] == "ip link set kft0a netns kf-t-ue name visited"
    assert moved[1] == "ip link set kft0b netns kf-t-visited name ue"
    assert len(moved) == 2 * len(LINKS)


def test_the_kernel_delays_and_loses_at_both_ends_and_nothing_where_nothing_is_asked() -> None:
    words = [" ".join(command) for command in make_plan("t", ["7ms", "core=0"], ["2%", "core=0"]).netem()]
    assert words == [
        f"tc -n kf-t-{side} qdisc add dev {device} root netem delay 7ms loss 2% limit 10000"
        for side, device in (("ue", "visited"), ("visited", "ue"), ("visited", "home"), ("home", "visited"))
    ]


def test_packets_find_their_way_between_all_namespaces_and_back() -> None:
    """Each hop's routes, as the commands give them, lead from everybody to everybody's addresses."""
    plan = make_plan("t")
    for source, target in itertools.permutations(SIDES, 2):
        for address in plan.addresses(target):
            assert _walk(plan, source, address) == target, f"{source} to {address}"


def _walk(plan: Plan, at: str, address: str) -> str:
    for _ in SIDES:
        own = {each.rsplit("/", 1)[0] for each in _added(plan, at, "address")}
        if address in own:
            return at
        at = _next_hop(plan, at, address)
    return "nowhere"


def _next_hop(plan: Plan, at: str, address: str) -> str:
    direct = [words for words in _commands(plan, at) if words[3:5] == ("address", "add") and address in words[6:8] and "peer" in words]
    if direct:
        return direct[0][-1]
    routes = [words for words in _commands(plan, at) if words[3:5] == ("route", "add")]
    inside = [words for words in routes if words[5] != "default" and ipaddress.ip_address(address) in ipaddress.ip_network(words[5])]
    chosen = (inside or [words for words in routes if words[5] == "default"])[0]
    return chosen[chosen.index("dev") + 1]


def _added(plan: Plan, at: str, what: str) -> list[str]:
    return [words[5] for words in _commands(plan, at) if words[3:5] == (what, "add")]


def _commands(plan: Plan, at: str) -> list[tuple[str, ...]]:
    return [words for words in plan.addressing() if words[2] == f"kf-{plan.id}-{at}"]


def test_who_passes_packets_on_may() -> None:
    forwards = [words[3] for words in make_plan("t").addressing() if "ip_forward" in words[-1]]
    assert forwards == ["kf-t-visited", "kf-t-home"]
