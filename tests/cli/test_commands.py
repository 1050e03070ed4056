# SPDX-License-Identifier: Apache-2.0
"""The command line as scripts see it: data, exit codes, nothing secret."""

from __future__ import annotations

import asyncio
import json
import os
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from keyferry.errors import StateError
from keyferry.protocol.identity import parse_as_id, parse_impi
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring import administration
from system.serving import keyferry

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "keys.toml"
K, OPC = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"


def run(*arguments: str | Path, stdin: str | None = None) -> dict[str, Any]:
    """Run a command with --json, which must succeed."""
    done = keyferry(*arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture(name="state")
def state_fixture(tmp_path: Path) -> Path:
    """A state directory that does not exist yet."""
    return tmp_path / "state"


def vectors() -> list[dict[str, Any]]:
    """The published cases of the key hierarchy."""
    cases: list[dict[str, Any]] = tomllib.loads(VECTORS.read_text("utf-8"))["vector"]
    return cases


@pytest.mark.parametrize("case", vectors(), ids=lambda case: case["id"])
def test_keys_derive_prints_the_vectors(case: dict[str, Any]) -> None:
    """docs/protocol.md, key hierarchy."""
    inputs, outputs = case["input"], case["output"]
    options = {"--ck": "ck", "--ik": "ik", "--rand": "rand", "--impi": "impi", "--as": "as_id", "--ua": "ua_id", "--realm": "realm"}
    arguments = [text for option, name in options.items() for text in (option, inputs[name])]
    printed = run("keys", "derive", *arguments)
    assert {name: printed[name] for name in outputs} == outputs


def test_a_subscriber_is_added_listed_shown_and_removed_without_its_keys(state: Path) -> None:
    common = ("--state", state)
    added = run("subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", "--k", K, "--opc", OPC, *common)
    assert added["ok"] is True
    assert added["impus"] == ["sip:a@home1.net"]
    assert [one["impi"] for one in run("subscriber", "list", *common)["subscribers"]] == ["a@home1.net"]
    shown = run("subscriber", "show", "a@home1.net", *common)
    assert shown["amf"] == "8000"
    assert K not in json.dumps(shown)
    assert OPC not in json.dumps(shown)
    assert run("subscriber", "remove", "a@home1.net", *common)["ok"] is True
    assert run("subscriber", "list", *common)["subscribers"] == []


def test_keys_of_a_subscriber_can_come_from_standard_input(state: Path) -> None:
    text = f"# a card\nk = {K}\nop = {OPC}\n"
    added = run("subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", "--keys-file", "-", "--state", state, stdin=text)
    assert added["ok"] is True


def test_a_subscriber_is_not_added_twice(state: Path) -> None:
    arguments = ("subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", "--k", K, "--opc", OPC, "--state", state)
    assert keyferry(*arguments).returncode == 0
    again = keyferry(*arguments)
    assert again.returncode == 1
    assert "a@home1.net" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--k", K, "--opc", OPC[:-2]), "opc"),
        (("--k", "xyz", "--opc", OPC), "k"),
        (("--k", K), "exactly one of opc and op"),
        (("--k", K, "--opc", OPC, "--op", OPC), "exactly one of opc and op"),
        (("--k", K, "--opc", OPC, "--amf", "80"), "amf"),
        (("--k", K, "--opc", OPC, "--algorithm", "xor"), "algorithm"),
        (("--keys-file", "/nonexistent/card"), "/nonexistent/card"),
    ],
)
def test_a_subscriber_with_bad_keys_is_refused_with_a_reason(state: Path, arguments: tuple[str, ...], says: str) -> None:
    done = keyferry("subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", *arguments, "--state", state)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert K not in done.stderr
    assert OPC not in done.stderr


def test_an_unknown_subscriber_is_said_so(state: Path) -> None:
    open_state(state, random=SystemRandom()).close()
    for command in ("show", "remove"):
        done = keyferry("subscriber", command, "nobody@home1.net", "--state", state)
        assert done.returncode == 1
        assert "nobody@home1.net" in done.stderr


