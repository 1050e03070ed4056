# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what is wrong, where, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from keyferry.config import Config, load_config, load_ue_config, split_address
from keyferry.config.agent import AgentConfig, load_agent_config
from keyferry.config.cx import cx_peers
from keyferry.errors import ConfigError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CARD = 'k = "465b5ce8b199b49faa5f0a2ee238a6bc"\nopc = "cd63cb71954a9f4e48a5994e37a02baf"\n'
SHARED = '[[shared_ifc]]\nid = {}\napplication_servers = ["{}"]\n'
SERVER = (
    '[[application_servers]]\nas_id = "{}"\nsip_uri = "sip:as.home1.net"\nlisten_sip = "127.0.0.1:5090"\nlisten_https = "127.0.0.1:8443"\n'
)
PROFILE = '[[profiles]]\nname = "{}"\napplication_servers = [{}]\n'
USER = '[[subscribers]]\nimpi = "a@b"\nimpus = ["sip:a@b"]\n'
TLS_SERVER = (
    '[[application_servers]]\nas_id = "t.net"\nsip_uri = "sips:as.home1.net"\nprotection = "tls"\nlisten_sips = "127.0.0.1:5090"\n'
    'listen_https = "127.0.0.1:8443"\n'
)


def load(folder: Path, text: str) -> Config:
    """Load a file with this text."""
    file = folder / "x.toml"
    file.write_text(text, "utf-8")
    return load_config(file)


def test_the_examples_load() -> None:
    config = load_config(EXAMPLES / "lab.toml")
    assert [server.as_id for server in config.application_servers] == ["xcap.home1.net", "notes.home1.net"]
    assert load_ue_config(EXAMPLES / "ue.toml").ue.impi == config.subscribers[0].impi


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()


def test_keys_do_not_print() -> None:
    shown = repr(load_config(EXAMPLES / "lab.toml"))
    assert "465b5ce8" not in shown
    assert "Secret(16 octets)" in shown


PLAIN = SERVER.format("a.net") + 'listen_http = "127.0.0.1:80"\nhttp_networks = ["10.46.0.0/16"]\nstatic_keys = "k.toml"\n'


