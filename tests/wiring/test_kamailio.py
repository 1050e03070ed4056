# SPDX-License-Identifier: Apache-2.0
"""`keyferry kamailio` without a Kamailio: what it writes, what it refuses, and what it says to do."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from keyferry.config import Config, load_config
from keyferry.errors import ConfigError
from keyferry.kemi.settings import load_settings
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.kamailio import find_python, write_kamailio
from keyferry.wiring.protection import opened_state

EXAMPLE = Path(__file__).parents[2] / "examples/kamailio.toml"
MODULES = (
    "tm", "app_python3", "cdp", "ims_auth", "ims_isc", "ims_registrar_scscf", "ims_usrloc_scscf", "presence", "db_sqlite",
)  # fmt: skip


@pytest.fixture(name="modules")
def modules_fixture(tmp_path: Path) -> Path:
    """A folder that looks like Kamailio's modules, built for this very Python."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.so").write_bytes(b"\x7fELF libpython3.%d.so.1.0" % sys.version_info[1])
    return folder


@pytest.fixture(name="share")
def share_fixture(tmp_path: Path) -> Path:
    """SQL files."""
    folder = tmp_path / "share/db_sqlite"
    folder.mkdir(parents=True)
    for name in ("standard", "presence"):
        (folder / f"{name}-create.sql").write_text(f"CREATE TABLE {name} (id INTEGER);")
    return folder.parent


def example() -> Config:
    """Return the example's settings."""
    return load_config(EXAMPLE)


