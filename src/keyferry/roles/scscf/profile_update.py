# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: what its HSS asks of it: PPR (TS 29.228 §6.2.2) and RTR (§6.1.3; TS 24.229 §5.4.1.5, Release 17)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from keyferry.errors import CxError, KeyferryError, ParseError, TooMuchData
from keyferry.ports import DeregistrationReason, PendingPush, Registration, ServerAssignment
from keyferry.protocol.identity import Impi, Impu, Reg
from keyferry.protocol.ims.user_profile import UserProfile, cached_user_profile, parse_user_profile
from keyferry.roles.scscf.bindings import is_of
from keyferry.roles.scscf.owing import expiry_request
from keyferry.roles.scscf.reg_document import ContactNews, impus_of
from keyferry.roles.scscf.registrar import EndEvent, Registrar

T = TypeVar("T")

EVENTS: Final[Mapping[DeregistrationReason, EndEvent]] = {
    DeregistrationReason.PERMANENT_TERMINATION: "rejected",
    DeregistrationReason.SERVER_CHANGE: "deactivated",
    DeregistrationReason.REMOVE_S_CSCF: "deactivated",
}
"""What a UE is told by the reg event package: `deactivated`, to register anew, where nothing speaks against the user."""
MAX_INFO: Final = 200
"""Characters of a Reason-Info that are logged."""


class Served(NamedTuple):
    """What a request of the HSS did to one user."""

    impi: Impi
    devices: int  # that have the new profile, or whose registration ended
    pushes: tuple[PendingPush, ...] = ()  # of a PPR; the end of a registration erases everywhere


def user_unknown() -> CxError:
    """TS 29.229 §6.2.2.1."""
    return CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")


def too_much_data() -> CxError:
    """TS 29.229 §6.2.2.8: the HSS lets another S-CSCF serve the user."""
    return CxError(5008, "DIAMETER_ERROR_TOO_MUCH_DATA")


def too_busy() -> CxError:
    """RFC 6733 §7.1.3."""
    return CxError(3004, "DIAMETER_TOO_BUSY")


def not_supported_user_data() -> CxError:
    """TS 29.229 §6.2.2.9."""
    return CxError(5009, "DIAMETER_ERROR_NOT_SUPPORTED_USER_DATA")


