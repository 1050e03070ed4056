# SPDX-License-Identifier: Apache-2.0
"""Somebody who has the wheel and nothing else: an empty folder, an empty environment, and the commands that `init` prints."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from system.serving import RUN_LIMIT, STOP_LIMIT, ready_line

pytestmark = pytest.mark.interop  # it takes the ports that init writes
ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(name="wheel", scope="module")
def wheel_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the project: a build leaves files behind."""
    project, target = tmp_path_factory.mktemp("build") / "project", tmp_path_factory.mktemp("wheel")
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    for name in ("src", "examples"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=ignore)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, target], cwd=project, capture_output=True, text=True, timeout=RUN_LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(name="bare")
def bare_fixture(wheel: Path, tmp_path: Path) -> Path:
    """The programs of an environment with the wheel, and of what it needs only what is on this machine: nothing is fetched."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=RUN_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return python.parent


def dependencies(programs: Path) -> None:
    """Let the environment see the packages of this one, keyferry not among them: a .pth there is not read."""
    (found,) = (programs.parent / "lib").glob("python*/site-packages")
    (found / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")


def shell(line: str, programs: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as it was printed, with nothing in the environment but where programs are."""
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=folder, env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True, timeout=RUN_LIMIT,
        check=False,
    )  # fmt: skip


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """An empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@contextmanager
def serving(line: str, programs: Path, folder: Path) -> Iterator[None]:
    """Run `serve` as it was printed, until the end of the block."""
    path = folder.parent / "log"
    with path.open("w") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {line}"], cwd=folder, env={"PATH": f"{programs}:/usr/bin:/bin"}, stdout=subprocess.PIPE, stderr=log,
            text=True,
        )  # fmt: skip
    try:
        assert '"ready": true' in json.dumps(ready_line(process, path))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_LIMIT)
    assert process.returncode == 0, path.read_text("utf-8")


@pytest.mark.parametrize("option", ["", "--full"])
def test_the_commands_that_init_prints_lead_to_a_login(bare: Path, folder: Path, option: str) -> None:
    dependencies(bare)
    begun = shell(f"keyferry init {option}", bare, folder)
    assert begun.returncode == 0, begun.stderr
    check, serve, register, *login = [line.strip() for line in begun.stdout.splitlines() if line.startswith("  ")]
    checked = shell(check, bare, folder)
    assert checked.returncode == 0, checked.stderr
    with serving(serve, bare, folder):
        registered = shell(register, bare, folder)
        assert registered.returncode == 0, registered.stderr
        assert "rspauth          verified" in registered.stdout
        put, get = (shell(line, bare, folder) for line in login)
    assert (put.returncode, get.returncode) == (0, 0), put.stderr + get.stderr
    assert ("<simservs" if option else "hello") in get.stdout


def test_the_wheel_alone_writes_every_example(bare: Path, folder: Path) -> None:
    """Without extras, and before `cryptography` is there."""
    assert shell("keyferry --version", bare, folder).stdout.startswith("keyferry 0.")
    for name in ("lab", "agent", "kamailio", "notes", "flask", "simservs", "nginx"):
        done = shell(f"keyferry init {name} --example {name}", bare, folder)
        assert done.returncode == 0, done.stderr
    refused = shell("keyferry serve --config lab/lab.toml", bare, folder)
    assert refused.returncode == 1
    assert f'{bare}/python -m pip install "keyferry[server]"' in refused.stderr