def test_a_door_without_tls_is_for_named_networks(tmp_path: Path) -> None:
    """Phones of the xcap APN."""
    (server,) = load(tmp_path, PLAIN).application_servers
    assert (server.listen_http, server.http_networks) == ("127.0.0.1:80", ["10.46.0.0/16"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[scscf]\nrelase = 6\n", "scscf: unknown key `relase`. Did you mean `release`?"),
        ("[ssf]\n", "top level: unknown key `ssf`"),
        ("expires = 1\n", "x.toml:1: top level: unknown key `expires`. It belongs in [ue] of a file for `keyferry ue`"),
        ("impi = 1\n", "top level: unknown key `impi`. It belongs in [[subscribers]]"),
        ("[scscf]\ntrusted_peers = []\npeers = []\n", "scscf: unknown key `peers`. It belongs in [hss] or [cx]"),
        (
            '[scscf]\ntrusted_peers = [\n  "192.0.2.7",\n  "10.0.0.1/8",\n]\n',
            "x.toml:4: scscf.trusted_peers[1]: '10.0.0.1/8' has bits beyond its prefix, which is 10.0.0.0/8",
        ),
        (
            '[icscf]\ntrusted_peers = ["p.home1.net"]\n',
            "x.toml:2: icscf.trusted_peers[0]: 'p.home1.net' is no IP address or prefix",
        ),
        ('[scscf]\ntrusted_peers = ["0.0.0.0/0"]\n', "scscf.trusted_peers[0]: '0.0.0.0/0' trusts everybody"),
        (
            TLS_SERVER.replace("listen_sips", 'trusted_peers = ["192.0.2.7"]\nlisten_sips'),
            "application_servers[0].trusted_peers: is not used with protection 'tls'",
        ),
        (
            TLS_SERVER.replace("listen_sips", 'trusted_peers = ["192.0.2.7/33"]\nlisten_sips'),
            "application_servers[0].trusted_peers[0]: '192.0.2.7/33' is no IP address or prefix",
        ),
        ("[scscf]\nzzzzzzz = 1\n", "docs/configuration.md lists every key"),
        ("[scscf]\nrelease = 4\n", "scscf.release: expected `int` >= 5"),
        ("[scscf]\npush_wait = 2.0\n", "scscf.push_wait"),
        ('[pcscf]\nlisten = "5060"\n', "'5060' is not HOST:PORT"),
        ('[pcscf]\nlisten_tls = "5061"\n', "pcscf.listen_tls: '5061' is not HOST:PORT"),
        (TLS_SERVER.replace("listen_sips", "listen_sip"), "application_servers[0].listen_sip: is not used with protection 'tls'"),
        (TLS_SERVER.replace("listen_sips", "# "), "application_servers[0]: protection 'tls' needs listen_sips"),
        (TLS_SERVER + "reg_event = true\n", "application_servers[0].reg_event: is not there with protection 'tls'"),
        (
            TLS_SERVER + 'pushers = ["s1.home1.net"]\nunsealed_ends = ["s2.home1.net"]\n',
            "application_servers[0].unsealed_ends: names s2.home1.net, which may not push here",
        ),
        (TLS_SERVER.replace("127.0.0.1:5090", "5090"), "application_servers[0].listen_sips: '5090' is not HOST:PORT"),
        (TLS_SERVER.replace("sips:as.home1.net", "sip:as.home1.net"), "application_servers[0].sip_uri: does not go with protection 'tls'"),
        (TLS_SERVER.replace("sips:as.home1.net", "sips:192.0.2.1"), "application_servers[0].sip_uri: does not go with protection 'tls'"),
        (TLS_SERVER.replace("sips:as.home1.net", "x"), "application_servers[0].sip_uri"),
        (SERVER.format("a.net").replace("sip:as", "sips:as"), "application_servers[0].sip_uri: does not go with protection 'loopback'"),
        (SERVER.format("a.net").replace("listen_sip =", "# "), "application_servers[0]: protection 'loopback' needs listen_sip"),
        ('[pcscf]\nlisten = "127.0.0.1:70000"\n', "is not HOST:PORT"),
        ('[[further_scscfs]]\nlisten = "127.0.0.1:6061"\n', "further_scscfs[0].name: scscf1.home1.net is there twice"),
        ('[[further_scscfs]]\nname = "scscf2.home1.net"\n', "further_scscfs[0].listen: 127.0.0.1:6060 is there twice"),
        ('[[further_scscfs]]\nname = "s2.net"\nlisten = "x"\n', "further_scscfs[0].listen: 'x' is not HOST:PORT"),
        ('[[further_scscfs]]\nname = "s2.net"\nlisten = "192.0.2.1:6061"\n', "further_scscfs[0].listen: other machines can reach it"),
        (SERVER.format("a.net") + SHARED.format(1, "b.net"), "shared_ifc[0].application_servers: b.net is no application server"),
        (SERVER.format("a.net") + SHARED.format(1, "a.net") * 2, "shared_ifc[1].id: 1 is there twice"),
        (
            SERVER.format("a.net") + "".join(SHARED.format(n, "a.net") for n in (1, 2)),
            "shared_ifc[1].application_servers: a.net is there twice",
        ),
        (SERVER.format("a.net") + SHARED.format(1, 'a.net", "A.NET'), "shared_ifc[0].application_servers: a.net is there twice"),
        (SERVER.format("a.net") + SHARED.format(-1, "a.net"), "shared_ifc[0].id"),
        (SERVER.format("a.net") + SHARED.format(1, "192.0.2.1"), "shared_ifc[0].application_servers: AS_ID"),
        ("[[shared_ifc]]\nid = 1\napplication_servers = []\n", "shared_ifc[0].application_servers"),
        (PROFILE.format("a", '"b.net"'), "profiles[0].application_servers: b.net is no application server of this file"),
        (PROFILE.format("a", "") * 2, "profiles[1].name: a is there twice"),
        (PROFILE.format("a b", ""), "profiles[0].name"),
        (SERVER.format("a.net") + PROFILE.format("a", '"a.net", "A.NET"'), "profiles[0].application_servers: a.net is there twice"),
        (SERVER.format("a.net") + PROFILE.format("a", '"192.0.2.1"'), "profiles[0].application_servers: AS_ID"),
        (
            SERVER.format("a.net") + SERVER.format("b.net").replace("8443", "8444") + PROFILE.format("a", '"b.net"'),
            "profiles[0].application_servers: leaves out a.net, which has the sip_uri of another",
        ),
        (
            PROFILE.format("a", "") + USER + CARD + 'profile = "gold"\n',
            "subscribers[0].profile: gold is no profile of this file. There are default, a; add [[profiles]]",
        ),
        (PLAIN.replace("http_networks", "# "), "application_servers[0].listen_http: is for phones of named networks"),
        (PLAIN.replace("static_keys", "# "), "application_servers[0].listen_http: is for phones of named networks"),
        (PLAIN.replace("127.0.0.1:80", "80"), "application_servers[0].listen_http: '80' is not HOST:PORT"),
        ("x", "is not TOML"),
        (SERVER.format("127.0.0.1"), "application_servers[0].as_id: AS_ID: an IP address is no host name"),
        (SERVER.format("a.net") + SERVER.format("A.NET"), "a.net is there twice"),
        ('[[subscribers]]\nimpi = "nobody"\nimpus = ["sip:a@b"]\n' + CARD, "subscribers[0].impi: IMPI"),
        ('[[subscribers]]\nimpi = "a@b"\nimpus = ["http://b"]\n' + CARD, "subscribers[0].impus[0]: IMPU"),
        ('[[subscribers]]\nimpi = "a@b"\nimpus = []\n' + CARD, "subscribers[0].impus"),
        ('[[subscribers]]\nimpi = "a@b"\nimpus = ["sip:a@b"]\nk = "12"\nopc = "12"\n', "subscribers[0].k: not 16 to 32 octets"),
        ('[[subscribers]]\nimpi = "a@b"\nimpus = ["sip:a@b"]\nk = 12\nopc = "12"\n', "subscribers[0].k"),
        ('[[subscribers]]\nimpi = "a@b"\nimpus = ["sip:a@b"]\n' + CARD.splitlines()[0], "exactly one of opc and op"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert re.match(f"{re.escape(str(tmp_path / 'x.toml'))}(:\\d+)?: ", str(caught.value))
    assert "465b5ce8" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[network]\ngm = "optinal"\n', ":2: network.gm: 'optinal' is not off, optional or required. Did you mean `optional`?"),
        ('[network]\ngm = "x"\n', ":2: network.gm: 'x' is not off, optional or required. Write one of these"),
        ("[[hss]]\n", ":1: hss: expected `object`, got `array`. Write a table"),
        ("[scscf]\n\nmask = 1\n", ":3: scscf.mask: expected `bool`, got `int`. Write true or false without quotation marks"),
        ("[pcscf]\npcscf_gm = 1\n", ":2: pcscf: unknown key `pcscf_gm`. It belongs in [ue] of a file for `keyferry ue`"),
        ("[pcscf]\ngm_listem = 1\n", ":2: pcscf: unknown key `gm_listem`. Did you mean `gm_listen`?"),
        ("[scscf]\nsip_urii = 1\n", ":2: scscf: unknown key `sip_urii`. Did you mean `sip_uri`? It belongs in [[application_servers]]"),
        ("[[subscribers]]\nimpi = 1\n", ":2: subscribers[0].impi: expected `str`, got `int`. Write text in quotation marks"),
        ('[[subscribers]]\n\namf = "8000"\n', ":1: subscribers[0]: object missing required field `impi`. Add impi = … there"),
        (
            SERVER.format("a.net") + 'algorithms = ["SHA-256", "MD"]\n',
            ":6: application_servers[0].algorithms[1]: 'MD' is not SHA-256 or MD5. Did you mean `MD5`?",
        ),
        ("[hosts]\na = 1\n", ":1: hosts"),
    ],
)
def test_a_near_miss_is_suggested_beside_the_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert f"x.toml{says}" in str(caught.value)


def test_a_file_for_another_command_is_taken_for_that() -> None:
    """With the table that shows it, and where there is a right one."""
    with pytest.raises(ConfigError, match=r"ue\.toml:7: ue: is a file for `keyferry ue`, as it has \[ue\]\. Give `keyferry serve` one"):
        load_config(EXAMPLES / "ue.toml")
    with pytest.raises(
        ConfigError, match=r"agent\.toml:9: agent: is a file for `keyferry agent`, as it has \[agent\]\. Give `keyferry ue` one"
    ):
        load_ue_config(EXAMPLES / "agent.toml")
    with pytest.raises(ConfigError, match=r"lab\.toml:\d+: admin: is a file for `keyferry serve`.* such as examples/agent\.toml"):
        load_agent_config(EXAMPLES / "lab.toml")


def test_profiles_are_named_by_subscribers_and_default_is_always_there(tmp_path: Path) -> None:
    text = SERVER.format("a.net") + PROFILE.format("basic", '"a.net"') + PROFILE.format("none", "")
    users = "".join(USER.replace("a@b", f"{name}@b") + CARD + f'profile = "{name}"\n' for name in ("default", "basic", "none"))
    config = load(tmp_path, text + users)
    assert [(profile.name, profile.application_servers) for profile in config.profiles] == [("basic", ["a.net"]), ("none", [])]
    assert [subscriber.profile for subscriber in config.subscribers] == ["default", "basic", "none"]


def test_files_that_cannot_be_read_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * 4_000_001)
    with pytest.raises(ConfigError, match="subscriber add"):
        load_config(tmp_path / "large.toml")


