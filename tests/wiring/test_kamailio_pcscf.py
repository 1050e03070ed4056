# SPDX-License-Identifier: Apache-2.0
"""`keyferry kamailio --role pcscf` without a Kamailio: what it writes and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from keyferry.cli.kamailio import Role, kamailio
from keyferry.config import Config
from keyferry.errors import ConfigError
from keyferry.wiring.kamailio_pcscf import write_pcscf
from wiring.test_kamailio import EXAMPLE, Change, changed, example


@pytest.fixture(name="modules")
def modules_fixture(tmp_path: Path) -> Path:
    """A folder that looks like Kamailio's modules, those of the package `kamailio` alone."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in ("tm", "tmx", "textops", "textopsx", "maxfwd", "siputils", "corex", "debugger"):
        (folder / f"{name}.so").write_bytes(b"\x7fELF")
    return folder


def with_hosts(**places: str) -> Change:
    """Return what gives the I-CSCF a place in the hosts table."""

    def change(config: Config) -> Config:
        return msgspec.structs.replace(config, hosts={name.replace("_", "."): place for name, place in places.items()})

    return change


@pytest.mark.parametrize(
    ("change", "icscf"),
    [
        (with_hosts(), "sip:icscf.home1.net:5062"),
        (with_hosts(icscf_home1_net="127.0.0.1:7070"), "sip:127.0.0.1:7070"),
        (with_hosts(icscf_home1_net="2001:db8::1"), "sip:[2001:db8::1]:5062"),
        (changed(pcscf={"icscf": "sip:[2001:db8::2];transport=tcp"}), "sip:[2001:db8::2]:5060;transport=tcp"),
    ],
)
def test_everything_is_written_and_written_again(tmp_path: Path, modules: Path, change: Change, icscf: str) -> None:
    directory = tmp_path / "k"
    for _ in range(2):
        assert write_pcscf(change(example()), directory, modules=modules).icscf == icscf
    assert f'$du = "{icscf}";' in (directory / "pcscf.cfg").read_text()
    assert sorted(file.name for file in directory.iterdir()) == ["README.pcscf", "pcscf.cfg"]
    for file in directory.iterdir():
        assert file.stat().st_mode & 0o077 == 0
        assert not re.search(r"@[A-Z_]{2,}@", file.read_text())
    assert re.search(r"(?m)^debug=1$", (directory / "pcscf.cfg").read_text())


def test_a_user_whom_this_machine_does_not_know_is_warned_of(
    tmp_path: Path, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """The files may be for another machine, so they are written."""
    text = EXAMPLE.read_text("utf-8")
    for user, known in (("root", True), ("no-such-user", False)):
        file = tmp_path / f"{user}.toml"
        file.write_text(text.replace('user = "kamailio"', f'user = "{user}"'), "utf-8")
        kamailio(tmp_path / "k", file, [Role.PCSCF], modules=modules)
        shown = capsys.readouterr().out
        assert ("warning: kamailio.user is 'no-such-user', whom this machine does not know" in shown) is not known
        kamailio(tmp_path / "k", file, [Role.PCSCF], modules=modules, as_json=True)
        assert json.loads(capsys.readouterr().out)["user_known"] is known


def test_ues_come_from_anywhere_and_no_list_is_asked_for(tmp_path: Path, modules: Path) -> None:
    change = changed(kamailio={"trusted_peers": []}, icscf={"trusted_peers": []})
    write_pcscf(change(example()), tmp_path / "k", modules=modules)
    assert "src_ip ==" not in (tmp_path / "k/pcscf.cfg").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            changed(network={"gm": "required"}),
            'network.gm: is required, and this P-CSCF has no security associations. Set network.gm = "off"',
        ),
        (changed(pcscf={"listen": "127.0.0.1:0"}), "pcscf.listen: names no port"),
        (changed(pcscf={"icscf": "sips:icscf.home1.net"}), "without TLS"),
        (changed(pcscf={"icscf": 'sip:a.example";'}), "cannot carry"),
        (changed(pcscf={"name": "a b"}), "cannot carry"),
    ],
)
def test_what_kamailio_could_not_do_is_refused(tmp_path: Path, modules: Path, change: Change, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        write_pcscf(change(example()), tmp_path / "k", modules=modules)
    assert not (tmp_path / "k").exists()
