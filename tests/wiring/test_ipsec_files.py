# SPDX-License-Identifier: Apache-2.0
"""TS 33.210 §5.3, §5.4, TS 33.310 §6: what is written for strongSwan and nftables."""

from __future__ import annotations

import base64
import re
import stat
from pathlib import Path

import pytest

from keyferry.config import load_config
from keyferry.errors import ConfigError, StateError
from keyferry.wiring.ipsec_files import Choices, Pair, drop_rules, pairs_of, psk_file, strongswan_conf, swanctl_conf, write_all

SERVER = """[[application_servers]]
as_id = "{0}.home1.net"
sip_uri = "sip:{0}-as.home1.net:5090"
protection = "ipsec"
app = "agent"
"""
FILE = '[scscf]\nlisten = "10.99.0.1:6060"\ntrusted_peers = ["10.99.0.1"]\n[hosts]\n"xcap-as.home1.net" = "10.99.0.2"\n'
PAIR = Pair("isc-xcap-as-home1-net", "scscf1.home1.net", "10.99.0.1", 6060, "xcap-as.home1.net", "10.99.0.2", 5090)
SCSCF = Choices("scscf", "userspace", "certificate", "/run/charon.vici")
SERVERS = Choices("as", "userspace", "certificate", "/run/charon.vici")


def pairs(folder: Path, text: str) -> list[Pair]:
    file = folder / "x.toml"
    file.write_text(text, "utf-8")
    return pairs_of(load_config(file))


def test_a_pair_is_two_addresses_with_their_names(tmp_path: Path) -> None:
    assert pairs(tmp_path, FILE + SERVER.format("xcap")) == [PAIR]
    second = '[[further_scscfs]]\nname = "scscf2.home1.net"\nlisten = "10.99.0.3:6060"\ntrusted_peers = ["10.99.0.1"]\n'
    both = pairs(tmp_path, FILE + second + SERVER.format("xcap"))
    assert both == [PAIR, PAIR._replace(scscf="scscf2.home1.net", scscf_address="10.99.0.3")]
    assert PAIR.ends("as") == ("xcap-as.home1.net", "10.99.0.2", "scscf1.home1.net", "10.99.0.1")


def test_an_address_may_come_from_the_listener(tmp_path: Path) -> None:
    here = SERVER.format("notes").replace('app = "agent"', 'listen_sip = "10.99.0.9:5091"\nlisten_https = "10.99.0.9:443"')
    assert [(pair.server_address, pair.server_port) for pair in pairs(tmp_path, FILE + here)] == [("10.99.0.9", 5091)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FILE, "none has protection 'ipsec'"),
        (FILE + SERVER.format("notes"), "application_servers[0].sip_uri: has no address"),
        (FILE.replace('"10.99.0.2"', '"elsewhere.net"') + SERVER.format("xcap"), "'elsewhere.net' is no address"),
        (
            FILE + '"notes-as.home1.net" = "10.99.0.2"\n' + SERVER.format("xcap") + SERVER.format("notes"),
            "application_servers[1].sip_uri: is at 10.99.0.2, where xcap-as.home1.net has the CHILD_SA",
        ),
    ],
)
def test_what_no_sa_could_protect_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        pairs(tmp_path, text)
    assert says in str(problem.value)


def test_two_servers_at_one_address_share_a_child_sa_if_they_say_so(tmp_path: Path) -> None:
    alike = 'ipsec_child = "isc"\nipsec_identity = "as.home1.net"\n'
    text = FILE + '"notes-as.home1.net" = "10.99.0.2"\n' + SERVER.format("xcap") + alike + SERVER.format("notes") + alike
    assert pairs(tmp_path, text) == [PAIR._replace(child="isc", server="as.home1.net")]


