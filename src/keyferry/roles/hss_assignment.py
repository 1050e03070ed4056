# SPDX-License-Identifier: Apache-2.0
"""HSS: what a request makes of a user's S-CSCFs (TS 29.228 §6.1.2.1, §6.1.3.1, §8.1, Release 17).

Each function is a step that a store takes whole: what another S-CSCF, or another process, does comes before it or after it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from keyferry.errors import CxError
from keyferry.ports import Assignment, DeregistrationReason, OwedTermination, ToldEnd

MAX_OWED: Final = 8
"""RTRs kept for one user: one who moves on before the S-CSCFs behind are told has registrations at few that are still alive."""

LATE: Final = 600.0
"""Seconds after a registration in which an end that was asked for before it may still come: a dead connection ends far earlier."""


def already_registered(server_name: str) -> CxError:
    """TS 29.229 §6.2.2.5; the SAA names the S-CSCF."""
    return CxError(5005, "DIAMETER_ERROR_IDENTITY_ALREADY_REGISTERED", server_name=server_name)


def outdated() -> CxError:
    """RFC 6733 §7.1.5."""
    return CxError(5012, "DIAMETER_UNABLE_TO_COMPLY")


def serving_names(assigned: str | None, serving: str | None) -> tuple[str, ...]:
    """Return the S-CSCFs that may have registrations of a user: before the one that only challenged it the one that serves it."""
    return tuple(dict.fromkeys([name for name in (serving, assigned) if name is not None]))


def challenged(found: Assignment, server_name: str, *, again: bool) -> Assignment:
    """MAR: the S-CSCF that challenges may register the user (§8.1); what an AUTS answers, `again`, was asked before, by whoever it was."""
    return found if again and found.server_name is not None else found._replace(server_name=server_name, ended=None)


def registered(found: Assignment, server_name: str, now: float, order: int = 0) -> Assignment:
    """SAR REGISTRATION, RE_REGISTRATION: the user is this S-CSCF's, and another that had it is owed an RTR.

    Raises CxError 5005: only a MAR takes a user from another S-CSCF, as only then has this one seen the user; and 5012 for what
    this one asked for before it told of the end: it was on its way for long, and would leave a user assigned who is registered nowhere.
    """
    last = found.ended
    if last is not None and last.server_name == server_name and 0 < order < last.order and last.since <= now < last.since + LATE:
        raise outdated()
    if found.server_name not in {None, server_name} and found.serving != server_name:
        raise already_registered(found.server_name or "")
    owed = {each.server_name: each for each in found.owed if each.server_name != server_name}
    if found.serving not in {None, server_name}:
        owed[found.serving] = OwedTermination(found.serving, DeregistrationReason.NEW_SERVER_ASSIGNED, "", now)
    return Assignment(server_name, server_name, tuple(owed.values())[-MAX_OWED:], order, now if order else 0.0)


def ended(found: Assignment, server_name: str, now: float = 0.0, order: int = 0) -> Assignment:
    """SAR with one of the de-registrations: nothing is left at this S-CSCF; what is at another stays.

    So does a challenge of this one while another serves: what has ended here was before the user went there. Raises CxError 5012 for an
    end that this S-CSCF asked for before the registration: it was on its way for long, and another HSS may have carried it out since.
    A registration of the time to come says that the clock was set back, and with it the order of the S-CSCF's requests.
    """
    if found.serving == server_name and 0 < order < found.order and found.since <= now < found.since + LATE:
        raise outdated()
    # Where the order is known the S-CSCF is ours, and takes an RTR for who is gone: an end that comes late may be of before what it is for.
    owed = found.owed if order else tuple([each for each in found.owed if each.server_name != server_name])
    if found.serving not in {None, server_name}:
        return found._replace(owed=owed)
    last = ToldEnd(server_name, order, now) if order else found.ended
    return Assignment(found.server_name if found.server_name != server_name else None, None, owed, ended=last)


def unproven(found: Assignment, server_name: str) -> Assignment:
    """SAR AUTHENTICATION_FAILURE, AUTHENTICATION_TIMEOUT: the registration state stays, whatever somebody tried in the user's name."""
    return found._replace(server_name=found.serving) if found.server_name == server_name else found


def terminated(found: Assignment, reason: DeregistrationReason, info: str, now: float) -> Assignment:
    """Assign nobody, and owe an RTR to each S-CSCF that may have the user: a UE may be back before the RTR is answered."""
    names = serving_names(found.server_name, found.serving)
    owed = {each.server_name: each for each in found.owed}
    owed.update({name: OwedTermination(name, reason, info, now) for name in names})
    return Assignment(None, None, tuple(owed.values()))


def concluded(found: Assignment, before: Assignment, ours: Collection[OwedTermination], told: Collection[str]) -> Assignment:
    """Let an S-CSCF that was not told have the user as before, unless another has it by now: then it is to be told later."""
    left = tuple([each for each in found.owed if each not in ours or each.server_name not in told])
    if found.server_name is not None or found.serving is not None:
        return found._replace(owed=left)
    # What came of one whose RTR is not the one owed any more is known better by now.
    untold = {each.server_name for each in ours if each in found.owed} - set(told)
    serving = before.serving if before.serving in untold else None
    assigned = before.server_name if before.server_name in untold else serving
    earlier = [each for each in before.owed if each.server_name in untold]
    again = found._replace(server_name=assigned, owed=(*earlier, *[each for each in left if each not in ours]))
    return again if serving is None else again._replace(serving=serving, order=before.order, since=before.since)


def delivered(found: Assignment, owed: OwedTermination) -> Assignment:
    """Owe an RTR no more; one that came after it stays."""
    return found._replace(owed=tuple([each for each in found.owed if each != owed]))
