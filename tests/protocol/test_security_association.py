# SPDX-License-Identifier: Apache-2.0
"""RFC 4301 §4.4, TS 33.210 §5.3: which SAs protect a way, and which do not."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ProtectionUnmet
from keyferry.protocol.security_association import ChildSa, Wanted, Way, check_way, child_sas, who_is_behind
from keyferry.protocol.vici import Section

WANTED = Wanted("isc-xcap-as-home1-net", "xcap-as.home1.net")
UDP = Way("UDP", "10.99.0.1", 6060, "10.99.0.2", 5090)
TCP = Way("TCP", "10.99.0.1", 0, "10.99.0.2", 5090)
GOOD = ChildSa(
    name=WANTED.child, ike_state="ESTABLISHED", identity=WANTED.identity, state="INSTALLED", protocol="ESP", spi_in="b9a6066e",
    spi_out="54447b9e", encryption="AES_GCM_16", integrity="", local=("10.99.0.1/32",), remote=("10.99.0.2/32",), ike="isc",
)  # fmt: skip
LIST_SA: Section = {  # as charon 5.9.8 says it
    "isc": {
        "uniqueid": "2", "version": "2", "state": "ESTABLISHED", "local-host": "10.99.0.1", "local-id": "scscf1.home1.net",
        "remote-host": "10.99.0.2", "remote-id": "xcap-as.home1.net", "encr-alg": "AES_GCM_16", "encr-keysize": "128",
        "child-sas": {
            "isc-xcap-as-home1-net-1": {
                "name": "isc-xcap-as-home1-net", "uniqueid": "1", "reqid": "1", "state": "INSTALLED", "mode": "TUNNEL", "protocol": "ESP",
                "encap": "yes", "spi-in": "b9a6066e", "spi-out": "54447b9e", "encr-alg": "AES_GCM_16", "encr-keysize": "128",
                "bytes-in": "0", "local-ts": ["10.99.0.1/32"], "remote-ts": ["10.99.0.2/32"],
            }
        },
    }
}  # fmt: skip


def with_child(more: Section) -> Section:
    """Return what charon says, with more about the CHILD_SA."""
    changed = copy.deepcopy(LIST_SA)
    changed["isc"]["child-sas"]["isc-xcap-as-home1-net-1"].update(more)  # type: ignore[index,call-overload,union-attr]
    return changed


def test_what_charon_says_is_read() -> None:
    assert child_sas(LIST_SA) == [GOOD]


@pytest.mark.parametrize(("name", "value"), [
    ("if-id-in", "00000007"), ("if-id-out", "00000007"), ("mark-in", "00000042"), ("mark-out", "00000042"), ("label", "73797374656d5f75"),
])  # fmt: skip
def test_an_sa_of_an_interface_a_mark_or_a_label_carries_no_packet_of_ours(name: str, value: str) -> None:
    """strongSwan's list-sas: `if_id` (XFRM interfaces), marks and labels are in the kernel's policy, and our sockets have none."""
    (sa,) = child_sas(with_child({name: value, "mark-mask-out": "ffffffff"}))
    with pytest.raises(ProtectionUnmet, match=f"has {name}"):
        check_way([sa], WANTED, UDP)
    (sa,) = child_sas(with_child({name: "00000000"}))
    check_way([sa], WANTED, UDP)


@pytest.mark.parametrize("apart", [("if-id-out",), ("mark-in", "mark-out")])
@pytest.mark.parametrize("strange", [{"identity": "vpn.example"}, {"name": "vpn"}])
def test_somebody_else_s_sa_with_an_interface_or_a_mark_stops_the_way_and_says_what_to_do(apart: tuple[str, ...], strange: Any) -> None:
    """A route to an XFRM interface, or a mark by a firewall, leads our packets into it, and charon knows of neither."""
    other = GOOD._replace(remote=("0.0.0.0/0",), apart=apart, **strange)
    with pytest.raises(ProtectionUnmet, match=f"with {', '.join(apart)}: let its traffic selectors leave that address out"):
        check_way([GOOD, other], WANTED, UDP)
    check_way([GOOD, other._replace(remote=("192.0.2.0/24",))], WANTED, UDP)


@pytest.mark.parametrize("way", [UDP, TCP])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"state": "REKEYING"},
        {"ike_state": "REKEYING"},
        {"encryption": "AES_CBC", "integrity": "HMAC_SHA2_256_128"},
        {"local": ("10.99.0.0/24",), "remote": ("10.0.0.0..10.255.255.255",)},
        {"local": ("192.0.2.0/24", "10.99.0.1/32"), "remote": ("192.0.2.0/24", "10.99.0.2/32")},
    ],
)
def test_an_sa_that_protects(change: dict[str, Any], way: Way) -> None:
    """TS 33.210 §5.3.3, §5.3.4: AES-GCM, or AES-CBC with HMAC-SHA-256-128."""
    check_way([GOOD._replace(**change)], WANTED, way)
    check_way([GOOD, GOOD._replace(**change)], WANTED, way)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"state": "ROUTED"}, "not INSTALLED"),
        ({"state": "INSTALLING"}, "not INSTALLED"),
        ({"state": "DELETING"}, "not INSTALLED"),
        ({"state": "REKEYED"}, "not INSTALLED"),
        ({"state": ""}, "not INSTALLED"),
        ({"ike_state": "CONNECTING"}, "not ESTABLISHED"),
        ({"ike_state": ""}, "not ESTABLISHED"),
        ({"spi_in": ""}, "one direction"),
        ({"spi_out": "00000000"}, "one direction"),
        ({"protocol": "AH"}, "not of ESP"),
        ({"encryption": "NULL", "integrity": "HMAC_SHA2_256_128"}, "does not encrypt"),
        ({"encryption": "NULL_AES_GMAC"}, "does not encrypt"),
        ({"encryption": "3DES_CBC", "integrity": "HMAC_SHA2_256_128"}, "does not encrypt"),
        ({"encryption": ""}, "does not encrypt"),
        ({"encryption": "AES_CBC", "integrity": ""}, "does not encrypt"),
        ({"encryption": "AES_CBC", "integrity": "HMAC_MD5_96"}, "does not encrypt"),
        ({"apart": ("if-id-out",)}, "has if-id-out: the kernel takes no packet of ours for it"),
        ({"apart": ("mark-in", "mark-out")}, "has mark-in, mark-out"),
        ({"identity": "evil.home1.net"}, "another identity"),
        ({"identity": ""}, "another identity"),
        ({"identity": "XCAP-AS.home1.net"}, "another identity"),
        ({"name": "net"}, "another name"),
        ({"remote": ("10.99.0.3/32",)}, "does not cover"),
        ({"remote": ()}, "does not cover"),
        ({"local": ("10.99.0.2/32",)}, "does not cover"),
        ({"remote": ("fe80::/64",)}, "does not cover"),
    ],
)
def test_an_sa_that_does_not(change: dict[str, Any], why: str) -> None:
    """DESIGN §6: as configured, both directions, not NULL, covering."""
    for way in (UDP, TCP):
        with pytest.raises(ProtectionUnmet, match=why):
            check_way([GOOD._replace(**change)], WANTED, way)


@pytest.mark.parametrize("state", ["INSTALLED", "REKEYING", "REKEYED", "DELETING", "UPDATING"])
@pytest.mark.parametrize(
    "selector", ["10.99.0.2/32", "0.0.0.0/0", "10.99.0.2/32[udp/5090]", "10.99.0.2/32[0/5090]", "10.99.0.2/32[udp/OPAQUE]", "rubbish"]
)
def test_a_good_sa_beside_one_of_another_identity_does_not_satisfy(state: str, selector: str) -> None:
    """Nobody but the kernel knows which one a packet takes; what cannot be read may be one that covers it."""
    evil = GOOD._replace(identity="evil.home1.net", state=state, remote=(selector,))
    for sas in ([GOOD, evil], [evil, GOOD]):
        with pytest.raises(ProtectionUnmet, match="another identity"):
            check_way(sas, WANTED, UDP)


@pytest.mark.parametrize(
    "selector",
    [
        "10.99.0.3/32",
        "10.99.0.2/32[tcp]",
        "10.99.0.2/32[udp/5091]",
        "10.99.0.2/32[icmp]",
        "10.99.0.2/32[icmp/3(1)]",
        "10.99.0.3/32[tcp/ssh]",
        "10.99.0.2/32[0/5091-5099]",
        "::/0",
    ],
)
def test_one_of_another_identity_for_other_packets_does_no_harm(selector: str) -> None:
    check_way([GOOD, GOOD._replace(identity="other.home1.net", remote=(selector,))], WANTED, UDP)


@pytest.mark.parametrize(
    ("local", "remote", "udp", "tcp"),
    [
        ("10.99.0.1/32[udp]", "10.99.0.2/32[udp]", True, False),
        ("10.99.0.1/32[17]", "10.99.0.2/32[17]", True, False),
        ("10.99.0.1/32[tcp]", "10.99.0.2/32[tcp/5090]", False, True),
        ("10.99.0.1/32", "10.99.0.2/32[tcp/5000-5100]", False, True),
        ("10.99.0.1/32", "10.99.0.2/32[tcp/5091]", False, False),
        ("10.99.0.1/32", "10.99.0.2/32[udp/sip]", False, False),
        ("10.99.0.1/32[udp/6060]", "10.99.0.2/32", True, False),
        ("10.99.0.1/32[tcp/6060]", "10.99.0.2/32", False, False),  # our port over TCP is any
        ("10.99.0.1/32[tcp/0-65535]", "10.99.0.2/32", False, True),
        ("10.99.0.1/32", "10.99.0.2/33", False, False),
        ("10.99.0.1/32", "10.99.0.2/32[tcp/70000-80000000000]", False, False),
        ("dynamic", "10.99.0.2/32", False, False),
    ],
)
def test_selectors_of_protocols_and_ports(local: str, remote: str, udp: bool, tcp: bool) -> None:
    """RFC 4301 §4.4.1.1: address, protocol, ports."""
    sa = GOOD._replace(local=(local,), remote=(remote,))
    for way, covered in ((UDP, udp), (TCP, tcp)):
        if covered:
            check_way([sa], WANTED, way)
        else:
            with pytest.raises(ProtectionUnmet):
                check_way([sa], WANTED, way)


FROM = UDP._replace(local="10.99.0.2", local_port=5090, remote="10.99.0.1", remote_port=6060)  # as the application server sees it
BACK = GOOD._replace(identity="scscf1.home1.net", local=("10.99.0.2/32",), remote=("10.99.0.1/32",))


def test_who_is_behind_what_came_in() -> None:
    """DESIGN §6, who may push: the identity that the other end has proven."""
    for sas, way in (([BACK], FROM), ([BACK, BACK._replace(state="REKEYED")], FROM._replace(transport="TCP", remote_port=40_000))):
        assert who_is_behind(sas, WANTED.child, way) == "scscf1.home1.net"


@pytest.mark.parametrize(
    ("sas", "why"),
    [
        ([], "no CHILD_SA covers"),
        ([BACK._replace(state="DELETING")], "no CHILD_SA covers"),
        ([BACK._replace(remote=("10.99.0.3/32",))], "no CHILD_SA covers"),
        ([BACK._replace(encryption="NULL", integrity="HMAC_SHA2_256_128")], "does not encrypt"),
        ([BACK._replace(apart=("mark-in",))], "has mark-in"),
        ([BACK._replace(ike_state="CONNECTING")], "not ESTABLISHED"),
        ([BACK._replace(name="road-warriors")], "another name"),  # a connection where whoever comes says who they are
        ([BACK, BACK._replace(name="road-warriors")], "another name"),
        ([BACK, BACK._replace(identity="evil.home1.net")], "another identity"),
        ([BACK._replace(identity="evil.home1.net", remote=("0.0.0.0/0",)), BACK], "another identity"),
    ],
)
def test_nobody_is_behind_what_no_sa_protects(sas: list[ChildSa], why: str) -> None:
    with pytest.raises(ProtectionUnmet, match=why):
        who_is_behind(sas, WANTED.child, FROM)


def test_a_port_by_its_name() -> None:
    check_way([GOOD._replace(remote=("10.99.0.2/32[udp/sip]",))], WANTED, UDP._replace(remote_port=5060))


def test_no_sa_at_all() -> None:
    with pytest.raises(ProtectionUnmet, match="there is no CHILD_SA"):
        check_way([], WANTED, UDP)


def test_nothing_that_the_other_side_chose_is_in_the_reason() -> None:
    for name in ("identity", "name", "state", "ike_state", "protocol", "encryption"):
        changed: dict[str, Any] = {name: "SECRET"}
        with pytest.raises(ProtectionUnmet) as raised:
            check_way([GOOD._replace(**changed)], WANTED, UDP)
        assert "SECRET" not in str(raised.value)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.text(max_size=6), st.lists(st.text(max_size=6), max_size=2)),
    lambda inner: st.dictionaries(
        st.sampled_from(["isc", "child-sas", "name", "state", "remote-id", "local-ts", "remote-ts"]), inner, max_size=4
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_any_message_satisfies_nothing(message: Section) -> None:
    with pytest.raises(ProtectionUnmet):
        check_way(child_sas(message), WANTED, UDP)
    with pytest.raises(ProtectionUnmet):
        who_is_behind(child_sas(message), WANTED.child, UDP)


@given(st.text(alphabet="0123456789abcdef.:/[]-tcpudi ", max_size=30))
def test_any_selector_covers_or_does_not(text: str) -> None:
    for way in (UDP, TCP):
        with contextlib.suppress(ProtectionUnmet):
            check_way([GOOD._replace(remote=(text,))], WANTED, way)
