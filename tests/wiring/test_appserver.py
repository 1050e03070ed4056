# SPDX-License-Identifier: Apache-2.0
"""The application server's door: what is said of its certificate."""

from __future__ import annotations

from pathlib import Path

from keyferry.protocol.identity import AsId
from keyferry.transports.pki import LEAF_DAYS, Pki
from keyferry.wiring.appserver import WARNING_DAYS, door_certificate
from transports.test_pki import SettableClock

XCAP = AsId("xcap.home1.net")
DAY = 86_400.0


class Warnings:
    """A log that keeps warnings."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []

    def info(self, event: str, **fields: object) -> None:
        """Not looked at."""

    def warning(self, event: str, **fields: object) -> None:
        """Keep the event and how long is left."""
        self.said.append((event, fields["days_left"]))


def test_a_door_without_the_ca_s_key_says_that_its_certificate_ends(tmp_path: Path) -> None:
    """Users see the refusal, and nobody else would."""
    clock, log = SettableClock(1_800_000_000.0), Warnings()
    made = door_certificate(Pki(tmp_path, clock), log, XCAP)
    (tmp_path / "pki/ca.key").unlink()  # another machine's: nothing is renewed here
    clock.time += (LEAF_DAYS - WARNING_DAYS - 2) * DAY
    assert (door_certificate(Pki(tmp_path, clock), log, XCAP).sha256, log.said) == (made.sha256, [])
    clock.time += (WARNING_DAYS + 3) * DAY
    door_certificate(Pki(tmp_path, clock), log, XCAP)
    assert log.said == [("door-certificate-expiring", -1)]
