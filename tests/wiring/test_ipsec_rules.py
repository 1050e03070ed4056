# SPDX-License-Identifier: Apache-2.0
"""The drop rules as they are written, and as nft lists them; tests/interop/test_ipsec_rules.py has a real nft."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyferry.wiring import ipsec_rules
from keyferry.wiring.ipsec_rules import Pair, Rules, Side, drop_rules, loaded_problem, rules_found, table_of

PAIR = Pair("isc-xcap-as-home1-net", "scscf1.home1.net", "10.99.0.1", 6060, "xcap-as.home1.net", "10.99.0.2", 5090)
SIX = PAIR._replace(scscf_address="2001:db8::1", server_address="2001:db8::2")
Objects = list[dict[str, Any]]


def is_(left: dict[str, Any], right: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def field(protocol: str, name: str, right: object) -> dict[str, Any]:
    return is_({"payload": {"protocol": protocol, "field": name}}, right)


def listed(pair: Pair, side: Side) -> Objects:
    """Return what nft 1.0.6 lists, with -j and -n, of the rules of a pair."""
    _, own, _, peer = pair.ends(side)
    family = "ip6" if ":" in own else "ip"
    ports = {"set": [500, 4500]}
    passing = [
        [field("udp", "sport", ports), field("udp", "dport", ports), {"accept": None}],
        [is_({"meta": {"key": "l4proto"}}, 50), {"accept": None}],
    ]
    if family == "ip6":
        neighbours = [
            field("ip6", "hoplimit", 255), field("icmpv6", "type", {"set": [133, 134, 135, 136, 137]}),
            field("icmpv6", "code", 0), {"accept": None}
        ]  # fmt: skip
        passing.append(neighbours)
    found: Objects = [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": table_of(pair, side), "handle": 1}}]
    for base, target, hook, ends, device, transformed in (
        ("out", "to_peer", "output", (own, peer), "oifname", {"rt": {"key": "ipsec"}}),
        ("in", "from_peer", "input", (peer, own), "iifname", {"meta": {"key": "ipsec"}}),
    ):
        found.append({"chain": {"name": base, "type": "filter", "hook": hook, "prio": 0, "policy": "accept"}})
        found.append({"chain": {"name": target}})
        jump = [field(family, "saddr", ends[0]), field(family, "daddr", ends[1]), {"jump": {"target": target}}]
        rules = [
            *passing, [is_({"meta": {"key": device}}, "ipsec*"), {"accept": None}], [is_(transformed, True), {"accept": None}],
            [{"counter": {"packets": 3, "bytes": 99}}, {"drop": None}],
        ]  # fmt: skip
        found.append({"rule": {"chain": base, "handle": 5, "expr": jump}})
        found += [{"rule": {"chain": target, "handle": 6, "expr": rule}} for rule in rules]
    return found


def rule(objects: Objects, chain: str, number: int) -> Objects:
    """Return the expressions of a rule, to be changed."""
    return [each["rule"]["expr"] for each in objects if each.get("rule", {}).get("chain") == chain][number]  # type: ignore[no-any-return]


def add(objects: Objects, chain: str, *expressions: dict[str, Any], first: bool = True) -> None:
    """Add a rule to a chain, as its first or its last."""
    objects.insert(2 if first else len(objects), {"rule": {"chain": chain, "expr": list(expressions)}})


def chain(objects: Objects, name: str) -> dict[str, Any]:
    return next(each["chain"] for each in objects if each.get("chain", {}).get("name") == name)


@pytest.mark.parametrize(("types", "problem"), [([135, 136], ""), ([128, 135, 136], "lets more than IKE and ESP through")])
def test_of_neighbour_discovery_no_more_passes_than_there_is(types: list[int], problem: str) -> None:
    """The first is what earlier versions wrote; 128 is an echo request."""
    found = json.loads(json.dumps(listed(SIX, "scscf")).replace("[133, 134, 135, 136, 137]", json.dumps(types)))
    assert loaded_problem(found, SIX, "scscf").startswith(problem) is True
    assert bool(loaded_problem(found, SIX, "scscf")) is bool(problem)


@pytest.mark.parametrize("side", ["scscf", "as"])
@pytest.mark.parametrize("pair", [PAIR, SIX], ids=["ipv4", "ipv6"])
def test_what_was_written_is_content(pair: Pair, side: Side) -> None:
    assert loaded_problem(listed(pair, side), pair, side) == ""


@pytest.mark.parametrize("pair", [PAIR, SIX], ids=["ipv4", "ipv6"])
def test_the_other_side_s_rules_stop_nothing_here(pair: Pair) -> None:
    """They were loaded on the wrong machine: no packet of ours is from that address."""
    assert "looks at the hook output at other packets" in loaded_problem(listed(pair, "as"), pair, "scscf")
    assert "looks at the hook output at other packets" in loaded_problem(listed(pair, "scscf"), pair, "as")


def test_another_pair_s_rules_are_not_this_pair_s() -> None:
    for other in (PAIR._replace(server_address="10.99.0.3"), PAIR._replace(scscf_address="10.99.0.3")):
        assert "at other packets" in loaded_problem(listed(other, "scscf"), PAIR, "scscf")


ACCEPT = {"accept": None}
OTHERS: list[tuple[str, Callable[[Objects], object], str]] = [
    ("dormant", lambda found: found[1]["table"].update(flags=["dormant"]), "is dormant"),
    ("no-output-hook", lambda found: chain(found, "out").pop("hook"), "has no chain at the hook output"),
    ("no-input-hook", lambda found: chain(found, "in").pop("hook"), "has no chain at the hook input"),
    ("forward", lambda found: chain(found, "out").update(hook="forward"), "has no chain at the hook output"),
    ("priority", lambda found: chain(found, "out").update(prio=300), "not at its place"),
    ("type", lambda found: chain(found, "in").update(type="nat"), "not at its place"),
    ("no-jump", lambda found: rule(found, "out", 0).clear(), "at the hook output at other packets"),
    ("jump-elsewhere", lambda found: rule(found, "out", 0)[-1]["jump"].update(target="nowhere"), "drops nothing at the hook output"),
    ("accept-not-jump", lambda found: rule(found, "in", 0).__setitem__(-1, ACCEPT), "at the hook input at other packets"),
    ("one-port-alone", lambda found: rule(found, "out", 0).insert(2, field("tcp", "dport", 5090)), "at the hook output at other"),
    ("accept-before", lambda found: add(found, "out", ACCEPT), "or at others first"),
    ("accept-inside", lambda found: add(found, "to_peer", field("tcp", "dport", 5090), ACCEPT), "more than IKE and ESP through"),
    ("return-inside", lambda found: add(found, "from_peer", {"return": None}), "more than IKE and ESP through at the hook input"),
    ("other-ports", lambda found: rule(found, "to_peer", 0).__setitem__(1, field("udp", "dport", 5090)), "more than IKE and ESP"),
    ("any-ike-port", lambda found: rule(found, "to_peer", 0).pop(1), "more than IKE and ESP through"),
    ("any-device", lambda found: rule(found, "from_peer", 2).pop(0), "more than IKE and ESP through at the hook input"),
    ("other-device", lambda found: rule(found, "to_peer", 2).__setitem__(0, is_({"meta": {"key": "oifname"}}, "eth*")), "more than"),
    ("not-transformed", lambda found: rule(found, "to_peer", 3).__setitem__(0, is_({"rt": {"key": "ipsec"}}, False)), "more than"),
    ("no-drop", lambda found: rule(found, "to_peer", -1).pop(), "more than IKE and ESP through"),
    ("drop-of-some", lambda found: rule(found, "from_peer", -1).insert(0, field("tcp", "dport", 5090)), "more than IKE and ESP"),
    ("empty", lambda found: found.__delitem__(slice(2, None)), "has no chain at the hook output"),
]


@pytest.mark.parametrize(("change", "says"), [(change, says) for _, change, says in OTHERS], ids=[name for name, _, _ in OTHERS])
def test_what_is_not_as_it_was_written_is_a_problem(change: Callable[[Objects], object], says: str) -> None:
    found = copy.deepcopy(listed(PAIR, "scscf"))
    change(found)
    assert says in loaded_problem(found, PAIR, "scscf")


def test_names_for_numbers_and_other_forms_of_an_address_are_the_same() -> None:
    found = listed(SIX, "scscf")
    rule(found, "to_peer", 1)[0]["match"]["right"] = "esp"
    rule(found, "to_peer", 2)[1]["match"]["right"] = {"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]}
    rule(found, "out", 0)[0]["match"]["right"] = "2001:db8:0::1"
    assert loaded_problem(found, SIX, "scscf") == ""


SAYS = """#!/bin/sh
cat "{folder}/$6"
"""


@pytest.fixture(name="tables")
def tables_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program nft that lists the tables which are files of a folder."""
    program = tmp_path / "nft"
    program.write_text(SAYS.format(folder=tmp_path))
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_each_pair_is_asked_for(tables: Path) -> None:
    other = PAIR._replace(server_address="10.99.0.3")
    (tables / table_of(PAIR, "scscf")).write_text(json.dumps({"nftables": listed(PAIR, "scscf")}))
    assert rules_found([PAIR], "scscf").problem == ""
    assert rules_found([PAIR, other], "scscf") == Rules("the table inet keyferry_isc_10.99.0.1_10.99.0.3 is not loaded")
    (tables / table_of(other, "scscf")).write_text(json.dumps({"nftables": listed(PAIR, "scscf")}))
    assert "_10.99.0.3 looks at the hook output" in rules_found([PAIR, other], "scscf").problem


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"nftables": [7]}', '{"nftables": [{"table": {}}, {"rule": {"chain": "x"}}]}', "rubbish"]
)
def test_what_nft_does_not_say_is_a_problem(tables: Path, said: str) -> None:
    (tables / table_of(PAIR, "scscf")).write_text(said)
    assert rules_found([PAIR], "scscf").problem


