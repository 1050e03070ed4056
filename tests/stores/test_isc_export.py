# SPDX-License-Identifier: Apache-2.0
"""Transport keys on their way to another machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import keyferry
from keyferry.errors import StateError
from keyferry.stores.isc_export import MAX_FILE, read_export
from keyferry.stores.isc_keys import export_isc, import_isc, rotate_isc
from keyferry.stores.state_dir import open_state
from stores.made import CountedRandom

S, A, B = "scscf1.home1.net", "wiki.home1.net", "mail.home1.net"
GOOD = f"{S} {A} t1 {'QUFB' * 21}QQ==\n"


def test_both_sides_have_the_same_keys_and_the_newest_seals(tmp_path: Path) -> None:
    """Made where nobody has started yet, and rotated on the way."""
    file = tmp_path / "isc.keys"
    with open_state(tmp_path / "one", random=CountedRandom()) as one, open_state(tmp_path / "two", random=CountedRandom()) as two:
        with pytest.raises(StateError):
            export_isc(one, file)
        assert [pair.kids for pair in export_isc(one, file, S, A)] == [("t1",)]
        assert file.stat().st_mode & 0o777 == 0o600
        two.isc_keys(S, A)
        two.isc_keys(S, B)
        assert [(pair.scscf, pair.as_id) for pair in import_isc(two, read_export(file))] == [(S, A)]
        assert two.isc_keys(S, A) == one.isc_keys(S, A)
        rotate_isc(two, S, A)
        file.unlink()
        export_isc(two, file, as_id=A)
        import_isc(one, read_export(file))
        assert list(one.isc_keys(S, A)) == ["t1", "t2"]
        assert one.isc_keys(S, A) == two.isc_keys(S, A)
        with pytest.raises(StateError, match="cannot be written: File exists"):
            export_isc(two, file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        (GOOD + GOOD, "line 2"),
        (GOOD.replace("==", ""), "line 1"),
        (GOOD.replace("QUFB", "", 1), "line 1"),
        (GOOD.replace(" t1", ""), "line 1"),
        (GOOD.replace("t1", "t/1"), "line 1"),
        (GOOD.replace(S, "../../etc"), "cannot be part of a file name"),
        (GOOD.replace(A, "a--b"), "cannot be part of a file name"),
        ("#" * (MAX_FILE + 1), "is longer than"),
    ],
)
def test_what_is_no_such_file_is_refused_as_a_whole(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "isc.keys"
    file.write_text(text)
    file.chmod(0o600)
    with open_state(tmp_path / "state", random=CountedRandom()) as state:
        with pytest.raises(StateError, match=says):
            import_isc(state, read_export(file))
        assert state.isc_pairs() == []


def test_a_file_that_others_may_read_or_that_is_a_link_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "isc.keys"
    file.write_text(GOOD)
    file.chmod(0o640)
    with pytest.raises(StateError, match="may be read by other users"):
        read_export(file)
    file.chmod(0o600)
    assert list(read_export(file)) == [(S, A)]
    os.symlink(file, tmp_path / "link")
    with pytest.raises(StateError, match="cannot be read"):
        read_export(tmp_path / "link")


def test_keys_go_through_a_pipe_too(tmp_path: Path) -> None:
    """They lie on no disk then."""
    with open_state(tmp_path / "one", random=CountedRandom()) as one:
        keys = one.isc_keys(S, A)
    command = (sys.executable, "-m", "keyferry", "keys")
    environment = {**os.environ, "PYTHONPATH": str(Path(keyferry.__file__).parents[1])}
    exported = subprocess.run(
        [*command, "export-isc", "-", "--state", tmp_path / "one"], capture_output=True, check=True, timeout=60, env=environment
    )
    subprocess.run(
        [*command, "import-isc", "-", "--state", tmp_path / "two"], input=exported.stdout, capture_output=True, check=True, timeout=60,
        env=environment,
    )  # fmt: skip
    with open_state(tmp_path / "two", random=CountedRandom()) as two:
        assert two.isc_keys(S, A) == keys
