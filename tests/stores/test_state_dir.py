# SPDX-License-Identifier: Apache-2.0
"""The state directory says clearly why it cannot be used (DESIGN §3)."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.stores.state_dir import MAX_KEY_FILE, StateDir, open_state
from keyferry.transports.clock import SystemRandom
from stores.made import CountedRandom, key

KEK_LINE = "0a0b0c0d " + base64.b64encode(bytes(64)).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


def opened(path: Path, **options: object) -> StateDir:
    return open_state(path, random=CountedRandom(), **options)  # type: ignore[arg-type]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(StateError) as refused:
        opened(path, **options)
    assert refused.value.remedy
    return str(refused.value)


def test_a_first_start_makes_everything_private(path: Path) -> None:
    with opened(path) as state:
        sealed = state.keyring.seal(b"secret", "t.c", [])
        state.isc_keys("scscf.ims.example", "xcap.ims.example")
    modes = {entry.relative_to(path).as_posix(): stat.S_IMODE(entry.stat().st_mode) for entry in path.rglob("*")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (path / "version").read_text() == "1\n"
    assert modes["isc"] == 0o700
    assert modes["kek"] == modes["isc/scscf.ims.example--xcap.ims.example"] == 0o600
    assert not [name for name in modes if name.endswith(".new")]
    with opened(path) as state:
        assert state.keyring.open(sealed, "t.c", []) == b"secret"


def test_the_number_of_a_start_rises_though_the_clock_was_set_back(path: Path) -> None:
    with opened(path) as state:
        assert [state.next_start("scscf1.home1.net", at) for at in (1000, 400, 1001, 2000)] == [1000, 1001, 1002, 2000]
    with opened(path) as state:
        assert (state.next_start("scscf1.home1.net", 7), state.next_start("scscf2.home1.net", 7)) == (2001, 7)
        for damaged in ("", "x", "9" * 10, "9" * 5000, "-1"):
            (path / "scscf1.home1.net.start").write_text(damaged)
            assert state.next_start("scscf1.home1.net", 8) == 8
    assert stat.S_IMODE((path / "scscf1.home1.net.start").stat().st_mode) == 0o600


def test_the_last_kek_is_current(path: Path) -> None:
    with opened(path) as state:
        (old,) = state.keks
    with (path / "kek").open("a") as file:
        file.write(f"\n# made by hand\n{KEK_LINE}\n")
    with opened(path) as state:
        assert list(state.keks) == [old, bytes.fromhex("0a0b0c0d")]
        assert state.keyring.current == bytes.fromhex("0a0b0c0d")


def test_user_ids_are_made_with_one_key_per_application_that_stays(path: Path) -> None:
    """Restarts, other processes and a rotation of the KEK leave the ids as they are; another state directory has others."""
    with opened(path) as state:
        key = state.user_id_key("notes.home1.net")
        other = state.user_id_key("xcap.home1.net")
        state.write_keks({**state.keks, b"new1": state.new_kek()[1]})
    assert len(key) == 32
    assert key != other
    assert stat.S_IMODE((path / "user-ids").stat().st_mode) == 0o600
    assert key.reveal() not in base64.b64decode((path / "user-ids").read_text().split()[1])
    with opened(path) as state:
        assert state.user_id_key("notes.home1.net") == key
    with open_state(path.with_name("elsewhere"), random=SystemRandom()) as state:
        assert state.user_id_key("notes.home1.net") != key


def test_one_serves_and_others_may_read(path: Path) -> None:
    with opened(path, exclusive=True), opened(path) as reader:
        assert reader.keks
        assert "served by another" in refusal(path, exclusive=True)
    with opened(path, exclusive=True):
        pass


def test_keys_are_not_read_while_they_are_rotated(path: Path) -> None:
    with opened(path) as state, state.alone():
        assert "rotated" in refusal(path)
    with opened(path) as state, opened(path):
        with pytest.raises(StateError, match="in use"), state.alone():
            pass
        with opened(path) as another, pytest.raises(StateError), another.alone():
            pass  # the attempt has not cost the first one its lock


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o707])
def test_a_directory_open_to_others_is_refused(path: Path, mode: int) -> None:
    opened(path).close()
    path.chmod(mode)
    assert "chmod 700" in refusal(path)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_kek_open_to_others_is_refused(path: Path, mode: int) -> None:
    opened(path).close()
    (path / "kek").chmod(mode)
    assert "chmod 600" in refusal(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", [".", "kek"])
def test_what_belongs_to_another_user_is_refused(path: Path, name: str) -> None:
    opened(path).close()
    os.chown(path / name, 12345, -1)
    assert "another user" in refusal(path)


def test_another_layout_is_refused(path: Path) -> None:
    opened(path).close()
    (path / "version").write_text("2\n")
    assert "layout 2" in refusal(path)


def test_a_directory_with_other_files_is_not_taken(path: Path) -> None:
    path.mkdir(parents=True, mode=0o700)
    (path / "letters").write_text("dear …")
    assert "no state directory" in refusal(path)
    assert [entry.name for entry in path.iterdir()] == ["letters"]


@pytest.mark.parametrize("left", [(), ("kek.lock",), ("kek.lock", "kek.new"), ("kek.lock", "kek"), ("kek.lock", "kek", "version.new")])
def test_a_first_start_that_was_interrupted_is_taken_up(path: Path, tmp_path: Path, left: tuple[str, ...]) -> None:
    opened(tmp_path / "other").close()
    kek = (tmp_path / "other" / "kek").read_bytes()
    path.mkdir(parents=True, mode=0o700)
    for name in left:
        (path / name).touch(0o600)
        if name == "kek":
            (path / name).write_bytes(kek)
    opened(path).close()
    if "kek" in left:
        assert (path / "kek").read_bytes() == kek


def test_a_kek_that_went_is_not_made_anew_over_sealed_rows(path: Path) -> None:
    opened(path).close()
    (path / "kek").unlink()
    (path / "hss.db").touch()
    assert "Restore it from its backup" in refusal(path)
    (path / "hss.db").unlink()
    opened(path).close()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nothing\n",
        "0a0b0c0d\n",
        f"{KEK_LINE} more\n",
        f"{KEK_LINE}\n{KEK_LINE}\n",
        KEK_LINE.upper(),
        KEK_LINE[:-4],
        f"0a0b0c0d {base64.b64encode(bytes(32)).decode()}",
        KEK_LINE.replace("AAAA", "A é A", 1),
        "x" * (MAX_KEY_FILE + 1),
    ],
)
def test_a_kek_file_that_is_damaged_is_refused_without_showing_it(path: Path, content: str) -> None:
    opened(path).close()
    (path / "kek").write_text(content)
    text = refusal(path)
    assert "Restore" in text
    assert "AAAA" not in text


def test_a_kek_kept_elsewhere_may_be_its_groups(path: Path, tmp_path: Path) -> None:
    """DESIGN §3: a service manager's credential."""
    credential = tmp_path / "credential"
    assert "is missing" in refusal(path, kek_file=credential)
    credential.write_text(KEK_LINE)
    credential.chmod(0o440)
    with opened(path, kek_file=credential) as state:
        assert list(state.keks) == [bytes.fromhex("0a0b0c0d")]
    assert not (path / "kek").exists()
    credential.chmod(0o444)
    assert "other users" in refusal(path, kek_file=credential)


