# SPDX-License-Identifier: Apache-2.0
"""TS 33.210 §5.3, §5.4, TS 33.310 §6: what is written for strongSwan and nftables."""

from __future__ import annotations

import base64
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from keyferry.config import load_config
from keyferry.errors import ConfigError, StateError
from keyferry.wiring import ipsec_files
from keyferry.wiring.ipsec_files import Choices, pairs_of, psk_file, strongswan_conf, swanctl_conf, write_all
from keyferry.wiring.ipsec_rules import Pair
from keyferry.wiring.protection import opened_state

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


def test_over_ipv6_the_kernel_s_policies_leave_neighbour_discovery_out() -> None:
    """RFC 4861 §4, RFC 4301 §4.4.1.1: ICMPv6 types 133 to 137, each in the upper octet of what stands for a port."""
    six = PAIR._replace(scscf_address="2001:db8::1", server_address="2001:db8::2")
    kernel = Choices("scscf", "kernel", "psk", "/run/x.vici")
    text = swanctl_conf([six], kernel, [])
    for number in (34048, 34304, 34560, 34816, 35072):
        assert f"local_ts = 2001:db8::1/128[ipv6-icmp/{number}]\n        remote_ts = 2001:db8::2/128[ipv6-icmp/{number}]" in text
    assert text.count("mode = pass") == 5
    for pair, choices in ((PAIR, kernel), (six, replace(kernel, esp="userspace"))):
        assert "mode = pass" not in swanctl_conf([pair], choices, [])


def test_whoever_may_use_charons_socket_may_run_nothing() -> None:
    """The plugin updown gives a shell what a connection names, as root; a connection comes over the socket."""
    assert "    updown {\n      load = no\n" in strongswan_conf(SCSCF)


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


def test_pairs_that_look_alike_share_neither_a_connection_nor_a_key(tmp_path: Path) -> None:
    """One identity at two addresses is two connections; names that differ by a dot have two keys: who has one is not the other."""
    alike = [
        PAIR, PAIR._replace(server_address="10.99.0.3"), PAIR._replace(server="xcap.as.home1.net", server_address="10.99.0.4"),
        PAIR._replace(scscf="scscf1.home1.net-xcap", server="as.home1.net", server_address="10.99.0.5"),
    ]  # fmt: skip
    text = swanctl_conf(alike, SCSCF, [])
    assert len(set(re.findall(r"(?m)^  (\S+) \{$", text))) == 4
    files = [psk_file(tmp_path, pair) for pair in alike]
    assert files[0] == files[1]
    assert len(set(files)) == 3
    odd = psk_file(tmp_path, PAIR._replace(server="C=DE, O=a/b, CN=as"))
    assert odd.parent == tmp_path / "ipsec"


def test_an_identity_that_is_no_host_name_needs_a_key_or_a_certificate_of_one_s_own(tmp_path: Path) -> None:
    pair = PAIR._replace(server="as@home1.net")
    with pytest.raises(ConfigError, match="Use --psk"):
        write_all(tmp_path / "as", tmp_path / "state", [pair], SERVERS)


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    """`keyferry ipsec write /tmp` must not shut everybody out of /tmp."""
    folder = tmp_path / "out"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    written = write_all(folder, tmp_path / "state", [PAIR], SCSCF)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o1777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StateError, match="others may write to it"):
        write_all(folder, tmp_path / "state", [PAIR], SCSCF)
    assert list(folder.iterdir()) == []
    assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it may replace every file in it."""
    folder = tmp_path / "out"
    folder.mkdir(mode=0o700)
    owner = folder.stat().st_uid
    with pytest.raises(StateError, match="others may write to it"), monkeypatch.context() as patched:
        patched.setattr(ipsec_files, "_owners", lambda: {owner + 1})
        write_all(folder, tmp_path / "state", [PAIR], SCSCF)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["private", "x509ca"])
def test_a_folder_in_it_that_others_may_write_to_is_refused(tmp_path: Path, name: str) -> None:
    """They could put their own CA, or a key that they know, in place of ours."""
    folder = tmp_path / "out"
    (folder / name).mkdir(parents=True)
    (folder / name).chmod(0o777)
    with pytest.raises(StateError, match=f"{name}: others may write to it"):
        write_all(folder, tmp_path / "state", [PAIR], SCSCF)
    assert list((folder / name).iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    """In /tmp anybody may have put one in the place of the new folder."""
    folder, link = tmp_path / "etc", tmp_path / "out"
    folder.mkdir(mode=0o755)
    link.symlink_to(folder)
    os.lchown(link, 12_345, 12_345)
    with pytest.raises(StateError, match="others may write to it"):
        write_all(link, tmp_path / "state", [PAIR], SCSCF)
    assert list(folder.iterdir()) == []
    os.lchown(link, os.geteuid(), -1)
    assert write_all(link, tmp_path / "state", [PAIR], SCSCF)


def test_the_kek_of_the_service_manager_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN §3: where the KEK is kept elsewhere, none is made beside what it seals."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    with opened_state(tmp_path / "first"):
        pass
    (tmp_path / "first" / "kek").rename(credentials / "kek")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    write_all(tmp_path / "out", tmp_path / "state", [PAIR], SCSCF)
    assert not (tmp_path / "state" / "kek").exists()


def test_a_state_that_holds_only_what_was_carried_there_is_taken(tmp_path: Path) -> None:
    """docs/ipsec.md: the certificate and the CA's, or the key of a pair, are copied before anything runs there."""
    first, second = tmp_path / "first", tmp_path / "second"
    psk = Choices("as", "userspace", "psk", "/run/charon.vici")
    write_all(tmp_path / "a", first, [PAIR], psk)
    second.mkdir(mode=0o700)
    shutil.copytree(first / "ipsec", second / "ipsec")
    write_all(tmp_path / "b", second, [PAIR], psk)
    assert psk_file(second, PAIR).read_text() == psk_file(first, PAIR).read_text()


def test_an_address_has_one_form(tmp_path: Path) -> None:
    """RFC 5952: two ways to write one address of IPv6 are one pair, in the form that charon and nft use."""
    six = FILE.replace('"10.99.0.1:6060"', '"[2001:DB8:0:0::1]:6060"').replace(
        'trusted_peers = ["10.99.0.1"]', 'trusted_peers = ["2001:db8::1"]'
    )
    alike = 'ipsec_child = "isc"\nipsec_identity = "as.home1.net"\n'
    text = six.replace("10.99.0.2", "2001:db8:0:0::2") + '"notes-as.home1.net" = "2001:DB8::2"\n'
    text += SERVER.format("xcap") + alike + SERVER.format("notes") + alike
    assert pairs(tmp_path, text) == [
        PAIR._replace(child="isc", server="as.home1.net", scscf_address="2001:db8::1", server_address="2001:db8::2")
    ]


@pytest.mark.parametrize(
    ("address", "says"),
    [("::ffff:10.99.0.2", "written as one of IPv6"), ("fe80::1%eth0", "has a zone"), ("ff02::1", "no machine"), ("0.0.0.0", "no machine")],
)
def test_an_address_that_no_rule_could_name_is_refused(tmp_path: Path, address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pairs(tmp_path, FILE.replace('"10.99.0.2"', f'"{address}"') + SERVER.format("xcap"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        write_all(tmp_path / "file", tmp_path / "state", [PAIR], SCSCF)
