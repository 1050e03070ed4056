# SPDX-License-Identifier: Apache-2.0
"""The HSS of a stock Kamailio is killed between a challenge and its answer, and two others take over (docs/kamailio.md)."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from interop.kamailio_kit import IMPI, Network, RawUe, Run, network, nonce_of, run_of
from system.serving import free_port, keyferry, serving, until

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


def _registers(ue: RawUe) -> tuple[Run, str]:
    """Register; ims_auth sends the 401 before it stores the vector, and challenges once more who is too fast."""
    for _ in range(5):
        run = run_of(nonce_of(ue.challenged()))
        answer = ue.send(ue.answer(run))
        if answer.startswith("SIP/2.0 200"):
            return run, answer
    raise AssertionError(answer)


def _is_gone(running: Network) -> bool:
    return running.keys_at_as() == 0
