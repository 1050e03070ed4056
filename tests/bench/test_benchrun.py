# SPDX-License-Identifier: Apache-2.0
"""Scripts that tests start hear Ctrl-C, and leave nothing behind if the test fails."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import benchrun
from bench.benchrun import interrupted, nothing_runs
from system.serving import environment

HEARS = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
sys.stderr.write("started")
sys.stderr.flush()
time.sleep(600)
"""


def test_what_a_test_starts_hears_ctrl_c() -> None:
    """Also where the tests themselves were started deaf to it; the next test sees to that."""
    assert subprocess.run([sys.executable, "-c", HEARS], timeout=60, check=False).returncode == 0
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_it_does_so_where_the_tests_run_in_the_background_of_a_shell_script() -> None:
    """POSIX XCU 2.12: there SIGINT is ignored, which exec(2) hands on."""
    one = f"{Path(__file__)}::test_what_a_test_starts_hears_ctrl_c"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2], env=environment()
    )
    assert done.returncode == 0, done.stdout


def test_a_test_that_fails_leaves_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the script has started in a session of its own, as the soak does."""
    (tmp_path / "parent.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PARENT)
    monkeypatch.setattr(benchrun, "LIMIT", 0.2)
    monkeypatch.setattr(benchrun, "BENCH", tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        interrupted("parent.py", folder=tmp_path, when=lambda text: "started" in text)
    nothing_runs(tmp_path)
