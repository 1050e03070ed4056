# SPDX-License-Identifier: Apache-2.0
"""The filter criteria of the file's application servers: in the user profile, or in sets that the S-CSCFs hold (TS 29.228 §6.1.2.1)."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from keyferry.config import ApplicationServer, Config
from keyferry.config.profiles import DEFAULT
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims import ifc

Criteria: TypeAlias = tuple[ifc.InitialFilterCriteria, ...]


class ProfileCriteria(NamedTuple):
    """What a user profile holds."""

    own: Criteria
    shared: tuple[int, ...]  # SharedIFCSetIDs
    as_ids: tuple[AsId, ...]  # of all of them, for people


def profile_criteria(config: Config) -> dict[str, ProfileCriteria]:
    """Return those of each profile of the file, by its name; `default` is every application server, unless the file says otherwise.

    A shared set is named by a profile that has all of its application servers; of another set, those that it has stand in the profile.
    """
    every = tuple([parse_as_id(server.as_id) for server in config.application_servers])
    named = {profile.name: tuple(map(parse_as_id, profile.application_servers)) for profile in config.profiles}
    return {name: _criteria_of(config, as_ids) for name, as_ids in ({DEFAULT: every} | named).items()}


def _criteria_of(config: Config, as_ids: tuple[AsId, ...]) -> ProfileCriteria:
    sets = {one.id: set(map(parse_as_id, one.application_servers)) for one in config.shared_ifc}
    whole = {number: members for number, members in sets.items() if members <= set(as_ids)}
    return ProfileCriteria(_criteria(config, set(as_ids).difference(*whole.values())), tuple(whole), as_ids)


def shared_criteria(config: Config) -> dict[int, Criteria]:
    """Return those of the shared sets, by SharedIFCSetID."""
    return {one.id: _criteria(config, set(map(parse_as_id, one.application_servers))) for one in config.shared_ifc}


def _criteria(config: Config, as_ids: set[AsId]) -> Criteria:
    # The place in the file is the priority, so that no two criteria of a user have the same, whichever set they are in.
    servers = enumerate(config.application_servers)
    return tuple(_criterion(server, place) for place, server in servers if parse_as_id(server.as_id) in as_ids)


def _criterion(server: ApplicationServer, priority: int) -> ifc.InitialFilterCriteria:
    """For every REGISTER: initial, again and at the end (specs: RegistrationType absent means all)."""
    return ifc.InitialFilterCriteria(
        priority=priority,
        trigger=ifc.TriggerPoint(cnf=True, triggers=(ifc.ServicePointTrigger(ifc.OnMethod("REGISTER")),)),
        application_server=ifc.ApplicationServer(
            server_name=server.sip_uri,
            default_handling=server.default_handling,
            service_info=server.service_info,
            include_register_request=server.include_register_request,
            include_register_response=server.include_register_response,
        ),
    )
