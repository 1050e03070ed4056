# SPDX-License-Identifier: Apache-2.0
"""Write the configuration of a Kamailio that is the S-CSCF (DESIGN §10): its file, cdp's, the script, what the script needs to know."""

from __future__ import annotations

import contextlib
import importlib.resources
import ipaddress
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import keyferry
from keyferry.config import Config, split_address
from keyferry.errors import ConfigError, StateError
from keyferry.kemi.settings import KemiSettings, build_settings
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims.user_profile import naf_of
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.protection import opened_state
from keyferry.wiring.services import server_name_of

MODULES: Final = (
    Path("/usr/lib/x86_64-linux-gnu/kamailio/modules"),
    Path("/usr/lib64/kamailio/modules"),
    Path("/usr/lib/kamailio/modules"),
)
"""Where packages put Kamailio's modules; Debian's other architectures are found by their pattern."""
SHARE: Final = Path("/usr/share/kamailio")
FILES: Final = ("scscf.cfg", "cdp.xml", "kemi_scscf.py.in", "README")
_NEEDED: Final = tuple(
    f"{name}.so"
    for name in ("app_python3", "cdp", "ims_auth", "ims_isc", "ims_registrar_scscf", "ims_usrloc_scscf", "presence", "db_sqlite")
)
_PACKAGES: Final = "apt install kamailio kamailio-ims-modules kamailio-python3-modules kamailio-presence-modules kamailio-sqlite-modules"
_LIBPYTHON: Final = re.compile(rb"libpython3\.(\d+)")
_PLACE: Final = re.compile(r"@([A-Z_]+)@")
_WORD: Final = re.compile(r"[A-Za-z0-9._:/@;=\[\]+~-]*")
_PROBE: Final = "import json, sys, cryptography; print(json.dumps([sys.version_info[:2], [p for p in sys.path if p]]))"
_DEFAULT_EXPIRES: Final = 3600
SHM_MARGIN: Final = 4_194_304
"""Octets of shared memory that must be free for a registration to begin. One takes some 25,000; Kamailio looks once a second."""
_LOCAL: Final = """
  # WARNING: loopback is listed, so every process of this machine is taken for a P-CSCF (docs/kamailio.md, "Who may ask")"""


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
    interpreter = find_python(installed.python, python, directory)
    directory = directory.absolute()
    _check_flags(config)
    servers = servers_of(config)
    _make(directory)
    values = _values(config, directory, installed, interpreter, log_stderror=log_stderror)
    settings = KemiSettings(
        directory / "state", config.scscf.name, config.network.home_domain, servers, config.scscf.max_expires, config.scscf.key_max_age,
        _socket_of(config),
    )  # fmt: skip
    texts = {name.removesuffix(".in"): fill(name, values) for name in FILES} | {"kemi.json": build_settings(settings)}
    keys = _shared_keys(config.scscf.name, servers, state_path)
    with _as_owner(directory):
        _give_keys(config.scscf.name, keys, settings.state)
        _make_tables(directory / "kamailio.db", installed.share / "db_sqlite")
        for name, text in texts.items():
            _write(directory / name, text)
    version = f"{installed.python[0]}.{installed.python[1]}"
    as_ids = tuple(sorted(as_id for as_ids in servers.values() for as_id in as_ids))
    hss = f"{values['HSS']}:{values['HSS_PORT']}"
    local = any(each.is_loopback for each in trusted_peers(config))
    return Written(directory, interpreter.executable, version, hss, as_ids, bool(settings.rspauth), local)


def find_kamailio(modules: Path | None, share: Path) -> Installed:
    """Find the modules, and which Python app_python3 embeds. Raises ConfigError that says what to install."""
    places = [modules] if modules else [*MODULES, *Path("/usr/lib").glob("*-linux-gnu*/kamailio/modules")]
    found = next((place for place in places if (place / "tm.so").exists()), None)
    missing = [name for name in _NEEDED if found is None or not (found / name).exists()]
    if found is None or missing:
        raise ConfigError(str(found or places[0]), f"has no {', '.join(missing)}", f"Install Kamailio's modules: {_PACKAGES}")
    version = _LIBPYTHON.search((found / "app_python3.so").read_bytes())
    if version is None:
        raise ConfigError(str(found / "app_python3.so"), "does not say which Python it embeds", "Use Debian's package")
    return Installed(found, share, (3, int(version[1])))


