# SPDX-License-Identifier: Apache-2.0
"""Look whether what `keyferry kamailio` wrote works on this machine, as Kamailio's user and inside Kamailio's own Python, if it has one."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from keyferry.config import Config
from keyferry.errors import ConfigError
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.wiring.kamailio import servers_of
from keyferry.wiring.kamailio_files import Role, check_folder, common_values
from keyferry.wiring.kamailio_icscf import at_host, scscfs_of
from keyferry.wiring.kamailio_pcscf import icscf_of

PATIENCE: Final = 20.0
"""Seconds for Kamailio to load two modules."""
_CONNECT: Final = 2.0  # seconds
_TABLES: Final = ("icscf/s_cscf", "icscf/s_cscf_capabilities", "icscf/nds_trusted_domains")
_FILES: Final[Mapping[Role, tuple[str, ...]]] = {
    "scscf": ("scscf.cfg", "cdp.xml", "kemi_scscf.py", "kemi.json"),
    "icscf": ("icscf.cfg", "icscf_cdp.xml", *_TABLES),
    "pcscf": ("pcscf.cfg",),
}
_OWN: Final[Mapping[Role, str]] = {"scscf": "local.cfg or calls.cfg", "icscf": "icscf-local.cfg", "pcscf": "pcscf-local.cfg"}
_SAYS: Final = "keyferry-check "
_MPATH: Final = re.compile(r'^mpath="([^"]+)"$', re.MULTILINE)
_CONFIG: Final = """#!KAMAILIO
debug=0
log_stderror=yes
children=1
listen=udp:127.0.0.1:9
mpath="{mpath}"
loadmodule "pv.so"
loadmodule "app_python3.so"
modparam("app_python3", "load", "{probe}")
request_route {{ exit; }}
"""
_PROBE: Final = """import importlib.util, json, os, sys
sys.dont_write_bytecode = True


def mod_init():
    try:
        spec = importlib.util.spec_from_file_location("kemi_scscf", {script})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.mod_init().check()
    except BaseException as problem:
        found = {{"script": f"{{type(problem).__name__}}: {{problem}}"}}
    os.write(2, ("\\n" + {says} + json.dumps(found) + "\\n").encode())
    os._exit(0)
