# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: which application servers a registration concerns, and what each is owed (TS 24.229 §5.4.1.7, Release 17; DESIGN §6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from keyferry.errors import ParseError
from keyferry.ports import Clock, PendingPush, Registration
from keyferry.protocol.identity import AsId, Impu
from keyferry.protocol.ims.ifc import ApplicationServer, InitialFilterCriteria, RegistrationType, SessionCase, matching
from keyferry.protocol.ims.registration import key_not_after
from keyferry.protocol.ims.user_profile import UserProfile, cached_user_profile, criteria_of
from keyferry.protocol.sip.message import Request
from keyferry.roles.scscf.as_notifier import AsNotifier, AsTarget, select_targets

Owed: TypeAlias = list[tuple[PendingPush, AsTarget]]
Place: TypeAlias = tuple[str, AsId]

STANDING = (RegistrationType.INITIAL_REGISTRATION, RegistrationType.RE_REGISTRATION)
"""What a registration that stands may have come by."""
ERASE_FOR = 120.0
"""Seconds after a registration's end that an AS is asked to erase its keys, which end 60 s after it by themselves."""


def profile_of(user_data: bytes) -> UserProfile:
    """Parse User-Data, or remember it. Raises ParseError with 500."""
    try:
        return cached_user_profile(user_data)
    except ParseError as problem:  # the HSS's fault, not the UE's
        raise ParseError("User-Data", problem.problem, status=500) from problem


def expiry_request(registration: Registration) -> Request:
    """Make the REGISTER that an expiry stands for, for the filter criteria (§5.4.1.5)."""
    return Request("REGISTER", f"sip:{registration.realm}", (("To", f"<{registration.impu}>"), ("Expires", "0")))


@dataclass(frozen=True, slots=True)
class Owing:
    """Work out pushes; nothing is stored and nothing sent here."""

    notifier: AsNotifier
    clock: Clock
    shared_ifc: Mapping[int, Sequence[InitialFilterCriteria]]  # by SharedIFCSetID

    def servers(
        self, user_data: bytes, request: Request | None, kinds: Sequence[RegistrationType]
    ) -> list[tuple[ApplicationServer, tuple[Impu, ...]]]:
        """Return each AS with the non-barred IMPUs whose service profile has a criterion for it that matches `request` (DESIGN §6).

        Without a request: every AS that the profile names.
        """
        found: dict[str, tuple[ApplicationServer, tuple[Impu, ...]]] = {}
        for service in profile_of(user_data).profiles:
            usable = tuple(impu for impu, barred in service.impus if not barred)
            criteria = criteria_of(service, self.shared_ifc)
            for criterion in criteria if request is None else _matching(criteria, request, kinds):
                server = criterion.application_server
                _, before = found.get(server.server_name, (server, ()))
                found[server.server_name] = (server, tuple(dict.fromkeys((*before, *usable))))
        return list(found.values())

    def targets_of(self, registration: Registration) -> list[AsTarget]:
        """Return the application servers of a stored registration, for a delivery that was interrupted.

        The REGISTER is gone, and a trigger may want one of its header fields: then the profile's naming the AS is enough.
        """
        servers = self.servers(registration.user_data, expiry_request(registration), STANDING)
        matched = {server.server_name for server, _ in servers}
        servers += [named for named in self.servers(registration.user_data, None, STANDING) if named[0].server_name not in matched]
        return select_targets(servers, self.notifier.policy, None, None)

    async def owe(self, registration: Registration, targets: Sequence[AsTarget], *, had_keys: bool) -> Owed:
        """Return the complete set of keys for each AS; it is empty where there is no K_M, and was `had_keys`."""
        give_up_at = registration.expires_at
        if registration.k_m is not None:
            give_up_at = key_not_after(
                expires_at=registration.expires_at, aka_time=registration.aka_time, key_max_age=self.notifier.policy.key_max_age
            )
        owed = []
        for target in targets:
            # S1: raw keys never make a push. An empty set still goes where a key of an earlier authentication may lie.
            takes_block = registration.k_m is not None or had_keys
            told = target if takes_block else target._replace(as_id=AsId(""))
            owed.append((await self._pending(registration, told, erase=False, give_up_at=give_up_at), told))
        return owed

    async def owe_gone(self, previous: Registration, registration: Registration) -> Owed:
        """Keys end at an AS that the user's profile no longer names."""
        named = {(target.server_name, target.as_id) for target in self.targets_of(registration)}
        gone = [target for target in self.targets_of(previous) if target.as_id and (target.server_name, target.as_id) not in named]
        return await self._erase(previous, gone)

    async def owe_end(self, registration: Registration, request: Request, *, keys_alone: bool = False) -> Owed:
        """Return what the end of a registration owes: the word of it where the criteria ask for it, and the end of keys everywhere."""
        servers = self.servers(registration.user_data, request, (RegistrationType.DE_REGISTRATION,))
        targets = [each for each in select_targets(servers, self.notifier.policy, None, None) if each.as_id or not keys_alone]
        told = {(target.server_name, target.as_id) for target in targets}
        # Keys end with the registration even where the operator's criteria do not ask for de-registrations.
        targets += [
            target for target in self.targets_of(registration) if target.as_id and (target.server_name, target.as_id) not in told
        ]  # fmt: skip
        return await self._erase(registration, targets)

    async def owe_change(self, before: Registration, after: Registration) -> Owed:
        """Return what a new profile owes between two REGISTERs (TS 29.228 §6.2.2): the end of keys first, then new sets.

        An AS that is newly matched is told, and one for which IMPUs or ServiceInfo changed; the others have what they shall have. A
        trigger on what only the REGISTER had matches again with the next one.
        """
        old, new = self._standing(before), self._standing(after)
        was, named = _by_place(self.targets_of(before)), _by_place(self.targets_of(after))
        gone = [target for place, target in was.items() if _ended(place, old=old, new=new, named=named)]
        told = [target for place, target in new.items() if not _same(old.get(place), target)]
        for place, target in named.items():
            if place in was and place not in old and place not in new and not _same(was[place], target):
                had = await self.notifier.registrations.last_seq(before.impi, target.as_id, before.reg)
                told += [target] if had else []
        return [*await self._erase(before, gone), *await self.owe(after, told, had_keys=False)]

    def _standing(self, registration: Registration) -> dict[Place, AsTarget]:
        servers = self.servers(registration.user_data, _standing_in(registration, self.clock.now()), STANDING)
        return _by_place(select_targets(servers, self.notifier.policy, None, None))

    async def _erase(self, registration: Registration, targets: Sequence[AsTarget]) -> Owed:
        give_up_at = max(registration.expires_at, self.clock.now()) + ERASE_FOR
        return [(await self._pending(registration, target, erase=True, give_up_at=give_up_at), target) for target in targets]

    async def _pending(self, registration: Registration, target: AsTarget, *, erase: bool, give_up_at: float) -> PendingPush:
        return PendingPush(
            impi=registration.impi,
            as_id=target.as_id,
            reg=registration.reg,
            seq=await self.notifier.next_seq(registration.impi, target.as_id, registration.reg),
            erase=erase,
            server_name=target.server_name,
            impu=_to(registration, target),
            give_up_at=give_up_at,
        )