def test_a_place_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in refusal(tmp_path / "file")
    opened(tmp_path / "state").close()
    (tmp_path / "state" / "kek").unlink()
    (tmp_path / "state" / "kek").mkdir()
    assert "cannot be used" in refusal(tmp_path / "state")


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "../x", "kek", "version", "lock", "x" * 101, "a\n"])
def test_a_name_leads_nowhere_else(path: Path, name: str) -> None:
    with opened(path) as state:
        with pytest.raises(StateError):
            state.path(name)
        assert state.path("hss.db") == path / "hss.db"


def test_databases_are_those_of_the_directory(path: Path) -> None:
    with opened(path) as state:
        for name in ("scscf.db", "hss.db", "hss.db-wal"):
            state.path(name).touch()
        assert state.databases() == [path / "hss.db", path / "scscf.db"]


class TestIscKeys:
    """DESIGN §6."""

    def test_the_first_is_made_and_stays(self, path: Path) -> None:
        with opened(path) as state:
            made = state.isc_keys("scscf.ims.example", "xcap.ims.example")
            assert list(made) == ["t1"]
            assert len(made["t1"]) == 64
            assert state.isc_keys("scscf.ims.example", "xcap.ims.example") == made
            assert state.isc_keys("scscf.ims.example", "other.ims.example") != made

    def test_two_live_during_a_rotation_and_the_last_seals(self, path: Path) -> None:
        with opened(path) as state:
            state.isc_keys("s", "a")
            with (path / "isc" / "s--a").open("a") as file:
                file.write("t2 " + base64.b64encode(key("t2", 64).reveal()).decode())
            assert list(state.isc_keys("s", "a")) == ["t1", "t2"]

    def test_one_that_another_process_has_just_made_is_kept(self, path: Path) -> None:
        class Racing(CountedRandom):
            """Another process makes the file while this one is making its key."""

            def octets(self, count: int) -> bytes:
                if count == 64 and (path / "isc").exists() and not (path / "isc" / "s--a").exists():
                    (path / "isc" / "s--a").write_text("t1 " + base64.b64encode(key("theirs", 64).reveal()).decode())
                    (path / "isc" / "s--a").chmod(0o600)
                return super().octets(count)

        with open_state(path, random=Racing()) as state:
            state.isc_keys("s", "other")
            assert state.isc_keys("s", "a") == {"t1": key("theirs", 64)}

    @pytest.mark.parametrize(("scscf", "as_id"), [("..", "a"), ("a/b", "c"), ("a--b", "c"), ("a", "b--c"), ("", "a"), ("a", "\n")])
    def test_a_name_leads_nowhere_else(self, path: Path, scscf: str, as_id: str) -> None:
        with opened(path) as state, pytest.raises(StateError):
            state.isc_keys(scscf, as_id)

    def test_a_folder_that_cannot_be_written_is_refused(self, path: Path) -> None:
        with opened(path) as state:
            (path / "isc").touch()
            with pytest.raises(StateError, match="cannot be used"):
                state.isc_keys("s", "a")


def test_a_new_keks_kid_is_not_in_use(path: Path) -> None:
    class Repeating(CountedRandom):
        """Yields every kid twice."""

        def octets(self, count: int) -> bytes:
            self.calls += 1
            return bytes([self.calls // 2]) * count

    with open_state(path, random=Repeating()) as state:
        kid, _ = state.new_kek()
        state.write_keks({**state.keks, kid: key("kek", 64)})
        assert state.new_kek()[0] not in state.keks
