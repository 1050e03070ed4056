# SPDX-License-Identifier: Apache-2.0
"""Configurations that serve would refuse: each with its whole message, which says what to do. All together: tests/system/test_check.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.config import load_config
from keyferry.errors import ConfigError
from keyferry.wiring.checking import plan_of, read_served, warnings_of
from keyferry.wiring.services import Role

LAB = (Path(__file__).resolve().parents[2] / "examples" / "lab.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'sip:user2_public1@home1.net"', 'sip:user1_public1@home1.net"',
            "60: subscribers[1].impus[0]: sip:user1_public1@home1.net is that of subscribers[0], too. An identity belongs to one "
            "subscriber: correct it, or remove one of both",
        ),
        (
            'app = "notes"', 'app = "json:lods"',
            "48: application_servers[1].app: json has no 'lods'. Did you mean `loads`?",
        ),
        (
            'app = "notes"', 'app = "main:foo"',
            "48: application_servers[1].app: 'main:foo' cannot be imported: No module named 'main'. Is its folder on PYTHONPATH?",
        ),
        (
            'listen_sip = "127.0.0.1:5091"', 'listen_sip = "127.0.0.1:5090"',
            "44: application_servers[1].listen_sip: port 5090 is that of application_servers[0].listen_sip, too. Give each a port "
            "of its own; 0 takes a free one",
        ),
        (
            "sip:icscf.home1.net:5062", "sip:icscf.home1.net:5063",
            "15: pcscf.icscf: names port 5063, and icscf.listen is 127.0.0.1:5062. Write sip:icscf.home1.net:5062",
        ),
        (
            "sip:icscf.home1.net:5062", "sip:icsf.home1.net:5062",
            "15: pcscf.icscf: icsf.home1.net is not in the hosts table; add it under [hosts]. Did you mean `icscf.home1.net`?",
        ),
        (
            'gm = "optional"', 'gm = "optinal"',
            "9: network.gm: 'optinal' is not off, optional or required. Did you mean `optional`?",
        ),
        (
            "gm_listen", "pcscf_gm",
            "14: pcscf: unknown key `pcscf_gm`. It belongs in [ue] of a file for `keyferry ue`, such as examples/ue.toml",
        ),
        (
            '[admin]\nlisten = "127.0.0.1:8080"', '[admin]\nlisten = "192.0.2.1:8080"',
            "30: admin.listen: 192.0.2.1 is not an address of this machine. Choose one that `ip address` shows",
        ),
        (
            'app = "notes"', 'static_keys = "/nowhere/keys.toml"\napp = "notes"',
            "48: application_servers[1].static_keys: /nowhere/keys.toml cannot be read: No such file or directory. Correct the file; "
            f"its path begins at {Path.cwd()}",
        ),
    ],
)  # fmt: skip
def test_a_broken_configuration_is_told_with_line_key_and_what_to_do(tmp_path: Path, old: str, new: str, says: str) -> None:
    file = tmp_path / "lab.toml"
    assert old in LAB
    file.write_text(LAB.replace(old, new, 1), "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_served(file, tmp_path / "state")
    assert str(caught.value) == f"{file}:{says}"
    assert not (tmp_path / "state").exists()


def test_a_missing_file_of_keys_whose_neighbour_is_there_is_suggested(tmp_path: Path) -> None:
    file, keys = tmp_path / "lab.toml", tmp_path / "keys.toml"
    keys.touch(mode=0o600)
    file.write_text(LAB.replace('app = "notes"', f'static_keys = "{tmp_path}/kyes.toml"\napp = "notes"'), "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_served(file, tmp_path / "state")
    assert str(caught.value).endswith(f"cannot be read: No such file or directory. Did you mean `{keys}`?")


def test_what_another_process_plays_is_not_looked_at(tmp_path: Path) -> None:
    """With --role a file may be that of several machines."""
    file = tmp_path / "lab.toml"
    file.write_text(LAB.replace('[admin]\nlisten = "127.0.0.1:8080"', '[admin]\nlisten = "192.0.2.1:8080"'), "utf-8")
    assert read_served(file, tmp_path / "state", ["scscf", "icscf", "pcscf", "as"]).admin.listen == "192.0.2.1:8080"


def test_a_file_for_another_machine_may_have_its_addresses(tmp_path: Path) -> None:
    """What two of its listeners want is refused there, too."""
    file = tmp_path / "lab.toml"
    file.write_text(LAB.replace("127.0.0.1", "192.0.2.1").replace('listen = "192.0.2.1:6060"', 'listen = "127.0.0.1:6060"')
                    .replace('listen = "192.0.2.1:5062"', 'listen = "127.0.0.1:5062"'), "utf-8")  # fmt: skip
    assert read_served(file, tmp_path / "state", here=False).pcscf.listen == "192.0.2.1:5060"
    assert warnings_of(plan_of(load_config(file)), here=False) == []
    file.write_text(file.read_text("utf-8").replace(":8444", ":8443"), "utf-8")
    with pytest.raises(ConfigError, match="port 8443 is that of"):
        read_served(file, tmp_path / "state", here=False)


def test_an_application_server_that_nobody_finds_is_warned_of_and_the_others_served(tmp_path: Path) -> None:
    """Its pushes wait until somebody adds it under [hosts]."""
    file = tmp_path / "lab.toml"
    file.write_text(LAB, "utf-8")
    roles: list[Role] = ["pcscf", "icscf", "scscf", "hss", "admin"]
    config = read_served(file, tmp_path / "state", roles)
    first, *_ = warnings_of(plan_of(config, roles))
    assert first.startswith("application_servers[0].sip_uri: xcap-as.home1.net is not in the hosts table; add it under [hosts]")


def test_a_home_domain_that_no_subscriber_has_is_warned_of(tmp_path: Path) -> None:
    """It may be right; but a UE registers with its home domain."""
    file = tmp_path / "lab.toml"
    file.write_text(LAB.replace('home_domain = "home1.net"', 'home_domain = "home1.nte"'), "utf-8")
    (warning,) = [each for each in warnings_of(plan_of(load_config(file))) if "home_domain" in each]
    assert warning.startswith("subscribers[0].impus: none is of network.home_domain 'home1.nte'")
    assert warning.endswith("is home1.net the home domain?")
