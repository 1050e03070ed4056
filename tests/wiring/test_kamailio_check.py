# SPDX-License-Identifier: Apache-2.0
"""`keyferry kamailio --check` without a Kamailio: what it asks, as whom, and that it goes on; the real one is in tests/interop."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from keyferry.kemi.settings import KemiSettings, build_settings
from keyferry.protocol.identity import AsId
from keyferry.wiring import kamailio_check
from keyferry.wiring.kamailio_check import check_kamailio
from wiring.test_kamailio import changed, example, with_servers

PROGRAM = """#!{python}
import os, runpy, sys
if "-c" in sys.argv:
    sys.exit("0(1) ERROR: no such module" if os.path.exists({folder!r} + "/broken") else 0)
text = open(sys.argv[-1]).read()
runpy.run_path(text.split('"load", "')[1].split('"')[0])["mod_init"]()
"""
SCRIPT = """import os


class S:
    def check(self):
        return {"state": "", "rspauth": os.environ.get("PYTHONPATH", "") + "away"}


mod_init = S
"""


@pytest.fixture(name="directory")
def directory_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was written, and a program that is called kamailio."""
    directory, programs = tmp_path / "k", tmp_path / "bin"
    for folder in (directory, programs):
        folder.mkdir()
    (directory / "scscf.cfg").write_text('mpath="/modules/"\n')
    (directory / "cdp.xml").write_text("")
    (directory / "kemi_scscf.py").write_text(SCRIPT)
    settings = KemiSettings(directory / "state", "s", "home1.net", {"sip:a": (AsId("a"),)}, 1, 1.0, "")
    (directory / "kemi.json").write_text(build_settings(settings))
    (programs / "kamailio").write_text(PROGRAM.format(python=sys.executable, folder=str(directory)))
    (programs / "kamailio").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PYTHONPATH", "/not/in/kamailio")
    return directory


@pytest.fixture(name="port")
def port_fixture() -> Iterator[int]:
    """A neighbour that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_everything_is_asked_and_each_problem_comes_with_what_to_do(directory: Path, port: int) -> None:
    listens = changed(kamailio={"hss": "127.0.0.1", "hss_port": port})
    servers = with_servers({"sip_uri": f"sip:127.0.0.1:{port};transport=tcp"}, {"as_id": "b.home1.net", "sip_uri": "sip:no.such.invalid"})
    found = {each.what: each for each in check_kamailio(servers(listens(example())), directory)}
    good = [what for what, each in found.items() if not each.problem]
    assert good == ["files", "kamailio -c", "script", "state", "HSS", f"application server sip:127.0.0.1:{port};transport=tcp"]
    assert found["rspauth"].problem == "away"  # and Kamailio has not our PYTHONPATH
    assert "--role hss" in found["rspauth"].remedy
    assert found["application server sip:no.such.invalid"].problem


def test_what_kamailio_itself_refuses_is_told_in_its_words(directory: Path, port: int) -> None:
    (directory / "broken").touch()
    (directory / "kemi_scscf.py").write_text("import no_such_module")
    config = changed(kamailio={"hss": "127.0.0.1", "hss_port": port})(example())
    found = {each.what: each.problem for each in check_kamailio(config, directory)}
    assert "no such module" in found["kamailio -c"]
    assert "ModuleNotFoundError" in found["script"]
    assert "state" not in found


def test_without_kamailio_or_its_files_it_is_said(directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    found = {each.what: each for each in check_kamailio(changed(kamailio={"hss": "127.0.0.1", "hss_port": 1})(example()), directory)}
    assert "apt install" in found["kamailio"].remedy
    assert found["HSS"].problem == "127.0.0.1:1: Connection refused"
    assert "never [hosts]" in found["HSS"].remedy
    (directory.parent / "hosts").touch()
    found = {each.what: each for each in check_kamailio(changed(kamailio={"hss": "127.0.0.1", "hss_port": 1})(example()), directory)}
    assert f"mount --bind {directory.parent / 'hosts'} /etc/hosts" in found["HSS"].remedy
    (only,) = check_kamailio(example(), tmp_path)
    assert "scscf.cfg" in only.problem


def test_an_i_cscf_is_looked_at_with_its_hss_and_its_s_cscfs(directory: Path, port: int) -> None:
    config = msgspec.structs.replace(
        changed(kamailio={"hss": "127.0.0.1", "hss_port": port}, icscf={"scscf": "sip:scscf1.home1.net;transport=tcp"})(example()),
        hosts={"scscf1.home1.net": f"127.0.0.1:{port}"},
    )
    config = msgspec.structs.replace(config, hss=msgspec.structs.replace(config.hss, scscfs=["sip:127.0.0.1:1;transport=tcp"]))
    (only,) = check_kamailio(config, directory, "icscf")
    assert "icscf.cfg" in only.problem
    assert "--role icscf" in only.remedy
    (directory / "icscf").mkdir()
    for name in ("icscf.cfg", "icscf_cdp.xml", "icscf/s_cscf", "icscf/s_cscf_capabilities", "icscf/nds_trusted_domains"):
        (directory / name).write_text("")
    found = {each.what: each for each in check_kamailio(config, directory, "icscf")}
    good = ["files", "kamailio -c", "HSS", "S-CSCF sip:scscf1.home1.net;transport=tcp"]
    assert [what for what, each in found.items() if not each.problem] == good
    assert found.keys() - good == {"S-CSCF sip:127.0.0.1:1;transport=tcp"}
    (directory / "broken").touch()
    bad = next(each for each in check_kamailio(config, directory, "icscf") if each.what == "kamailio -c")
    assert "no such module" in bad.problem
    assert "icscf-local.cfg" in bad.remedy


def test_a_p_cscf_is_looked_at_with_its_i_cscf(directory: Path, port: int) -> None:
    config = msgspec.structs.replace(
        changed(pcscf={"icscf": "sip:icscf.home1.net;transport=tcp"})(example()), hosts={"icscf.home1.net": f"127.0.0.1:{port}"}
    )
    assert "pcscf.cfg" in check_kamailio(config, directory, "pcscf")[0].problem
    (directory / "pcscf.cfg").write_text("")
    found = check_kamailio(config, directory, "pcscf")
    assert [(each.what, each.problem) for each in found] == [
        ("files", ""), ("kamailio -c", ""), ("I-CSCF sip:icscf.home1.net;transport=tcp", ""),
    ]  # fmt: skip
    away = msgspec.structs.replace(config, hosts={"icscf.home1.net": "127.0.0.1:1"})
    assert check_kamailio(away, directory, "pcscf")[-1].problem == "Connection refused"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")
def test_root_asks_as_kamailios_user() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chown(folder, 65_534, 65_534)
        assert kamailio_check._run(["id", "-u"], folder).stdout == "65534\n"