def test_transport_tls_in_a_uri_is_tls_too(tmp_path: Path) -> None:
    """RFC 3261 §26.2.2: deprecated, and in use."""
    text = TLS_SERVER.replace("sips:as.home1.net", "sip:as.home1.net;transport=tls")
    assert load(tmp_path, text + SERVER.format("a.net")).application_servers[0].protection == "tls"


def test_over_tls_a_ue_needs_the_name_of_its_p_cscf(tmp_path: Path) -> None:
    """RFC 5922 §7.3: an address is in no certificate."""
    text = (EXAMPLES / "ue.toml").read_text().replace('transport = "udp"', 'transport = "tls"')
    file = tmp_path / "ue.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"ue\.pcscf: a certificate names a host"):
        load_ue_config(file)
    file.write_text(text.replace("127.0.0.1:5060", "pcscf1.home1.net:5061"))
    assert load_ue_config(file).ue.pcscf_name is None


def test_a_ue_file_is_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "ue.toml"
    file.write_text('[ue]\nimpi = "a@b"\nimpu = "sip:a@b"\npcscf = "nowhere"\n' + CARD)
    with pytest.raises(ConfigError, match=r"ue\.pcscf"):
        load_ue_config(file)
    file.write_text("expires = 600\n[ue]\n")
    with pytest.raises(ConfigError, match=r"top level: unknown key `expires`\. It belongs in \[ue\]"):
        load_ue_config(file)
    file.write_text('[ue]\nimpi = "a@b"\nimpu = "sip:a@b"\n' + CARD.splitlines()[0])
    with pytest.raises(ConfigError, match="exactly one of opc and op"):
        load_ue_config(file)


