# SPDX-License-Identifier: Apache-2.0
"""The glue, with a KSR that keeps strings as Kamailio does: octets survive, nothing is raised, each process opens for itself."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kemi.kemikit import AS_ID, CK, IMPI, IMPU, NONCE, REALM, SERVER, answer, challenge, empty, register, response, third_party
from keyferry.errors import ConfigError, StateError
from keyferry.kemi.script import DONE, FAILED, REFUSED, RESERVED, SHM_MARGIN, Script
from keyferry.kemi.settings import KemiSettings, build_settings, load_settings
from keyferry.protocol.identity import AsId, Reg


class Ksr:
    """Kamailio's module, as far as the script uses it."""

    def __init__(self) -> None:
        self.pv = self.textops = self
        self.message = b""
        self.avp = ""
        self.held = ""
        self.reserve = ""
        self.body: tuple[str, str] | None = None
        self.log: list[str] = []
        self.has_memory = True
        self.request: dict[str, str] = {}
        self.free = SHM_MARGIN

    def get(self, name: str) -> str:
        """Return a pseudo-variable."""
        if name in ("$avp(g.kf_out)", "$var(kf_reserve)"):
            return self.held if name == "$avp(g.kf_out)" else self.reserve
        if name.startswith("$uac_req("):
            return self.request[name[9:-1]]
        if name == "$(mb{s.substr,0,11})":
            return self.message[:11].decode("latin-1")
        assert name == "$(mb{s.encode.hexa})"
        return self.message.hex() if len(self.message) < 32_768 else ""

    def sets(self, name: str, value: str) -> int:
        """Set one."""
        if name == "$avp(g.kf_out)":
            self.held = value if self.has_memory else ""
            return 1
        if name == "$var(kf_reserve)":
            self.reserve = value if self.has_memory else ""
            return 1
        if name.startswith("$uac_req("):
            self.request[name[9:-1]] = value
            return 1
        assert name == "$avp(fr.kf_hex)"
        self.avp = value
        return 1

    def seti(self, name: str, value: int) -> int:
        """Set a number."""
        return self.sets(name, str(value))

    def set_body(self, body: str, kind: str) -> int:
        """Set the body of the message."""
        self.body = (body, kind)
        return 1

    def warn(self, words: str) -> int:
        """Log."""
        self.log.append(words)
        return 1


@pytest.fixture(name="ksr")
def ksr_fixture() -> Ksr:
    """Kamailio."""
    return Ksr()


@pytest.fixture(name="settings")
def settings_fixture(tmp_path: Path) -> Path:
    """What keyferry kamailio wrote."""
    settings = KemiSettings(tmp_path / "state", "scscf1.home1.net", REALM, {SERVER: (AsId("xcap.home1.net"),)}, 600_000, 86_400.0, "")
    file = tmp_path / "kemi.json"
    file.write_text(build_settings(settings))
    return file


@contextmanager
def running(ksr: Ksr, settings: Path) -> Iterator[Script]:
    """Run the script in one process, and close its store."""
    script = Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: ksr.free)
    yield script
    if script._scscf is not None:
        script._scscf.store.close()


@pytest.fixture(name="script")
def script_fixture(ksr: Ksr, settings: Path) -> Iterator[Script]:
    """The script, in one process."""
    with running(ksr, settings) as script:
        yield script


def test_a_registration_goes_through(script: Script, ksr: Ksr) -> None:
    ksr.message = register(empty())
    assert script.register(None) == DONE
    ksr.message = challenge()
    assert script.reserve(None) == script.challenge(None) == DONE
    assert bytes.fromhex(ksr.avp).startswith(b"SIP/2.0 401")
    ksr.message = register(answer(), cseq=2, branch="z9hG4bK2")
    assert script.register(None) == script.accepted(None) == script.pushing(None) == script.next_device(None) == DONE
    assert script.leaving(None) == FAILED
    ksr.message = third_party()
    assert script.third_party(None) == DONE
    assert ksr.body is not None
    assert ksr.body[1] == "application/3gpp-ims+xml"
    assert "kf:sealed" in ksr.body[0]
    assert script.pushed(None) == DONE
    ksr.body = None
    assert script.third_party(None) == FAILED
    assert ksr.body is None
    ksr.message = response("200 OK", cseq=2, branch="z9hG4bK2")
    assert script.answered(None) == FAILED  # no HSS of ours


