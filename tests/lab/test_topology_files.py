# SPDX-License-Identifier: Apache-2.0
"""The files of a lab: configurations that are accepted, and nobody has a key that is not for it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from keyferry.config import load_config, load_ue_config
from keyferry.config.cx import cx_peers
from keyferry.errors import StateError
from keyferry.lab.topology import AS_ID, IMPI, PARTS, make_plan
from keyferry.lab.topology_files import CERTIFICATES, LabFiles, quoted, write_files
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.pki import Pki

PLAN = make_plan("t1")


@pytest.fixture(name="files", scope="module")
def files_fixture(tmp_path_factory: pytest.TempPathFactory) -> LabFiles:
    """Write the files of one lab."""
    files = LabFiles(tmp_path_factory.mktemp("lab"))
    write_files(files, PLAN, SystemRandom())
    return files


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_configuration_is_one(files: LabFiles, part: object) -> None:
    for each in PARTS:
        config = load_config(files.config(each.name))
        assert config.hosts == {other.host: other.address for other in PARTS}
        assert config.admin.listen == f"127.0.0.1:{each.admin}"


def test_each_function_listens_at_its_own_address(files: LabFiles) -> None:
    """And trusts the functions before it by theirs; ISC is mutual TLS, Cx is Diameter over TLS."""
    loaded = {part.name: load_config(files.config(part.name)) for part in PARTS}
    assert loaded["pcscf"].pcscf.listen == "198.18.10.1:5060"
    assert loaded["icscf"].icscf.listen == "198.18.20.1:5062"
    assert PLAN.part("pcscf").address in loaded["icscf"].icscf.trusted_peers
    assert loaded["scscf"].scscf.listen == "198.18.20.2:6060"
    assert PLAN.part("icscf").address in loaded["scscf"].scscf.trusted_peers
    assert loaded["hss"].hss.listen_diameters == "198.18.20.3:5658"
    assert loaded["hss"].hss.listen_diameter is None
    assert not loaded["hss"].cx.peers
    for name in ("icscf", "scscf"):
        (peer,) = cx_peers(loaded[name].cx, loaded[name].hosts)
        assert (peer.host, peer.name, peer.tls) == ("198.18.20.3", "hss.home1.net", True)
    for name in ("as", "scscf", "hss"):
        (server,) = loaded[name].application_servers
        assert (server.as_id, server.sip_uri, server.protection) == (AS_ID, "sips:xcap-as.home1.net:5061", "tls")
    assert loaded["as"].application_servers[0].listen_sips == "198.18.30.1:5061"
    assert str(loaded["pcscf"].network.gm) == "required"


def test_the_ue_is_the_subscriber_of_the_hss_and_of_nobody_else(files: LabFiles) -> None:
    """K and OPc are in two files, new ones in every lab."""
    ue = load_ue_config(files.ue).ue
    (subscriber,) = load_config(files.config("hss")).subscribers
    assert ue.opc is not None
    assert subscriber.opc is not None
    assert (ue.impi, subscriber.impi) == (IMPI, IMPI)
    assert (ue.k.reveal(), ue.opc.reveal()) == (subscriber.k.reveal(), subscriber.opc.reveal())
    assert (str(ue.gm), ue.pcscf, ue.pcscf_gm) == ("required", "198.18.10.1:5060", load_config(files.config("pcscf")).pcscf.gm_listen)
    k = ue.k.reveal().hex()
    having = {path.name for path in files.root.rglob("*") if path.is_file() and k in path.read_text("utf-8", "replace")}
    assert having == {"hss.toml", "ue.toml"}


def test_two_labs_have_different_keys(files: LabFiles, tmp_path: Path) -> None:
    other = LabFiles(tmp_path)
    write_files(other, PLAN, SystemRandom())
    assert load_ue_config(other.ue).ue.k.reveal() != load_ue_config(files.ue).ue.k.reveal()
    assert (files.root / "authority" / "ca.pem").read_text() != (tmp_path / "authority" / "ca.pem").read_text()


def test_each_part_has_its_own_certificates_and_nobody_the_key_of_the_ca(files: LabFiles) -> None:
    for part in PARTS:
        pki = Pki(files.state(part.name), SystemClock())
        assert {(each.name, each.role) for each in pki.all()} == {(name, part.name) for name in CERTIFICATES[part.name]}
        for name in CERTIFICATES[part.name]:
            made = pki.ensure(name, part.name)  # as its process asks for it: that which is here is good
            assert made.certificate.read_text() == (files.root / "authority/pki" / made.certificate.name).read_text()
    assert [path.relative_to(files.root).as_posix() for path in files.root.rglob("ca.key")] == ["authority/pki/ca.key"]


def test_scscf_and_as_have_the_same_transport_key_and_no_file_carries_it_any_more(files: LabFiles) -> None:
    keys = []
    for name in ("scscf", "as"):
        with open_state(files.state(name), random=SystemRandom()) as state:
            keys.append({kid: key.reveal() for kid, key in state.isc_keys("scscf1.home1.net", AS_ID).items()})
            assert state.isc_pairs() == [("scscf1.home1.net", AS_ID)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 1
    assert not list(files.root.glob("*.keys"))


def test_nothing_with_a_key_may_be_read_by_others(files: LabFiles) -> None:
    for path in files.root.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert path.name == "ca.pem" or path.suffix == ".pem" or not mode & 0o077, f"{path} {mode:o}"


def test_a_directory_that_cannot_be_written_down_or_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be written down"):
        quoted("a\nb")
    (tmp_path / "state").mkdir()
    with pytest.raises(StateError, match="cannot be written"):
        write_files(LabFiles(tmp_path), PLAN, SystemRandom())