"""
SERVE_HSS: Final = "keyferry serve --role hss"
_REMEDIES: Final = {
    "script": "Write everything again: keyferry kamailio; where a package is missing, make DIR/venv as its message says",
    "state": "Everything in DIR belongs to Kamailio's user: chown -R; or write it again: keyferry kamailio",
    "rspauth": f"Start the HSS ({SERVE_HSS}), and see that kamailio.user and rspauth_group are Kamailio's",
}


class Checked(NamedTuple):
    """One thing that must work."""

    what: str
    problem: str  # "" if it works
    remedy: str


def check_kamailio(config: Config, directory: Path, role: Role = "scscf") -> list[Checked]:
    """Look at everything of a role, and go on after what does not work.

    Raises ConfigError, and StateError where others could have put there what is run.
    """
    directory = directory.absolute()
    check_folder(directory, config.kamailio.user)
    missing = [name for name in _FILES[role] if not (directory / name).exists()]
    if missing:
        again = "without --check" if role == "scscf" else f"--role {role}, without --check"
        return [Checked("files", f"{directory} has no {', '.join(missing)}", f"Write them: keyferry kamailio {again}")]
    program = shutil.which("kamailio", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return [Checked("files", "", ""), *_of_kamailio(program, directory, role), *_of_neighbours(config, directory, role)]


def _of_kamailio(program: str | None, directory: Path, role: Role) -> Iterator[Checked]:
    if program is None:
        yield Checked("kamailio", "it is not installed here", "Run this on Kamailio's machine, or: apt install kamailio")
        return
    done = _run([program, "-c", "-f", str(directory / f"{role}.cfg")], directory)
    bad = [line for line in done.stderr.splitlines() if "ERROR" in line or "CRITICAL" in line]
    problem = "" if done.returncode == 0 else " ".join(bad)[-400:] or f"kamailio -c ended with {done.returncode}"
    yield Checked("kamailio -c", problem, f"Install what is missing, or mend {_OWN[role]}")
    found = _inside(program, directory) if role == "scscf" else {}
    for what in ("script", "state", "rspauth"):
        if what in found:
            yield Checked(what, str(found[what]), _REMEDIES[what])


def _inside(program: str, directory: Path) -> dict[str, Any]:
    """Load the script that was written in a Kamailio of its own, which ends before it serves anybody."""
    mpath = _MPATH.search((directory / "scscf.cfg").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)  # nothing secret is in it, and Kamailio's user reads it
        probe = _PROBE.format(script=json.dumps(str(directory / "kemi_scscf.py")), says=json.dumps(_SAYS))
        (folder / "kemi_probe.py").write_text(probe, "utf-8")
        text = _CONFIG.format(mpath=mpath[1] if mpath else "", probe=folder / "kemi_probe.py")
        (folder / "probe.cfg").write_text(text, "utf-8")
        done = _run([program, "-DD", "-E", "-m", "8", "-M", "8", "-w", "/", "-f", str(folder / "probe.cfg")], directory)
    for line in done.stderr.splitlines():
        if line.startswith(_SAYS):
            found = json.loads(line.removeprefix(_SAYS))
            return {"script": ""} | found if isinstance(found, dict) else {}
    return {"script": f"Kamailio does not load it: {done.stderr[-300:].strip()}"}


def _of_neighbours(config: Config, directory: Path, role: Role) -> Iterator[Checked]:
    names = _names(directory)
    if role != "pcscf":
        values = common_values(config, role, directory, directory, log_stderror=False)
        hss = values["HSS"], int(values["HSS_PORT"])
        remedy = f"{hss[0]} must resolve here, and hss.listen_diameter be served there: {SERVE_HSS}"
        yield Checked("HSS", _at(hss, _connect(*hss)), f"{remedy}. {names}")
    for what, uri, place, setting in _next_hops(config, role):
        yield Checked(f"{what} {uri}", _reached(place), f"The host in {setting} must resolve here, and the server listen there. {names}")


def _next_hops(config: Config, role: Role) -> Iterator[tuple[str, str, str, str]]:
    """Return to whom SIP is sent: what it is, its SIP URI, that with its address of the hosts table, the setting."""
    if role == "scscf":
        yield from (("application server", server, server, "sip_uri") for server in servers_of(config))
    elif role == "icscf":
        yield from (("S-CSCF", uri, at_host(config, uri), "icscf.scscf, scscf.name or [hosts]") for uri in scscfs_of(config))
    else:
        yield "I-CSCF", config.pcscf.icscf, icscf_of(config), "pcscf.icscf or [hosts]"


def _reached(place: str) -> str:
    """Connect where it is TCP; over UDP nobody says that he is there."""
    uri = parse_sip_uri(place)
    return _connect(uri.host, uri.port or 5060) if (uri.parameter("transport") or "").lower() == "tcp" else _resolve(uri.host.strip("[]"))


def _names(directory: Path) -> str:
    """Say where Kamailio gets names: one of `keyferry lab up` from a file of its own, which nobody else sees."""
    own = directory.parent / "hosts"
    if own.is_file():
        return (
            f"The Kamailio of a lab has {own} as /etc/hosts: in its namespace, sh -c 'mount --bind {own} /etc/hosts && keyferry kamailio …'"
        )
    return "Kamailio asks /etc/hosts and DNS, never [hosts]"


def _at(where: tuple[str, int], problem: str) -> str:
    return f"{where[0]}:{where[1]}: {problem}" if problem else ""


def _resolve(host: str) -> str:
    return _tried(lambda: socket.getaddrinfo(host, None))


def _connect(host: str, port: int) -> str:
    return _tried(lambda: socket.create_connection((host.strip("[]"), port), _CONNECT).close())


def _tried(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as problem:
        return problem.strerror or str(problem)
    return ""


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run something as whom DIR belongs to. Raises ConfigError where it does not end."""
    owner = directory.stat()
    given: dict[str, Any] = {"env": {"PATH": os.environ.get("PATH", "")}}  # a service has no PYTHONPATH of whoever types this
    if os.geteuid() == 0 and owner.st_uid != 0:
        given |= {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": _groups(owner.st_uid, owner.st_gid)}
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False, cwd="/", **given)  # noqa: S603
    except subprocess.TimeoutExpired as problem:
        raise ConfigError(command[0], f"did not end within {PATIENCE:g} s", "Run it by hand: kamailio -c") from problem


def _groups(user: int, group: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:
        return []
