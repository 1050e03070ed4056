# SPDX-License-Identifier: Apache-2.0
"""`keyferry dev` as a process: an application of one's own, two SIMs, what is kept from run to run."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from keyferry.lab.demo import demo_config
from keyferry.lab.dev import DevOptions, dev_config
from system.serving import EXAMPLES, keyferry, running

MAIN = """
begun = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        begun.append("begun")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = f"{scope['user'].public_identities[0]} {scope['user'].id} {begun}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


DOOR = """
from keyferry.asgi.auth import SimLogin

async def inner(scope, receive, send):
    body = scope["user"].display_name.encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

app = SimLogin(inner, as_id="notes.home1.net", open=["/health"])
"""


@contextmanager
def developing(folder: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run it in a folder until the end; return what it said when it was ready."""
    with running("dev", "--json", *arguments, log=folder / "dev.log", folder=folder) as (_, ready):
        yield ready


def get(ready: dict[str, Any], name: str) -> httpx.Response:
    trust = ssl.create_default_context(cafile=ready["ca"])
    with httpx.Client(proxy=ready["sims"][name]["proxy"], verify=trust, trust_env=False) as client:
        return client.get(ready["app"])


def test_an_application_is_served_to_two_sims_and_knows_them_again(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MAIN, "utf-8")
    state = tmp_path / "kept"
    seen = []
    for _ in range(2):
        with developing(tmp_path, "--app", "main:app", "--state", "kept") as ready:
            alice, bob = (get(ready, name).text.split(" ", 2) for name in ("alice", "bob"))
            assert (alice[0], bob[0], alice[2]) == ("sip:alice@home1.net", "sip:bob@home1.net", "['begun']")
            assert alice[1] != bob[1]
            seen.append(alice[1])
            one = ready["sims"]["alice"]
            done = keyferry("ue", "get", "--config", one["config"], "--state", one["state"], ready["app"])
            assert (done.returncode, done.stdout.split(" ")[0]) == (0, "sip:alice@home1.net"), done.stderr
            with httpx.Client(verify=ssl.create_default_context(cafile=ready["app_ca"]), trust_env=False) as direct:
                port = ready["app"].rsplit(":", 1)[1].strip("/")
                request = direct.build_request("GET", f"https://127.0.0.1:{port}/", headers={"Host": f"app.test:{port}"})
                request.extensions["sni_hostname"] = "app.test"
                assert direct.send(request).status_code == 401
    assert seen[0] == seen[1]
    assert (state / "alice.toml").stat().st_mode & 0o777 == 0o600


def test_an_application_with_its_own_door_keeps_its_rules(tmp_path: Path) -> None:
    """The eight lines of the README: SimLogin, which would ask a key agent."""
    (tmp_path / "door.py").write_text(DOOR, "utf-8")
    with developing(tmp_path, "--app", "door:app") as ready:
        assert ready["app"].startswith("https://notes.home1.net:")
        assert get(ready, "bob").text == "sip:bob@home1.net"
        port = ready["app"].rsplit(":", 1)[1].strip("/")
        with httpx.Client(verify=ssl.create_default_context(cafile=ready["app_ca"]), trust_env=False) as direct:
            for path, status in (("health", 200), ("", 401)):
                request = direct.build_request("GET", f"https://127.0.0.1:{port}/{path}", headers={"Host": f"notes.home1.net:{port}"})
                request.extensions["sni_hostname"] = "notes.home1.net"
                assert direct.send(request).status_code == status


def test_a_busy_machine_is_taken_for_no_flood() -> None:
    """An HSS, a compiler or other tests beside it: a phone was answered 503 where the processor was away for 0.2 s."""
    assert dev_config(DevOptions(), []).network.overload == "off"
    assert demo_config("short", []).network.overload == "off"


def test_names_are_the_developers(tmp_path: Path) -> None:
    with developing(tmp_path, "--sim", "carol", "--as-id", "shop.localhost") as ready:
        assert list(ready["sims"]) == ["carol"]
        assert ready["app"].startswith("https://shop.localhost:")
        assert get(ready, "carol").status_code == 404  # of the notes: she has none
    assert not Path(ready["state"]).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--app", "absent:app"), "cannot be imported"),
        (("--app", "door:app", "--as-id", "app.test"), "one as_id in both places"),
        (("--as-id", "127.0.0.1"), "host name"),
        (("--as-id", "App.Test"), "canonical"),
        (("--sim", "Alice!"), "no name for a SIM"),
        (("--sim", "alice", "--sim", "alice"), "twice"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "door.py").write_text(DOOR, "utf-8")
    monkeypatch.chdir(tmp_path)
    done = keyferry("dev", *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flask_application_is_served(tmp_path: Path) -> None:
    """The example, as it is written."""
    (tmp_path / "flask_app.py").write_text((EXAMPLES / "flask_app.py").read_text("utf-8"), "utf-8")
    with developing(tmp_path, "--app", "flask_app:app") as ready:
        ready["app"] += "me"
        alice, bob = (get(ready, name).json() for name in ("alice", "bob"))
        assert (alice["name"], bob["name"]) == ("sip:alice@home1.net", "sip:bob@home1.net")
        assert alice["id"] != bob["id"]