def test_a_certificate_is_issued_once_and_listed(state: Path) -> None:
    made = run("pki", "issue", "xcap.home1.net", "--state", state)
    assert Path(made["certificate"]).is_file()
    assert Path(made["ca"]) == state / "ca.pem"
    assert Path(made["key"]).stat().st_mode & 0o777 == 0o600
    assert run("pki", "issue", "xcap.home1.net", "--state", state) == made
    (shown,) = run("pki", "show", "--state", state)["certificates"]
    assert (shown["name"], 300 < shown["days"] < 400) == ("xcap.home1.net", True)
    assert keyferry("pki", "issue", "xcap.home1.net", "--role", "king", "--state", state).returncode == 2


def test_the_key_encryption_key_is_rotated_and_the_rows_still_open(state: Path) -> None:
    run("subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", "--k", K, "--opc", OPC, "--state", state)
    before = (state / "kek").read_bytes()
    assert run("keys", "rotate", "--state", state)["ok"] is True
    assert (state / "kek").read_bytes() != before
    assert run("subscriber", "show", "a@home1.net", "--state", state)["impi"] == "a@home1.net"


@pytest.mark.parametrize(
    "work",
    [
        lambda state: asyncio.run(administration.list_subscribers(state)),
        lambda state: asyncio.run(administration.show_subscriber(state, parse_impi("a@home1.net"))),
        lambda state: asyncio.run(administration.remove_subscriber(state, parse_impi("a@home1.net"))),
        lambda state: asyncio.run(administration.set_profile(state, parse_impi("a@home1.net"), "gold")),
        administration.rotate_keys,
        lambda state: administration.rotate_isc_keys(state, None, None, retire=False),
        lambda state: administration.rotate_isc_keys(state, None, None, retire=True),
        lambda state: administration.export_isc_keys(state, Path("-"), None, None),
        lambda state: administration.open_pki(state, make=False),
    ],
    ids=["list", "show", "remove", "profile", "rotate", "rotate-isc", "retire-isc", "export-isc", "pki-show"],
)
def test_a_mistyped_state_is_neither_made_nor_taken_for_an_empty_one(tmp_path: Path, work: Callable[[Path], object]) -> None:
    for mistyped in (tmp_path / "sate", tmp_path):
        with pytest.raises(StateError, match=r"is no state directory.*keyferry serve.*--state"):
            work(mistyped)
    assert list(tmp_path.iterdir()) == []


def test_what_makes_keys_makes_the_state_directory_too(tmp_path: Path) -> None:
    """A transport key that is named whole is made; certificates that were carried here are shown."""
    (pair,) = administration.export_isc_keys(tmp_path / "state", tmp_path / "keys", "scscf1.home1.net", parse_as_id("a.net"))
    assert (pair.as_id, (tmp_path / "state" / "kek").exists()) == ("a.net", True)
    (tmp_path / "carried" / "pki").mkdir(mode=0o700, parents=True)
    (tmp_path / "carried").chmod(0o700)
    assert administration.open_pki(tmp_path / "carried", make=False).all() == []


def test_check_warns_of_an_hss_that_nobody_can_look_up(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[cx]\npeers = ["aaas://hss.invalid:5658", "aaas://127.0.0.1.invalid", "aaas://known.invalid"]\n'
                    '[hosts]\n"known.invalid" = "127.0.0.1"\n')  # fmt: skip
    first, second = run("check", file)["warnings"]
    assert first.startswith("cx.peers[0]: hss.invalid is not in [hosts], and cannot be looked up here: write its address there")
    assert second.startswith("cx.peers[1]: ")
    assert "warning: cx.peers[0]: hss.invalid" in keyferry("check", file).stdout


def test_transport_keys_are_rotated_and_the_older_one_retired(state: Path) -> None:
    open_state(state, random=SystemRandom()).close()
    none = keyferry("keys", "rotate-isc", "--state", state)
    assert (none.returncode, "no such transport key" in none.stderr) == (1, True)
    with open_state(state, random=SystemRandom()) as opened:
        opened.isc_keys("scscf1.home1.net", "xcap.home1.net")
    made = keyferry("keys", "rotate-isc", "--as", "xcap.home1.net", "--state", state)
    assert made.stdout == "scscf1.home1.net to xcap.home1.net: t2 seals; t1 still opens\n"
    assert keyferry("keys", "rotate-isc", "--retire", "--state", state).returncode == 1
    file = state / "isc" / "scscf1.home1.net--xcap.home1.net"
    os.utime(file, (0, 0))
    assert run("keys", "rotate-isc", "--retire", "--state", state)["keys"] == [
        {"scscf": "scscf1.home1.net", "as": "xcap.home1.net", "kids": ["t2"]}
    ]


