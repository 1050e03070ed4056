# SPDX-License-Identifier: Apache-2.0
"""The glue, with a KSR that keeps strings as Kamailio does: octets survive, nothing is raised, each process opens for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kemi.kemikit import CK, IMPI, NONCE, REALM, SERVER, answer, challenge, empty, register, response, third_party
from keyferry.errors import ConfigError
from keyferry.kemi.script import DONE, FAILED, Script
from keyferry.kemi.settings import KemiSettings, build_settings, load_settings
from keyferry.protocol.identity import AsId


class Ksr:
    """Kamailio's module, as far as the script uses it."""

    def __init__(self) -> None:
        self.pv = self.textops = self
        self.message = b""
        self.avp = ""
        self.body: tuple[str, str] | None = None
        self.log: list[str] = []

    def get(self, name: str) -> str:
        """Return a pseudo-variable."""
        assert name == "$(mb{s.encode.hexa})"
        return self.message.hex()

    def sets(self, name: str, value: str) -> int:
        """Set one."""
        assert name == "$avp(kf_hex)"
        self.avp = value
        return 1

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


@pytest.fixture(name="script")
def script_fixture(ksr: Ksr, settings: Path) -> Iterator[Script]:
    """The script, in one process."""
    script = Script(ksr, str(settings), reset_avps=lambda: None)
    yield script
    if script._scscf is not None:
        script._scscf.store.close()


def test_a_registration_goes_through(script: Script, ksr: Ksr) -> None:
    ksr.message = register(empty())
    assert script.register(None) == DONE
    ksr.message = challenge()
    assert script.challenge(None) == DONE
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
    assert script.challenge(None) == DONE
    assert b'"\xff\xfe"' in bytes.fromhex(ksr.avp)


def test_nothing_that_goes_wrong_is_raised_or_told_with_its_values(script: Script, ksr: Ksr, settings: Path) -> None:
    ksr.message = b"\xff" + CK.reveal()
    for call in (script.register, script.accepted, script.pushing, script.leaving, script.answered, script.third_party):
        assert call(None) == FAILED
    (settings.parent / "state").chmod(0o755)
    other = Script(ksr, str(settings), reset_avps=lambda: None)
    ksr.message = challenge()
    ksr.avp = ""
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
    assert Script(ksr, str(settings), reset_avps=lambda: calls.append(1)).own_avps(None) == DONE
    assert calls == [1]
    with pytest.raises(AttributeError):  # outside Kamailio: it says so at its start, not at the first 401
        Script(ksr, str(settings))


def test_settings_that_cannot_be_read_say_what_to_do(tmp_path: Path, settings: Path) -> None:
    assert load_settings(settings).servers == {SERVER: ("xcap.home1.net",)}
    for text in ("", "[]", "{}", '{"servers": {"x": [1]}}'):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        with pytest.raises(ConfigError, match="keyferry kamailio"):
            load_settings(bad)
    assert IMPI
    assert NONCE
