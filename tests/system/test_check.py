# SPDX-License-Identifier: Apache-2.0
"""`keyferry check` and `keyferry serve` say the same: what check passes starts, what it refuses serve refuses with the same words."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from keyferry.cli.app import application
from keyferry.config import load_config
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.pki import Pki
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import roles_of
from keyferry.wiring.system import System
from system.serving import EXAMPLES, free_port, serving

CONFIGURATIONS: Final = 200
PROCESSES: Final = 4
"""Of those that check passes, so many are started as a process, too."""
STARTED_AT_LEAST: Final = 40
REFUSED_AT_LEAST: Final = 80
HANGS: Final = 60.0
RICH: Final = """[network]
home_domain = "home1.net"
gm = "required"
[pcscf]
listen = "127.0.0.1:5060"
gm_listen = "127.0.0.1:14500"
listen_tls = "127.0.0.1:5061"
reg_event = true
[icscf]
listen = "127.0.0.1:5062"
patience = 2.0
[scscf]
listen = "127.0.0.1:6060"
trusted_peers = ["127.0.0.1"]
[[further_scscfs]]
name = "scscf2.home1.net"
listen = "127.0.0.1:6061"
[hss]
listen_diameter = "127.0.0.1:3868"
peers = ["scscf1.home1.net"]
[admin]
listen = "127.0.0.1:8080"
[[application_servers]]
as_id = "wiki.home1.net"
sip_uri = "sips:wiki-as.home1.net"
protection = "tls"
listen_sips = "127.0.0.1:5090"
listen_https = "127.0.0.1:8443"
app = "notes"
qop = ["auth", "auth-int"]
[[application_servers]]
as_id = "phones.home1.net"
sip_uri = "sip:phones-as.home1.net:5091"
listen_sip = "127.0.0.1:5091"
listen_https = "127.0.0.1:8444"
listen_http = "127.0.0.1:8445"
http_networks = ["10.46.0.0/16"]
static_keys = "KEYS"
handsets = "always"
app = "xcap"
[[shared_ifc]]
id = 7
application_servers = ["phones.home1.net"]
[[profiles]]
name = "wiki"
application_servers = ["wiki.home1.net"]
[[subscribers]]
impi = "a@home1.net"
impus = ["sip:a@home1.net", "tel:+15550100001"]
k = "465b5ce8b199b49faa5f0a2ee238a6bc"
opc = "cd63cb71954a9f4e48a5994e37a02baf"
barred = ["tel:+15550100001"]
profile = "wiki"
[[subscribers]]
impi = "b@home1.net"
impus = ["sip:b@home1.net"]
k = "0396eb317b6d1c36f19c1c84cd6ffd16"
op = "ff53bade17df5d4e793073ce9d7579fa"
[hosts]
"elsewhere.home1.net" = "127.0.0.1:5070"
"""
STATIC: Final = '[[keys]]\nidentifier = "a"\nkey = "00112233445566778899aabbccddeeff"\nimpi = "a@home1.net"\nimpus = ["sip:a@home1.net"]\n'
KEY: Final = re.compile(r"(?m)^(\w+) = (.*)$")

Mutation = Callable[[str, random.Random], str]


def at_one(pattern: str, change: Callable[[re.Match[str], random.Random], str]) -> Mutation:
    """Change one of the places where a pattern matches."""

    def mutate(text: str, chance: random.Random) -> str:
        place = chance.choice(list(re.finditer(pattern, text, re.MULTILINE)))
        return text[: place.start()] + change(place, chance) + text[place.end() :]

    return mutate


def slip(word: str, chance: random.Random) -> str:
    """Write a word with a slip of the finger."""
    at = chance.randrange(len(word))
    return chance.choice((word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + chance.choice("axz1") + word[at + 1 :]))


def copied(text: str, chance: random.Random) -> str:
    """Give an entry the value that another has for the same key."""
    places = list(KEY.finditer(text))
    one = chance.choice(places)
    values: list[str] = [other[2] for other in places if other[1] == one[1] and other[2] != one[2]]
    return text[: one.start(2)] + (chance.choice(values) if values else one[2]) + text[one.end(2) :]


def twice(text: str, chance: random.Random) -> str:
    """Repeat a whole table."""
    tables = re.findall(r"(?ms)^\[\[?[^\[]+?\]\]?\n.*?(?=^\[|\Z)", text)
    return f"{text}\n{chance.choice(tables)}"


def other_port(text: str, chance: random.Random) -> str:
    """Put the port of one place into another."""
    ports = re.findall(r":(\d{2,5})\b", text)
    return at_one(r":\d{2,5}\b", lambda _place, _chance: f":{chance.choice([*ports, '0', '70000'])}")(text, chance)


TYPES: Final = ("7", "-1", "1.5", "true", '""', '"x"', "[]", "{}")
APPS: Final = ("main:foo", "json:dmups", "json:dumps", "json:__name__", "note", "agent", ":x")
MUTATIONS: Final[dict[str, Mutation]] = {
    "a key is missing": at_one(r"^\w+ = .*\n", lambda _place, _chance: ""),
    "a table's head is missing": at_one(r"^\[+[\w]+\]+.*\n", lambda _place, _chance: ""),
    "a typo in a key": at_one(r"^\w+(?= = )", lambda place, chance: slip(place[0], chance)),
    "a typo in a value": at_one(r'(?<=")[\w.:@+-]+(?=")', lambda place, chance: slip(place[0], chance)),
    "a value of another type": at_one(r"(?<= = )[^#\n]+", lambda _place, chance: chance.choice(TYPES)),
    "the value of another entry": copied,
    "a table is there twice": twice,
    "another port": other_port,
    "another host": at_one(
        r"127\.0\.0\.1", lambda _place, chance: chance.choice(("192.0.2.1", "0.0.0.0", "127.0.0.2", "[::1]", "localhost", "127.0.0.256"))
    ),
    "another domain": at_one(r"home1\.net", lambda _place, chance: chance.choice(("home1.nte", "home2.net", "", "home1..net"))),
    "another application": at_one(r'(?<=app = ")\w+', lambda _place, chance: chance.choice(APPS)),
    "another file": at_one(
        r'(?<=static_keys = ").*(?=")|^app = "xcap"',
        lambda place, chance: "/none" if "/" in place[0] else f'static_keys = "{chance.random()}"',
    ),
}  # fmt: skip


@pytest.fixture(name="bases", scope="module")
def bases_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return configurations that are right, on free ports; UDP and TCP of one are not both somebody else's for long."""
    keys = tmp_path_factory.mktemp("keys") / "static.toml"
    keys.touch(mode=0o600)
    keys.write_text(STATIC)
    texts = [(EXAMPLES / "lab.toml").read_text("utf-8"), (EXAMPLES / "kamailio.toml").read_text("utf-8"), RICH.replace("KEYS", str(keys))]
    ports: dict[str, int] = {}
    return [re.sub(r":(\d{4,5})\b", lambda place: f":{ports.setdefault(place[1], free_port())}", text) for text in texts]