def test_the_profile(tmp_path: Path) -> None:
    """IKEv2, AES-GCM-16 or AES-CBC with HMAC-SHA-256-128, groups 19 and 14, no NULL, the other side's identity, one that begins."""
    text = swanctl_conf([PAIR], SCSCF, [])
    for line in (
        "version = 2 ", "local_addrs = 10.99.0.1\n", "remote_addrs = 10.99.0.2\n", 'id = "scscf1.home1.net"\n', 'id = "xcap-as.home1.net" ',
        "proposals = aes128gcm16-prfsha256-ecp256, aes128-sha256-ecp256, aes128-sha256-modp2048\n",
        "esp_proposals = aes128gcm16-ecp256, aes128-sha256-ecp256, aes128-sha256-modp2048\n", "start_action = start\n", "mode = tunnel ",
        "encap = yes ", "certs = scscf1.home1.net.pem\n", "cacerts = keyferry-ca.pem\n", "auth = pubkey\n", "isc-xcap-as-home1-net {\n",
    ):  # fmt: skip
        assert line in text, line
    assert "null" not in text.lower()
    assert all("." not in name for name in re.findall(r"(\S+) \{", text))  # a dot would begin a section within
    other = swanctl_conf([PAIR], SERVERS, [])
    assert "start_action = none\n" in other
    assert "local_addrs = 10.99.0.2\n" in other


def test_where_the_kernel_has_esp_it_is_transport_mode_and_traps(tmp_path: Path) -> None:
    choices = Choices("scscf", "kernel", "certificate", "/run/charon.vici")
    text = swanctl_conf([PAIR], choices, [])
    assert "mode = transport\n" in text
    assert "start_action = trap|start\n" in text
    assert "encap = no " in text
    assert "kernel-libipsec" not in strongswan_conf(choices)
    assert "kernel-libipsec" in strongswan_conf(SCSCF)


def test_whoever_may_use_charons_socket_may_run_nothing() -> None:
    """The plugin updown gives a shell what a connection names, as root; a connection comes over the socket."""
    assert "    updown {\n      load = no\n" in strongswan_conf(SCSCF)


def test_nothing_in_clear_passes_between_the_addresses_but_ike(tmp_path: Path) -> None:
    for side, own, peer in (("scscf", "10.99.0.1", "10.99.0.2"), ("as", "10.99.0.2", "10.99.0.1")):
        text = drop_rules([PAIR], side)  # type: ignore[arg-type]
        assert f"ip saddr {own} ip daddr {peer} jump to_peer" in text
        assert f"ip saddr {peer} ip daddr {own} jump from_peer" in text
        assert text.count("counter drop") == 2
        assert text.index("delete table inet keyferry_isc") < text.index("chain out")
    six = PAIR._replace(scscf_address="2001:db8::1", server_address="2001:db8::2")
    assert "ip6 saddr 2001:db8::1 ip6 daddr 2001:db8::2 jump to_peer" in drop_rules([six], "scscf")


def test_everything_is_written_for_nobody_else_s_eyes(tmp_path: Path) -> None:
    folder, state = tmp_path / "out", tmp_path / "state"
    written = write_all(folder, state, [PAIR], SCSCF)
    assert [str(file.relative_to(folder)) for file in written] == [
        "isc.nft", "private/scscf1.home1.net.key", "strongswan.conf", "swanctl.conf", "x509/scscf1.home1.net.pem", "x509ca/keyferry-ca.pem",
    ]  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o600}
    again = write_all(folder, state, [PAIR], SCSCF)
    assert again == written
    assert not list(folder.rglob("*.new"))


def test_a_key_of_a_pair_is_made_once_and_used_on_both_sides(tmp_path: Path) -> None:
    state = tmp_path / "state"
    choices = [Choices(side, "userspace", "psk", "/run/charon.vici") for side in ("scscf", "as")]
    for each in choices:
        write_all(tmp_path / each.side, state, [PAIR], each)
    file = psk_file(state, PAIR)
    assert (stat.S_IMODE(file.stat().st_mode), len(base64.b64decode(file.read_text()))) == (0o600, 32)
    for each in choices:
        text = (tmp_path / each.side / "swanctl.conf").read_text()
        assert f"secret = 0s{file.read_text().strip()}" in text
        assert "auth = psk" in text
        assert "certs" not in text
    file.write_text("hunter2\n")
    with pytest.raises(StateError, match="is not 32 octets in Base64") as problem:
        write_all(tmp_path / "scscf", state, [PAIR], choices[0])
    assert "hunter2" not in str(problem.value)


def test_an_identity_that_is_no_host_name_needs_a_key_or_a_certificate_of_one_s_own(tmp_path: Path) -> None:
    pair = PAIR._replace(server="as@home1.net")
    with pytest.raises(ConfigError, match="Use --psk"):
        write_all(tmp_path / "as", tmp_path / "state", [pair], SERVERS)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        write_all(tmp_path / "file", tmp_path / "state", [PAIR], SCSCF)
