# SPDX-License-Identifier: Apache-2.0
"""What a stock Kamailio works with is killed: the HSS between a challenge and its answer, an AS before a push (docs/kamailio.md)."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from interop.kamailio_kit import AS_ID, IMPI, Network, RawUe, Run, network, nonce_of, run_of
from system.serving import Served, free_port, keyferry, serving, until

pytestmark = pytest.mark.interop


def _apart(running: Network) -> tuple[Path, Path]:
    """Return the files of two HSSs of one state directory: the script asks the first, as long as it is there, and Kamailio the second."""
    ports = {"diameter": free_port(), "admin": free_port()}
    text = (running.folder / "hss.toml").read_text("utf-8")
    asked = running.folder / "asked.toml"
    text_asked = text.replace(f":{running.ports['3868']}", f":{ports['diameter']}")
    asked.write_text(text_asked.replace(f":{running.ports['HSS']}", f":{ports['admin']}"))
    return asked, running.folder / "hss.toml"


def test_rspauth_and_ends_outlive_the_process_that_gave_the_vector_and_reach_the_one_that_is_asked(tmp_path: Path) -> None:
    """RFC 7616 §3.5, TS 29.228 §6.1.3."""
    with network(tmp_path) as running, closing(RawUe(running.ports["6060"])) as ue:
        run = run_of(nonce_of(ue.challenged()))
        running.hss.kill()
        asked, other = _apart(running)
        log = tmp_path / "other.log"
        with (
            serving(asked, running.folder / "state", "--role", "hss", log=tmp_path / "asked.log") as first,
            serving(other, running.folder / "state", "--role", "hss", "--role", "admin", log=log),
        ):
            until(lambda: "peer=scscf1.home1.net" in log.read_text(), seconds=20, what="Kamailio is connected to the other HSS")
            answer = ue.send(ue.answer(run))
            assert answer.startswith("SIP/2.0 200"), answer
            assert "\r\nAuthentication-Info: " in answer
            until(lambda: [run.k_as.fingerprint()] in running.pushed(), seconds=5, what="the AS has the key")

            again, answer = _registers(ue)
            assert "\r\nAuthentication-Info: " in answer
            until(lambda: [again.k_as.fingerprint()] in running.pushed(), seconds=5, what="the AS has the key")

            admin = f"127.0.0.1:{running.ports['HSS']}"
            done = keyferry("subscriber", "terminate", IMPI, "--admin", admin, "--state", running.folder / "state", "--json")
            assert done.returncode == 0, done.stdout + done.stderr
            until(partial(_is_gone, running), seconds=10, what="no key is left at the AS")

            first.kill()
            until(lambda: "rspauth-taken-over" in log.read_text(), seconds=10, what="the other listens for the script")
            _, answer = _registers(ue)
            assert "\r\nAuthentication-Info: " in answer


def test_a_key_and_an_end_reach_an_as_that_was_down(tmp_path: Path) -> None:
    """DESIGN §6, at least once: ims_isc sends once, and to whom nobody listens it sends nothing."""
    parts = ("--role", "as", "--role", "admin")
    with network(tmp_path) as running, closing(RawUe(running.ports["6060"])) as ue:
        running.parts.kill()
        run, _ = _registers(ue)
        config, state = running.config, running.folder / "parts"
        with serving(config, state, *parts, log=tmp_path / "second.log") as second:
            until(partial(_has_key, second, run), seconds=20, what="the AS has the key")
            second.kill()
        _registers(ue, expires=0)
        with serving(config, state, *parts, log=tmp_path / "third.log") as third:
            until(lambda: third.health()["keys"][AS_ID] == 0, seconds=20, what="no key is left at the AS")


def _has_key(served: Served, run: Run) -> bool:
    return served.health()["keys"][AS_ID] == 1 and run.k_as.fingerprint() in served.log.read_text("utf-8")


def _registers(ue: RawUe, *, expires: int = 600) -> tuple[Run, str]:
    """Register, or leave; ims_auth sends the 401 before it stores the vector, and challenges once more who is too fast."""
    for _ in range(5):
        run = run_of(nonce_of(ue.challenged(expires=expires)))
        answer = ue.send(ue.answer(run, expires=expires))
        if answer.startswith("SIP/2.0 200"):
            return run, answer
    raise AssertionError(answer)


def _is_gone(running: Network) -> bool:
    return running.keys_at_as() == 0
