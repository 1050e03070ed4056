# SPDX-License-Identifier: Apache-2.0
"""Configuration of the protection policy `ipsec`: what is wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.config import Config, load_config
from keyferry.config.agent import load_agent_config
from keyferry.config.ipsec import child_of, identity_of
from keyferry.errors import ConfigError

SERVER = """[scscf]
listen = "10.99.0.1:6060"
trusted_peers = ["10.99.0.1"]
[[application_servers]]
as_id = "xcap.home1.net"
sip_uri = "sip:xcap-as.home1.net:5090"
protection = "ipsec"
listen_sip = "10.99.0.2:5090"
listen_https = "10.99.0.2:8443"
"""


def load(folder: Path, text: str) -> Config:
    file = folder / "x.toml"
    file.write_text(text, "utf-8")
    return load_config(file)


def test_the_names_come_from_the_uri_where_none_are_given(tmp_path: Path) -> None:
    config = load(tmp_path, SERVER)
    (server,) = config.application_servers
    assert (child_of(server), identity_of(server)) == ("isc-xcap-as-home1-net", "xcap-as.home1.net")
    assert config.ipsec.vici == "/var/run/charon.vici"
    named = load(tmp_path, SERVER + 'ipsec_child = "isc"\nipsec_identity = "as@home1.net"\n[ipsec]\nvici = "/run/x"\n')
    assert (child_of(named.application_servers[0]), identity_of(named.application_servers[0])) == ("isc", "as@home1.net")
    assert named.ipsec.vici == "/run/x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SERVER.replace('"ipsec"', '"loopback"') + 'ipsec_child = "x"\n', "[0].ipsec_child: is not used with protection 'loopback'"),
        (SERVER.replace('"ipsec"', '"loopback"') + 'ipsec_identity = "x"\n', "[0].ipsec_identity: is not used with protection 'loopback'"),
        (SERVER.replace("sip:", "sips:"), "sip_uri: does not go with protection 'ipsec'"),
        (SERVER.replace("listen_sip ", "listen_sips "), "listen_sips: is not used with protection 'ipsec'"),
        (SERVER.replace("listen_sip ", "# "), "protection 'ipsec' needs listen_sip"),
        (
            SERVER.replace('listen_sip = "10.99.0.2', 'listen_sip = "xcap-as'),
            "[0].listen_sip: a security association is between two addresses",
        ),
        (SERVER.replace("10.99.0.2:5090", "0.0.0.0:5090"), "[0].listen_sip: a security association is between two addresses"),
        (SERVER.replace("10.99.0.2:5090", "[::ffff:10.99.0.2]:5090"), "[0].listen_sip: '::ffff:10.99.0.2' is an IPv4 address written as"),
        (SERVER.replace("10.99.0.1:6060", "[fe80::1%eth0]:6060"), "scscf.listen: 'fe80::1%eth0' has a zone"),
        (SERVER.replace("10.99.0.1:6060", "scscf:6060"), "scscf.listen: a security association is between two addresses"),
        (SERVER.replace("home1.net:5090", "home1.net:4500"), "[0].sip_uri: port 4500 is IKE's"),
        (SERVER.replace("10.99.0.2:5090", "10.99.0.2:500"), "[0].listen_sip: port 500 is IKE's"),
        (SERVER.replace("xcap-as.home1.net", "10.99.0.2"), "[0].sip_uri: has an address, and certificates name hosts"),
        (SERVER + 'ipsec_child = "a b {"\n', "[0].ipsec_child: is nothing that swanctl.conf could hold"),
        (SERVER + 'ipsec_child = "a.b"\n', "[0].ipsec_child: is nothing that swanctl.conf could hold"),
        (SERVER + 'ipsec_identity = "a\\nb"\n', "[0].ipsec_identity: is nothing that swanctl.conf could hold"),
        (SERVER.replace("[scscf]", "[scscf]\nname = 's\" }'"), "name: is nothing that swanctl.conf could hold"),
        (SERVER + "[ipsec]\nvicci = 1\n", "ipsec: unknown key `vicci`. Did you mean `vici`?"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)


def test_an_address_as_uri_is_right_with_an_identity(tmp_path: Path) -> None:
    (server,) = load(tmp_path, SERVER.replace("xcap-as.home1.net", "10.99.0.2") + 'ipsec_identity = "as.net"\n').application_servers
    assert (child_of(server), identity_of(server)) == ("isc-10-99-0-2", "as.net")


def test_a_key_agent_takes_pushes_through_ipsec(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        '[agent]\nas_ids = ["a.net"]\nsip_uri = "sip:a.net"\nprotection = "ipsec"\nlisten_sip = "10.99.0.2:0"\npushers = ["s.net"]\n'
    )
    assert load_agent_config(file).agent.listen_sip == "10.99.0.2:0"
    assert load_agent_config(file).ipsec.vici == "/var/run/charon.vici"
    file.write_text(file.read_text() + '[ipsec]\nvici = "/run/x"\n')
    assert load_agent_config(file).ipsec.vici == "/run/x"
    text = file.read_text()
    file.write_text(text.replace("[ipsec]", 'ipsec_child = "a b"\n[ipsec]'))
    with pytest.raises(ConfigError, match=r"agent\.ipsec_child: is nothing that swanctl\.conf could hold"):
        load_agent_config(file)
    file.write_text(text.replace("[ipsec]", 'ipsec_child = "isc"\n[ipsec]').replace('"ipsec"', '"loopback"'))
    with pytest.raises(ConfigError, match=r"agent\.ipsec_child: is not used with protection 'loopback'"):
        load_agent_config(file)
    file.write_text(text.replace("10.99.0.2:0", "a.net:5090"))
    with pytest.raises(ConfigError, match=r"agent\.listen_sip: a security association is between two addresses"):
        load_agent_config(file)
