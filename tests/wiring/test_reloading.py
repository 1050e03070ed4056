# SPDX-License-Identifier: Apache-2.0
"""What needs a restart; SIGHUP to whole processes is in tests/system/test_reload.py."""

from __future__ import annotations

import msgspec
import pytest

from keyferry.config import Config
from keyferry.config.reading import decode_secret
from keyferry.wiring.reloading import dotted, needing_restart

SERVER = {"sip_uri": "sip:as.home1.net:5090", "listen_sip": "127.0.0.1:5090", "listen_https": "127.0.0.1:8443"}
XCAP, NOTES = ({"as_id": f"{name}.home1.net", **SERVER} for name in ("xcap", "notes"))
ALICE = {"impi": "alice@home1.net", "impus": ["sip:alice@home1.net"], "k": "00" * 16, "opc": "11" * 16}
RUNNING = {"application_servers": [XCAP], "hosts": {"as.home1.net": "127.0.0.1"}, "subscribers": [ALICE]}


def config(changes: dict[str, object]) -> Config:
    return msgspec.convert({**RUNNING, **changes}, Config, dec_hook=decode_secret)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, []),
        ({"subscribers": [], "log": {"level": "error"}}, []),
        ({"subscribers": [ALICE, {**ALICE, "impi": "bob@home1.net", "profile": "default"}]}, []),
        ({"subscribers": [{**ALICE, "profile": "gold"}]}, ["subscribers[0].profile"]),
        ({"scscf": {"release": 5, "mask": False}}, ["scscf.release", "scscf.mask"]),
        ({"application_servers": [{**XCAP, "algorithms": ["MD5"]}]}, ["application_servers[0].algorithms"]),
        ({"application_servers": [XCAP, NOTES]}, ["application_servers[1]"]),
        ({"application_servers": [NOTES]}, ["application_servers[0]"]),
        ({"application_servers": []}, ["application_servers"]),
        ({"hosts": {"as.home1.net": "127.0.0.2", "b": "127.0.0.3"}}, ['hosts."as.home1.net"', "hosts.b"]),
        ({"hosts": {}}, ["hosts"]),
    ],
)
def test_only_what_cannot_change_is_named(changes: dict[str, object], keys: list[str]) -> None:
    assert [dotted(place) for place in needing_restart(config({}), config(changes))] == keys