def test_a_device_is_named_by_a_uuid(tmp_path: Path) -> None:
    """TS 24.229 §5.1.1.2.1: +sip.instance."""
    text = (EXAMPLES / "ue.toml").read_text("utf-8")
    file = tmp_path / "ue.toml"
    file.write_text(text.replace("[ue]", '[ue]\ninstance = "urn:uuid:00000000-0000-4000-8000-000000000002"'))
    assert load_ue_config(file).ue.instance == "urn:uuid:00000000-0000-4000-8000-000000000002"
    file.write_text(text.replace("[ue]", '[ue]\ninstance = "my phone"'))
    with pytest.raises(ConfigError, match=r"ue\.instance"):
        load_ue_config(file)


def test_addresses_are_split() -> None:
    assert split_address("127.0.0.1:5060", "x") == ("127.0.0.1", 5060)
    assert split_address("[::1]:0", "x") == ("::1", 0)


# ---- several application servers at one SIP URI, and those of a key agent

AGENT_SERVER = '[[application_servers]]\nas_id = "{}"\nsip_uri = "sip:agent.home1.net:5095"\napp = "agent"\n'


def test_application_servers_may_share_a_sip_uri_and_what_goes_with_it(tmp_path: Path) -> None:
    shared = SERVER.format("a.net") + SERVER.format("b.net").replace("8443", "8444")
    assert [one.as_id for one in load(tmp_path, shared).application_servers] == ["a.net", "b.net"]
    assert len(load(tmp_path, AGENT_SERVER.format("a.net") + AGENT_SERVER.format("b.net")).application_servers) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            SERVER.format("a.net") + SERVER.format("b.net") + "default_handling = 1\n",
            "application_servers[1].default_handling: is not that of a.net",
        ),
        (
            SERVER.format("a.net") + SERVER.format("b.net").replace("5090", "5091"),
            "application_servers[1].listen_sip: is not that of a.net",
        ),
        (SERVER.format("a.net") + AGENT_SERVER.format("b.net").replace("agent.home1.net:5095", "as.home1.net"), "application_servers[1]."),
        ("".join(AGENT_SERVER.format(f"a{number}.net") for number in range(65)), "that of over 64 application servers"),
        (AGENT_SERVER.format("a.net") + 'listen_https = "127.0.0.1:0"\n', "listen_https: is not used with app 'agent'"),
        (AGENT_SERVER.format("a.net") + 'listen_sip = "127.0.0.1:0"\n', "listen_sip: is not used with app 'agent'"),
        (AGENT_SERVER.format("a.net").replace("sip:", "sips:"), "sip_uri: does not go with protection 'loopback'"),
        (SERVER.format("a.net").replace("listen_https", "# "), "application_servers[0].listen_https: is missing"),
    ],
)
def test_what_does_not_go_together_at_one_sip_uri_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        load(tmp_path, text)
    assert says in str(problem.value)