def test_our_state_opens_with_the_kek_of_the_service_manager(
    tmp_path: Path, modules: Path, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN §3: none is made beside what it seals; Kamailio's own state has one of its own."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    with opened_state(tmp_path / "first"):
        pass
    (tmp_path / "first" / "kek").rename(credentials / "kek")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    directory, state = tmp_path / "kamailio", tmp_path / "state"
    write_kamailio(example(), state, directory, python=sys.executable, modules=modules, share=share)
    assert not (state / "kek").exists()
    assert (directory / "state" / "kek").read_bytes() != (credentials / "kek").read_bytes()


def test_everything_is_written_and_written_again(tmp_path: Path, modules: Path, share: Path) -> None:
    directory, state = tmp_path / "kamailio", tmp_path / "state"
    done = write_kamailio(example(), state, directory, python=sys.executable, modules=modules, share=share)
    assert (done.hss, done.application_servers, done.rspauth) == ("localhost:3868", ("xcap.home1.net",), True)
    (directory / "local.cfg").write_text("# mine")
    before = (directory / "state/kek").read_bytes()
    write_kamailio(example(), state, directory, python=sys.executable, modules=modules, share=share)
    assert (directory / "state/kek").read_bytes() == before
    assert (directory / "local.cfg").read_text() == "# mine"
    texts = {
        name: (directory / name).read_text() for name in ("scscf.cfg", "beside.cfg", "cdp.xml", "kemi_scscf.py", "README", "kemi.json")
    }
    for name, text in texts.items():
        assert not re.search(r"@[A-Z_]{2,}@", text), name
        assert (directory / name).stat().st_mode & 0o077 == 0
    compile(texts["kemi_scscf.py"], "kemi_scscf.py", "exec")
    assert load_settings(directory / "kemi.json").servers == {"sip:127.0.0.1:5090;transport=tcp": ("xcap.home1.net",)}


def test_the_settings_that_keep_keys_in_are_there(tmp_path: Path, modules: Path, share: Path) -> None:
    """DESIGN §10."""
    write_kamailio(example(), tmp_path / "state", tmp_path / "k", python=sys.executable, modules=modules, share=share)
    text = (tmp_path / "k/scscf.cfg").read_text()
    level = re.search(r"^debug=(-?\d+)$", text, re.MULTILINE)
    assert level
    assert int(level[1]) <= 1
    for module, name, value in (
        ("ims_auth", "ignore_failed_auth", "0"), ("ims_auth", "av_check_only_impu", "0"), ("ims_auth", "registration_qop", '"auth"'),
        ("ims_auth", "add_authinfo_hdr", "1"), ("corex", "nio_intercept", "1"), ("ims_registrar_scscf", "user_data_always", "1"),
        ("debugger", "mod_level", '"ims_isc=-2"'), ("ims_registrar_scscf", "max_expires", "600000"),
    ):  # fmt: skip
        assert f'modparam("{module}", "{name}", {value})' in text
    assert text.index('ims_www_authenticate("$td")') < text.index('python_exec("accepted"') < text.index('save("SAR"')
    assert 'modparam("corex", "nio_msg_avp", "$avp(kf_out)")' in text  # of whatever class: where nothing is decided, what the script holds
    assert (
        text.index('if (!python_exec("passes", ""))') < text.index('python_exec("challenge", "")') < text.index("$avp(fr.kf_out) = 0;\n}")
    )
    assert not re.search(r"\$avp\(kf_out\)[^\n]* = ", text)  # which would take that away, if it were set to $null


def test_what_lies_beside_another_configuration_keeps_keys_in_too(tmp_path: Path, modules: Path, share: Path) -> None:
    """The same settings and the same event routes, and no module that the other file has loaded."""
    write_kamailio(example(), tmp_path / "state", tmp_path / "k", python=sys.executable, modules=modules, share=share)
    whole, beside = ((tmp_path / "k" / name).read_text() for name in ("scscf.cfg", "beside.cfg"))
    kept = re.compile(r'^(?:debug=.*|modparam\("(?:corex|app_python3|ims_auth|debugger)", .*)$', re.MULTILINE)
    own = {
        line for line in kept.findall(whole) if not re.search('"(name|cxdx_dest_realm|registration_default_algorithm|mod_hash_size)"', line)
    }
    assert len(own) > 10
    assert own <= set(kept.findall(beside))
    assert beside.endswith(whole[whole.index("# A third-party REGISTER: the sealed") :])
    loaded = ["app_python3", "rtimer"]
    assert re.findall(r"^loadmodule .*$", beside, re.MULTILINE) == [f'loadmodule "{name}.so"' for name in loaded]
    routes = set(re.findall(r"^route\[(\w+)\]", beside, re.MULTILINE))
    assert routes == {name for name in re.findall(r"route[(=](\w+)", beside)}
    trusted = re.compile(r"^  if \(!\(src_ip == .*$", re.MULTILINE)
    assert trusted.findall(beside) == trusted.findall(whole)


def test_kamailio_gets_the_transport_keys_of_its_own_pairs_and_no_others(tmp_path: Path, modules: Path, share: Path) -> None:
    random = SystemRandom()
    with open_state(tmp_path / "state", random=random) as state:
        ours, other = state.isc_keys("scscf1.home1.net", "xcap.home1.net"), state.isc_keys("scscf2.home1.net", "xcap.home1.net")
    write_kamailio(example(), tmp_path / "state", tmp_path / "k", python=sys.executable, modules=modules, share=share)
    with open_state(tmp_path / "k/state", random=random) as state:
        assert state.isc_keys("scscf1.home1.net", "xcap.home1.net") == ours
        assert state.isc_pairs() == [("scscf1.home1.net", "xcap.home1.net")]
    assert other != ours
    assert (tmp_path / "k/state/kek").read_bytes() != (tmp_path / "state/kek").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_writes_again_what_kamailios_user_reads(tmp_path: Path, modules: Path, share: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # others can reach it, as they can /etc/kamailio
        Path(place).chmod(0o755)
        directory, nobody = Path(place) / "k", 65_534
        for turn in range(2):
            write_kamailio(
                changed(kamailio={"user": str(nobody)})(example()),
                tmp_path / "state",
                directory,
                python=sys.executable,
                modules=modules,
                share=share,
            )
            if turn == 0:
                for path in (directory, *directory.rglob("*")):
                    os.chown(path, nobody, nobody)
        assert {path.stat().st_uid for path in (directory, *directory.rglob("*"))} == {nobody}
    assert os.geteuid() == 0


Change = Callable[[Config], Config]


def changed(**sections: dict[str, object]) -> Change:
    """Return what changes settings of sections."""

    def change(config: Config) -> Config:
        new = {name: msgspec.structs.replace(getattr(config, name), **values) for name, values in sections.items()}
        return msgspec.structs.replace(config, **new)

    return change


def with_servers(*changes: dict[str, object]) -> Change:
    """Return what makes several application servers of the one."""

    def change(config: Config) -> Config:
        servers = [msgspec.structs.replace(config.application_servers[0], **values) for values in changes]
        return msgspec.structs.replace(config, application_servers=servers)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(kamailio={"rspauth_socket": None}), "marker_flags = 3"),
        (changed(hss={"marker_for": []}), 'marker_for = ["scscf1.home1.net"]'),
        (changed(scscf={"listen": "127.0.0.1:0"}), "names no port"),
        (changed(kamailio={"hss": 'x" port="1'}), "cannot carry"),
        (changed(kamailio={"user": "a b"}), "cannot carry"),
        (changed(kamailio={"trusted_peers": ['1" || "1']}), "no IP address"),
        (changed(kamailio={"trusted_peers": ["fe80::1%e || 1"]}), "no IP address"),
        (changed(kamailio={"trusted_peers": []}), "lists nobody"),
        (with_servers({}, {"as_id": "other.home1.net"}), "naf=other.home1.net"),
        (with_servers({"protection": "tls"}), "Use loopback"),
    ],
)
def test_what_could_not_be_held_to_is_refused(tmp_path: Path, modules: Path, share: Path, change: Change, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        write_kamailio(change(example()), tmp_path / "state", tmp_path / "k", python=sys.executable, modules=modules, share=share)


def test_who_may_ask_is_who_is_listed_and_loopback_is_warned_of(tmp_path: Path, modules: Path, share: Path) -> None:
    """CK', IK' of a 401 are the P-CSCF's; any user of a machine can send from its loopback addresses."""
    peers = ["192.0.2.7", "2001:db8::7", "198.51.100.0/24", "2001:db8:1::/48"]
    listed = changed(kamailio={"trusted_peers": peers}, scscf={"trusted_peers": ["::ffff:192.0.2.8"]})
    done = write_kamailio(listed(example()), tmp_path / "s", tmp_path / "k", python=sys.executable, modules=modules, share=share)
    text = (tmp_path / "k/scscf.cfg").read_text()
    prefixes = "src_ip == 198.51.100.0/24 || src_ip == [2001:db8:1::]/48"
    assert f"if (!(src_ip == 192.0.2.7 || src_ip == [2001:db8::7] || {prefixes} || src_ip == 192.0.2.8))" in text
    assert not done.trusts_loopback
    assert "WARNING" not in text
    assert write_kamailio(example(), tmp_path / "s", tmp_path / "k", python=sys.executable, modules=modules, share=share).trusts_loopback
    assert "WARNING: loopback is listed" in (tmp_path / "k/scscf.cfg").read_text()


def test_flags_3_need_no_socket(tmp_path: Path, modules: Path, share: Path) -> None:
    config = changed(kamailio={"rspauth_socket": None}, hss={"marker_flags": 3})(example())
    assert not write_kamailio(config, tmp_path / "s", tmp_path / "k", python=sys.executable, modules=modules, share=share).rspauth


def test_several_servers_at_one_place_are_told_apart_by_naf(tmp_path: Path, modules: Path, share: Path) -> None:
    both = with_servers({"service_info": "naf=xcap.home1.net"}, {"as_id": "other.home1.net", "service_info": "naf=other.home1.net"})
    done = write_kamailio(both(example()), tmp_path / "s", tmp_path / "k", python=sys.executable, modules=modules, share=share)
    assert done.application_servers == ("other.home1.net", "xcap.home1.net")


def test_what_is_missing_is_said_with_what_to_install(tmp_path: Path, modules: Path, share: Path) -> None:
    (modules / "ims_isc.so").unlink()
    with pytest.raises(ConfigError, match=r"ims_isc\.so.*apt install"):
        write_kamailio(example(), tmp_path / "state", tmp_path / "k", python=sys.executable, modules=modules, share=share)


def test_tables_that_are_missing_are_said_too(tmp_path: Path, modules: Path) -> None:
    with pytest.raises(ConfigError, match="apt install"):
        write_kamailio(example(), tmp_path / "state", tmp_path / "k", python=sys.executable, modules=modules, share=tmp_path)
    assert not (tmp_path / "k/kamailio.db").exists()


def test_a_python_of_another_version_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python3\.4 -m venv .*pip install 'keyferry\[kemi\]'"):
        find_python((3, 4), None, tmp_path)
    with pytest.raises(ConfigError):
        find_python((3, 4), sys.executable, tmp_path)
    assert find_python(sys.version_info[:2], sys.executable, tmp_path).executable == sys.executable


def test_a_python_is_found_from_where_the_operator_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the guide has it: `keyferry kamailio kamailio`, beside kamailio/venv."""
    program = tmp_path / "kamailio/venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho '[[3, 4], []]'\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert find_python((3, 4), None, Path("kamailio")).executable == str(program)
    assert find_python((3, 4), "kamailio/venv/bin/python", Path("elsewhere")).executable == str(program)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")
def test_root_runs_no_python_of_kamailios_user_but_as_that_user(tmp_path: Path) -> None:
    """DIR/venv is that user's, who could put any program there."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # below tmp_path nobody but root may look
    try:
        directory.chmod(0o755)
        program = directory / "venv/bin/python"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\nid -u > {directory}/who; id -G >> {directory}/who\necho '[[3, 4], []]'\n")
        program.chmod(0o755)
        nobody = pwd.getpwnam("nobody")
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        assert find_python((3, 4), None, directory).executable == str(program)
        assert (directory / "who").read_text().split() == [str(nobody.pw_uid), str(nobody.pw_gid)]
    finally:
        shutil.rmtree(directory)
