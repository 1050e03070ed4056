# SPDX-License-Identifier: Apache-2.0
"""What `lab up --isc ipsec` writes and starts; that it protects is seen in tests/interop/test_lab_up.py."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from keyferry.config import load_config
from keyferry.lab import topology_ipsec
from keyferry.lab.topology import LabFailed, make_plan
from keyferry.lab.topology_files import LabFiles, write_files
from keyferry.lab.topology_ipsec import SIDES, LabIpsec, need_programs
from keyferry.transports.clock import SystemRandom

PLAN = make_plan("t1", isc="ipsec")


@pytest.fixture(name="files", scope="module")
def files_fixture(tmp_path_factory: pytest.TempPathFactory) -> LabFiles:
    files = LabFiles(tmp_path_factory.mktemp("lab"))
    write_files(files, PLAN, SystemRandom())
    LabIpsec(files, PLAN).write()
    return files


def test_both_sides_and_the_hss_know_the_same_server(files: LabFiles) -> None:
    for name in ("scscf", "as", "hss"):
        (server,) = load_config(files.config(name)).application_servers
        assert (server.sip_uri, server.protection, server.listen_sip) == ("sip:xcap-as.home1.net:5090", "ipsec", "198.18.30.1:5090")
        assert server.listen_https == "198.18.30.2:8443"  # not through the tunnel, which is between the S-CSCF and the other address
    assert load_config(files.config("scscf")).ipsec.vici == str(files.vici("scscf"))


def test_each_side_has_its_own_certificate_and_names_the_other(files: LabFiles) -> None:
    """TS 33.310 §6.1: from the states, to which no CA's key came."""
    for side, own, other in (("scscf", "scscf1.home1.net", "xcap-as.home1.net"), ("as", "xcap-as.home1.net", "scscf1.home1.net")):
        folder = files.root / f"ipsec-{side}"
        assert [path.name for path in (folder / "private").iterdir()] == [f"{own}.key"]
        text = (folder / "swanctl.conf").read_text()
        assert f'id = "{own}"' in text
        assert f'id = "{other}"' in text
        assert ("198.18.20.2" in text, "198.18.30.1" in text) == (True, True)
        assert str(files.vici(side)) in (folder / "strongswan.conf").read_text()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_rules_come_before_charon_and_who_answers_is_loaded_before_who_begins(files: LabFiles) -> None:
    ipsec = LabIpsec(files, PLAN)
    words = [" ".join(each) for each in ipsec.rules()]
    assert words == [
        f"ip netns exec kf-t1-{network} nft -f {files.root}/ipsec-{side}/isc.nft" for side, network in (("as", "as"), ("scscf", "home"))
    ]
    assert list(SIDES) == ["as", "scscf"]
    command, environment = ipsec.charon("scscf")
    assert command == ("ip", "netns", "exec", "kf-t1-home", "charon-systemd")
    assert environment == {"STRONGSWAN_CONF": f"{files.root}/ipsec-scscf/strongswan.conf"}
    command, environment = ipsec.loading("as")
    assert command[-1] == f"unix://{files.root}/as.vici"
    assert environment == {"SWANCTL_DIR": f"{files.root}/ipsec-as"}


def test_without_charon_nothing_is_protected(files: LabFiles) -> None:
    ipsec = LabIpsec(files, PLAN)
    assert not ipsec.listens("scscf")
    assert "charon cannot be asked" in ipsec.problem()


def test_what_is_not_installed_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology_ipsec, "search_path", lambda: str(tmp_path))
    with pytest.raises(LabFailed) as raised:
        need_programs()
    assert "apt install charon-systemd strongswan-swanctl nftables" in str(raised.value)
