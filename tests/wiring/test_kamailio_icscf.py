# SPDX-License-Identifier: Apache-2.0
"""`keyferry kamailio --role icscf` without a Kamailio: what it writes, what it refuses, and what it says to do."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import msgspec
import pytest

from keyferry.config import Config, Scscf
from keyferry.errors import ConfigError
from keyferry.wiring.kamailio_icscf import write_icscf
from wiring.test_kamailio import Change, changed, example

OTHER = "sip:scscf2.home1.net:6061;transport=tcp"


@pytest.fixture(name="modules")
def modules_fixture(tmp_path: Path) -> Path:
    """A folder that looks like Kamailio's modules; the S-CSCF's are not there."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in ("tm", "cdp", "cdp_avp", "ims_icscf", "db_text", "htable"):
        (folder / f"{name}.so").write_bytes(b"\x7fELF")
    return folder


def written(folder: Path, modules: Path, change: Change | None = None) -> str:
    """Write, and return the configuration."""
    config = change(example()) if change else example()
    write_icscf(config, folder, modules=modules)
    return (folder / "icscf.cfg").read_text()


def test_everything_is_written_and_written_again(tmp_path: Path, modules: Path) -> None:
    directory = tmp_path / "k"
    done = write_icscf(example(), directory, modules=modules)
    assert (done.hss, done.scscfs) == ("localhost:3868", ("sip:scscf1.home1.net:6060",))
    (directory / "icscf-local.cfg").write_text("# mine")
    (directory / "icscf/s_cscf_capabilities").write_text("mine\n")
    written(directory, modules)
    assert (directory / "icscf-local.cfg").read_text() == "# mine"
    assert (directory / "icscf/s_cscf_capabilities").read_text() == "mine\n"
    assert (directory / "icscf/s_cscf").read_text().splitlines()[1:] == [r"1:scscf1.home1.net:sip\:scscf1.home1.net\:6060"]
    assert (directory / "icscf/nds_trusted_domains").read_text().splitlines()[1:] == ["1:home1.net"]
    for file in directory.rglob("*"):
        mine = file.name in {"icscf-local.cfg", "s_cscf_capabilities"}
        assert mine or file.stat().st_mode & 0o077 == 0, file
        assert file.is_dir() or not re.search(r"@[A-Z_]{2,}@", file.read_text()), file


def test_keys_stay_in(tmp_path: Path, modules: Path) -> None:
    """Who is trusted is asked first; the log is as quiet as that of the S-CSCF."""
    text = written(
        tmp_path / "k", modules, changed(icscf={"trusted_peers": ["192.0.2.7", "2001:db8:0::1"]}, kamailio={"trusted_peers": []})
    )
    level = re.search(r"^debug=(-?\d+)$", text, re.MULTILINE)
    assert level
    assert int(level[1]) <= 1
    first = next(line for line in text[text.index("request_route {") :].splitlines()[1:] if not line.strip().startswith("#"))
    assert first.strip() == 'if (!(src_ip == 192.0.2.7 || src_ip == [2001:db8::1])) { sl_send_reply("403", "Forbidden"); exit; }'


def test_a_silent_s_cscf_is_waited_for_where_there_is_no_other(tmp_path: Path, modules: Path) -> None:
    text = written(tmp_path / "k", modules)
    assert "$avp(kf_moves) = 0;\n" in text
    assert "$var(kf_left) = 28000 - $var(kf_left);" in text, "before a P-CSCF, ours or Kamailio's, gives up after 30 s"
    text = written(tmp_path / "k", modules, changed(hss={"scscfs": [OTHER]}, icscf={"patience": 1.5}))
    assert "$avp(kf_moves) = 1;\n" in text
    assert "$var(kf_left) = 1500;" in text
    text = written(tmp_path / "k", modules, changed(hss={"scscfs": [OTHER]}, icscf={"patience": 30}))
    assert "$var(kf_left) = 28000;" in text
    assert text.index('$ru = "sip:scscf1.home1.net:6060"; return 1;') < text.index(f'$ru = "{OTHER}"; return 1;')


def test_the_s_cscfs_are_those_of_the_file_and_those_that_the_hss_offers_each_once(tmp_path: Path, modules: Path) -> None:
    config = changed(hss={"scscfs": [OTHER, "sip:scscf1.home1.net:6060"]})(example())
    config = msgspec.structs.replace(config, further_scscfs=[Scscf(name="scscf3.home1.net", listen="127.0.0.1:6062")])
    done = write_icscf(config, tmp_path / "k", modules=modules)
    assert done.scscfs == ("sip:scscf1.home1.net:6060", "sip:scscf3.home1.net:6062", OTHER)


@pytest.mark.parametrize(
    ("place", "du"),
    [
        ("127.0.0.1:7070", '"sip:127.0.0.1:7070"'),
        ("192.0.2.1", '"sip:192.0.2.1:" + $(avp(kf_scscf){uri.port})'),
        ("2001:db8::2", '"sip:[2001:db8::2]:" + $(avp(kf_scscf){uri.port})'),
    ],
)
def test_the_hosts_table_goes_before_dns(tmp_path: Path, modules: Path, place: str, du: str) -> None:
    def change(config: Config) -> Config:
        return msgspec.structs.replace(config, hosts={"scscf1.home1.net": place})

    assert f"$du = {du};" in written(tmp_path / "k", modules, change)
    assert "$du = $du" not in written(tmp_path / "k", modules, lambda config: msgspec.structs.replace(config, hosts={}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(icscf={"listen": "127.0.0.1:0"}), "icscf.listen: names no port"),
        (changed(icscf={"name": 'x";'}), "cannot carry"),
        (changed(icscf={"scscf": 'sip:a.example"; exit; "'}), "cannot carry"),
        (changed(icscf={"scscf": "sips:scscf1.home1.net"}), "without TLS"),
        (changed(hss={"scscfs": ["sip:scscf2.home1.net;transport=tls"]}), "without TLS"),
        (changed(kamailio={"trusted_peers": ['1" || "1']}), "no IP address"),
        (changed(kamailio={"trusted_peers": []}), "lists nobody"),
    ],
)
def test_what_kamailio_could_not_do_is_refused(tmp_path: Path, modules: Path, change: Change, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        written(tmp_path / "k", modules, change)
    assert not (tmp_path / "k").exists()


def test_what_is_missing_is_said_with_what_to_install(tmp_path: Path, modules: Path) -> None:
    (modules / "ims_icscf.so").unlink()
    with pytest.raises(ConfigError, match=r"ims_icscf\.so.*apt install kamailio kamailio-ims-modules"):
        written(tmp_path / "k", modules)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_writes_what_kamailios_user_reads(tmp_path: Path, modules: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        directory, nobody = Path(place) / "k", 65_534
        directory.mkdir()
        os.chown(directory, nobody, nobody)
        written(directory, modules, changed(kamailio={"user": str(nobody)}))
        assert {path.stat().st_uid for path in directory.rglob("*")} == {nobody}