def test_a_user_who_may_not_look_knows_nothing(tables: Path) -> None:
    """What nft says then, and with which code: both are no word about a table."""
    program = tables / "nft"
    program.write_text("#!/bin/sh\necho 'Operation not permitted (you must be root)' >&2\nexit 1\n")
    assert rules_found([PAIR], "scscf") == Rules("this user may not look at the kernel's rules: be root", read=False)
    program.write_text('#!/bin/sh\ncase "$6" in *.3) echo "Error: $LC_ALL: No such file or directory" >&2 ;; esac\nexit 1\n')
    assert rules_found([PAIR, PAIR._replace(server_address="10.99.0.3")], "scscf").problem.endswith("10.99.0.3 is not loaded")


def test_no_nft_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipsec_rules, "nft", lambda: None)
    assert rules_found([PAIR], "scscf") == Rules("nft is not installed", read=False)


def test_nothing_in_clear_passes_between_the_addresses_but_ike() -> None:
    for side, own, peer in (("scscf", "10.99.0.1", "10.99.0.2"), ("as", "10.99.0.2", "10.99.0.1")):
        text = drop_rules([PAIR], side)  # type: ignore[arg-type]
        assert f"ip saddr {own} ip daddr {peer} jump to_peer" in text
        assert f"ip saddr {peer} ip daddr {own} jump from_peer" in text
        assert text.count("counter drop") == 2
        assert text.index(f"delete table inet keyferry_isc_{own}_{peer}") < text.index("chain out")
        assert "icmp" not in text