AGENT = '[agent]\nas_ids = ["a.net", "b.net"]\nsip_uri = "sip:a.net"\nlisten_sip = "127.0.0.1:0"\npushers = ["s.net"]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[hss]\nlisten_diameter = "0.0.0.0:3868"\n', "listen_diameter: other machines can reach it, and CK and IK would go over it"),
        ('[hss]\nlisten_diameter = "hss.home1.net:3868"\n', "Use listen_diameters, or 127.0.0.1"),
        ('[hss]\nlisten_diameter = "3868"\n', "hss.listen_diameter: '3868' is not HOST:PORT"),
        ('[hss]\nname = "127.0.0.1"\n', "hss.name"),
        ('[hss]\npeers = ["a b"]\n', "hss.peers[0]"),
        ('[hss]\npeers = ["a.net", "b.net"]\nconnections = 1\n', "hss.connections: 2 peers are listed, and 1 may connect. Set it to 4"),
        ("[cx]\nwatchdog = 5\n", "cx.watchdog"),
        ('[hss]\nscscfs = ["scscf1"]\n', "hss.scscfs[0]"),
        ('[hss]\nnetworks = ["10.0.0.1/8"]\n', "hss.networks[0]: '10.0.0.1/8' is no network. Write for example 172.22.0.0/24"),
        ('[cx]\npeers = ["aaa://192.0.2.1:3868"]\n', "cx.peers[0]: is on another machine, and CK and IK would go over it in clear. Use aaas://"),
        ('[cx]\npeers = ["aaa://hss.home1.net"]\n', "where hss.home1.net is cannot be told. Write its address here, or in [hosts]"),
        ('[cx]\npeers = ["aaas://127.0.0.1:5658"]\n', "Write its name here, and its address in [hosts]"),
        ('[cx]\npeers = ["diameter://x"]\n', "Write aaa://127.0.0.1:3868, or aaas://hss.home1.net:5658"),
        ('[cx]\npeers = ["aaa://127.0.0.1:70000"]\n', "cx.peers[0]: 'aaa://127.0.0.1:70000' is no address of an HSS"),
        ('[cx]\npeers = ["aaa://h"]\n[hosts]\nh = "127.0.0.1:x"\n', "hosts.\"h\": '127.0.0.1:x' is not HOST:PORT"),
        ('[cx]\ntimeout = 0\n', "cx.timeout"),
    ],
)  # fmt: skip
def test_a_diameter_side_that_would_not_do_is_explained(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)


