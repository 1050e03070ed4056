# SPDX-License-Identifier: Apache-2.0
"""The limit of open files: setrlimit(2)."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
from keyferry.transports.open_files import allow_open_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(allow_open_files({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "after"),
    [(100, 400, 300, "300 300 400"), (100, 400, 4_000, "400 400 400"), (200, 400, 100, "200 200 400"), (400, 400, 4_000, "400 400 400")],
)
def test_the_soft_limit_is_raised_up_to_the_hard_one_and_never_lowered(soft: int, hard: int, wanted: int, after: str) -> None:
    """In a process of its own: a hard limit never rises again."""
    code = CODE.format(soft=soft, hard=hard, wanted=wanted)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == after
