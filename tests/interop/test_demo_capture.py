# SPDX-License-Identifier: Apache-2.0
"""tshark opens the ESP of a demonstration with the lab's keys and finds every ICV good (TS 33.203 annexes I and M; RFC 4303)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from interop.capturing import capturing
from interop.peers import program
from system.serving import keyferry, until

pytestmark = pytest.mark.interop

LIMIT = 60.0  # seconds
FIELDS = ("esp.spi", "esp.icv_good", "esp.icv_bad", "sip.Method", "sip.Status-Code", "sip.CSeq.seq")
GOOD = {"1", "True"}


class Shown(NamedTuple):
    """One demonstration: what it printed, and two captures of it."""

    data: dict[str, Any]
    own: Path  # that it wrote
    real: Path  # of the loopback interface
    profile: Path

    @property
    def protected(self) -> list[dict[str, Any]]:
        """The messages that went in ESP."""
        return [step for step in self.data["ladder"] if step["transport"] == "ESP"]


class Packet(NamedTuple):
    """What tshark makes of one ESP packet."""

    spi: str
    good: str
    bad: str
    method: str
    status: str
    cseq: str

    @property
    def what(self) -> str:
        """Say what is in it; nothing if it stayed closed."""
        return self.method or self.status


@pytest.fixture(name="shown", scope="module")
def shown_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Run the demonstration once."""
    program("tshark")
    folder = tmp_path_factory.mktemp("demo")
    with capturing(folder / "lo.pcapng", "udp") as real:
        done = keyferry("demo", "--json", "--capture", folder / "demo.pcap")
        assert done.returncode == 0, done.stderr
        one = Shown(json.loads(done.stdout), folder / "demo.pcap", real, folder / "demo.wireshark")
        until(
            lambda: len(packets(one.real, one.profile)) >= len(one.protected),
            seconds=LIMIT,
            what="all of the demonstration's ESP in the capture",
        )
    yield one


def packets(capture: Path, profile: Path) -> list[Packet]:
    """Return what tshark makes of the packets under the SAs of a profile; other ESP on the interface is not ours."""
    spis = re.findall(r"0x[0-9a-f]{8}", (profile / "esp_sa").read_text())
    ours = " || ".join(f"esp.spi == {spi}" for spi in spis)
    command = [
        program("tshark"),
        "-r",
        str(capture),
        "-Y",
        ours,
        "-T",
        "fields",
        "-E",
        "occurrence=f",
    ]  # what a wrong key yields may look like ESP again
    for name in FIELDS:
        command += ["-e", name]
    # A capture that is still being written may end in the middle of a frame: tshark says so and exits with 2.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False, env={**os.environ, "WIRESHARK_CONFIG_DIR": str(profile)}
    )
    return [Packet(*line.split("\t")) for line in done.stdout.splitlines()]


def of_raw_keys(step: dict[str, Any]) -> bool:
    """Tell whether a message was sealed with CK, IK, for a P-CSCF that has CK', IK'."""
    return bool(step["phase"].startswith("UE B takes CK, IK"))


def words(shown: Shown) -> list[str]:
    """What tshark must find, from the ladder: methods and status codes; nothing where the keys are not the P-CSCF's."""
    return ["" if of_raw_keys(step) else step["what"].partition(" ")[0] for step in shown.protected]


@pytest.mark.parametrize("which", ["own", "real"])
def test_every_packet_opens_to_its_message_and_its_icv_is_good(shown: Shown, which: str) -> None:
    """All but those that a UE sealed with CK, IK, which tshark refuses as the P-CSCF does."""
    found = packets(getattr(shown, which), shown.profile)
    assert [one.what for one in found] == words(shown)
    assert len(found) >= 7
    for one in found:
        assert (one.good in GOOD) is bool(one.what)
        assert not (one.what and one.bad in GOOD)
    assert sum(not one.what for one in found) == sum(map(of_raw_keys, shown.protected)) >= 1


def test_the_octets_that_the_ladder_says_are_those_on_the_wire(shown: Shown) -> None:
    """The ESP packet is all that a UDP datagram carries (RFC 3948 §2.1)."""
    spis = re.findall(r"0x[0-9a-f]{8}", (shown.profile / "esp_sa").read_text())
    command = [program("tshark"), "-r", str(shown.real), "-Y", " || ".join(f"esp.spi == {spi}" for spi in spis)]
    command += ["-T", "fields", "-E", "occurrence=f", "-e", "udp.length"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=True, env={**os.environ, "WIRESHARK_CONFIG_DIR": str(shown.profile)}
    )
    assert [int(line) - 8 for line in done.stdout.split()] == [step["wire"] for step in shown.protected]


@pytest.mark.parametrize(("column", "opens"), [(7, False), (5, True)], ids=["integrity", "encryption"])
def test_with_one_wrong_octet_of_a_key_tshark_says_so(shown: Shown, tmp_path: Path, column: int, opens: bool) -> None:
    """A wrong integrity key: no ICV is good. A wrong encryption key: good ICVs, and no SIP inside."""
    profile = tmp_path / "wrong"
    shutil.copytree(shown.profile, profile)
    rows = [line.split(",") for line in (profile / "esp_sa").read_text().splitlines()]
    for row in rows:
        digit = row[column][3]
        row[column] = f"{row[column][:3]}{'0' if digit != '0' else '1'}{row[column][4:]}"
    (profile / "esp_sa").write_text("".join(f"{','.join(row)}\n" for row in rows))
    found = packets(shown.real, profile)
    assert len(found) == len(shown.protected)
    if opens:
        assert not any(one.what for one in found)
    for one, step in zip(found, shown.protected, strict=True):
        # What a wrong key yields may look like anything: where that stops tshark before the ICV, it says neither.
        assert (one.bad if opens and not of_raw_keys(step) else one.good) not in GOOD
    assert any(one.good in GOOD for one in found) is opens


def test_without_keys_the_capture_tells_nothing_of_the_protected_messages(shown: Shown, tmp_path: Path) -> None:
    """What somebody on the path has."""
    profile = tmp_path / "none"
    shutil.copytree(shown.profile, profile)
    lines = (profile / "esp_sa").read_text()
    (profile / "esp_sa").write_text(
        re.sub(r'"0x[0-9a-f]{32,40}"', '""', lines).replace("AES-CBC [RFC3602]", "NULL").replace("HMAC-SHA-1-96 [RFC2404]", "NULL")
    )
    found = packets(shown.real, profile)
    assert len(found) == len(shown.protected)
    assert not any(one.what for one in found)
