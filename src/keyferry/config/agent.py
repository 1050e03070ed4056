# SPDX-License-Identifier: Apache-2.0
"""The file of `keyferry agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keyferry.config.ipsec import Child, Ipsec, check_receiving
from keyferry.config.lines import located
from keyferry.config.reading import Section, TrustedOnIsc, UnsealedEnds, check_protection, checked, load_file, split_address
from keyferry.errors import ConfigError
from keyferry.protocol.identity import parse_as_id
from keyferry.protocol.ims.key_store_id import MAX_STORES


class AgentUser(Section, frozen=True, kw_only=True):
    """A user of this machine whose processes may see the keys of some AS_IDs; once one is listed, members of `socket_group` need it."""

    user: Annotated[str, Meta(min_length=1, description="name or number of the user that the application's workers run as")]
    as_ids: Annotated[list[str], Meta(description="those of `agent.as_ids` that they may see")]


class Agent(Section, frozen=True, kw_only=True):
    """Who pushes keys to the agent, where, and who reads them."""

    as_ids: Annotated[
        list[str],
        Meta(min_length=1, max_length=MAX_STORES, description="host names that UEs open, one for each application; each has its own keys"),
    ]
    pushers: Annotated[list[str], Meta(min_length=1, description="names of the S-CSCFs that may push")]
    home_domain: Annotated[str, Meta(description="home network domain name of the S-CSCFs, and the realm of their key ids")] = "home1.net"
    sip_uri: Annotated[str, Meta(description="ServerName in the filter criteria: where the S-CSCFs push all these keys to")]
    protection: Annotated[
        Literal["loopback", "tls", "ipsec"],
        Meta(
            description="where pushes may come from: loopback addresses and those in `trusted_peers`; over TLS, both ends shown by "
            "certificates; or through a security association of IPsec whose other end is the pusher, as charon says of each "
            "request ([IPsec](ipsec.md))"
        ),
    ] = "loopback"
    ipsec_child: Child = None
    trusted_peers: TrustedOnIsc = msgspec.field(default_factory=list)
    listen_sip: Annotated[str | None, Meta(description="`HOST:PORT` for pushes; needed with `loopback` and `ipsec`")] = None
    listen_sips: Annotated[str | None, Meta(description="`HOST:PORT` for pushes over TLS; needed with `tls`")] = None
    unsealed_ends: UnsealedEnds = msgspec.field(default_factory=list)
    reg_event: Annotated[
        bool,
        Meta(description="subscribe to the registration state of each user; erase the keys where it says that one ended"),
    ] = False
    socket: Annotated[str | None, Meta(description="path of the UNIX socket where applications read keys; default: STATE/agent.sock")] = (
        None
    )
    socket_mode: Annotated[
        Literal["0600", "0660"], Meta(description="who may connect: processes of the agent's own user, or of `socket_group`, too")
    ] = "0600"
    socket_group: Annotated[str | None, Meta(description="name or number of the group that owns the socket; needed with `0660`")] = None
    nonce_lifetime: Annotated[
        float, Meta(gt=0, le=604_800, description="seconds that an HTTP client may use a nonce; applications share what was used")
    ] = 86_400.0
    listen_admin: Annotated[str | None, Meta(description="`HOST:PORT` for /health, /ready and /metrics; default: none")] = None
    state: Annotated[str | None, Meta(description="state directory where `--state` names none; default: .keyferry")] = None


class AgentConfig(Section, frozen=True, kw_only=True):
    """A whole file for `keyferry agent`."""

    agent: Agent
    users: list[AgentUser] = msgspec.field(default_factory=list)
    hosts: Annotated[
        dict[str, str], Meta(description="SIP host names → `HOST` or `HOST:PORT`: where the S-CSCFs are asked, for `reg_event`")
    ] = msgspec.field(default_factory=dict)
    ipsec: Ipsec = msgspec.field(default_factory=Ipsec)


def _check_listeners(path: Path, agent: Agent) -> None:
    check_protection(f"{path}: agent", agent)
    check_receiving(f"{path}: agent", agent)
    if agent.listen_admin is not None:
        split_address(agent.listen_admin, f"{path}: agent.listen_admin")


def load_agent_config(path: Path) -> AgentConfig:
    """Read the file of `keyferry agent`. Raises ConfigError."""
    config = load_file(path, AgentConfig)
    with located(path):
        _check(path, config)
    return config


def _check(path: Path, config: AgentConfig) -> None:
    agent = config.agent
    known: set[str] = set()
    for place, text in enumerate(agent.as_ids):
        as_id = checked(f"{path}: agent.as_ids[{place}]", parse_as_id, text)
        if as_id in known:
            raise ConfigError(f"{path}: agent.as_ids[{place}]", f"{as_id} is there twice", "Name it once")
        known.add(as_id)
    _check_listeners(path, agent)
    if (str(agent.socket_mode) == "0660") is not (agent.socket_group is not None):
        raise ConfigError(f"{path}: agent.socket_group", "goes with socket_mode 0660, and with that alone", "Set both, or neither")
    for place, user in enumerate(config.users):
        where = f"{path}: users[{place}].as_ids"
        for text in user.as_ids:
            if checked(where, parse_as_id, text) not in known:
                raise ConfigError(where, f"{text!r} is none of agent.as_ids", "Add it there, or take it out here")
