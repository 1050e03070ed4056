# SPDX-License-Identifier: Apache-2.0
"""A process that serves may open as many files as it may have connections, or says what is short."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

CODE = """
import json, resource, sys
from keyferry.wiring.connections import allow_connections
class Log:
    def info(self, event, **fields): ...
    def warning(self, event, **fields): print(json.dumps([event, fields]))
soft, hard = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
allow_connections(sys.argv[3:], Log(), upstream=100)
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""


def allowed(soft: int, hard: int, *protos: str) -> list[Any]:
    """Return what is logged, and the limits at the end; of a process of its own, for a hard limit never rises again."""
    command = [sys.executable, "-c", CODE, str(soft), str(hard), *protos]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_where_the_hard_limit_allows_it_all_connections_find_room_and_nothing_is_said() -> None:
    assert allowed(256, 15_000, "https", "udp", "tcp") == [[11_000 + 1 + 2_000 + 1_024 + 100, 15_000]]


def test_what_is_short_is_said_with_how_much_and_what_to_do() -> None:
    (event, fields), limits = allowed(256, 15_000, "https", "http", "udp")
    assert event == "open-files-limit"
    assert (fields["limit"], fields["wanted"], fields["allowed"]) == ("RLIMIT_NOFILE", 23_125, 15_000)
    assert all(way in fields["remedy"] for way in ("ulimit -Hn 23125", "LimitNOFILE=23125", "--ulimit nofile=23125"))
    assert limits == [15_000, 15_000]
