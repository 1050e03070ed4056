# SPDX-License-Identifier: Apache-2.0
"""strongSwan between S-CSCF and application server, in two network namespaces: what the wire shows (TS 33.210 §5; DESIGN §6)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from interop.ipseckit import A6, LIMIT, Process, World, captured, in_clear, needed, protected, short, six, vici_package, world, write
from interop.ipsecpush import sealed_push, sends
from keyferry.protocol.security_association import child_sas
from keyferry.protocol.vici import Section
from keyferry.transports.vici import Vici
from system.serving import keyferry, until

pytestmark = pytest.mark.interop
OURS = (b"REGISTER", b"3gpp-ims+xml", b"kf:sealed", b"SIP/2.0")
TRANSPORTS = pytest.mark.parametrize("edit", [str, short], ids=["tcp", "udp"])  # as long names, and short ones, make it


@pytest.fixture(name="place")
def place_fixture() -> Iterator[Path]:
    """Return a folder whose name is short enough for a socket's."""
    with TemporaryDirectory(prefix="kfi-") as folder:
        yield Path(folder)


def nothing_in_clear(file: Path) -> None:
    assert in_clear(file) == ""
    data = file.read_bytes()
    assert [word for word in OURS if word in data] == []


def delivered(here: World, keys: int = 1) -> None:
    until(lambda: here.server.keys() == keys, seconds=LIMIT, what="the application server has what it shall have")


def once(here: World) -> None:
    """Nothing lost, and nothing twice in effect: one key, stored once, and nothing owed."""
    delivered(here)
    until(lambda: here.scscf.metric("scscf_third_party_registers", "delivered") == 1, seconds=LIMIT, what="the S-CSCF owes nothing")
    assert here.server.metric("as_pushes", "stored") == 1


def refused(scscf: Process) -> None:
    until(lambda: scscf.metric("scscf_push_failed", "unprotected") > 0, seconds=LIMIT, what="the policy has stopped a push")


@pytest.mark.parametrize("more", [[], ["--psk"]], ids=["certificates", "psk"])
def test_the_wire_shows_esp_in_udp_and_ike_alone(place: Path, more: list[str]) -> None:
    """Registration, push, a document over HTTPS, de-registration: between the two machines nothing else is to be seen."""
    with world(place, *more) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.ue("register")
        once(here)
        found = json.loads(here.check().stdout)
        assert (found["ok"], found["rules"]["loaded"], [pair["met"] for pair in found["pairs"]]) == (True, True, [True])
        here.home.rekey()  # new keys for the CHILD_SA, as every hour: what follows is pushed all the same
        here.ue("deregister")
        delivered(here, 0)
        assert here.scscf.metric("scscf_push_failed", "unprotected") == 0
    nothing_in_clear(wire)
    assert protected(wire) > 8


def test_over_ipv6_as_well(place: Path) -> None:
    """The first packet of all has to find its neighbour: by ICMPv6 between the two addresses, through the rules."""
    with world(place, edit=six) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.ue("register")
        once(here)
        assert json.loads(here.check().stdout)["pairs"][0]["server_address"] == A6
        here.home.dies_before_the_body(here.relay, tcp=True)
        here.ue("register")
        until(lambda: here.home.dropped() > 0, seconds=LIMIT, what="the kernel has stopped what the policy let through")
        assert here.server.metric("as_pushes", "stored") == 1
    nothing_in_clear(wire)
    assert protected(wire) > 4


CBC = {"aes128gcm16-prfsha256-ecp256, aes128-sha256-ecp256, ": "", "aes128gcm16-ecp256, aes128-sha256-ecp256, ": ""}


@pytest.mark.parametrize(
    ("change", "encryption"), [({}, ("AES_GCM_16", "")), (CBC, ("AES_CBC", "HMAC_SHA2_256_128"))], ids=["gcm-ecp256", "cbc-modp2048"]
)
async def test_strongswan_s_own_client_and_ours_see_the_same(place: Path, change: dict[str, str], encryption: tuple[str, str]) -> None:
    """The first algorithms of the profile, and the last: what an older peer takes."""
    with world(place) as here:
        file = here.far.folder / "swanctl.conf"
        for old, new in change.items():
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, new))
        here.up()
        ours = Vici(here.home.socket)
        await ours.start()
        (mine,) = [child_sas(each) for each in await ours.listed("list-sas")]
        await ours.aclose()
        (theirs,) = [child_sas(_texts(each)) for each in await vici_package(here.home.socket)]
        assert mine == theirs
        assert [(sa.name, sa.identity) for sa in mine] == [("isc-xcap-as-home1-net", "xcap-as.home1.net")]
        assert [(sa.encryption, sa.integrity) for sa in mine] == [encryption]


