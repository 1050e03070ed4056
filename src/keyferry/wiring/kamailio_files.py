# SPDX-License-Identifier: Apache-2.0
"""What the configurations of a Kamailio have in common: its modules, templates and their values, how files are written."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from keyferry.config import Config, Icscf, Pcscf, Scscf, split_address
from keyferry.errors import ConfigError, StateError
from keyferry.protocol.trusted import Address, Network, parse_trusted
from keyferry.transports.unix_socket import user_id

MODULES: Final = (
    Path("/usr/lib/x86_64-linux-gnu/kamailio/modules"),
    Path("/usr/lib64/kamailio/modules"),
    Path("/usr/lib/kamailio/modules"),
)
"""Where packages put Kamailio's modules; Debian's other architectures are found by their pattern."""
Role = Literal["scscf", "icscf", "pcscf"]
_LOCAL: Final = """
  # WARNING: loopback is listed, so every process of this machine is taken for a P-CSCF (docs/kamailio.md, "Who may ask")"""
_PLACE: Final = re.compile(r"@([A-Z_]+)@")
_WORD: Final = re.compile(r"[A-Za-z0-9._:/@;=\[\]+~-]*")


def find_modules(modules: Path | None, needed: Sequence[str], packages: str) -> Path:
    """Find Kamailio's modules. Raises ConfigError that says what to install."""
    places = [modules] if modules else [*MODULES, *Path("/usr/lib").glob("*-linux-gnu*/kamailio/modules")]
    found = next((place for place in places if (place / "tm.so").exists()), None)
    missing = [name for name in needed if found is None or not (found / name).exists()]
    if found is None or missing:
        raise ConfigError(str(found or places[0]), f"has no {', '.join(missing)}", f"Install Kamailio's modules: {packages}")
    return found


def fill(name: str, values: Mapping[str, str]) -> str:
    """Return a template with its places filled."""
    text = (importlib.resources.files("keyferry.kemi") / "templates" / name).read_text("utf-8")

    def value(match: re.Match[str]) -> str:
        return values[match[1]]

    return _PLACE.sub(value, text)


def common_values(config: Config, role: Role, directory: Path, modules: Path, *, log_stderror: bool) -> dict[str, str]:
    """Return what every template has places for. Raises ConfigError."""
    sections: dict[Role, Scscf | Icscf | Pcscf] = {"scscf": config.scscf, "icscf": config.icscf, "pcscf": config.pcscf}
    section, kamailio = sections[role], config.kamailio
    host, port = split_address(section.listen, f"{role}.listen")
    if port == 0:
        raise ConfigError(f"{role}.listen", "names no port, and Kamailio needs one", 'Write for example "127.0.0.1:6060"')
    words = {
        "DIR": str(directory), "MODULES": f"{modules}/", "REALM": config.network.home_domain, "NAME": section.name, "USER": kamailio.user,
        "HSS": kamailio.hss or config.hss.name, "HSS_PORT": str(kamailio.hss_port or _hss_port(config)), "VERSION": "5.6",
    }  # fmt: skip
    trusted = [] if role == "pcscf" else trusted_peers(config, role)  # UEs come from anywhere
    return checked_words(words) | {
        "LOG_STDERROR": "yes" if log_stderror else "no",
        "CHILDREN": str(kamailio.children),
        "LISTEN": "\n".join(f"listen={proto}:{bracketed(host)}:{port}" for proto in ("udp", "tcp")),
        "TRUSTED": " || ".join(f"src_ip == {_written(each)}" for each in trusted),
        "LOCAL": _LOCAL if any(each.is_loopback for each in trusted) else "",
    }


def checked_words(words: Mapping[str, str]) -> dict[str, str]:
    """Return them, if each is a word that means nothing in Kamailio's file but itself. Raises ConfigError."""
    for name, word in words.items():
        if not _WORD.fullmatch(word):
            raise ConfigError(name.lower(), f"{word!r} has a character that Kamailio's file cannot carry", "Use letters, digits, . - _ /")
    return dict(words)


def bracketed(host: str) -> str:
    """Return a host as a SIP URI has it."""
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Write as the user whom the directory was given to: root runs this again, and Kamailio still reads what is there."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def make_folder(directory: Path, user: str) -> None:
    """Make a folder that its owner alone may enter, if it is not there. Raises StateError, as `check_folder` does, too."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise StateError(str(directory), f"cannot be made: {problem.strerror}", "Choose another directory") from problem
    check_folder(directory, user)


def check_folder(directory: Path, user: str) -> None:
    """Refuse a folder that others than root, us and Kamailio's `user` could change: they would have the transport keys in it.

    And they would say what runs, here and in Kamailio: DIR/venv, the script. Raises StateError.
    """
    try:
        status = directory.stat()
        owners = {status.st_uid, directory.lstat().st_uid}  # a link, too, is its owner's
    except FileNotFoundError:
        return
    except OSError as problem:
        raise StateError(str(directory), f"cannot be read: {problem.strerror}", "Choose another directory") from problem
    strangers = owners - {0, os.geteuid(), number_of(user)}
    if strangers:
        remedy = f"Choose another directory, or run: chown {user} {directory}"
        raise StateError(str(directory), f"belongs to the user {min(strangers)}, who is not kamailio.user", remedy)
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise StateError(str(directory), "may be written to by other users", f"Run: chmod go-w {directory}")


def number_of(user: str) -> int | None:
    """Return the number of a user, None where there is none, as on a machine on which Kamailio is not to run."""
    try:
        return user_id(user)
    except StateError:
        return None


def write_file(file: Path, text: str) -> None:
    """Write a file that its owner alone may read, as a whole or not at all. Raises StateError."""
    new = file.with_name(f"{file.name}.new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w", encoding="utf-8") as opened:
            opened.write(text)
        new.replace(file)
    except OSError as problem:
        raise StateError(str(file), f"cannot be written: {problem.strerror}", "Choose another directory") from problem


def _hss_port(config: Config) -> int:
    listen = config.hss.listen_diameter
    return split_address(listen, "hss.listen_diameter")[1] if listen else 3868


def _written(peer: Address | Network) -> str:
    """Return an address, or a prefix, as Kamailio's file has it."""
    address, slash, length = str(peer).partition("/")
    return f"{bracketed(address)}{slash}{length}"


def trusted_peers(config: Config, role: Role) -> list[Address | Network]:
    """Return the addresses and prefixes that may send Kamailio requests: what is listed, and no other. Raises ConfigError."""
    before, section = ("the P- and I-CSCFs", config.scscf) if role == "scscf" else ("the P-CSCFs", config.icscf)
    texts = config.kamailio.trusted_peers + section.trusted_peers
    if not texts:
        remedy = f'Write the addresses of {before}; ["127.0.0.1"] trusts every process of this machine'
        raise ConfigError("kamailio.trusted_peers", "lists nobody, so Kamailio would answer nobody", remedy)
    try:
        if any("%" in text for text in texts):
            raise ValueError("a zone goes with an interface, and Kamailio knows none")
        # of an IPv4 address written as one of IPv6 Kamailio's file cannot be read, and it comes as what it is
        return list(dict.fromkeys(parse_trusted(text) for text in texts))
    except ValueError as problem:
        raise ConfigError("kamailio.trusted_peers", f"holds what is no IP address: {problem}", 'Write for example "192.0.2.7"') from None