def _by_place(targets: Sequence[AsTarget]) -> dict[Place, AsTarget]:
    return {(target.server_name, target.as_id): target for target in targets}


def _ended(place: Place, *, old: Mapping[Place, AsTarget], new: Mapping[Place, AsTarget], named: Mapping[Place, AsTarget]) -> bool:
    """Tell whether a profile has no use any more for an AS that the one before named; one without keys was told only if it matched."""
    if place in named:
        return place in old and place not in new
    return place in old or place[1] != ""


def _same(old: AsTarget | None, new: AsTarget) -> bool:
    return old is not None and (old.impus, old.service_info) == (new.impus, new.service_info)


def _standing_in(registration: Registration, now: float) -> Request:
    """Make a REGISTER as that of a registration was, of what is known of it."""
    seconds = max(1, round(registration.expires_at - now))
    headers = (
        ("To", f"<{registration.impu}>"), ("From", f"<{registration.impu}>"), ("Contact", registration.contact),
        *(("Path", value) for value in registration.path), ("Call-ID", registration.call_id), ("Expires", str(seconds)),
    )  # fmt: skip
    return Request("REGISTER", f"sip:{registration.realm}", headers)


def _matching(
    criteria: Sequence[InitialFilterCriteria], request: Request, kinds: Sequence[RegistrationType]
) -> list[InitialFilterCriteria]:
    case = SessionCase.ORIGINATING
    return [
        criterion for kind in kinds for criterion in matching(criteria, request, session_case=case, registration_type=kind, registered=True)
    ]


def _to(registration: Registration, target: AsTarget) -> Impu:
    """§5.4.1.7: the identity that registered, or a non-barred one of the set if that is barred."""
    return registration.impu if registration.impu in target.impus or not target.impus else target.impus[0]
