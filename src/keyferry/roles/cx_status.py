# SPDX-License-Identifier: Apache-2.0
"""What a UE is answered when the HSS refuses (TS 24.229 §5.3.1.2, §5.4.1.2, Release 17; TS 29.229 §6.2)."""

from __future__ import annotations

from keyferry.errors import CxError

FORBIDDEN = frozenset({5001, 5002, 5003, 5004, 5006})
"""USER_UNKNOWN, IDENTITIES_DONT_MATCH, IDENTITY_NOT_REGISTERED, ROAMING_NOT_ALLOWED, AUTH_SCHEME_NOT_SUPPORTED: asking again is no use.

As codes of Cx only: RFC 6733 has the same numbers for AVP_UNSUPPORTED and others, which say that our question was wrong, not the user.
"""
NOT_REACHED = range(3002, 3005)
"""UNABLE_TO_DELIVER, REALM_NOT_SERVED, TOO_BUSY (RFC 6733 §7.1.3): the HSS has not judged."""


def is_unreached(problem: CxError) -> bool:
    """Tell whether the HSS has not judged: asking again may help."""
    return problem.code in NOT_REACHED and not problem.experimental


def status_of(problem: CxError) -> int:
    """Return 403 where the HSS said no, 504 where it could not be asked, 500 where it failed."""
    if problem.experimental and problem.code in FORBIDDEN:
        return 403
    return 504 if is_unreached(problem) else 500
