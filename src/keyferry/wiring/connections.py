# SPDX-License-Identifier: Apache-2.0
"""The connections that the listeners of a process may have, and the limit of open files that lets them."""

from __future__ import annotations

from collections.abc import Iterable

from keyferry.ports import Log
from keyferry.transports.http_bounds import SPARE
from keyferry.transports.http_server import MAX_CONNECTIONS
from keyferry.transports.open_files import allow_open_files
from keyferry.transports.sip_context import Limits

OTHER_FILES = 1_024
"""Databases, logs, listeners, and connections that are few: to other functions, a key agent's workers."""
_HTTP = MAX_CONNECTIONS + SPARE
_OF = {
    "http": _HTTP,
    "https": _HTTP,
    "psk12": _HTTP,
    "psk13": _HTTP,
    "unix": _HTTP,
    "tcp": Limits().connections,
    "tls": Limits().connections,
}


def allow_connections(protos: Iterable[str], log: Log, *, upstream: int = 0) -> None:
    """Let a process with such listeners, and connections to servers behind it, have all the files it may need; or say what is short."""
    wanted = OTHER_FILES + upstream + sum(_OF.get(proto, 1) for proto in protos)
    allowed = allow_open_files(wanted)
    if allowed < wanted:
        remedy = (
            f"raise the hard limit: ulimit -Hn {wanted} before the start, LimitNOFILE={wanted} in a systemd unit, --ulimit nofile={wanted}"
        )
        remedy += " of a container; until then, a crowd of connections keeps new ones and files from being opened"
        log.warning("open-files-limit", limit="RLIMIT_NOFILE", wanted=wanted, allowed=allowed, remedy=remedy)
