# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio as the lab's S-CSCF, as `keyferry kamailio` has it."""

from __future__ import annotations

import json
import shutil
from typing import Final

from keyferry.config import load_config
from keyferry.errors import ConfigError
from keyferry.lab.topology import HOME, PARTS, Command, LabFailed, Plan
from keyferry.lab.topology_files import LabFiles, write_private
from keyferry.lab.topology_record import search_path
from keyferry.wiring.kamailio import SHARE, find_kamailio, find_python, write_kamailio

_RUN: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'
"""cdp looks its HSS up as the system does. A command in a namespace has mounts of its own: nobody else sees this file."""


class LabKamailio:
    """The Kamailio of one lab."""

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
            find_python(find_kamailio(None, SHARE).python, self.python or None, self.folder)
        except ConfigError as problem:
            remedy = "Name one with `cryptography`, of that version: --python PATH" if "python" in problem.where.lower() else problem.remedy
            raise LabFailed(f"--kamailio: {problem.where} {problem.problem}", remedy) from problem

    def write(self) -> None:
        """Write its configuration, its script, and names for it. Raises ConfigError, StateError."""
        config = load_config(self.files.config("scscf"))
        write_kamailio(config, self.files.state("scscf"), self.folder, python=self.python or None, log_stderror=True)
        write_private(self.hosts, "127.0.0.1 localhost\n" + "".join(f"{part.address} {part.host}\n" for part in PARTS))

    def command(self) -> Command:
        """Return what runs it; the same process is its main one."""
        kamailio = ("kamailio", "-DD", "-E", "-f", str(self.folder / "scscf.cfg"), "-m", "64", "-M", "8", "-w", str(self.folder))
        return self.plan.inside("home", "sh", "-c", _RUN, str(self.hosts), *kamailio)

    def is_known(self) -> bool:
        """Tell whether the HSS has a connection with it."""
        for line in self.files.log("hss").read_text("utf-8", "replace").splitlines():
            if '"diameter-peer-up"' in line and json.loads(line).get("peer") == f"scscf1.{HOME}":
                return True
        return False
