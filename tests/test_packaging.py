# SPDX-License-Identifier: Apache-2.0
"""What an installation needs: `cryptography` for SimLogin, and an extra for all else (DESIGN §12)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import build_meta  # type: ignore[import-untyped]

from keyferry.__main__ import PARTS
from system.serving import keyferry

ROOT = Path(__file__).resolve().parents[1]
ONLY = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {allowed}:
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)

sys.meta_path.insert(0, Refused())
{code}
"""
BASE = {"keyferry", "cryptography", "_cffi_backend"}
OF_HTTPX = {"anyio", "certifi", "h11", "httpcore", "idna", "sniffio"}

LOGIN = """
import asyncio
from keyferry.asgi.auth import SimLogin

async def app(scope, receive, send):
    raise AssertionError("nobody logged in")

sent = []

async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}

async def send(message):
    sent.append(message)

scope = {"type": "http", "scheme": "https", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
         "headers": [(b"host", b"notes.home1.net")], "client": ("127.0.0.1", 5)}
asyncio.run(SimLogin(app, as_id="notes.home1.net", keys="unix:/nowhere/agent.sock")(scope, receive, send))
print(sent[0]["status"])
"""


def with_only(allowed: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that has these packages and the standard library."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    program = ONLY.format(allowed=sorted(allowed), code=code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)


def metadata(folder: Path) -> importlib.metadata.PackageMetadata:
    """Build the metadata of a wheel, as pip does before it installs."""
    name = build_meta.prepare_metadata_for_build_wheel(str(folder))
    return importlib.metadata.PathDistribution(folder / name).metadata


def test_the_metadata_asks_for_cryptography_alone_and_names_the_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip install keyferry[asgi] brings nothing more."""
    copy = tmp_path / "project"
    for file in ("pyproject.toml", "README.md", "LICENSE", "src/keyferry/__init__.py"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((ROOT / file).read_bytes())
    monkeypatch.chdir(copy)
    built = metadata(tmp_path)
    required = [str(one) for one in built.get_all("Requires-Dist") or ()]
    assert [one for one in required if "extra ==" not in one] == ["cryptography>=46"]
    assert set(built.get_all("Provides-Extra") or ()) == {"asgi", "client", "kemi", "server", "diameter", "wsgi", "all"}
    names = {
        extra: {re.split(r"[^a-zA-Z0-9_-]", one)[0] for one in required if f'extra == "{extra}"' in one}
        for extra in ("asgi", "client", "server", "diameter")
    }
    assert names["asgi"] == set()
    assert names["client"] < names["server"]
    assert {name.replace("-", "_") for name in names["server"]} == PARTS
    assert names["diameter"] == {"python-diameter"}


def test_what_is_pinned_for_a_run_is_what_the_extras_ask_for() -> None:
    """`make demo` installs the pins and then the project without its dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["server"], *extras["client"], *extras["diameter"], *extras["wsgi"]]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "requirements" / "run.txt").read_text().splitlines()}
    assert {re.split(r"[^a-zA-Z0-9_-]", one)[0].lower() for one in asked} <= pinned


def test_simlogin_and_the_keys_of_an_agent_run_with_cryptography_alone() -> None:
    """Not only imported: a request is answered, here with 503 as no agent is there."""
    done = with_only(BASE, LOGIN)
    assert (done.stdout.strip(), done.stderr) == ("503", "")


def test_the_client_runs_with_its_extra_alone() -> None:
    done = with_only(BASE | OF_HTTPX | {"httpx", "msgspec"}, "from keyferry.client import Ue; import keyferry.testing.sims")
    assert done.returncode == 0, done.stderr


def test_the_command_says_what_to_install() -> None:
    """And hides no other error behind that."""
    done = with_only(BASE, "import keyferry.__main__ as command; command.main()")
    assert done.returncode == 1
    assert 'pip install "keyferry[server]"' in done.stderr
    assert "Traceback" not in done.stderr
    broken = with_only(BASE | PARTS | OF_HTTPX, "import keyferry.__main__ as command; command.PARTS = frozenset(); command.main()")
    assert "Traceback" in broken.stderr


DERIVE = (
    "keys derive --ck {k} --ik {k} --rand {k} --impi user1_private@home1.net --as xcap.home1.net --realm home1.net --json"
).format(k="00112233445566778899aabbccddeeff")  # fmt: skip


def plainly(line: str) -> subprocess.CompletedProcess[str]:
    """Run the command as somebody does who installed no extra."""
    return with_only(BASE, f"import sys; sys.argv = ['keyferry', *{line.split()!r}]; import keyferry.__main__ as command; command.main()")


def test_without_extras_the_command_says_its_version_and_derives_the_same_keys() -> None:
    assert plainly("--version").stdout == f"keyferry {importlib.metadata.version('keyferry')}\n"
    derived = plainly(DERIVE)
    assert (derived.returncode, derived.stderr) == (0, "")
    assert json.loads(derived.stdout) == json.loads(keyferry(*DERIVE.split()).stdout)
    wrong = plainly(DERIVE.replace("--rand 00", "--rand "))
    assert (wrong.returncode, wrong.stderr) == (2, "keyferry: --rand: is not 16 octets in hexadecimal\n")


def test_without_extras_init_writes_a_network(tmp_path: Path) -> None:
    """And what it prints is what the command with all its parts prints."""
    written = plainly(f"init {tmp_path / 'one'} --json")
    assert (written.returncode, written.stderr) == (0, "")
    other = keyferry("init", tmp_path / "one2", "--json").stdout.replace("one2", "one")
    assert json.loads(written.stdout) == json.loads(other)
    assert plainly(f"init {tmp_path / 'one'}").returncode == 2


@pytest.mark.parametrize("line", ["serve --config lab.toml", "keys rotate", "ue register", "subscriber list"])
def test_without_extras_any_other_command_names_one_that_installs_what_is_missing(line: str) -> None:
    done = plainly(line)
    assert (done.returncode, done.stdout) == (1, "")
    assert f'{sys.executable} -m pip install "keyferry[server]"' in done.stderr
    assert "keyferry init" in done.stderr


def test_ctrl_c_while_the_command_is_loaded_is_no_traceback() -> None:
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'keyferry.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import keyferry.__main__ as command; command.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
