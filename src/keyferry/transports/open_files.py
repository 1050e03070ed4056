# SPDX-License-Identifier: Apache-2.0
"""How many files and connections this process may have open (setrlimit(2), RLIMIT_NOFILE)."""

from __future__ import annotations

import resource


def allow_open_files(wanted: int) -> int:
    """Raise the soft limit to what is wanted, as far as the hard one lets us, and return what it is now; it is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return wanted if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # some systems have a bound of their own below "unlimited"
        return soft
    return allowed