def test_check_tells_a_good_file_from_a_bad_one(tmp_path: Path) -> None:
    examples = Path(__file__).resolve().parents[2] / "examples"
    assert run("check", examples / "lab.toml")["kind"] == "serve"
    assert run("check", examples / "ue.toml")["kind"] == "ue"
    bad = tmp_path / "bad.toml"
    bad.write_text("[scscf]\nrelase = 6\n")
    done = keyferry("check", bad, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["ok"] is False
    assert "Did you mean `release`?" in done.stderr
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = keyferry("check", pipe)
    assert (done.returncode, done.stdout) == (2, ""), "the second reading of a pipe finds an empty file, which is a good one"
    assert "pipe" in done.stderr


def test_the_version_is_told() -> None:
    done = keyferry("--version")
    assert (done.returncode, done.stdout) == (0, f"keyferry {metadata.version('keyferry')}\n")


@pytest.mark.parametrize("names", ["short", "3gpp"])
def test_the_demonstration_keeps_its_promises(names: str) -> None:
    """The main job, over real sockets, in a temporary state."""
    shown = run("demo", "--names", names)
    assert shown["ok"] is True
    registration = shown["registration"]
    assert (registration["status"], registration["release"], registration["masked"], registration["rspauth"]) == (200, 6, True, "verified")
    assert registration["nonce_octets"] == 36
    assert registration["gm_fingerprint_ue"] == registration["gm_fingerprint_pcscf"]
    assert shown["gm"]["protected"] is True
    assert (shown["gm"]["alg"], shown["gm"]["ealg"]) == ("hmac-sha-1-96", "aes-cbc")
    on_gm = [(step["transport"], step["what"], step["wire"] > step["octets"]) for step in shown["ladder"] if _on_gm(step)]
    assert on_gm[:4] == [
        ("UDP", "REGISTER", False), ("UDP", "401 Unauthorized", False), ("ESP", "REGISTER", True), ("ESP", "200 OK", True),
    ]  # fmt: skip
    tried = [step["what"] for step in shown["ladder"] if step["phase"].startswith("UE B takes CK, IK") and step["transport"] == "ESP"]
    assert set(tried) == {"REGISTER"}  # which nobody answers
    assert shown["gm"]["raw_keys"] == "ICV wrong, no SIP reached the P-CSCF"
    assert len(shown["keys"]) == 2
    assert all(key["pushed"] and key["pushed_before_200"] for key in shown["keys"])
    assert len({key["fingerprint"] for key in shown["keys"]}) == 2
    assert [request["status"] for request in shown["http"]] == [200, 200, 201, 200, 403, 401]
    pushes = [step for step in shown["ladder"] if step["note"].startswith("key block")]
    assert {step["transport"] for step in pushes} == {"TCP"}  # over 1,300 octets with either names


def _on_gm(step: dict[str, Any]) -> bool:
    return {step["source"], step["target"]} == {"UE A", "P-CSCF"}


def test_the_demonstration_ends_with_its_word() -> None:
    done = keyferry("demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == "demo: ok"
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if line.startswith("│ UE ")]
    assert rows[-2:] == [  # a newcomer must not take the last answers for failures
        ["UE B: GET at xcap.home1.net", "403, as it must be: the document is UE A's"],
        ["UE A: GET at xcap.home1.net", "401, as it must be: UE A de-registered, and its old key is dead"],
    ]


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "serve",
        "check",
        "bench",
        "registrations",
        *(f"subscriber {name}" for name in ("add", "list", "show", "remove")),
        *(f"ue {name}" for name in ("register", "deregister", "status", "get", "put", "delete")),
        *(f"keys {name}" for name in ("derive", "rotate", "rotate-isc")),
        *(f"pki {name}" for name in ("issue", "show")),
    ],
)
def test_every_command_has_help_with_an_example_and_the_two_options_of_all(command: str) -> None:
    done = keyferry(*command.split(), "--help")
    assert done.returncode == 0
    assert f"Example: keyferry {command}" in done.stdout.replace("\n", " ").replace("  ", " ")
    assert "--json" in done.stdout
    assert "--state" in done.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    done = keyferry("ferry")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