@TRANSPORTS
def test_without_the_sa_no_key_leaves_the_registration_succeeds_and_the_sa_delivers(place: Path, edit: Callable[[str], str]) -> None:
    """DESIGN §6: not met, no push, the registration goes on, an alarm; and at once when it is met."""
    with world(place, edit=edit) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        assert here.ue("register")["keys"]
        refused(here.scscf)
        assert "third-party-register-not-delivered" in here.scscf.log.read_text()
        assert (here.server.keys(), here.home.dropped()) == (0, 0)  # it was the policy that stopped it
        found = json.loads(here.check().stdout)
        assert not found["ok"]
        assert "charon cannot be asked" in found["pairs"][0]["problem"]
        here.up()
        once(here)
    nothing_in_clear(wire)


@TRANSPORTS
def test_charon_killed_between_decision_and_sending(place: Path, edit: Callable[[str], str]) -> None:
    """The policy hears that the SA is there; it is gone before the packet is: the rules of the kernel stop that."""
    with world(place, edit=edit) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.home.dies_before_the_body(here.relay, tcp=edit is str)
        here.ue("register")
        until(lambda: here.home.dropped() > 0, seconds=LIMIT, what="the kernel has stopped what the policy let through")
        assert here.server.keys() == 0
        here.relay.hides_the_end = False
        here.home.start()
        here.met()
        once(here)
    nothing_in_clear(wire)


@TRANSPORTS
def test_without_the_rules_of_the_kernel_that_very_body_would_go_out_in_clear(place: Path, edit: Callable[[str], str]) -> None:
    """This is why `keyferry ipsec write` makes them; and it shows that the tests here can fail."""
    with world(place, edit=edit) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.home.without_rules()
        assert json.loads(here.check().stdout)["rules"]["loaded"] is False
        here.home.dies_before_the_body(here.relay, tcp=edit is str)
        here.ue("register")
        until(lambda: b"kf:sealed" in wire.read_bytes(), seconds=LIMIT, what="the body is on the wire")
    assert "REGISTER" in in_clear(wire)


@TRANSPORTS
def test_charon_killed_between_retransmissions(place: Path, edit: Callable[[str], str]) -> None:
    """The request has gone out through the SA, and is not answered; what is sent again goes nowhere without it."""
    with world(place, edit=edit) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.far.kill()  # from here on nothing is answered
        here.ue("register")
        if edit is short:
            until(lambda: here.scscf.metric("sip_retransmissions", "sent") > 0, seconds=LIMIT, what="the push was sent again")
        here.home.kill()
        if edit is short:
            refused(here.scscf)
        else:  # TCP in the kernel sends its SYN, or the body, again by itself
            until(lambda: here.home.dropped() > 0, seconds=LIMIT, what="the kernel has stopped what it would have sent again")
        assert here.server.keys() == 0
        here.up()
        once(here)
    nothing_in_clear(wire)


def test_a_connection_that_was_open_before_carries_nothing_when_the_sa_is_gone(place: Path) -> None:
    """The first push has opened it; the body of the second is in the kernel when charon dies, and goes over a new one afterwards."""
    with world(place) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.ue("register")
        once(here)
        here.home.dies_before_the_body(here.relay, tcp=True)
        here.ue("register")
        until(lambda: here.home.dropped() > 0, seconds=LIMIT, what="the kernel has stopped the body")
        here.relay.hides_the_end = False
        assert here.server.metric("as_pushes", "stored") == 1
        here.home.start()
        here.met()
        until(lambda: here.scscf.metric("scscf_third_party_registers", "delivered") == 2, seconds=LIMIT, what="nothing is owed")
        assert here.server.metric("as_pushes", "stored") == 2
    nothing_in_clear(wire)


