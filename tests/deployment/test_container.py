# SPDX-License-Identifier: Apache-2.0
"""packaging/container: nobody is root in it, nothing is written but the state, and nothing is fetched from a place that it names."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml  # type: ignore[import-untyped]

from deployment.units import PACKAGING, ROOT, check_command

FILE = PACKAGING / "container" / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Return what the file instructs, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", FILE.read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def last_stage() -> list[tuple[str, str]]:
    """Return the instructions of the image that is run."""
    found = instructions()
    return found[max(place for place, (word, _) in enumerate(found) if word == "FROM") :]


def test_the_base_image_is_a_plain_name() -> None:
    """From where it comes is the builder's configuration."""
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert bases == ["python:3.13-slim"] * 2
    assert not re.search(r"https?://(?!127\.0\.0\.1)", FILE.read_text("utf-8"))


def test_all_that_is_copied_and_installed_is_there() -> None:
    """Of the repository, whose root is the context; what the ignore file keeps out of it, too, is not needed."""
    copied = [word for kind, rest in instructions() if kind == "COPY" and "--from" not in rest for word in rest.split()[:-1]]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
    ignored = FILE.with_name("Containerfile.dockerignore").read_text("utf-8").splitlines()
    assert ignored[2:] == ["*", *(f"!{word}" for word in copied), "**/__pycache__"]
    wanted = re.findall(r"-r (\S+)", " ".join(rest for kind, rest in instructions() if kind == "RUN"))
    assert wanted
    assert all((ROOT / word).is_file() for word in wanted)
    backend = re.search(r'^requires = \["([a-z]+)', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert backend is not None  # pip builds with --no-build-isolation, so it has to be among them
    assert any(re.search(rf"^{backend[1]}==", (ROOT / word).read_text("utf-8"), re.MULTILINE) for word in wanted)


def test_the_user_is_nobody_special_and_owns_the_state() -> None:
    stage = dict(last_stage())
    user, group = stage["USER"].split(":")
    assert int(user) > 1000
    assert int(group) > 1000
    places = [word for word, _ in last_stage()]
    assert places.index("USER") > max(place for place, word in enumerate(places) if word in {"RUN", "COPY"})
    assert f"install -d -m 0700 -o {user} -g {group} /var/lib/keyferry" in stage["RUN"]
    assert json.loads(stage["VOLUME"]) == ["/var/lib/keyferry"]


def test_it_serves_with_commands_that_there_are_and_says_how_it_is() -> None:
    stage = dict(last_stage())
    check_command(" ".join([*json.loads(stage["ENTRYPOINT"]), *json.loads(stage["CMD"])]))
    assert stage["STOPSIGNAL"] == "SIGTERM"
    health = stage["HEALTHCHECK"].partition("CMD ")[2]
    program, flag, code = json.loads(health)
    assert (program, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "KEYFERRY_HEALTH=http://127.0.0.1:8080/health" in stage["ENV"]
    assert "PYTHONDONTWRITEBYTECODE=1" in stage["ENV"]


def test_compose_gives_it_no_rights_and_no_place_to_write() -> None:
    """Read-only root, no capabilities, the KEK apart from the volume."""
    service: dict[str, Any] = yaml.safe_load((PACKAGING / "container" / "compose.yaml").read_text("utf-8"))["services"]["keyferry"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"]["core"] == 0
    assert service["user"] == dict(last_stage())["USER"]
    assert service["environment"]["KEYFERRY_KEK_FILE"] == f"/run/secrets/{service['secrets'][0]['source']}"
