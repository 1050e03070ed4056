# SPDX-License-Identifier: Apache-2.0
"""`lab up` that comes to nothing leaves nothing; `lab down` ends what is its own. With programs that only note what they are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyferry.errors import ConfigError
from keyferry.lab import topology_run
from keyferry.lab.topology import LabFailed
from keyferry.lab.topology_files import LabFiles
from keyferry.lab.topology_record import MARK, Record, end_processes, marked, own_processes, read_record
from keyferry.lab.topology_run import UpOptions

root = pytest.mark.skipif(os.geteuid() != 0, reason="labs are root's: run as root")
IP = """#!/bin/sh
# Keeps namespaces as lines of a file, and notes every command.
echo "$0 $*" | sed 's|^.*/||' >> "$FAKE/calls"
case "$1 $2" in
"netns list") cat "$FAKE/netns" ;;
"link set") [ "$3 $4" != "lo alias" ] || echo "$5" > "$FAKE/alias" ;;
"netns attach") [ "$3" != "$(cat "$FAKE/fails" 2>/dev/null)" ] || { echo "mount of /run/netns failed: Permission denied" >&2; exit 1; }
    ! grep -qx "$3" "$FAKE/netns" || { echo "Cannot create namespace file \"/run/netns/$3\": File exists" >&2; exit 1; }
    echo "$3" >> "$FAKE/netns"; mv "$FAKE/alias" "$FAKE/alias-$3" ;;
"-n kf-"*) [ "$3 $4 $5" != "-j link show" ] || printf '[{"ifalias": "%s"}]' "$(cat "$FAKE/alias-$2" 2>/dev/null)" ;;
"netns delete")
    [ "$3" != "$(cat "$FAKE/rival" 2>/dev/null)" ] || for each in visited home as; do echo theirs > "$FAKE/alias-kf-t1-$each"; done
    grep -vx "$3" "$FAKE/netns" > "$FAKE/rest"; mv "$FAKE/rest" "$FAKE/netns" ;;