def test_an_hss_is_found_by_its_address_or_by_its_name(tmp_path: Path) -> None:
    """RFC 6733 §4.3.1; over TLS the name is that of the certificate, wherever it is."""
    text = (
        '[hss]\nlisten_diameter = "10.0.0.9:3868"\nnetworks = ["10.0.0.0/8"]\n[cx]\nnetworks = ["10.0.0.0/8"]\npeers = ["aaa://127.0.0.1", '
        '"aaa://[::1]:3869", "aaa://10.0.0.9:1", "aaa://HSS1", "aaas://hss2.home1.net", "aaas://hss3.home1.net:7"]\n'
        '[hosts]\nhss1 = "127.0.0.2"\n"hss2.home1.net" = "192.0.2.2:99"\n'
    )
    config = load(tmp_path, text)
    assert [tuple(peer) for peer in cx_peers(config.cx, config.hosts)] == [
        ("127.0.0.1", 3868, "", False), ("::1", 3869, "", False), ("10.0.0.9", 1, "", False), ("127.0.0.2", 3868, "", False),
        ("192.0.2.2", 99, "hss2.home1.net", True), ("hss3.home1.net", 7, "hss3.home1.net", True),
    ]  # fmt: skip


def load_agent(folder: Path, text: str) -> AgentConfig:
    """Load a file with this text."""
    file = folder / "agent.toml"
    file.write_text(text, "utf-8")
    return load_agent_config(file)


def test_the_example_of_a_key_agent_loads() -> None:
    agent = load_agent_config(EXAMPLES / "agent.toml").agent
    assert agent.as_ids == ["wiki.home1.net", "mail.home1.net"]
    assert (agent.socket, agent.socket_mode, agent.state) == (None, "0600", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing required field `agent`"),
        (AGENT + "sockte = 1\n", "unknown key `sockte`. Did you mean `socket`?"),
        (AGENT.replace('"b.net"', '"A.net"'), "agent.as_ids[1]: a.net is there twice"),
        (AGENT.replace('"b.net"', '"127.0.0.1"'), "agent.as_ids[1]"),
        (AGENT.replace('["s.net"]', "[]"), "agent.pushers"),
        (AGENT.replace("listen_sip", "listen_sips"), "agent.listen_sips: is not used with protection 'loopback'"),
        (AGENT.replace(":0", ""), "agent.listen_sip: '127.0.0.1' is not HOST:PORT"),
        (AGENT + 'socket_mode = "0660"\n', "agent.socket_group: goes with socket_mode 0660"),
        (AGENT + 'socket_group = "www-data"\n', "agent.socket_group: goes with socket_mode 0660"),
        (AGENT + 'socket_mode = "0666"\n', "agent.socket_mode"),
        (AGENT + '[[users]]\nuser = "www"\nas_ids = ["c.net"]\n', "users[0].as_ids: 'c.net' is none of agent.as_ids"),
    ],
)
def test_a_wrong_file_of_a_key_agent_is_explained(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        load_agent(tmp_path, text)
    assert says in str(problem.value)
