# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio as the lab's S-CSCF, I-CSCF or both, as `keyferry kamailio` has it."""

from __future__ import annotations

import json
import shutil
from typing import Final

from keyferry.config import load_config
from keyferry.errors import ConfigError
from keyferry.lab.topology import PARTS, Command, LabFailed, Plan
from keyferry.lab.topology_files import LabFiles, write_private
from keyferry.lab.topology_record import search_path
from keyferry.wiring.kamailio import SHARE, find_kamailio, find_python, write_kamailio
from keyferry.wiring.kamailio_icscf import find_icscf, write_icscf

_RUN: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'
"""cdp looks its HSS up as the system does. A command in a namespace has mounts of its own: nobody else sees this file."""


class LabKamailio:
    """The Kamailios of one lab, a process for each role."""

    def __init__(self, files: LabFiles, plan: Plan, python: str) -> None:
        """Take the lab, and a Python of the version that Kamailio embeds; "" looks for one."""
        self.files = files
        self.plan = plan
        self.python = python
        self.folder = files.root / "kamailio"
        self.hosts = files.root / "hosts"

    def check(self) -> None:
        """Refuse where Kamailio, or what its script needs, is not there. Raises LabFailed."""
        if shutil.which("kamailio", path=search_path()) is None:
            raise LabFailed("--kamailio: kamailio is not installed", "On Debian: apt install kamailio kamailio-ims-modules")
        try:
            if self.plan.kamailio:
                find_python(find_kamailio(None, SHARE).python, self.python or None, self.folder)
            if self.plan.kamailio_icscf:
                find_icscf(None)
        except ConfigError as problem:
            remedy = "Name one with `cryptography`, of that version: --python PATH" if "python" in problem.where.lower() else problem.remedy
            raise LabFailed(f"--kamailio: {problem.where} {problem.problem}", remedy) from problem

    def write(self, role: str) -> None:
        """Write its configuration, its script, if it has one, and names for it. Raises ConfigError, StateError."""
        config = load_config(self.files.config(role))
        if role == "scscf":
            write_kamailio(config, self.files.state("scscf"), self.folder, python=self.python or None, log_stderror=True)
        else:
            write_icscf(config, self.folder, log_stderror=True)
        write_private(self.hosts, "127.0.0.1 localhost\n" + "".join(f"{part.address} {part.host}\n" for part in PARTS))

    def command(self, role: str) -> Command:
        """Return what runs it; the same process is its main one."""
        kamailio = ("kamailio", "-DD", "-E", "-f", str(self.folder / f"{role}.cfg"), "-m", "64", "-M", "8", "-w", str(self.folder))
        return self.plan.inside("home", "sh", "-c", _RUN, str(self.hosts), *kamailio)

    def is_known(self, role: str) -> bool:
        """Tell whether the HSS has a connection with it."""
        host = self.plan.part(role).host
        for line in self.files.log("hss").read_text("utf-8", "replace").splitlines():
            if '"diameter-peer-up"' in line and json.loads(line).get("peer") == host:
                return True
        return False