def test_octets_that_are_no_utf_8_survive(script: Script, ksr: Ksr) -> None:
    ksr.message = register(empty()).replace(b"From: <", b'From: "\xff\xfe" <')
    assert script.register(None) == DONE
    ksr.message = challenge().replace(b"From: <", b'From: "\xff\xfe" <')
    assert script.reserve(None) == script.challenge(None) == DONE
    assert b'"\xff\xfe"' in bytes.fromhex(ksr.avp)


def test_nothing_that_goes_wrong_is_raised_or_told_with_its_values(script: Script, ksr: Ksr, settings: Path) -> None:
    ksr.message = b"\xff" + CK.reveal()
    assert script.register(None) == REFUSED
    for call in (script.accepted, script.pushing, script.leaving, script.answered, script.third_party):
        assert call(None) == FAILED
    (settings.parent / "state").chmod(0o755)
    other = Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: SHM_MARGIN)
    ksr.message = challenge()
    ksr.avp = ""
    assert other.reserve(None) == DONE
    assert other.challenge(None) == FAILED
    assert ksr.avp == ""  # so the configuration sends nothing of it
    assert not any(CK.reveal().hex() in words for words in ksr.log)


def test_each_process_opens_for_itself(script: Script, ksr: Ksr) -> None:
    ksr.message = register(empty())
    assert script.register(None) == DONE
    before = script._scscf
    child = os.fork()
    if child == 0:
        works = script.register(None) == DONE and script._scscf is not before
        os._exit(0 if works else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert script._scscf is before


def test_own_avps_are_asked_for(ksr: Ksr, settings: Path) -> None:
    calls: list[int] = []
    assert Script(ksr, str(settings), reset_avps=lambda: calls.append(1), free_memory=lambda: SHM_MARGIN).own_avps(None) == DONE
    assert calls == [1]
    with pytest.raises(AttributeError):  # outside Kamailio: it says so at its start, not at the first 401
        Script(ksr, str(settings))


def test_with_little_shared_memory_no_registration_is_begun(ksr: Ksr, settings: Path) -> None:
    """And a moment later, when transactions were freed, one is."""
    free = [SHM_MARGIN, SHM_MARGIN - 1]
    script = Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: free.pop())
    ksr.message = register(empty())
    assert script.register(None) == FAILED
    assert "give more with -m" in ksr.log[0]
    assert not (settings.parent / "state").exists()
    assert script.register(None) == DONE
    script._opened().store.close()


def test_settings_that_cannot_be_read_say_what_to_do(tmp_path: Path, settings: Path) -> None:
    assert load_settings(settings).servers == {SERVER: ("xcap.home1.net",)}
    for text in ("", "[]", "{}", '{"servers": {"x": [1]}}'):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        with pytest.raises(ConfigError, match="keyferry kamailio"):
            load_settings(bad)
    assert IMPI
    assert NONCE


def test_what_a_ue_sent_and_what_is_our_own_fault_are_told_apart(script: Script, ksr: Ksr, settings: Path) -> None:
    """400 says that the UE is wrong, and a UE that believes it does not come again; 503 says: later."""
    for bad in (register("Basic x"), register(empty(), more=f"X: {'y' * 40_000}\r\n")):
        ksr.message = bad
        assert script.register(None) == REFUSED
    ksr.message = register(empty())
    assert script.register(None) == DONE
    with closing(sqlite3.connect(settings.parent / "state/kemi.db", isolation_level=None)) as other:
        assert script._scscf is not None
        script._scscf.store._connection.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        assert script.register(None) == script.pushing(None) == FAILED
    assert script.register(None) == DONE
    (settings.parent / "state").chmod(0o755)
    other_process = Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: SHM_MARGIN)
    assert other_process.register(None) == FAILED


def test_a_state_that_cannot_be_opened_leaves_nothing_open(ksr: Ksr, settings: Path) -> None:
    """Each REGISTER tries again, and a process has 1,024 descriptors."""
    state = settings.parent / "state"
    script = Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: SHM_MARGIN)
    ksr.message = register(empty())
    state.mkdir(mode=0o700)
    (state / "kemi.db").mkdir()
    before = None
    for _ in range(3):
        assert script.register(None) == FAILED
        after = len(os.listdir("/proc/self/fd"))
        assert before in (None, after)
        before = after


def test_what_leaves_without_a_decision_is_there_before_anything_is_sent(ksr: Ksr, settings: Path) -> None:
    Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: SHM_MARGIN)
    assert ksr.held == "\r\n\r\n"
    ksr.has_memory = False
    with pytest.raises(StateError, match="-m"):
        Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: SHM_MARGIN)


