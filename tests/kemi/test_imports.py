# SPDX-License-Identifier: Apache-2.0
"""What Kamailio's Python has to have: the standard library, `cryptography`, and `lxml` at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROBE = """
import json, sys
before = set(sys.modules)
import keyferry.kemi.script
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps([sorted(names - set(sys.stdlib_module_names)), sorted(name for name in sys.modules if name.startswith("keyferry."))]))
"""


def test_the_script_needs_nothing_more() -> None:
    src = Path(__file__).parents[2] / "src"
    said = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(src), "PATH": "/usr/bin"}
    ).stdout
    packages, modules = json.loads(said)
    assert set(packages) <= {"keyferry", "cryptography", "lxml", "_cffi_backend", "_openssl"}
    layers = {name.split(".")[1] for name in modules}
    assert layers <= {"kemi", "protocol", "errors", "ports", "stores", "transports"}
    assert {name for name in modules if name.startswith("keyferry.transports.")} <= {"keyferry.transports.clock"}
    assert not any(name.startswith(("keyferry.stores.sqlite", "keyferry.protocol.diameter")) for name in modules)
