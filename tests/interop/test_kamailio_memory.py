# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio without shared memory: what it cannot rewrite does not leave, and while there is little nothing is begun."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from interop.kamailio_kit import RawUe, keys_of, network, nonce_of, run_of
from system.key_search import KeySearch

pytestmark = pytest.mark.interop
_ROUTE = '  python_exec("reserve", "");\n'
_IS_401 = '  if ($(mb{s.substr,0,11}) == "SIP/2.0 401") {\n'
_EATEN = (
    _ROUTE
    + _IS_401
    + "".join(
        f'    $var(n) = 0; while ($var(n) < {times}) {{ $avp(g.eaten) = "{"x" * size}"; $var(n) = $var(n) + 1; }}\n'
        for size, times in ((60_000, 2000), (1_000, 400), (100, 4000), (8, 4000), (1, 4000))
    )
    + "  }\n"
)


def _eats(text: str) -> str:
    """Take all shared memory at the very moment of a 401, as other processes could."""
    assert text.count(_ROUTE) == 1
    return text.replace(_ROUTE, _EATEN).replace("request_route {", "max_while_loops=10000\nrequest_route {", 1)


_TIGHT = (
    _ROUTE
    + _IS_401
    + "".join(
        f'    $var(e{place}) = "{"x" * 16}"; $var(n) = 0;\n'
        f"    while ($var(n) < 20) {{ $var(e{place}) = $var(e{place}) + $var(e{place}); $var(n) = $var(n) + 1; }}\n"
        for place in range(40)
    )
    + "".join(f'    $var(f{size}_{place}) = "{"x" * size}";\n' for size in (1000, 300) for place in range(150))
    + "  }\n"
)


def _is_tight(text: str) -> str:
    """Take all private memory of the process at the very moment of a 401."""
    assert text.count(_ROUTE) == 1
    return text.replace(_ROUTE, _TIGHT)


def test_a_401_without_private_memory_leaves_masked_or_not_at_all(tmp_path: Path) -> None:
    """corex would send it as it was: so each process has some put aside, which is given back for this."""
    with network(tmp_path, change=_is_tight) as running, closing(RawUe(running.ports["6060"])) as ue:
        answer = ue.challenged()
        log = running.kamailio_log.read_text("utf-8", "replace")
    assert "could not allocate private memory" in log or "pkg_malloc" in log or "no more private" in log.lower(), log[-3000:]
    assert answer == "\r\n\r\n" or keys_of(answer) == run_of(nonce_of(answer)).masked


def _keeps(text: str) -> str:
    """Free no transaction for a minute."""
    return re.sub(r"^import_file .*$", 'modparam("tm", "wt_timer", 60000)', text, flags=re.MULTILINE)


def test_a_401_that_cannot_be_rewritten_does_not_leave(tmp_path: Path) -> None:
    """Its keys would be CK, IK: what corex finds instead was made when Kamailio started."""
    with network(tmp_path, shared=16, change=_eats) as running, closing(RawUe(running.ports["6060"])) as ue:
        answer = ue.challenged()
        log = running.kamailio_log.read_text("utf-8", "replace")
    assert "create_avp(): could not allocate shared memory" in log
    assert answer == "\r\n\r\n"


def test_with_little_memory_a_registration_is_not_begun(tmp_path: Path) -> None:
    """503 with Retry-After, before a vector is asked for; Kamailio's modules crash where there is none at all."""
    with network(tmp_path, shared=8, change=_keeps) as running, closing(RawUe(running.ports["6060"])) as ue:
        found: list[str] = []
        while len(found) < 600 and not (found and found[-1].startswith("SIP/2.0 503")):
            found.append(ue.challenged())
        assert found[0].startswith("SIP/2.0 401")
        assert found[-1].startswith("SIP/2.0 503")
        assert "Retry-After: 5" in found[-1]
        assert running.alive()
        search = KeySearch([secret for answer in found[:-1] for secret in run_of(nonce_of(answer)).secrets()[:2]])
        assert search.in_octets("answers", "".join(found).encode()) == []