def test_the_first_worker_says_at_the_start_what_does_not_work(ksr: Ksr, settings: Path, tmp_path: Path) -> None:
    """DESIGN §10: flags 7 promise rspauth, so it is asked for before a UE needs it."""
    with running(ksr, settings) as script:
        assert script.child_init(1) == 0
    assert ksr.log == []
    found = load_settings(settings)
    settings.write_text(build_settings(dataclasses.replace(found, rspauth=str(tmp_path / "nobody"))))
    with running(ksr, settings) as script:
        assert script.child_init(2) == script.child_init(0) == 0
        assert ksr.log == []
        assert script.child_init(1) == 0
    assert "rspauth" in ksr.log[0]
    (settings.parent / "state").chmod(0o755)
    assert Script(ksr, str(settings), reset_avps=lambda: None, free_memory=lambda: SHM_MARGIN).child_init(1) == 0
    assert "chmod 700" in ksr.log[1]


def test_an_end_that_the_hss_tells_of_becomes_a_request(ksr: Ksr, settings: Path, tmp_path: Path) -> None:
    found = load_settings(settings)
    with running(ksr, settings) as script:
        assert script.ended(None) == DONE
        assert script.next_end(None) == FAILED  # without our HSS there is nobody to ask
    settings.write_text(build_settings(dataclasses.replace(found, rspauth=str(tmp_path / "hss"))))
    with running(ksr, settings) as script:
        assert script.ended(None) == script.ended(None) == DONE
        assert len(ksr.log) == 1
        assert "hss" in ksr.log[0]
        assert script._scscf is not None
        store = script._scscf.store
        store.keep("n", IMPI, IMPU, REALM, CK)
        store.authenticated("n", IMPI, IMPU, Reg("AAAAAAAAAAAA"), 9e12)
        store.end(IMPI, store.next_seq(IMPI, AS_ID, Reg("AAAAAAAAAAAA")) + 1000, 1)
        ksr.free -= 1
        assert script.next_end(None) == FAILED
        ksr.free += 1
        assert script.next_end(None) == DONE
        assert script.next_end(None) == FAILED
        owed = "SELECT count(*) FROM owed"
        for status, left in (("408", 1), ("200", 0)):
            ksr.request["evcode"] = status
            assert script.end_answered(None) == DONE
            assert store._connection.execute(owed).fetchone() == (left,)
    assert ksr.request.pop("body").startswith("<")
    headers = ksr.request.pop("hdrs")
    assert "\r\nExpires: 0\r\n" in headers
    assert "Content-Type: application/3gpp-ims+xml\r\n" in headers
    assert ksr.request == {
        "method": "REGISTER",
        "ruri": SERVER,
        "furi": "sip:scscf1.home1.net",
        "turi": IMPU,
        "evroute": "1",
        "evcode": "200",
        "evparam": ksr.request["evparam"],
    }


def test_the_answer_of_an_as_is_told_from_what_others_send(script: Script, ksr: Ksr) -> None:
    ksr.message = response("200 OK", cseq=10, call_id="k1")
    assert script.as_answered(None) == DONE
    for other in (
        b"SIP/2.0 200 OK\r\n\r\n",
        response("403 Forbidden"),
        response("200 OK").replace(b" REGISTER", b" INVITE"),
        third_party(),
    ):
        ksr.message = other
        assert script.as_answered(None) == FAILED
    assert ksr.log == []  # what anybody may send fills no log


def test_private_memory_is_put_aside_and_a_process_without_any_ends(script: Script, ksr: Ksr) -> None:
    """What corex does without any is to send the 401 with CK, IK."""
    assert script.reserve(None) == DONE
    assert len(ksr.reserve) == RESERVED
    ksr.message = challenge()
    assert script.challenge(None) == DONE  # a 500, since nobody asked
    ksr.has_memory = False
    assert script.reserve(None) == FAILED
    child = os.fork()
    if child == 0:
        script.challenge(None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_only_what_is_seen_to_be_no_challenge_passes(script: Script, ksr: Ksr) -> None:
    starts = [f"SIP/2.0 {status}" for status in range(100, 700)] + ["REGISTER sip", "OPTIONS sip:", "0", "", "SIP/2.0 4", "SIP/2.0 "]
    held = []
    for start in starts:
        ksr.message = start.encode()
        if script.passes(None) == FAILED:
            held.append(start)
    assert held == ["SIP/2.0 401", "SIP/2.0 407", "0", "", "SIP/2.0 4", "SIP/2.0 "]
    ksr.pv = None  # type: ignore[assignment]
    assert script.passes(None) == FAILED
