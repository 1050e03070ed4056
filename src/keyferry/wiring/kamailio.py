# SPDX-License-Identifier: Apache-2.0
"""Write the configuration of a Kamailio that is the S-CSCF (DESIGN §10): its file, cdp's, the script, what the script needs to know."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import keyferry
from keyferry.config import Config, split_address
from keyferry.errors import ConfigError
from keyferry.kemi.settings import KemiSettings, build_settings
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims.user_profile import naf_of
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.kamailio_files import (
    as_owner,
    check_folder,
    checked_words,
    common_values,
    fill,
    find_modules,
    make_folder,
    trusted_peers,
    write_file,
)
from keyferry.wiring.protection import opened_state
from keyferry.wiring.services import server_name_of

SHARE: Final = Path("/usr/share/kamailio")
FILES: Final = ("scscf.cfg", "beside.cfg", "cdp.xml", "kemi_scscf.py.in", "README")
_NEEDED: Final = tuple(
    f"{name}.so"
    for name in ("app_python3", "cdp", "ims_auth", "ims_isc", "ims_registrar_scscf", "ims_usrloc_scscf", "presence", "db_sqlite")
)
_PACKAGES: Final = "apt install kamailio kamailio-ims-modules kamailio-python3-modules kamailio-presence-modules kamailio-sqlite-modules"
_LIBPYTHON: Final = re.compile(rb"libpython3\.(\d+)")
_PROBE: Final = "import json, sys, cryptography; print(json.dumps([sys.version_info[:2], [p for p in sys.path if p]]))"
_DEFAULT_EXPIRES: Final = 3600


class Installed(NamedTuple):
    """What is here of Kamailio."""

    modules: Path
    share: Path
    python: tuple[int, int]  # that its app_python3 embeds


class Interpreter(NamedTuple):
    """A Python whose packages Kamailio's can import."""

    executable: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    directory: Path
    python: str
    python_version: str
    hss: str
    application_servers: tuple[str, ...]
    rspauth: bool
    trusts_loopback: bool  # whoever runs something on this machine is taken for a P-CSCF


def write_kamailio(
    config: Config, state_path: Path, directory: Path, *, python: str | None = None, modules: Path | None = None, share: Path = SHARE,
    log_stderror: bool = False,
) -> Written:  # fmt: skip
    """Write or rewrite everything in `directory`; transport keys come from, or are made in, the state directory of the application servers.

    What is there already of state, local.cfg and calls.cfg stays. Raises ConfigError, StateError.
    """
    installed = find_kamailio(modules, share)
    directory = directory.absolute()
    check_folder(directory, config.kamailio.user)  # before anything in it is run
    interpreter = find_python(installed.python, python, directory)
    _check_flags(config)
    servers = servers_of(config)
    make_folder(directory, config.kamailio.user)
    values = _values(config, directory, installed, interpreter, log_stderror=log_stderror)
    settings = KemiSettings(
        directory / "state", config.scscf.name, config.network.home_domain, servers, config.scscf.max_expires, config.scscf.key_max_age,
        _socket_of(config),
    )  # fmt: skip
    texts = {name.removesuffix(".in"): fill(name, values) for name in FILES} | {"kemi.json": build_settings(settings)}
    keys = _shared_keys(config.scscf.name, servers, state_path)
    with as_owner(directory):
        _give_keys(config.scscf.name, keys, settings.state)
        _make_tables(directory / "kamailio.db", installed.share / "db_sqlite")
        for name, text in texts.items():
            write_file(directory / name, text)
    version = f"{installed.python[0]}.{installed.python[1]}"
    as_ids = tuple(sorted(as_id for as_ids in servers.values() for as_id in as_ids))
    hss = f"{values['HSS']}:{values['HSS_PORT']}"
    local = any(each.is_loopback for each in trusted_peers(config, "scscf"))
    return Written(directory, interpreter.executable, version, hss, as_ids, bool(settings.rspauth), local)


def find_kamailio(modules: Path | None, share: Path) -> Installed:
    """Find the modules, and which Python app_python3 embeds. Raises ConfigError that says what to install."""
    found = find_modules(modules, _NEEDED, _PACKAGES)
    version = _LIBPYTHON.search((found / "app_python3.so").read_bytes())
    if version is None:
        raise ConfigError(str(found / "app_python3.so"), "does not say which Python it embeds", "Use Debian's package")
    return Installed(found, share, (3, int(version[1])))


def find_python(version: tuple[int, int], wanted: str | None, directory: Path) -> Interpreter:
    """Find a Python of this very version that has `cryptography`: the one wanted, DIR/venv, this one, or the system's.

    Raises ConfigError that says how to make one: compiled modules of another version cannot be imported by Kamailio's.
    """
    name = f"python{version[0]}.{version[1]}"
    directory = directory.absolute()  # interpreters are asked in another working directory
    if wanted and "/" in wanted:
        wanted = str(Path(wanted).absolute())
    places = [wanted] if wanted else [str(directory / "venv/bin/python"), sys.executable, shutil.which(name) or ""]
    for place in places:
        found = _probe(place, None if wanted else directory) if place else None
        if found is not None and found[0] == version:
            return Interpreter(place, _import_paths(found[1]))
    venv = directory / "venv"
    raise ConfigError(
        wanted or name,
        f"is no Python {version[0]}.{version[1]} with `cryptography`, and Kamailio's app_python3 embeds that version",
        f"Make one and run this again: {name} -m venv {venv} && {venv}/bin/pip install 'keyferry[kemi]'",
    )