def find_python(version: tuple[int, int], wanted: str | None, directory: Path) -> Interpreter:
    """Find a Python of this very version that has `cryptography`: the one wanted, DIR/venv, this one, or the system's.

    Raises ConfigError that says how to make one: compiled modules of another version cannot be imported by Kamailio's.
    """
    name = f"python{version[0]}.{version[1]}"
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


def fill(name: str, values: Mapping[str, str]) -> str:
    """Return a template with its places filled."""
    text = (importlib.resources.files("keyferry.kemi") / "templates" / name).read_text("utf-8")

    def value(match: re.Match[str]) -> str:
        return values[match[1]]

    return _PLACE.sub(value, text)


def _values(config: Config, directory: Path, installed: Installed, interpreter: Interpreter, *, log_stderror: bool) -> dict[str, str]:
    scscf, kamailio, realm = config.scscf, config.kamailio, config.network.home_domain
    host, port = split_address(scscf.listen, "scscf.listen")
    if port == 0:
        raise ConfigError("scscf.listen", "names no port, and Kamailio needs one", 'Write "127.0.0.1:6060"')
    hss_port = kamailio.hss_port or _hss_port(config)
    trusted = trusted_peers(config)
    words = {
        "DIR": str(directory), "MODULES": f"{installed.modules}/", "REALM": realm, "NAME": scscf.name, "NAME_PORT": f"{scscf.name}:{port}",
        "SERVER_NAME": server_name_of(scscf), "HSS": kamailio.hss or config.hss.name, "HSS_PORT": str(hss_port), "USER": kamailio.user,
        "PYTHON": interpreter.executable, "VERSION": "5.6",
    }  # fmt: skip
    for name, word in words.items():
        if not _WORD.fullmatch(word):
            raise ConfigError(name.lower(), f"{word!r} has a character that Kamailio's file cannot carry", "Use letters, digits, . - _ /")
    socket = _socket_of(config)
    return words | {
        "LOG_STDERROR": "yes" if log_stderror else "no",
        "CHILDREN": str(kamailio.children),
        "LISTEN": "\n".join(f"listen={proto}:{_bracketed(host)}:{port}" for proto in ("udp", "tcp")),
        "TRUSTED": " || ".join(f"src_ip == {_bracketed(str(each))}" for each in trusted),
        "LOCAL": _LOCAL if any(each.is_loopback for each in trusted) else "",
        "SHM_MARGIN": str(SHM_MARGIN),
        "DEFAULT_EXPIRES": str(min(_DEFAULT_EXPIRES, scscf.max_expires)),
        "MIN_EXPIRES": str(scscf.min_expires),
        "MAX_EXPIRES": str(scscf.max_expires),
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


def _hss_port(config: Config) -> int:
    listen = config.hss.listen_diameter
    return split_address(listen, "hss.listen_diameter")[1] if listen else 3868


def trusted_peers(config: Config) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the addresses that may send Kamailio requests: what is listed, and no other. Raises ConfigError."""
    texts = config.kamailio.trusted_peers + config.scscf.trusted_peers
    if not texts:
        remedy = 'Write the addresses of the P- and I-CSCFs; ["127.0.0.1"] trusts every process of this machine'
        raise ConfigError("kamailio.trusted_peers", "lists nobody, so Kamailio would answer nobody", remedy)
    try:
        if any("%" in text for text in texts):
            raise ValueError("a zone goes with an interface, and Kamailio knows none")
        return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]
    except ValueError as problem:
        raise ConfigError("kamailio.trusted_peers", f"holds what is no IP address: {problem}", 'Write for example "192.0.2.7"') from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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


@contextlib.contextmanager
def _as_owner(directory: Path) -> Iterator[None]:
    """Write as the user whom the directory was given to: root runs this again, and Kamailio still reads what is there."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


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


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise StateError(str(directory), f"cannot be made: {problem.strerror}", "Choose another directory") from problem


def _write(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w", encoding="utf-8") as opened:
            opened.write(text)
        new.replace(file)
    except OSError as problem:
        raise StateError(str(file), f"cannot be written: {problem.strerror}", "Choose another directory") from problem