"netns exec") echo "no part is here" >&2; case "$*" in *serve*) exit 3 ;; *http.client*) exit 1 ;; esac ;;
esac
exit 0
"""
UNSHARE = '#!/bin/sh\nshift\nexec "$@"\n'
NO_NETEM = '#!/bin/sh\necho "Error: Specified qdisc kind is unknown." >&2\nexit 2\n'
SLEEP = "import time, signal; {ignore}print('up', flush=True); time.sleep(600)"


class Machine:
    """A machine whose iproute2 only notes what it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labs = folder / "labs"
        (folder / "netns").write_text("somebody-elses\n")
        for name, text in (("ip", IP), ("unshare", UNSHARE), ("tc", NO_NETEM)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    @property
    def namespaces(self) -> list[str]:
        return (self.folder / "netns").read_text().splitlines()

    def up(self, tell: Callable[[str], None] = lambda _: None, **options: object) -> dict[str, object]:
        return topology_run.up(UpOptions(id="t1", **options), self.labs, tell)  # type: ignore[arg-type]

    def is_clean(self) -> bool:
        return self.namespaces == ["somebody-elses"] and not list(self.labs.iterdir())


@pytest.fixture(name="machine")
def machine_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return Machine(tmp_path)


@contextmanager
def process(token: str, *, ignore: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run something with a token in its environment."""
    env = {**os.environ, MARK: token}
    with subprocess.Popen([sys.executable, "-c", SLEEP.format(ignore=ignore)], env=env, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"up\n"
            yield running
        finally:
            running.kill()


# ---- up


@root
def test_a_namespace_that_cannot_be_made_ends_those_that_were(machine: Machine) -> None:
    (machine.folder / "fails").write_text("kf-t1-home")
    with pytest.raises(LabFailed) as raised:
        machine.up()
    assert "no network namespace can be made: mount of /run/netns failed: Permission denied" in str(raised.value)
    assert "CAP_SYS_ADMIN" in str(raised.value)
    assert machine.is_clean()
    assert [call for call in machine.calls if "delete" in call] == ["ip netns delete kf-t1-ue", "ip netns delete kf-t1-visited"]


@root
@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_ctrl_c_at_any_step_leaves_nothing(machine: Machine, wanted: int) -> None:
    steps: list[str] = []

    def tell(step: str) -> None:
        steps.append(step)
        if len(steps) == wanted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.up(tell, delays=("0",), losses=("0",))
    assert steps[wanted:] == ["ending what was made"]
    assert ("starting" in steps[wanted - 1]) is (wanted == 4)
    assert machine.is_clean()


@root
def test_a_part_that_ends_says_what_it_said_and_takes_all_with_it(machine: Machine) -> None:
    with pytest.raises(LabFailed, match=r"hss ended with 3 before it was ready: no part is here"):
        machine.up(delays=("0",), losses=("0",))
    assert machine.is_clean()


@root
def test_netem_that_is_asked_for_and_not_there_is_said(machine: Machine) -> None:
    with pytest.raises(LabFailed, match=r"this kernel has no netem: Error: Specified qdisc kind is unknown"):
        machine.up(shaping="netem")
    assert machine.is_clean()


@root
def test_a_namespace_of_somebody_else_is_not_touched(machine: Machine) -> None:
    with (machine.folder / "netns").open("a") as file:
        file.write("kf-t1-home\n")
    with pytest.raises(LabFailed, match=r"kf-t1-home is there, and no lab in .* has made it"):
        machine.up()
    assert machine.namespaces == ["somebody-elses", "kf-t1-home"]


@root
@pytest.mark.parametrize("step", [0, 1])
def test_a_namespace_that_somebody_else_makes_meanwhile_is_not_touched_either(machine: Machine, step: int) -> None:
    """Another lab of this name elsewhere, between our look and our making: what we have made goes, what it has made stays."""
    steps: list[str] = []

    def tell(_: str) -> None:
        if len(steps) == step:
            with (machine.folder / "netns").open("a") as file:
                file.write("kf-t1-home\n")
        steps.append(_)

    with pytest.raises(LabFailed, match=r"just been made by somebody else: .*File exists\. Give another --id"):
        machine.up(tell)
    assert machine.namespaces == ["somebody-elses", "kf-t1-home"]
    assert not list(machine.labs.iterdir())


@root
@pytest.mark.parametrize(("mode", "user"), [(0o777, 0), (0o755, 65534)])
def test_a_lab_is_not_made_where_another_user_could_change_its_files(machine: Machine, mode: int, user: int) -> None:
    """Root would follow what is put in the place of its directory."""
    machine.labs.mkdir()
    machine.labs.chmod(mode)
    os.chown(machine.labs, user, -1)
    with pytest.raises(LabFailed, match="can be changed by others than root"):
        machine.up()
    assert machine.is_clean()


def test_pushes_are_counted_by_their_end() -> None:
    """An end that none came to is not told."""
    text = 'keyferry_as_pushes_total{reason="stored"} 2.0\nkeyferry_as_pushes_refused_total{reason="kid"} 0.0\nkeyferry_ready 1.0\n'
    assert topology_run.pushes_of(text) == {"stored": 2}


@root
def test_a_lab_of_this_name_is_not_made_twice(machine: Machine) -> None:
    files = LabFiles(machine.labs / "t1")
    files.root.mkdir(parents=True)
    Record("t1", "token").keep(files)
    with pytest.raises(LabFailed, match="keyferry lab down t1"):
        machine.up()
    assert read_record(files).token == "token"


def test_what_cannot_be_is_refused_before_anything_is_made(machine: Machine) -> None:
    with pytest.raises(ConfigError, match="--isc tls: Kamailio checks no peer"):
        machine.up(kamailio=True, isc="tls")
    with pytest.raises(ConfigError, match="--shaping: 'magic' is not auto, netem or relay"):
        machine.up(shaping="magic")
    with pytest.raises(ConfigError, match="--isc: 'none' is not tls or ipsec"):
        machine.up(isc="none")
    assert not (machine.folder / "calls").exists()
    assert not machine.labs.exists()


def test_who_is_not_root_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for work in (machine.up, lambda: topology_run.down("t1", machine.labs), lambda: topology_run.status("t1", machine.labs)):
        with pytest.raises(LabFailed, match="root alone"):
            work()
    assert not (machine.folder / "calls").exists()


# ---- down


@root
def test_a_lab_that_was_made_by_half_is_ended_and_again_is_no_error(machine: Machine) -> None:
    files = LabFiles(machine.labs / "t1")
    files.root.mkdir(parents=True)
    (machine.folder / "netns").write_text("somebody-elses\nkf-t1-ue\n")
    (machine.folder / "alias-kf-t1-ue").write_text("t1-of-a-test")
    Record("t1", "t1-of-a-test", namespaces=["kf-t1-ue", "kf-t1-visited"]).keep(files)
    assert oct(files.record.stat().st_mode)[-3:] == "600"
    assert topology_run.all_labs(machine.labs) == ["t1"]
    assert topology_run.down("t1", machine.labs) == {"id": "t1", "was": True, "processes": 0, "namespaces": 1}
    assert machine.is_clean()
    assert topology_run.down("t1", machine.labs) == {"id": "t1", "was": False, "processes": 0, "namespaces": 0}


@root
def test_a_namespace_that_somebody_else_makes_while_ours_are_ended_is_not_touched(machine: Machine) -> None:
    """Each is looked at just before it is deleted: a look at all of them first would be old by the time the last one goes."""
    (machine.folder / "rival").write_text("kf-t1-ue")  # once this one is deleted the other names are somebody else's
    with pytest.raises(LabFailed, match="no part is here"):
        machine.up(delays=("0",), losses=("0",))
    assert machine.namespaces == ["somebody-elses", "kf-t1-visited", "kf-t1-home", "kf-t1-as"]


@root
def test_a_lab_that_is_not_written_down_yet_is_ended_too(machine: Machine) -> None:
    (machine.labs / "t1").mkdir(parents=True)
    assert topology_run.down("t1", machine.labs)["was"] is False
    assert machine.is_clean()


def test_a_name_that_leads_elsewhere_ends_nothing(machine: Machine) -> None:
    for name in ("../etc", "/", ".", ""):
        with pytest.raises((ConfigError, LabFailed)):
            topology_run.down(name, machine.labs)


@root
@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"layout": 1}', '{"layout": 2, "id": "t1"}', '{"layout": 2, "id": "t1", "token": "x", "more": 1}']
)
def test_a_record_that_is_none_ends_nothing(machine: Machine, text: str) -> None:
    files = LabFiles(machine.labs / "t1")
    files.root.mkdir(parents=True)
    files.record.write_text(text)
    with pytest.raises(LabFailed):
        topology_run.down("t1", machine.labs)
    assert files.record.read_text() == text


def test_processes_with_the_token_end_and_no_others() -> None:
    with process("t1-aa") as own, process("t1-a") as other, process("t2-aa") as third:
        assert own_processes("t1-aa") == [own.pid]
        assert marked(own.pid, "t1-aa")
        assert not marked(other.pid, "t1-aa")
        assert end_processes("t1-aa") == 1
        own.wait(60)
        assert other.poll() is None
        assert third.poll() is None
        assert end_processes("t1-aa") == 0


def test_a_process_that_hears_no_sigterm_is_killed() -> None:
    with process("t1-bb", ignore="signal.signal(signal.SIGTERM, signal.SIG_IGN); ") as deaf:
        assert end_processes("t1-bb", 0.2) == 1
        assert deaf.wait(60) == -9


# ---- status


@root
def test_the_status_of_a_lab_whose_processes_are_gone_says_so(machine: Machine) -> None:
    files = LabFiles(machine.labs / "t1")
    files.root.mkdir(parents=True)
    part = {"name": "hss", "namespace": "kf-t1-home", "addresses": [], "pid": os.getpid(), "log": "x"}
    Record("t1", "t1-of-a-test", parts=[part], done={"pushes": {}}).keep(files)
    told = topology_run.status("t1", machine.labs)
    assert (told["ok"], told["parts"][0]["alive"], told["parts"][0]["ready"]) == (False, False, False)
    assert json.loads(files.record.read_text())["token"] not in json.dumps(told)
    with pytest.raises(LabFailed, match="no lab t2"):
        topology_run.status("t2", machine.labs)
