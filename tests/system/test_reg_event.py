# SPDX-License-Identifier: Apache-2.0
"""The reg event package over real sockets, between real processes: TS 24.229 §5.1.1.3, §5.1.1.7, §5.2.3, §5.4.1.5, §5.4.1.6, §5.7.1.1."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from system.serving import EVENT_LIMIT, Lab, free_port, make_lab, serving, ue, until
from system.staying import metric, operate, staying

IMPI = "user1_private@home1.net"
DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"


def watched_lab(folder: Path, *, gm: str = "off", tls: bool = False) -> Lab:
    """Everybody who may subscribes: UE, P-CSCF and the first AS."""
    port = free_port()

    def edit(text: str) -> str:
        text = text.replace('icscf = "sip:icscf.home1.net:5062"', 'icscf = "sip:icscf.home1.net:5062"\nreg_event = true')
        text = text.replace("[pcscf]", f'[pcscf]\nlisten_tls = "127.0.0.1:{port}"')
        return text.replace('app = "xcap" ', 'reg_event = true\napp = "xcap" ').replace('gm = "optional"', f'gm = "{gm}"')

    def edit_ue(text: str) -> str:
        if tls:
            text = text.replace('"udp"', '"tls"').replace('"127.0.0.1:5060"', f'"127.0.0.1:{port}"\npcscf_name = "pcscf1.home1.net"')
        return text.replace('gm = "required"', f'gm = "{gm}"') + "\n"

    return make_lab(folder, edit, edit_ue)


@pytest.mark.parametrize("gm", ["off", "required"])
def test_the_network_asks_for_authentication_ends_a_registration_and_gets_a_new_one(tmp_path: Path, gm: str) -> None:
    """§5.1.1.4, §5.1.1.5, §5.1.1.7, §5.4.1.5, §5.4.1.6: with Gm in clear, and under ESP."""
    lab = watched_lab(tmp_path, gm=gm)
    with serving(lab.serve, lab.state) as served, staying(lab) as phone:
        assert phone.next("registered")["keys"]
        phone.next("subscribed")
        for watcher in ("user", "pcscf", "as"):
            name = f'keyferry_scscf_subscriptions_total{{reason="{watcher}"}}'
            assert until(lambda name=name: metric(served, name), seconds=EVENT_LIMIT, what=name) == 1  # type: ignore[misc]

        assert operate(served, IMPI, "reauthenticate", seconds=8) == 1
        assert phone.next("asked-to-authenticate")["seconds"] <= 8
        assert phone.next("registered", after=1)["keys"]
        assert metric(served, 'keyferry_scscf_authenticated_total{reason="masked"}') == 2

        assert operate(served, IMPI, "deregister", event="deactivated") == 1
        assert phone.next("ended-by-network")["reason"] == "deactivated"
        assert phone.next("registered", after=2)["keys"]
        assert metric(served, 'keyferry_pcscf_ended_total{reason="deactivated"}') == 1
        assert "registration-ended" in served.log.read_text()
        if gm == "off":
            assert ue(lab, "get", DOCUMENT)["status"] == 200  # another command of the same UE, with the newest key

        assert phone.end() == 0
        assert phone.names()[-1] == "deregistered"
        assert served.health() == {"ok": True, "registrations": 0, "keys": {"xcap.home1.net": 0, "notes.home1.net": 0}}
        assert metric(served, 'keyferry_scscf_notifies_total{reason="timeout"}') == 0
        assert "Traceback" not in served.log.read_text()


def test_over_tls_news_come_back_on_the_connection_of_the_ue(tmp_path: Path) -> None:
    """RFC 5626 §5.3: a phone has no certificate and no port that others connect to."""
    lab = watched_lab(tmp_path, tls=True)
    with serving(lab.serve, lab.state) as served, staying(lab) as phone:
        phone.next("subscribed")
        operate(served, IMPI, "deregister", event="deactivated")
        assert phone.next("ended-by-network")["reason"] == "deactivated"
        phone.next("registered", after=1)
        phone.next("subscribed", after=1)
        assert phone.end() == 0
        assert metric(served, 'keyferry_scscf_notifies_total{reason="timeout"}') == 0


def test_a_rejected_ue_drops_its_keys_says_so_and_does_not_come_back(tmp_path: Path) -> None:
    """§5.4.1.5; RFC 3680 §5.1: rejected."""
    lab = watched_lab(tmp_path)
    with serving(lab.serve, lab.state) as served, staying(lab) as phone:
        phone.next("subscribed")
        operate(served, IMPI, "deregister", event="rejected")
        assert phone.next("ended-by-network")["reason"] == "rejected"
        assert phone.process.wait(EVENT_LIMIT) == 1
        shown = ue(lab, "status")
        assert (shown["registered"], shown["keys"], shown["gm_fingerprint"]) == (False, False, None)
        assert shown["no_keys_because"] == "the network ended the registration: rejected"
        assert served.health()["registrations"] == 0


def test_without_a_subscribing_network_a_ue_stays_and_leaves(lab: Lab) -> None:
    """§5.1.1.3, §5.1.1.6: as examples/ are, the UE alone watches; SIGTERM ends it as Ctrl-C does."""
    with serving(lab.serve, lab.state) as served, staying(lab) as phone:
        first = phone.next("registered")
        assert first["seconds"] - first["again_in"] == pytest.approx(600, abs=1)  # §5.1.1.4: 600 s before the end
        phone.next("subscribed")
        assert metric(served, 'keyferry_scscf_subscriptions_total{reason="pcscf"}') == 0
        assert phone.end(signal.SIGTERM) == 0
        assert served.health()["registrations"] == 0
