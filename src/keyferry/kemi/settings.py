# SPDX-License-Identifier: Apache-2.0
"""The file that `keyferry kamailio` writes for the script, as JSON: what it needs of the configuration, and no key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from keyferry.errors import ConfigError, ParseError
from keyferry.protocol.identity import AsId, parse_as_id


@dataclass(frozen=True, slots=True)
class KemiSettings:
    """What the script works with."""

    state: Path  # state directory of Kamailio's user: KEK, transport keys, kemi.db
    scscf: str  # host name: an input of the seal
    realm: str  # home network domain name
    servers: dict[str, tuple[AsId, ...]]  # ServerName of a filter criterion → the AS_IDs that get keys there
    max_expires: int  # seconds that ims_registrar_scscf grants at most
    key_max_age: float  # seconds
    rspauth: str  # the HSS's socket; "" without our HSS


def build_settings(settings: KemiSettings) -> str:
    """Return the file's text, reverse of `load_settings`."""
    found = {
        "state": str(settings.state),
        "scscf": settings.scscf,
        "realm": settings.realm,
        "servers": {server: list(as_ids) for server, as_ids in settings.servers.items()},
        "max_expires": settings.max_expires,
        "key_max_age": settings.key_max_age,
        "rspauth": settings.rspauth,
    }
    return json.dumps(found, indent=2) + "\n"


def load_settings(path: Path) -> KemiSettings:
    """Read the file. Raises ConfigError."""
    try:
        found = cast("dict[str, Any]", json.loads(path.read_text("utf-8")))
        servers = {str(server): tuple([parse_as_id(as_id) for as_id in as_ids]) for server, as_ids in found["servers"].items()}
        return KemiSettings(
            Path(found["state"]), str(found["scscf"]), str(found["realm"]), servers, int(found["max_expires"]),
            float(found["key_max_age"]), str(found["rspauth"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ParseError) as problem:
        raise ConfigError(str(path), f"cannot be read ({type(problem).__name__})", "Write it again: keyferry kamailio") from problem