def test_of_ipv6_neighbours_find_each_other_and_nothing_more() -> None:
    """RFC 4861 §7.1.1, §7.1.2: hop limit 255, code 0; no router between two machines says anything from their addresses."""
    text = drop_rules([SIX], "scscf")
    assert "ip6 saddr 2001:db8::1 ip6 daddr 2001:db8::2 jump to_peer" in text
    assert text.count("ip6 hoplimit 255 icmpv6 type { 133, 134, 135, 136, 137 } icmpv6 code 0 accept") == 2
    assert text.count("icmpv6") == 4


def test_each_pair_has_a_table_of_its_own() -> None:
    """To load one pair's rules must not take another's away."""
    pairs = [PAIR, PAIR._replace(server_address="10.99.0.3"), PAIR._replace(scscf_address="10.99.0.4"), SIX]
    names = {table_of(pair, "scscf") for pair in pairs}
    assert len(names) == 4
    one = set(re.findall(r"delete table inet (\S+)", drop_rules(pairs[:1], "scscf")))
    assert one == {"keyferry_isc_10.99.0.1_10.99.0.2"}
    assert set(re.findall(r"delete table inet (\S+)", drop_rules(pairs, "scscf"))) == names
    assert all(re.fullmatch(r"[a-z][a-z0-9_.-]+", name) for name in names)