def servers_of(config: Config) -> dict[str, tuple[AsId, ...]]:
    """Return which AS_IDs get keys at which ServerName. Raises ConfigError where ims_isc could serve but one of several."""
    servers: dict[str, tuple[AsId, ...]] = {}
    for place, server in enumerate(config.application_servers):
        where, as_id = f"application_servers[{place}]", parse_as_id(server.as_id)
        if str(server.protection) != "loopback":
            problem = f"the policy `{server.protection}` is not one that Kamailio can hold to: it checks no peer before each transmission"
            raise ConfigError(where, problem, "Use loopback, and let IPsec protect what leaves the machine")
        others = servers.get(server.sip_uri, ())
        if others and naf_of(server.service_info) != (as_id,):
            remedy = f'Set service_info = "naf={as_id}" in each application server of this sip_uri, or give it one of its own'
            raise ConfigError(where, f"has the sip_uri of {others[0]}, and one third-party REGISTER of Kamailio's carries one key", remedy)
        servers[server.sip_uri] = (*others, as_id)
    return servers


def _values(config: Config, directory: Path, installed: Installed, interpreter: Interpreter, *, log_stderror: bool) -> dict[str, str]:
    scscf = config.scscf
    port = split_address(scscf.listen, "scscf.listen")[1]
    words = {
        "NAME_PORT": f"{scscf.name}:{port}", "SERVER_NAME": server_name_of(scscf), "PYTHON": interpreter.executable,
    }  # fmt: skip
    common = common_values(config, "scscf", directory, installed.modules, log_stderror=log_stderror) | checked_words(words)
    socket = _socket_of(config)
    return common | {
        "DEFAULT_EXPIRES": str(min(_DEFAULT_EXPIRES, scscf.max_expires)),
        "MIN_EXPIRES": str(scscf.min_expires),
        "MAX_EXPIRES": str(scscf.max_expires),
        "EVENTS": fill("events.cfg", {}) + fill("ended.cfg", {}),
        "PATHS": json.dumps(list(interpreter.paths)),
        "SETTINGS": json.dumps(str(directory / "kemi.json")),
        "RSPAUTH": f"; it listens at {socket} for questions of rspauth" if socket else "; marker_flags = 3, without rspauth",
    }


def _socket_of(config: Config) -> str:
    """Return where rspauth is asked for, from here as `serve` sees it: Kamailio has another working directory."""
    socket = config.kamailio.rspauth_socket
    return "" if socket is None else str(Path(socket).absolute())


def _check_flags(config: Config) -> None:
    """Say no where the marker would promise what the 200s do not hold, or the HSS would give none."""
    if config.hss.marker_flags == 7 and config.kamailio.rspauth_socket is None:
        remedy = 'Set kamailio.rspauth_socket = "/run/keyferry/rspauth.sock", or hss.marker_flags = 3 (docs/kamailio.md says what is lost)'
        raise ConfigError("kamailio.rspauth_socket", "is not set, and flags 7 promise rspauth, which Kamailio 5.6.3 loses", remedy)
    if config.scscf.name not in config.hss.marker_for:
        remedy = f'Set hss.marker_for = ["{config.scscf.name}"]'
        raise ConfigError("hss.marker_for", f"does not name {config.scscf.name}, so no nonce would carry a marker", remedy)


def _probe(python: str, directory: Path | None) -> tuple[tuple[int, int], list[str]] | None:
    """Ask an interpreter as whoever DIR was given to: root runs nothing that Kamailio's user could have put there."""
    owner = directory.stat() if directory is not None and directory.exists() else None
    given = owner is not None and os.geteuid() == 0 and owner.st_uid != 0
    try:
        said = subprocess.run(  # noqa: S603 - an interpreter that the operator names, or this one
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=20, check=True, cwd="/",
            user=owner.st_uid if owner and given else None, group=owner.st_gid if owner and given else None,
            extra_groups=[] if given else None,
        ).stdout  # fmt: skip
        (major, minor), paths = json.loads(said)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (int(major), int(minor)), [str(path) for path in paths]


def _import_paths(paths: list[str]) -> tuple[str, ...]:
    """Return where `cryptography` and keyferry are; not the standard library, of which Kamailio's Python has its own."""
    ours = str(Path(keyferry.__file__).resolve().parents[1])
    return tuple(dict.fromkeys([ours, *(path for path in paths if path.endswith(("site-packages", "dist-packages")))]))


def _shared_keys(scscf: str, servers: Mapping[str, tuple[AsId, ...]], source: Path) -> dict[AsId, dict[str, Secret]]:
    """Return the transport keys of Kamailio's pairs alone, made where they are not."""
    with opened_state(source) as state:
        return {as_id: state.isc_keys(scscf, as_id) for as_ids in servers.values() for as_id in as_ids}


def _give_keys(scscf: str, keys: Mapping[AsId, Mapping[str, Secret]], target: Path) -> None:
    """Put them into a state directory of Kamailio's own, with a KEK of its own."""
    with open_state(target, random=SystemRandom()) as state:
        for as_id, found in keys.items():
            state.write_isc_keys(scscf, as_id, found)


def _make_tables(file: Path, sql: Path) -> None:
    """Make the tables that presence, which ims_usrloc_scscf needs, looks for."""
    if file.exists():
        return
    try:
        scripts = [(sql / f"{name}-create.sql").read_text("utf-8") for name in ("standard", "presence")]
        with contextlib.closing(sqlite3.connect(file)) as connection:
            for script in scripts:
                connection.executescript(script)
        file.chmod(0o600)
    except (OSError, sqlite3.Error) as problem:
        file.unlink(missing_ok=True)
        raise ConfigError(str(sql), f"holds no tables for Kamailio: {problem}", f"Install them: {_PACKAGES}") from problem