@pytest.fixture(name="state", scope="module")
def state_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with the CA alone, which takes the longest to make."""
    path = tmp_path_factory.mktemp("states") / "fresh"
    with open_state(path, random=SystemRandom()):
        Pki(path, SystemClock()).ensure("xcap.home1.net", "as")
    return path


def mutated(bases: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what was done, and the text; each kind as often as the others, and no text twice."""
    chance, seen = random.Random(16), set(bases)
    for name, mutate in itertools.cycle(MUTATIONS.items()):
        usable = [text for text in bases if name != "another file" or "static_keys" in text]
        text = mutate(chance.choice(usable), chance)
        if text not in seen:
            seen.add(text)
            yield name, text
        if len(seen) == CONFIGURATIONS + len(bases):
            return


@contextmanager
def not_for_ever() -> Iterator[None]:
    """End a `serve` that should have refused: it is told to stop."""
    guard = threading.Timer(HANGS, os.kill, (os.getpid(), signal.SIGTERM))
    guard.start()
    try:
        yield
    finally:
        guard.cancel()


def check(file: Path, state: Path) -> str:
    """Return what `keyferry check` says, "" for a good file."""
    result = CliRunner().invoke(application("check"), ["check", str(file), "--state", str(state), "--json"])
    assert result.exit_code in (0, 1, 2), result.exception
    said: dict[str, Any] = json.loads(result.stdout)
    return "" if said["ok"] else str(said["error"])


