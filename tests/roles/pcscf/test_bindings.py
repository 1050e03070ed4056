# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.2.2.1: what a P-CSCF remembers of a registration."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry.ports import SipPeer
from keyferry.protocol.identity import Reg
from keyferry.protocol.sip.message import Request, Response
from keyferry.roles.pcscf.bindings import EVERY_DEVICE, LAST_WORDS, Binding, Bindings, Device, associated, contact_of, service_route

NOW = 1_800_000_000.0


def binding(number: int = 1, **changes: Any) -> Binding:
    source = SipPeer("UDP", "192.0.2.1", 5060)
    made = Binding(
        Device("alice@home1.net", Reg(f"r{number}")), f"token{number}", f"sip:alice@192.0.2.{number}", source, "",
        ("sip:alice@home1.net",), ("<sip:s.net;lr>",), NOW + 600,
    )  # fmt: skip
    return made._replace(**changes)


def test_a_device_is_found_by_itself_by_its_token_and_by_its_contact_until_its_time_is_over() -> None:
    bindings, one = Bindings(), binding()
    bindings.put(one)
    assert [bindings.get(one.device, NOW), bindings.of_token("token1", NOW), bindings.of_sender(one.contact, "192.0.2.1", NOW)] == [one] * 3
    assert [bindings.get(one.device, NOW + 600), bindings.of_token("token1", NOW + 600)] == [None] * 2
    assert [bindings.of_token("token2", NOW), bindings.of_sender("sip:b@192.0.2.1", "192.0.2.1", NOW)] == [None] * 2


def test_a_subscribers_devices_are_found_also_those_whose_time_is_over() -> None:
    """RFC 3261 §10.2.2."""
    bindings, mine, other = Bindings(), [binding(1), binding(2, expires_at=NOW)], binding(3)
    other = other._replace(device=other.device._replace(impi="bobby@home1.net"))
    for one in (*mine, other):
        bindings.put(one)
    everyone = Device("alice@home1.net", EVERY_DEVICE)
    assert bindings.of_impi("alice@home1.net") == mine
    assert [everyone.stands_for(one.device) for one in (*mine, other)] == [True, True, False]
    assert [mine[0].device.stands_for(one.device) for one in (*mine, other)] == [True, False, False]
    for one in mine:
        bindings.drop(one.device)
    assert (bindings.of_impi("alice@home1.net"), list(bindings._of_impi)) == ([], ["bobby@home1.net"])


def test_a_new_contact_takes_the_old_ones_place() -> None:
    bindings = Bindings()
    bindings.put(binding())
    bindings.put(binding(contact="sip:alice@192.0.2.9"))
    assert (len(bindings), bindings.of_sender("sip:alice@192.0.2.1", "192.0.2.1", NOW)) == (1, None)


def test_two_devices_behind_one_address_do_not_end_each_other() -> None:
    bindings, one, two = Bindings(), binding(1), binding(2, contact="sip:alice@192.0.2.1")
    bindings.put(one)
    bindings.put(two)
    bindings.drop(one.device)
    assert bindings.of_sender(one.contact, "192.0.2.1", NOW) == two
    assert bindings.drop(one.device) is None


def test_what_ended_is_reached_for_the_time_of_a_last_notify() -> None:
    bindings, one = Bindings(), binding()
    bindings.put(one)
    bindings.end(one.device, NOW)
    found = bindings.of_token("token1", NOW + LAST_WORDS - 1)
    assert found is not None
    assert found.ended
    assert bindings.of_token("token1", NOW + LAST_WORDS) is None
    bindings.end(Device("nobody", Reg("r")), NOW)
    assert len(bindings) == 1


def test_the_oldest_goes_when_there_is_no_room() -> None:
    bindings = Bindings(limit=2)
    for number in (1, 2, 3):
        bindings.put(binding(number))
    assert (len(bindings), bindings.of_token("token1", NOW), bindings.of_sender("sip:alice@192.0.2.1", "192.0.2.1", NOW)) == (2, None, None)


def test_a_strangers_contact_does_not_take_the_place_of_the_same_one_from_elsewhere() -> None:
    """A UE writes into its Contact what it likes; where it sends from is seen."""
    bindings, one = Bindings(), binding()
    bindings.put(one)
    bindings.put(binding(2, contact=one.contact, source=SipPeer("UDP", "192.0.2.66", 5060), impus=("sip:mallory@home1.net",)))
    assert bindings.of_sender(one.contact, "192.0.2.1", NOW) == one
    assert bindings.of_resource("sip:alice@home1.net") == [one]


def test_what_is_over_is_forgotten() -> None:
    bindings, one = Bindings(), binding()
    bindings.put(one)
    bindings.put(binding(2, expires_at=NOW + 900, impus=("tel:+1555",)))
    assert (bindings.over(NOW + 599), bindings.over(NOW + 600), bindings.over(NOW + 600)) == ([], [one], [])
    assert (len(bindings), bindings.of_resource("sip:alice@home1.net"), len(bindings.of_resource(""))) == (1, [], 1)


def test_what_a_200_says_is_read_and_what_cannot_be_read_is_not_there() -> None:
    """§5.2.2: Service-Route, P-Associated-URI; RFC 7315 §4.1, RFC 3608 §6.2."""
    response = Response(200, "OK", (("P-Associated-URI", "<sip:a@b>, <tel:+1>"), ("Service-Route", "<sip:orig@s.net:6060;lr>")))
    assert associated(response) == ("sip:a@b", "tel:+1")
    assert service_route(response) == ("<sip:orig@s.net:6060;lr>",)
    bad = Response(200, "OK", (("P-Associated-URI", "<sip:a"), ("Service-Route", "<sip:a")))
    assert (associated(bad), service_route(bad)) == ((), ())


@pytest.mark.parametrize(("contact", "found"), [("<sip:a@b>;q=1", "sip:a@b"), ("*", ""), (None, "")])
def test_a_contact_is_read(contact: str | None, found: str) -> None:
    assert contact_of(Request("SUBSCRIBE", "sip:a@b", () if contact is None else (("Contact", contact),))) == found
