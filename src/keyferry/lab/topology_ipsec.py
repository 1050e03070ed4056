# SPDX-License-Identifier: Apache-2.0
"""IPsec on the lab's ISC: a charon in the home network's namespace and one in the AS's, as `keyferry ipsec write` has them."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keyferry.config import load_config
from keyferry.lab.topology import Command, LabFailed, Plan
from keyferry.lab.topology import Side as Network
from keyferry.lab.topology_files import LabFiles
from keyferry.lab.topology_record import search_path
from keyferry.wiring.ipsec_check import check_pairs
from keyferry.wiring.ipsec_files import Choices, kernel_has_esp, pairs_of, write_all
from keyferry.wiring.ipsec_rules import Pair, Side

SIDES: Final[dict[Side, Network]] = {"as": "as", "scscf": "home"}
"""Which side of an SA is in which network; the AS's is loaded first: the S-CSCF's begins at once, and takes a refusal for final."""
_PROGRAMS: Final = {"charon-systemd": "charon-systemd", "swanctl": "strongswan-swanctl", "nft": "nftables"}


def need_programs() -> None:
    """Refuse where strongSwan or nftables is not there. Raises LabFailed."""
    missing = [package for name, package in _PROGRAMS.items() if shutil.which(name, path=search_path()) is None]
    if missing:
        packages = f"{' '.join(missing)} libstrongswan-standard-plugins libcharon-extra-plugins"
        raise LabFailed(f"--isc ipsec: {', '.join(missing)} not installed", f"On Debian: apt install {packages}")


class LabIpsec:
    """What protects ISC in one lab."""

    def __init__(self, files: LabFiles, plan: Plan) -> None:
        """Take the lab, its files written."""
        self.files = files
        self.plan = plan
        self.esp = "kernel" if kernel_has_esp() else "userspace"
        self._pairs: list[Pair] = pairs_of(load_config(files.config("isc")))

    def write(self) -> None:
        """Write strongSwan's configuration and the drop rules for both sides. Raises ConfigError, StateError."""
        for side in SIDES:
            choices = Choices(side, "kernel" if self.esp == "kernel" else "userspace", "certificate", str(self.files.vici(side)))
            write_all(self._folder(side), self.files.state(side), self._pairs, choices)

    def rules(self) -> Iterator[Command]:
        """Yield what keeps everything but IKE and ESP from passing between the two; before charon."""
        return (self.plan.inside(network, "nft", "-f", str(self._folder(side) / "isc.nft")) for side, network in SIDES.items())

    def charon(self, side: Side) -> tuple[Command, dict[str, str]]:
        """Return the command of a charon, and what it wants in its environment."""
        return self.plan.inside(SIDES[side], "charon-systemd"), {"STRONGSWAN_CONF": str(self._folder(side) / "strongswan.conf")}

    def loading(self, side: Side) -> tuple[Command, dict[str, str]]:
        """Return what loads the configuration into a charon that listens."""
        command = ("swanctl", "--load-all", "--noprompt", "--uri", f"unix://{self.files.vici(side)}")
        return command, {"SWANCTL_DIR": str(self._folder(side))}

    def listens(self, side: Side) -> bool:
        """Tell whether a charon takes orders."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.files.vici(side))) == 0

    def problem(self) -> str:
        """Return what the S-CSCF's policy misses; "" nothing."""
        found = asyncio.run(check_pairs(self._pairs, self.files.vici("scscf"), "scscf"))
        return "; ".join(each.problem for each in found if each.problem)

    def _folder(self, side: Side) -> Path:
        return self.files.root / f"ipsec-{side}"
