# SPDX-License-Identifier: Apache-2.0
"""packaging/bin: what root runs does nothing for the service's user that this user could not do, and shows nobody a key."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment.units import PACKAGING
from interop.ipseckit import skipped

OLD, NEW = (f"{kid} {'QUFB' * 21}QQ==\n" for kid in ("0a1b2c3d", "4e5f6071"))
ROTATES = f"""cat "$KEYFERRY_KEK_FILE" > /dev/null
echo "$*" > "$HOLE/asked"; id -u >> "$HOLE/asked"
printf '{NEW.strip()}\\n' > "$KEYFERRY_KEK_FILE.new" && mv "$KEYFERRY_KEK_FILE.new" "$KEYFERRY_KEK_FILE"
"""


@pytest.fixture
def machine() -> Iterator[Path]:
    """Return a folder that stands for /: etc/keyferry of root's, var/lib of root's, and a place that the service's user may write to."""
    if os.geteuid() != 0 or any(shutil.which(program) is None for program in ("runuser", "setsid", "shred")):
        skipped("needs root, runuser, setsid and shred: Debian's packages util-linux and coreutils")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("", "etc", "var", "var/lib", "usr", "usr/bin"):
            (root / name).mkdir(exist_ok=True)
            (root / name).chmod(0o755)
        (root / "etc/keyferry").mkdir(mode=0o755)
        (root / "hole").mkdir(mode=0o777)
        (root / "hole").chmod(0o777)
        (root / "etc/keyferry/kek").write_text(OLD)
        (root / "etc/keyferry/kek").chmod(0o600)
        (root / "secret").write_text("root's alone\n")
        (root / "secret").chmod(0o600)
        yield root


def rotate(machine: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run keyferry-rotate-kek in that folder, for `nobody`, with a program in the place of keyferry."""
    keyferry = machine / "usr/bin/keyferry"
    keyferry.write_text(f"#!/bin/sh\nset -e\nHOLE={machine}/hole\nSECRET={machine}/secret\n{program}")
    keyferry.chmod(0o755)
    text = (PACKAGING / "bin/keyferry-rotate-kek").read_text("utf-8")
    for old, new in (
        ("-u keyferry", "-u nobody"), ("-o keyferry -g keyferry", "-o nobody -g nogroup"), ("/var/lib/", f"{machine}/var/lib/"),
        ("/etc/keyferry", f"{machine}/etc/keyferry"), ("/usr/bin/keyferry", str(keyferry)),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    return subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False, timeout=60)


def test_the_kek_is_rotated_by_its_user_and_kept_by_root(machine: Path) -> None:
    """A second time too, and after a crash before the new one was put back."""
    done = rotate(machine, ROTATES)
    assert done.returncode == 0, done.stderr
    kek = machine / "etc/keyferry/kek"
    assert kek.read_text() == NEW
    assert (kek.stat().st_mode & 0o777, kek.stat().st_uid) == (0o600, 0)
    assert sorted(path.name for path in kek.parent.iterdir()) == ["kek"]
    assert not (machine / "var/lib/keyferry-rotation").exists()
    assert (machine / "hole/asked").read_text() == f"keys rotate --state {machine}/var/lib/keyferry\n65534\n"
    assert rotate(machine, "exit 1\n").returncode == 1
    assert (machine / "var/lib/keyferry-rotation/kek").read_text() == NEW
    assert rotate(machine, ROTATES.replace("4e5f6071", "88776655")).returncode == 0
    assert kek.read_text() == NEW.replace("4e5f6071", "88776655")


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param('rm "$KEYFERRY_KEK_FILE"; ln -s "$SECRET" "$KEYFERRY_KEK_FILE"\n', id="a link to root's file"),
        pytest.param('echo "no KEK" > "$KEYFERRY_KEK_FILE"\n', id="something else"),
        pytest.param(': > "$KEYFERRY_KEK_FILE"\n', id="nothing"),
    ],
)
def test_what_the_services_user_plants_leads_root_nowhere(machine: Path, planted: str) -> None:
    """A link where the copy lies would have been read, and shredded, as root."""
    done = rotate(machine, planted)
    assert done.returncode != 0
    assert "root's alone" not in done.stdout + done.stderr
    assert (machine / "secret").read_text() == "root's alone\n"
    assert (machine / "etc/keyferry/kek").read_text() == OLD
    assert not (machine / "etc/keyferry/kek.new").exists() or (machine / "etc/keyferry/kek.new").read_text() == ""


def test_a_copy_that_was_planted_before_is_not_written_through(machine: Path) -> None:
    """The old KEK goes nowhere that this user cannot write to anyway."""
    copy = machine / "var/lib/keyferry-rotation"
    copy.mkdir(mode=0o700)
    (copy / "kek").symlink_to(machine / "secret")
    (copy / "kek.first").symlink_to(machine / "secret")
    shutil.chown(copy, "nobody", "nogroup")
    done = rotate(machine, ROTATES)
    assert done.returncode != 0
    assert (machine / "secret").read_text() == "root's alone\n"
    assert (machine / "etc/keyferry/kek").read_text() == OLD


def admin(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run keyferry-admin with a systemd-run that prints its arguments."""
    (folder / "systemd-run").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "systemd-run").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    script = PACKAGING / "bin/keyferry-admin"
    return subprocess.run([script, *words], capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_the_administrators_command_is_no_ones_to_read(tmp_path: Path) -> None:
    """systemd-run takes the whole command for the unit's description, which everybody sees and the journal keeps."""
    done = admin(tmp_path, "subscriber", "show", "user1_private@home1.net")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    (description,) = (word for word in words if word.startswith("--description="))
    assert "user1" not in description
    assert words[words.index("--") :] == ["--", "/usr/bin/keyferry", "subscriber", "show", "user1_private@home1.net"]
    assert "--property=WorkingDirectory=/var/lib/keyferry" in words


@pytest.mark.parametrize("words", [("--k", "465b"), ("--opc=cd63",), ("--op", "00"), ("--ck=aa",), ("--ik", "bb")])
def test_the_administrator_gives_no_key_as_an_argument(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = admin(tmp_path, "subscriber", "add", "--impi", "a@home1.net", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--keys-file -" in done.stderr
    assert words[-1].partition("=")[2] not in done.stderr or not words[-1].partition("=")[2]