def serve(file: Path, state: Path) -> str:
    """Return what `keyferry serve` says as it refuses; "" if it did not."""
    with not_for_ever():
        result = CliRunner().invoke(application("serve"), ["serve", "--config", str(file), "--state", str(state), "--log", "none"])
    return "" if result.exit_code == 0 else str(result.exception)


async def start(file: Path, state: Path) -> int:
    """Start everything that `serve` would, end it, and return how many sockets were open."""
    config, chance = load_config(file), SystemRandom()
    with open_state(state, random=chance, exclusive=True) as opened:
        system = System(config, opened, SystemClock(), chance, StructLog("none"), Metrics(), roles_of(config))
        listeners = await system.start()
        await system.stop()
    return len(listeners)


def test_what_check_passes_starts_and_what_it_refuses_serve_refuses_alike(tmp_path: Path, bases: list[str], state: Path) -> None:
    """Two hundred files with one mistake each, real sockets."""
    started, refused = [], []
    file, used = tmp_path / "x.toml", tmp_path / "state"
    for name, text in [*(("as it is", text) for text in bases), *mutated(bases)]:
        file.write_text(text, "utf-8")
        shutil.copytree(state, used)
        said = check(file, used)
        if said:
            assert serve(file, used) == said, name
            assert ". " in said.partition(": ")[2], f"{name}: {said} does not say what to do"
            assert "465b5ce8" not in said
            refused.append((name, said))
        else:
            assert asyncio.run(start(file, used)) > 0, name
            started.append(text)
        shutil.rmtree(used)
    assert len(started) >= STARTED_AT_LEAST
    assert len(refused) >= REFUSED_AT_LEAST
    assert {name for name, _ in refused} == set(MUTATIONS)
    for text in started[:: len(started) // PROCESSES]:
        file.write_text(text, "utf-8")
        shutil.copytree(state, used)
        with serving(file, used) as served:
            assert served.listen
        shutil.rmtree(used)


def _other_key(pki: Path) -> None:
    (pki / "as-xcap.home1.net.key").write_bytes((pki / "ca.key").read_bytes())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state: _other_key(state / "pki"), r"as-xcap\.home1\.net\.pem: does not go with its key and CA\. Move it away"),
        (lambda state: (state / "pki" / "as-xcap.home1.net.pem").write_text("x"), r"pem: is not a certificate of ours\. Move it away"),
        (lambda state: (state / "ca.pem").unlink(), r"state: holds the CA's key and not its certificate\. Restore ca\.pem"),
        (lambda state: state.chmod(0o755), r"state: may be entered by other users\. Run: chmod 700"),
        (lambda state: (state / "version").write_text("9\n"), r"was made by another version of keyferry .*Use that version"),
        (lambda state: (state / "kek").write_text("x\n"), r"kek: line 1 is no new kid .*Restore it from its backup"),
    ],
    ids=["key", "certificate", "ca", "mode", "version", "kek"],
)  # fmt: skip
def test_a_state_directory_that_serve_refuses_check_refuses_alike(
    tmp_path: Path, bases: list[str], state: Path, damage: Callable[[Path], object], says: str
) -> None:
    file, used = tmp_path / "x.toml", tmp_path / "state"
    file.write_text(bases[0], "utf-8")
    shutil.copytree(state, used)
    damage(used)
    said = check(file, used)
    assert re.search(says, said), said
    assert serve(file, used) == said


def test_check_says_of_a_port_that_it_cannot_be_had_now(tmp_path: Path, bases: list[str], state: Path) -> None:
    """A warning: it may be `serve` itself that has it."""
    file = tmp_path / "x.toml"
    file.write_text(bases[0], "utf-8")
    with serving(file, shutil.copytree(state, tmp_path / "state")):
        result = CliRunner().invoke(application("check"), ["check", str(file), "--state", str(tmp_path / "state"), "--json"])
    said = json.loads(result.stdout)
    assert said["ok"] is True
    assert any(warning.startswith("pcscf.listen: port ") and "in use now" in warning for warning in said["warnings"])