def test_an_sa_of_another_identity_that_covers_the_address_does_not_satisfy(place: Path) -> None:
    """A server with a certificate of the same CA is at the address, and this machine's charon would have it: the policy would not."""
    with world(place) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        theirs, ours = here.far.folder / "swanctl.conf", here.home.folder / "swanctl.conf"
        honest = {file: file.read_text() for file in (theirs, ours)}
        assert keyferry("pki", "issue", "evil.home1.net", "--role", "as", "--state", place / "state").returncode == 0
        for kind, suffix in (("x509", "pem"), ("private", "key")):
            made = place / "state" / "pki" / f"as-evil.home1.net.{suffix}"
            (here.far.folder / kind / f"evil.home1.net.{suffix}").write_bytes(made.read_bytes())
        theirs.write_text(honest[theirs].replace('id = "xcap-as.', 'id = "evil.').replace("certs = xcap-as.", "certs = evil."))
        here.far.start()
        here.home.start()  # as it was written: whoever proves to be another is refused
        assert here.home.initiate() != 0
        assert "there is no CHILD_SA" in here.check().stdout
        ours.write_text(honest[ours].replace('id = "xcap-as.home1.net"', 'id = "evil.home1.net"'))
        here.home.load()
        until(lambda: "another identity" in here.check().stdout, seconds=LIMIT, what="an SA with the stranger covers the address")
        assert here.ue("register")["keys"]
        refused(here.scscf)
        assert here.server.keys() == 0
        for file, text in honest.items():
            file.write_text(text)
        here.far.kill()
        here.home.kill()
        here.up()
        once(here)
    nothing_in_clear(wire)


def test_an_application_server_hears_nothing_that_did_not_come_through_the_sa(place: Path) -> None:
    """DESIGN §6, who may push. The request is all right and its seal opens: through the SA it is taken, and never in clear."""
    neighbour, file = "10.99.0.3", place / "push"
    with world(place, edit=short) as here:
        home, ip = here.home.namespace, needed("ip")
        home.run(ip, "addr", "add", f"{neighbour}/24", "dev", home.device)
        here.home.without_rules()  # whoever pretends to be at the S-CSCF's address has none
        sealed_push(place, file)
        assert sends(home, file) == "nothing"
        assert here.far.dropped_in() > 0
        assert sends(home, file, neighbour) == "480"  # of whom no rule says anything
        here.far.without_rules()
        assert sends(home, file) == "480"  # there is no SA
        for charon in (here.far, here.home):
            charon.rules()
        here.up()
        sealed_push(place, file)
        assert (here.server.keys(), here.server.metric("as_pushes_refused", "unprotected")) == (0, 2)
        assert sends(home, file) == "200"
        assert here.server.keys() == 1


def test_an_sa_of_another_s_cscf_s_identity_pushes_nothing_of_this_one_s(place: Path) -> None:
    """The seal says who pushed, and so does the SA: both must say the same."""
    with world(place, edit=short) as here:
        file = here.far.folder / "swanctl.conf"
        assert keyferry("pki", "issue", "t.h", "--role", "scscf", "--state", place / "state").returncode == 0
        for kind, suffix in (("x509", "pem"), ("private", "key")):
            (here.home.folder / kind / f"t.h.{suffix}").write_bytes((place / "state" / "pki" / f"scscf-t.h.{suffix}").read_bytes())
        ours = here.home.folder / "swanctl.conf"
        ours.write_text(ours.read_text().replace('id = "s.h"', 'id = "t.h"').replace("certs = s.h.", "certs = t.h."))
        file.write_text(file.read_text().replace('id = "s.h"', 'id = "t.h"'))
        here.up()
        sealed_push(place, place / "push")
        assert sends(here.home.namespace, place / "push") == "403"
        assert (here.server.keys(), here.server.metric("as_pushes_refused", "peer")) == (0, 1)


def test_what_is_written_names_each_side(place: Path) -> None:
    with world(place) as here:
        write(place, "as", here.far, "--as", "xcap-as.home1.net", "--esp", "kernel")
        assert "mode = transport" in (here.far.folder / "swanctl.conf").read_text()


def _texts(section: dict[str, object]) -> Section:
    def text(value: object) -> object:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, list):
            return [text(each) for each in value]
        return {name: text(each) for name, each in value.items()} if isinstance(value, dict) else value

    return text(section)  # type: ignore[return-value]
