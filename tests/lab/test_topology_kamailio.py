# SPDX-License-Identifier: Apache-2.0
"""What `lab up --kamailio` writes and starts; that a UE registers there is seen in tests/interop/test_lab_up.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyferry.config import load_config
from keyferry.lab import topology_kamailio
from keyferry.lab.topology import LabFailed, make_plan
from keyferry.lab.topology_files import LabFiles, write_files
from keyferry.lab.topology_ipsec import LabIpsec
from keyferry.lab.topology_kamailio import LabKamailio
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.kamailio import servers_of
from keyferry.wiring.kamailio_icscf import scscfs_of

PLAN = make_plan("t1", isc="ipsec", kamailio=True)


@pytest.fixture(name="files", scope="module")
def files_fixture(tmp_path_factory: pytest.TempPathFactory) -> LabFiles:
    files = LabFiles(tmp_path_factory.mktemp("lab"))
    write_files(files, PLAN, SystemRandom())
    return files


def test_the_hss_marks_its_nonces_and_takes_cx_without_tls_from_the_home_network_alone(files: LabFiles) -> None:
    """DESIGN §10: our HSS appends the marker for a stock Kamailio, and gives rspauth."""
    hss = load_config(files.config("hss"))
    assert (hss.hss.listen_diameter, hss.hss.networks, hss.hss.marker_for) == (
        "198.18.20.3:3868", ["198.18.20.0/24"], ["scscf1.home1.net"],
    )  # fmt: skip
    assert hss.hss.listen_diameters == "198.18.20.3:5658"
    assert hss.kamailio.rspauth_socket == str(files.root / "rspauth")
    assert [each.release for each in hss.subscribers] == [6]


def test_the_model_of_kamailios_configuration_is_one(files: LabFiles) -> None:
    config = load_config(files.config("scscf"))
    assert config.scscf.listen == "198.18.20.2:6060"
    assert config.scscf.name in config.hss.marker_for
    assert servers_of(config) == {"sip:198.18.30.1:5090;transport=tcp": ("xcap.home1.net",)}
    assert config.kamailio.rspauth_socket == load_config(files.config("hss")).kamailio.rspauth_socket
    assert not config.subscribers


def test_what_ipsec_protects_is_the_way_that_kamailio_pushes(files: LabFiles) -> None:
    server = load_config(files.config("as")).application_servers[0]
    (pair,) = LabIpsec(files, PLAN)._pairs
    assert (pair.scscf_address, pair.server_address) == ("198.18.20.2", "198.18.30.1")
    assert server.listen_sip == "198.18.30.1:5090"


def test_it_runs_in_the_home_network_with_names_of_its_own(files: LabFiles) -> None:
    kamailio = LabKamailio(files, PLAN, "")
    command = kamailio.command("scscf")
    assert command[:4] == ("ip", "netns", "exec", "kf-t1-home")
    assert command[4:8] == ("sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(files.root / "hosts"))
    assert command[8:12] == ("kamailio", "-DD", "-E", "-f")


def test_it_is_known_when_the_hss_says_so(files: LabFiles) -> None:
    kamailio = LabKamailio(files, PLAN, "")
    lines = [{"event": "diameter-peer-up", "peer": "icscf.home1.net"}, {"event": "other", "peer": "scscf1.home1.net"}]
    log = files.log("hss")
    log.write_text("no JSON\n" + "".join(json.dumps(line) + "\n" for line in lines))
    assert not kamailio.is_known("scscf")
    assert kamailio.is_known("icscf")
    with log.open("a") as file:
        file.write(json.dumps({"event": "diameter-peer-up", "peer": "scscf1.home1.net"}) + "\n")
    assert kamailio.is_known("scscf")


def test_without_kamailio_it_is_said(files: LabFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology_kamailio, "search_path", lambda: str(tmp_path))
    with pytest.raises(LabFailed, match="kamailio is not installed"):
        LabKamailio(files, PLAN, "").check()


def test_an_i_cscf_alone_needs_cx_without_tls_and_nothing_else_of_kamailios(tmp_path: Path) -> None:
    """Our S-CSCF marks its own nonces, and ISC stays as it was."""
    files, plan = LabFiles(tmp_path), make_plan("t2", kamailio_icscf=True)
    write_files(files, plan, SystemRandom())
    hss, model = load_config(files.config("hss")), load_config(files.config("icscf"))
    assert (hss.hss.listen_diameter, hss.hss.networks, hss.hss.marker_for) == ("198.18.20.3:3868", ["198.18.20.0/24"], [])
    assert (model.hss.name, model.hss.listen_diameter) == ("hss.home1.net", "198.18.20.3:3868")
    assert plan.kamailios == ("icscf",)
    assert load_config(files.config("as")).application_servers[0].protection == "tls"
    assert LabKamailio(files, plan, "").command("icscf")[12] == str(tmp_path / "kamailio/icscf.cfg")
    assert scscfs_of(model) == ("sip:scscf1.home1.net:6060",)
