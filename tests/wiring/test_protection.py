# SPDX-License-Identifier: Apache-2.0
"""core(5), prctl(2) PR_SET_DUMPABLE, systemd.exec(5) LoadCredential: keys stay in the process, and the KEK may be kept elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.wiring.protection import kek_file, opened_state

CHILD = """
import resource, sys
from keyferry.wiring.protection import keep_memory_private
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
print(keep_memory_private(), resource.getrlimit(resource.RLIMIT_CORE))
import ctypes
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
DIES = """
import os, signal, sys
from keyferry.cli import app
from keyferry.wiring.protection import keep_memory_private
keep_memory_private()
os.kill(os.getpid(), signal.SIGABRT)
"""


def test_no_core_file_is_written_and_nobody_else_may_look() -> None:
    """PR_GET_DUMPABLE says 0; a new process, as it cannot be taken back in this one."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["True (0, 0)", "0"]


def test_a_process_that_dies_leaves_no_core(tmp_path: Path) -> None:
    """WCOREDUMP, wait(2), whatever core_pattern says."""
    with subprocess.Popen([sys.executable, "-c", DIES], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        _, status = os.waitpid(process.pid, 0)
        process.returncode = -6
    assert os.WTERMSIG(status) == 6
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []


def test_the_kek_is_where_the_environment_says(tmp_path: Path) -> None:
    """The variable first, then the credential; without either the state directory has it."""
    assert kek_file({}) is None
    assert kek_file({"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None
    (tmp_path / "kek").write_text("a")
    (tmp_path / "other").write_text("b")
    assert kek_file({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == tmp_path / "kek"
    assert kek_file({"CREDENTIALS_DIRECTORY": str(tmp_path), "KEYFERRY_KEK_FILE": str(tmp_path / "other")}) == tmp_path / "other"
    with pytest.raises(StateError, match="KEYFERRY_KEK_FILE"):
        kek_file({"KEYFERRY_KEK_FILE": str(tmp_path / "gone")})


def test_a_state_directory_opens_with_the_kek_of_the_service_manager_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN §3: no KEK lies beside what it seals."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    with opened_state(tmp_path / "first"):
        pass
    (tmp_path / "first" / "kek").rename(credentials / "kek")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    with opened_state(tmp_path / "state", exclusive=True) as state:
        assert state.kek_file == credentials / "kek"
        assert len(state.keks) == 1
    assert not (tmp_path / "state" / "kek").exists()
