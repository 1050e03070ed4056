# SPDX-License-Identifier: Apache-2.0
"""`keyferry ipsec` as scripts see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from system.serving import keyferry

FILE = """[scscf]
listen = "10.99.0.1:6060"
trusted_peers = ["10.99.0.1"]
[hosts]
"xcap-as.home1.net" = "10.99.0.2"
[[application_servers]]
as_id = "xcap.home1.net"
sip_uri = "sip:xcap-as.home1.net:5090"
protection = "ipsec"
app = "agent"
"""


@pytest.fixture(name="config")
def config_fixture(tmp_path: Path) -> Path:
    file = tmp_path / "lab.toml"
    file.write_text(FILE)
    return file


def test_both_sides_are_written_and_said(config: Path, tmp_path: Path) -> None:
    place = ("--config", config, "--state", tmp_path / "state")
    done = keyferry("ipsec", "write", tmp_path / "isc", *place, "--side", "scscf", "--esp", "userspace", "--json")
    printed = json.loads(done.stdout)
    assert (done.returncode, printed["ok"], printed["esp"]) == (0, True, "userspace")
    assert all(Path(file).is_file() for file in printed["files"])
    assert printed["pairs"][0]["child"] == "isc-xcap-as-home1-net"
    text = keyferry(
        "ipsec", "write", tmp_path / "as", *place, "--side", "as", "--as", "xcap-as.home1.net", "--psk", "--vici", "/run/x", "--group", "kf"
    )
    assert (text.returncode, text.stderr) == (0, "")
    assert printed["made"] == [str(tmp_path / "state/ca.pem")], "an AS's machine without the S-CSCF's CA makes one that nobody believes"
    assert f"{tmp_path}/state/ipsec/scscf1.home1.net+xcap-as.home1.net.psk was made here, and the other machine needs" in text.stdout
    again = keyferry("ipsec", "write", tmp_path / "isc", *place, "--side", "scscf", "--esp", "userspace", "--json")
    assert json.loads(again.stdout)["made"] == []
    assert f"nft -f {tmp_path}/as/isc.nft" in text.stdout
    assert "unix:///run/x" in text.stdout
    assert (tmp_path / "state" / "ipsec").is_dir()
    assert "  group = kf " in (tmp_path / "as" / "strongswan.conf").read_text()
    assert "group" not in (tmp_path / "isc" / "strongswan.conf").read_text()


def test_without_charon_the_check_says_so_and_fails(config: Path, tmp_path: Path) -> None:
    done = keyferry("ipsec", "check", "--config", config, "--vici", tmp_path / "no.vici", "--json")
    printed = json.loads(done.stdout)
    assert (done.returncode, printed["ok"], printed["pairs"][0]["met"]) == (1, False, False)
    assert "charon is not there" in printed["pairs"][0]["problem"]
    shown = keyferry("ipsec", "check", "--config", config, "--vici", tmp_path / "no.vici")
    assert shown.returncode == 1
    assert "drop rules: " in shown.stdout


def test_keyferry_check_says_what_no_sa_could_protect(config: Path) -> None:
    assert keyferry("check", "--elsewhere", config).returncode == 0
    other = FILE.partition("[[")[1] + FILE.partition("[[")[2].replace("xcap", "notes")
    config.write_text(FILE.replace("[[app", '"notes-as.home1.net" = "10.99.0.2"\n[[app') + other)
    done = keyferry("check", "--elsewhere", config)
    assert (done.returncode, "nobody could tell which one a packet takes" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--side", "left"), "--side: 'left' is not one of scscf, as"),
        (("--side", "as", "--as", "x.net"), "--as: 'x.net' is not one of xcap-as.home1.net"),
        (("--side", "as", "--group", "a}b"), "--group: 'a}b' is no name of a group"),
        (("--side", "as", "--esp", "none"), "--esp: 'none' is not one of auto, kernel, userspace"),
    ],
)
def test_a_wrong_argument_is_explained(config: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = keyferry("ipsec", "write", tmp_path / "isc", "--config", config, "--state", tmp_path / "state", *arguments)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
