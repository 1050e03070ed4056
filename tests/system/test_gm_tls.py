# SPDX-License-Identifier: Apache-2.0
"""Gm over TLS in the process that serves: the network shows a certificate, the UE has none (RFC 3261 §26.3.1; TS 33.203 annex O)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import Pki
from system.serving import Lab, Served, free_port, keyferry, make_lab, serving, ue

NAME = "pcscf1.home1.net"


def lab_with_tls(folder: Path, gm: str = "off") -> Lab:
    """Return a lab whose P-CSCF takes TLS and whose UE uses it."""
    port = free_port()
    return make_lab(
        folder,
        lambda text: text.replace('gm = "optional"', f'gm = "{gm}"').replace(
            'icscf = "sip', f'listen_tls = "127.0.0.1:{port}"\nicscf = "sip'
        ),
        lambda text: (
            text.replace('"127.0.0.1:5060"', f'"127.0.0.1:{port}"\npcscf_name = "{NAME}"')
            .replace('"udp"', '"tls"')
            .replace('gm = "required"', 'gm = "off"')
        ),
    )


@pytest.fixture(name="tls_lab")
def tls_lab_fixture(tmp_path: Path) -> Lab:
    return lab_with_tls(tmp_path)


@pytest.fixture(name="tls_served")
def tls_served_fixture(tls_lab: Lab) -> Iterator[Served]:
    with serving(tls_lab.serve, tls_lab.state) as running:
        yield running


def refused(lab: Lab, state: Path) -> str:
    """Run a registration that must fail; return what it says."""
    done = keyferry("ue", "register", "--config", lab.ue, "--state", state)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_ue_registers_over_tls_and_no_key_is_missing(tls_lab: Lab, tls_served: Served) -> None:
    """Each command opens a connection of its own: registration, again, de-registration."""
    assert [one["port"] for one in tls_served.listen if one["proto"] == "tls"] == [tls_served.port("pcscf", NAME, "tls")]
    for _ in range(2):
        shown = ue(tls_lab, "register")
        assert shown["keys"], shown["no_keys_because"]
        assert tls_served.health()["registrations"] == 1
    assert ue(tls_lab, "get", "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml")["status"] == 200
    ue(tls_lab, "deregister")
    assert tls_served.health()["registrations"] == 0
    # TLS proves no user: every REGISTER was challenged, as it would be in clear.
    assert 'keyferry_scscf_authenticated_total{reason="masked"} 3.0' in tls_served.admin("/metrics")[1]


def test_a_certificate_of_another_name_is_not_the_p_cscf(tls_lab: Lab, tls_served: Served) -> None:
    """RFC 5922 §7.3."""
    tls_lab.ue.write_text(tls_lab.ue.read_text().replace(NAME, "pcscf2.home1.net"))
    assert "does not name pcscf2.home1.net" in refused(tls_lab, tls_lab.state)
    assert tls_served.health()["registrations"] == 0


def test_a_certificate_of_another_ca_is_not_the_p_cscf(tls_lab: Lab, tls_served: Served, tmp_path: Path) -> None:
    """The UE trusts the CA in `ue.ca` alone."""
    foreign = tmp_path / "foreign"
    foreign.mkdir(0o700)
    other = Pki(foreign, SystemClock())
    other.ensure(NAME, "pcscf")
    tls_lab.ue.write_text(tls_lab.ue.read_text().replace("[ue]", f'[ue]\nca = "{other.ca_file}"'))
    assert "certificate" in refused(tls_lab, tls_lab.state)
    assert tls_served.health()["registrations"] == 0


def test_without_a_ca_the_ue_says_what_to_do(tls_lab: Lab, tmp_path: Path) -> None:
    """A phone of its own has no ca.pem yet."""
    assert "is no CA certificate that can be read" in refused(tls_lab, tmp_path / "phone")


def test_where_gm_must_be_protected_tls_is_protection_and_tcp_is_none(tmp_path: Path) -> None:
    """`gm = "required"` with `listen_tls`: ESP or TLS, nothing in clear."""
    lab = lab_with_tls(tmp_path, "required")
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["keys"]
        text = lab.ue.read_text().replace(f":{served.port('pcscf', NAME, 'tls')}", f":{served.port('pcscf', NAME, 'tcp')}")
        lab.ue.write_text(text.replace('"tls"', '"tcp"'))
        assert "421" in refused(lab, lab.state)