@dataclass(frozen=True, slots=True)
class ScscfServing:
    """Implement ports.CxServing over a registrar; a request waits for the user's REGISTERs that are under way, and they for it."""

    registrar: Registrar
    forget: Callable[[Impi], None]  # of the reg event notifier: drop a user's subscriptions without a word
    limit: int = 1_024  # requests under way; of more there is no use in taking them, as none waits for an answer for so long
    watchers: list[Callable[[Served], None]] = field(default_factory=list)  # who wants to know what a request did
    _running: set[asyncio.Task[Any]] = field(default_factory=set)

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        """PPR: new user data in every registration of the user, durable with the pushes that it owes.

        K_M is there, so an AS that is new gets its key at once. Raises CxError: 5001 for a user who is not registered, 5008 and 5009 for
        User-Data that cannot be used, 5012 where the store failed; nothing has changed then.
        """
        with self._answering(impi, "profile"):
            self._check_room()
            served, deliveries = await self._whole(self._take(impi, _usable(user_data), user_data))
        if deliveries:  # so that the HSS, and its operator, hear of a change that has happened where it can happen at once
            await asyncio.wait(deliveries, timeout=self.registrar.notifier.policy.push_wait)
        self.registrar.log.info("profile-updated", impi=impi, devices=served.devices, pushes=len(served.pushes))
        self._note(served)

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        """RTR: end registrations, and keys at every AS; the HSS knows, and is told nothing. Raises CxError 5012 where the store failed.

        NEW_SERVER_ASSIGNED only clears what is here now: the user is registered elsewhere, and no watcher is told otherwise. A REGISTER
        that has its turn before is of a user who is back, of which the HSS knew nothing when it asked.
        """
        registrar, nobody = self.registrar, ServerAssignment.NO_ASSIGNMENT
        with self._answering(impi, "termination"):
            # A challenge that is still out would bring the user back with the answer to it, past the HSS's UAR and MAR.
            self._check_room()
            registrar.authenticator.challenges.forget(impi)
            if reason is DeregistrationReason.NEW_SERVER_ASSIGNED:
                ended = await self._whole(self._clear(impi, impus, await registrar.registrations.of_impi(impi)))
            else:
                ended = await self._whole(registrar.network_deregister(impi, event=EVENTS[reason], impus=impus, assignment=nobody))
        registrar.log.info("registration-terminated", impi=impi, devices=ended, reason=reason.name, info=_printable(info))
        self._note(Served(impi, ended))

    def _check_room(self) -> None:
        if len(self._running) >= self.limit:
            raise too_busy()

    async def _whole(self, work: Coroutine[None, None, T]) -> T:
        """Do all of it, also where nobody waits for the answer any more: what is in the store and not begun would wait for a restart."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # it was told to whoever waited, if anybody did

    async def _take(self, impi: Impi, profile: UserProfile, user_data: bytes) -> tuple[Served, list[asyncio.Task[None]]]:
        registrar = self.registrar
        async with registrar.turns.turn(impi):
            devices = await registrar.registrations.of_impi(impi)
            standing = [each for each in devices if each.expires_at > registrar.clock.now()]
            if not standing:
                raise user_unknown()
            if any(profile.profile_of(each.impu) is None for each in standing):
                raise not_supported_user_data()  # an identity that is registered is taken away by an RTR, not by leaving it out
            changed = {each.reg: each._replace(user_data=user_data) for each in standing if each.user_data != user_data}
            owed = {each.reg: await registrar.owing.owe_change(each, changed[each.reg]) for each in standing if each.reg in changed}
            pushes = tuple([push for each in owed.values() for push, _ in each])
            if changed:
                registrar.alarm_of(impi, profile)
                await registrar.registrations.commit_all(tuple(changed.values()), pushes)
            begun = [task for reg, each in owed.items() for task, _ in registrar.notifier.begin(each, changed[reg])]
            await self._tell(impi, devices, [changed.get(each.reg, each) for each in devices], changed)
        return Served(impi, len(standing), pushes), begun

    async def _tell(self, impi: Impi, before: Sequence[Registration], after: Sequence[Registration], changed: Collection[Reg]) -> None:
        """Tell watchers where the identities of the implicit registration set are others (TS 24.229 §5.4.2.1.2), or they watch no more."""
        others = impus_of(before, cached_user_profile) != impus_of(after, cached_user_profile)
        events = {reg: ContactNews("registered") for reg in changed} if others else None
        await self.registrar.tell(impi, before if others else after, after, events)

    async def _clear(self, impi: Impi, impus: Sequence[Impu], asked: Sequence[Registration]) -> int:
        registrar, registers = self.registrar, {_register_of(each) for each in asked}
        async with registrar.turns.turn(impi):
            devices = await registrar.registrations.of_impi(impi)
            ending = [each for each in devices if is_of(each, impus) and _register_of(each) in registers]
            for registration in ending:
                owed = await registrar.owing.owe_end(registration, expiry_request(registration), keys_alone=True)
                await registrar.registrations.remove(impi, registration.reg, [push for push, _ in owed])
                registrar.reauthentications.done(impi, registration.reg)
                await registrar.notifier.notify(owed, None, wait=False)
                registrar.counter.count("scscf_registrations", "moved")
            if len(ending) == len(devices):
                self.forget(impi)
        return len(ending)

    def _note(self, served: Served) -> None:
        for watcher in tuple(self.watchers):
            watcher(served)

    @contextmanager
    def _answering(self, impi: Impi, what: str) -> Iterator[None]:
        """Make of whatever fails an answer that Cx has."""
        registrar = self.registrar
        try:
            yield
        except CxError as problem:
            registrar.counter.count("scscf_hss_requests", "refused")
            registrar.log.warning("hss-request-refused", impi=impi, what=what, cx=problem.name)
            raise
        except KeyferryError as problem:
            registrar.counter.count("scscf_hss_requests", "failed")
            registrar.log.warning("hss-request-failed", impi=impi, what=what, problem=str(problem))
            raise CxError(5012, "DIAMETER_UNABLE_TO_COMPLY") from problem
        registrar.counter.count("scscf_hss_requests", "done")


def _usable(user_data: bytes) -> UserProfile:
    try:
        return parse_user_profile(user_data)
    except TooMuchData as problem:
        raise too_much_data() from problem
    except ParseError as problem:
        raise not_supported_user_data() from problem


def _printable(info: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in info[:MAX_INFO])


def _register_of(registration: Registration) -> tuple[Reg, str, int]:
    """Return which REGISTER a registration is of: what the network does to it since leaves that."""
    return registration.reg, registration.call_id, registration.cseq
