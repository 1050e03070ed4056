# SPDX-License-Identifier: Apache-2.0
"""What `keyferry proxy` has in common with each server behind it, and with nginx: a secret each, good for nothing else (TS 33.222 §6)."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from keyferry.client.upstream import Address
from keyferry.errors import ConfigError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId

MAX_SECRET_FILE = 1_024
"""Octets."""
BEHIND = "--secret-file"
ENDPOINT = "--auth-request-secret-file"

_SECRET = re.compile(r"[\x21-\x7e]{16,256}")
_NAMED = re.compile(r"([^/=]*)=(.*)", re.DOTALL)  # a path has a slash before its "=", or is written ./a=b


class ProxySecrets(NamedTuple):
    """Each opens one door alone."""

    behind: Mapping[AsId, Secret]  # what the server of a name sees
    nginx: Secret | None  # what nginx must show


def parse_secret_files(given: Sequence[str], names: Sequence[AsId], *, endpoint: bool) -> dict[AsId, Path]:
    """Read [NAME=]FILE for the servers behind `names`; which server a file is for may go unsaid where nobody else has a secret.

    Raises ConfigError.
    """
    files: dict[AsId, Path] = {}
    for text in given:
        named = _NAMED.fullmatch(text)
        name = AsId(named[1]) if named else _only(text, names, endpoint=endpoint)
        if name not in names:
            raise ConfigError(f"{BEHIND} {text}", f"no --upstream is for {name!r}", "Write NAME=FILE with the NAME of an --upstream")
        if name in files:
            raise ConfigError(f"{BEHIND} {text}", f"is the second one for {name}", "Give each server one")
        files[name] = Path(named[2] if named else text)
    return files


def _only(text: str, names: Sequence[AsId], *, endpoint: bool) -> AsId:
    where = f"{BEHIND} {text}"
    if not names:
        remedy = f"Give {ENDPOINT} {text} for what nginx must show" if endpoint else "Say with --upstream which server is to see it"
        raise ConfigError(where, "is for a server behind this proxy, and there is none", remedy)
    if len(names) > 1 or endpoint:
        problem = "does not say for which server: with a secret of all, each of them could speak for this proxy to the others"
        remedy = f"Write {BEHIND} NAME=FILE" + (f", and {ENDPOINT} FILE for nginx" if endpoint else " for each, with files that differ")
        raise ConfigError(where, problem, remedy)
    return names[0]


def read_secrets(files: Mapping[AsId, Path], endpoint: Path | None, addresses: Mapping[AsId, Address]) -> ProxySecrets:
    """Return what is in the files, each read once.

    Raises ConfigError, also where two parties would have the same: who learns it could speak for this proxy to the other. Two names
    of one server are one party.
    """
    nginx = read_secret(endpoint) if endpoint is not None else None
    parties: list[tuple[str, Secret, Address | None]] = [(f"{ENDPOINT} {endpoint}", nginx, None)] if nginx is not None else []
    behind: dict[AsId, Secret] = {}
    for name, path in files.items():
        secret = behind[name] = read_secret(path)
        where = f"{BEHIND} {name}={path}"
        for other, known, address in parties:
            if secret == known and address != addresses[name]:
                raise ConfigError(where, f"holds the secret of {other}", "Let each have its own: openssl rand -hex 32")
        parties.append((where, secret, addresses[name]))
    return ProxySecrets(behind, nginx)


def read_secret(path: Path) -> Secret:
    """Return what is in a file that others cannot read: 16 to 256 visible characters. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            text = file.read(MAX_SECRET_FILE + 1).decode("ascii", "replace").strip()
    except OSError as problem:
        raise ConfigError(str(path), f"cannot be read: {problem.strerror}") from None
    if stat.S_IMODE(mode) & 0o007:
        raise ConfigError(str(path), "may be read by everybody", f"Run: chmod o= {path}")
    if not _SECRET.fullmatch(text):
        raise ConfigError(str(path), "is not 16 to 256 visible characters on one line", "Write 32 random octets in hexadecimal")
    return Secret(text.encode("ascii"))
