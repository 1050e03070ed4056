# SPDX-License-Identifier: Apache-2.0
"""`keyferry lab attack`: what it prints, and its exit code."""

from __future__ import annotations

import json

from keyferry.cli import lab_network
from system.serving import keyferry


def test_an_attack_is_told_as_a_table() -> None:
    done = keyferry("lab", "attack", "strip-marker")
    assert done.returncode == 0, done.stderr
    assert "strip-marker" in done.stdout
    assert done.stdout.rstrip().endswith("attacks: 1, all held")


def test_an_attack_is_told_as_data() -> None:
    done = keyferry("lab", "attack", "strip-release", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    (one,) = told["attacks"]
    assert set(one) == {"name", "party", "tried", "happened", "held"}
    assert (one["name"], one["party"], one["held"]) == ("strip-release", "P-CSCF", True)


def test_a_name_that_is_no_attack_is_refused_with_the_names_there_are() -> None:
    done = keyferry("lab", "attack", "nothing")
    assert done.returncode == 2
    assert "guess-keys" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_lab_tells_of_pushes_what_there_were_and_not_what_there_were_none_of() -> None:
    done = {"impu": "sip:a@home1.net", "url": "https://x", "seconds": 1.0, "rspauth": "verified", "status": 200}
    lab = {"registration": done, "document": done, "isc": "tls", "pushes": {"stored": 2, "seal": 0, "kid": 1}}
    assert lab_network._done(lab)[1] == ("pushes", "", "", "", "2 stored, 1 kid", "over tls")
