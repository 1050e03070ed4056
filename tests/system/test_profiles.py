# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2: a profile that changes, and a subscription that ends, while a UE is registered and does nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from system.serving import EVENT_LIMIT, Lab, Served, keyferry, make_lab, serving, ue
from system.staying import metric, staying

IMPI = "user1_private@home1.net"
PROFILES = '\n[[profiles]]\nname = "basic"\napplication_servers = ["xcap.home1.net"]\n\n[[profiles]]\nname = "none"\n'
SETTINGS = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"


@pytest.fixture(name="lab")
def lab_fixture(tmp_path: Path) -> Lab:
    """Two profiles besides `default`."""
    return make_lab(tmp_path, lambda text: text + PROFILES)


@pytest.fixture(name="served")
def served_fixture(lab: Lab) -> Iterator[Served]:
    with serving(lab.serve, lab.state) as running:
        yield running


def subscriber(lab: Lab, served: Served, *words: str, status: int = 0) -> dict[str, Any]:
    """Run `keyferry subscriber …` against the network that is served."""
    where = ("--admin", f"127.0.0.1:{served.port('admin')}", "--state", str(lab.state))
    done = keyferry("subscriber", *words, *where, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def opens(lab: Lab, name: str) -> bool:
    """Tell whether the UE's key opens the door of an application server, without a registration of its own."""
    url = SETTINGS if name == "xcap" else f"https://notes.home1.net:{lab.ports['8444']}/"
    done = keyferry("ue", "get", url, "--config", lab.ue, "--state", lab.state, "--json")
    said = json.loads(done.stdout)
    assert said["status"] in {200, 401, 404}, done.stdout + done.stderr
    return bool(said["status"] != 401)


def changes(shown: dict[str, Any]) -> dict[str, str]:
    return {push["as_id"]: "erased" if push["erase"] else "pushed" for push in shown["pushes"] if push["delivered"]}


def test_an_application_server_comes_and_goes_with_the_profile_and_no_registration(lab: Lab, served: Served) -> None:
    """TS 29.228 §6.2.2: the key of the AKA run that was, at an AS that was not there then."""
    assert subscriber(lab, served, "profile", IMPI, "basic")["told"] is False
    assert ue(lab, "register")["keys"]
    assert (opens(lab, "xcap"), opens(lab, "notes")) == (True, False)
    authenticated = metric(served, 'keyferry_scscf_authenticated_total{reason="masked"}')

    added = subscriber(lab, served, "profile", IMPI, "default")
    assert (added["told"], added["devices"], changes(added)) == (True, 1, {"notes.home1.net": "pushed"})
    assert added["server"].startswith("sip:scscf1.home1.net")
    assert opens(lab, "notes")

    taken = subscriber(lab, served, "profile", IMPI, "basic")
    assert changes(taken) == {"notes.home1.net": "erased"}
    assert (opens(lab, "xcap"), opens(lab, "notes")) == (True, False)

    back = subscriber(lab, served, "profile", IMPI, "default")
    assert changes(back) == {"notes.home1.net": "pushed"}
    assert opens(lab, "notes")
    assert subscriber(lab, served, "profile", IMPI, "default")["pushes"] == []
    assert metric(served, 'keyferry_scscf_authenticated_total{reason="masked"}') == authenticated == 1

    assert changes(subscriber(lab, served, "profile", IMPI, "none")) == {"notes.home1.net": "erased", "xcap.home1.net": "erased"}
    assert (opens(lab, "xcap"), opens(lab, "notes")) == (False, False)
    assert served.health()["registrations"] == 1


def test_the_end_of_a_subscription_closes_every_door(lab: Lab, served: Served) -> None:
    """TS 29.228 §6.1.3; TS 24.229 §5.4.1.5: and the UE may register anew."""
    assert ue(lab, "register")["keys"]
    assert (opens(lab, "xcap"), opens(lab, "notes")) == (True, True)
    ended = subscriber(lab, served, "terminate", IMPI)
    assert (ended["told"], ended["devices"]) == (True, 1)
    assert (opens(lab, "xcap"), opens(lab, "notes")) == (False, False)
    assert served.health()["registrations"] == 0
    assert served.health()["keys"] == {"xcap.home1.net": 0, "notes.home1.net": 0}
    assert subscriber(lab, served, "terminate", IMPI)["told"] is False
    assert ue(lab, "register")["keys"]
    assert opens(lab, "notes")


@pytest.mark.parametrize(("reason", "told"), [("permanent-termination", "rejected"), ("server-change", "deactivated")])
def test_a_ue_that_watches_learns_what_to_do(lab: Lab, served: Served, reason: str, told: str) -> None:
    """TS 24.229 §5.4.1.5: rejected is the end, deactivated a new registration."""
    with staying(lab) as phone:
        phone.next("subscribed")
        assert subscriber(lab, served, "terminate", IMPI, "--reason", reason)["devices"] == 1
        assert phone.next("ended-by-network")["reason"] == told
        if told == "deactivated":
            assert phone.next("registered", after=1)["keys"]
            assert (opens(lab, "xcap"), served.health()["registrations"]) == (True, 1)
            assert phone.end() == 0
        else:
            assert phone.process.wait(EVENT_LIMIT) == 1


def test_what_is_wrong_is_said_and_changes_nothing(lab: Lab, served: Served) -> None:
    admin = ("--admin", f"127.0.0.1:{served.port('admin')}", "--state", str(lab.state))
    unknown = keyferry("subscriber", "profile", IMPI, "gold", *admin)
    assert unknown.returncode == 2
    assert "gold" in unknown.stderr
    assert "default, basic, none" in unknown.stderr
    assert json.loads(keyferry("subscriber", "show", IMPI, "--state", lab.state, "--json").stdout)["profile"] == "default"
    assert keyferry("subscriber", "terminate", IMPI, "--reason", "boredom", *admin).returncode == 2
    nobody = keyferry("subscriber", "terminate", "nobody@home1.net", *admin)
    assert nobody.returncode == 2
    assert "not a subscriber" in nobody.stderr
    elsewhere = keyferry("subscriber", "add", "--impi", IMPI, "--impu", "sip:a@home1.net", "--k", "00" * 16, "--opc", "11" * 16,
                         "--state", lab.state.with_name("other"))  # fmt: skip
    assert elsewhere.returncode == 0
    other = keyferry("subscriber", "profile", IMPI, "basic", *admin[:2], "--state", lab.state.with_name("other"))
    assert other.returncode == 1
    assert "another state directory" in other.stderr


def test_without_a_running_network_the_profile_is_stored_and_comes_with_the_registration(lab: Lab) -> None:
    """The exit code says that nobody was told; a restart keeps what was stored."""
    with serving(lab.serve, lab.state) as served:
        ue(lab, "register")
        admin = f"127.0.0.1:{served.port('admin')}"
    words = ("subscriber", "profile", IMPI, "basic", "--admin", admin, "--state", str(lab.state))
    alone = keyferry(*words)
    assert alone.returncode == 1
    assert "stored, but nobody was told" in alone.stderr
    assert "comes with the next registration" in alone.stderr
    assert json.loads(keyferry(*words, "--json").stdout) | {"error": ""} == {
        "ok": False, "impi": IMPI, "profile": "basic", "stored": True, "told": False, "server": None, "devices": 0, "pushes": [],
        "error": "",
    }  # fmt: skip
    assert keyferry(*words, "--offline").returncode == 0
    assert keyferry("subscriber", "profile", IMPI, "gold", "--config", lab.serve, *words[4:]).returncode == 2
    ended = keyferry("subscriber", "terminate", IMPI, *words[4:])
    assert ended.returncode == 1
    assert "nothing was ended" in ended.stderr
    with serving(lab.serve, lab.state):
        assert opens(lab, "notes")  # as it was registered
        ue(lab, "register")
        assert (opens(lab, "xcap"), opens(lab, "notes")) == (True, False)
