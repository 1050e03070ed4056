# SPDX-License-Identifier: Apache-2.0
"""Sets of application servers that subscribers may have, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from keyferry.config.reading import Section, checked
from keyferry.errors import ConfigError
from keyferry.protocol.identity import parse_as_id

DEFAULT: Final = "default"
"""The profile of whoever has no other."""
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Profile(Section, frozen=True, kw_only=True):
    """A set of application servers, whose keys a subscriber gets; `default` has all of the file, unless it is defined."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="what `subscribers[].profile` and `keyferry subscriber profile` say"
        ),
    ]
    application_servers: Annotated[
        list[str], Meta(description="`as_id` of each; those at one SIP URI go together; none: the subscriber registers and has no keys")
    ] = msgspec.field(default_factory=list)


def names_of(profiles: Sequence[Profile]) -> list[str]:
    """Return the names of all profiles that there are, `default` first."""
    return [DEFAULT, *(profile.name for profile in profiles if profile.name != DEFAULT)]


def check_profiles(path: Path, profiles: Sequence[Profile], sip_uris: Mapping[str, str]) -> None:
    """Refuse two profiles of one name, and application servers that a criterion cannot tell apart; AS_ID → SIP URI. Raises ConfigError."""
    seen: set[str] = set()
    for place, profile in enumerate(profiles):
        where = f"{path}: profiles[{place}]"
        if profile.name in seen:
            raise ConfigError(f"{where}.name", f"{profile.name} is there twice", "Give every profile a name of its own")
        seen.add(profile.name)
        _check_servers(f"{where}.application_servers", profile.application_servers, sip_uris)


def _check_servers(where: str, names: Sequence[str], sip_uris: Mapping[str, str]) -> None:
    chosen: set[str] = set()
    for text in names:
        as_id = checked(where, parse_as_id, text)
        if as_id not in sip_uris:
            raise ConfigError(where, f"{as_id} is no application server of this file", "Name its as_id")
        if as_id in chosen:
            raise ConfigError(where, f"{as_id} is there twice", "Name it once")
        chosen.add(as_id)
    uris = {sip_uris[as_id] for as_id in chosen}
    left_out = sorted(as_id for as_id, uri in sip_uris.items() if uri in uris and as_id not in chosen)
    if left_out:
        problem = f"leaves out {left_out[0]}, which has the sip_uri of another that is named"
        raise ConfigError(where, problem, "Name both, or give each a SIP URI of its own")


def check_profile_of(where: str, name: str | None, known: Collection[str]) -> None:
    """Refuse a subscriber whose profile is not there. Raises ConfigError."""
    if name is not None and name not in known:
        raise ConfigError(where, f"{name} is no profile of this file", f"There are {', '.join(known)}; add [[profiles]] with this name")
