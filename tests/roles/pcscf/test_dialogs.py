# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.2.6.3, §5.2.6.4; RFC 3325 §5; RFC 3608 §6.3: what a P-CSCF does to SUBSCRIBE and NOTIFY."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from keyferry.ports import SipPeer
from keyferry.protocol.sip.message import Request, Response, build_message, make_response
from keyferry.roles.pcscf.bindings import LAST_WORDS, Binding
from keyferry.roles.pcscf.proxy import Pcscf
from roles.network import FakeClock, Network, RecordingCounter, RecordingLog, SeededRandom
from roles.pcscf.test_proxy import CREDENTIALS, register

ALICE = "sip:alice@home1.net"
SERVICE_ROUTE = "<sip:orig@scscf1.home1.net:6060;lr>"
GRANTED = (
    ("Contact", "<sip:alice@192.0.2.1>;expires=600"),
    ("P-Associated-URI", "<sip:alice@home1.net>, <tel:+15550510>"),
    ("Service-Route", SERVICE_ROUTE),
)


@dataclass(slots=True)
class Visited:
    """A P-CSCF between Alice's UE, another's, and her home network."""

    network: Network = field(default_factory=Network)
    clock: FakeClock = field(default_factory=FakeClock)
    counter: RecordingCounter = field(default_factory=RecordingCounter)
    log: RecordingLog = field(default_factory=RecordingLog)
    known: list[Binding] = field(default_factory=list)
    granted: tuple[tuple[str, str], ...] = GRANTED
    pcscf: Pcscf = field(init=False)

    def __post_init__(self) -> None:
        for name in ("UE", "EVE"):
            self.network.attach(name, f"{name.lower()}.invalid", self.take)
        self.network.attach("I", "icscf.home1.net", self.home)
        self.network.attach("S", "scscf1.home1.net", self.home)
        sip = self.network.attach("P", "pcscf1.visited1.net", lambda request, peer: self.pcscf.handle(request, peer))
        self.pcscf = Pcscf(
            sip, self.network, "sip:pcscf1.visited1.net", "sip:icscf.home1.net", "visited1.net", self.clock, SeededRandom(), self.log,
            self.counter, registered=self.known.append,
        )  # fmt: skip

    async def take(self, request: Request, peer: SipPeer) -> Response:
        return make_response(request, 200)

    async def home(self, request: Request, peer: SipPeer) -> Response:
        return make_response(
            request, 200, headers=self.granted if request.method == "REGISTER" else (("P-Charging-Vector", "icid-value=x"),)
        )

    async def ask(self, request: Request, sender: str = "UE") -> Response:
        return await self.network.carry(sender, request, self.network.peer("P"))

    async def registered(self) -> Binding:
        await self.ask(register(("Authorization", CREDENTIALS)))
        return self.known[-1]

    def last(self, receiver: str) -> Request:
        message = self.network.sent("P", receiver)[-1]
        assert isinstance(message, Request)
        return message


def subscribe(
    *extra: tuple[str, str], to_tag: str = "", uri: str = "sip:alice@home1.net", contact: str = "<sip:alice@192.0.2.1>"
) -> Request:
    return Request(
        "SUBSCRIBE",
        uri,
        (
            ("Max-Forwards", "70"), ("From", "<sip:alice@home1.net>;tag=1"), ("To", f"<sip:alice@home1.net>{to_tag}"), ("Call-ID", "c"),
            ("CSeq", "1 SUBSCRIBE"), ("Contact", contact), *extra,
        ),
    )  # fmt: skip


def notify(*extra: tuple[str, str], uri: str = "sip:alice@192.0.2.1") -> Request:
    headers = (("From", "<sip:alice@home1.net>;tag=2"), ("To", "<sip:alice@home1.net>;tag=1"), ("Call-ID", "c"), ("CSeq", "1 NOTIFY"))
    return Request("NOTIFY", uri, (*headers, *extra))


class TestSubscribe:
    """§5.2.6.3: from a UE to its S-CSCF."""

    async def test_it_follows_the_service_route_whatever_the_ue_preloaded(self) -> None:
        """RFC 3608 §6.3; §5.2.6.3.3."""
        visited = Visited()
        binding = await visited.registered()
        answer = await visited.ask(subscribe(("Route", "<sip:192.0.2.9:5060;lr>, <sip:elsewhere.net;lr>")))
        onward = visited.last("S")
        assert (answer.status, onward.all("Route")) == (200, [SERVICE_ROUTE])
        assert onward.all("Record-Route") == [f"<sip:{binding.token}@pcscf1.visited1.net;lr>"]
        assert [value[:12] for value in onward.all("P-Charging-Vector")] == ['icid-value="']
        assert answer.all("P-Charging-Vector") == []

    @pytest.mark.parametrize(
        ("preferred", "asserted"),
        [
            ((), "<sip:alice@home1.net>"),
            ((("P-Preferred-Identity", "<tel:+15550510>"),), "<tel:+15550510>"),
            ((("P-Preferred-Identity", "<sip:bobby@home1.net>"),), "<sip:alice@home1.net>"),
            ((("P-Asserted-Identity", "<sip:bobby@home1.net>"),), "<sip:alice@home1.net>"),
        ],
    )
    async def test_the_identity_is_a_registered_one_and_never_the_ues_word(
        self, preferred: tuple[tuple[str, str], ...], asserted: str
    ) -> None:
        """RFC 3325 §5; §5.2.6.3.1."""
        visited = Visited()
        await visited.registered()
        await visited.ask(subscribe(*preferred))
        onward = visited.last("S")
        assert (onward.all("P-Asserted-Identity"), onward.all("P-Preferred-Identity")) == ([asserted], [])

    async def test_what_only_the_network_may_write_is_taken_out(self) -> None:
        visited = Visited()
        await visited.registered()
        names = (
            "Path",
            "P-Associated-URI",
            "P-Charging-Vector",
            "P-Charging-Function-Addresses",
            "Record-Route",
            "Service-Route",
            "Security-Verify",
        )
        await visited.ask(subscribe(*((name, "<sip:forged.invalid;lr>") for name in names), ("Require", "sec-agree")))
        assert b"forged" not in build_message(visited.last("S"))
        assert visited.last("S").all("Require") == []

    async def test_a_refresh_goes_to_the_target_of_the_dialog_on_the_same_s_cscf(self) -> None:
        """§5.2.6.3.5."""
        visited = Visited()
        binding = await visited.registered()
        own = ("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>")
        assert (await visited.ask(subscribe(own, to_tag=";tag=2", uri="sip:scscf1.home1.net:6060"))).status == 200
        assert visited.last("S").all("Route") == []
        assert (await visited.ask(subscribe(own, to_tag=";tag=2", uri="sip:icscf.home1.net"))).status == 403
        for elsewhere in ("sip:scscf1.home1.net:5090", "sip:scscf1.home1.net"):  # another function on the S-CSCF's machine
            assert (await visited.ask(subscribe(own, to_tag=";tag=2", uri=elsewhere))).status == 403
        behind = ("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>, {SERVICE_ROUTE}, <sip:hss.home1.net;lr>")
        assert (await visited.ask(subscribe(behind, to_tag=";tag=2", uri="sip:scscf1.home1.net:6060"))).status == 403
        assert visited.counter["pcscf_requests_refused", "not-its-s-cscf"] == 4

    @pytest.mark.parametrize(("sender", "contact"), [("EVE", "<sip:alice@192.0.2.1>"), ("UE", "<sip:other@192.0.2.1>"), ("UE", "*")])
    async def test_who_is_not_registered_is_refused(self, sender: str, contact: str) -> None:
        """§5.2.6.1: a request is of the address that registered."""
        visited = Visited()
        await visited.registered()
        assert (await visited.ask(subscribe(contact=contact), sender)).status == 403
        assert visited.network.sent("P", "S") == []
        assert visited.counter["pcscf_requests_refused", "not-registered"] == 1

    async def test_after_the_end_it_is_refused(self) -> None:
        visited = Visited()
        await visited.registered()
        await visited.ask(register(("Authorization", CREDENTIALS), expires="0"))
        assert (await visited.ask(subscribe())).status == 403

    async def test_another_port_is_another_ue_over_udp_and_the_same_over_tcp(self) -> None:
        visited = Visited()
        await visited.registered()
        ue = visited.network.peer("UE")
        request = subscribe(("Via", "SIP/2.0/UDP 127.0.0.2;branch=z9hG4bKx"))
        assert (await visited.pcscf.handle(request, ue._replace(port=5_999))).status == 403
        assert (await visited.pcscf.handle(request, ue._replace(port=5_999, transport="TCP"))).status == 200

    async def test_under_tls_the_connection_is_the_ue(self) -> None:
        """Nobody else, in clear or over another connection, speaks for it; NOTIFYs go there, too."""
        visited = Visited()
        binding = await visited.registered()
        ue = visited.network.peer("UE")._replace(transport="TLS")
        visited.pcscf.bindings.put(binding._replace(source=ue))
        request = subscribe(("Via", "SIP/2.0/TLS 127.0.0.2;branch=z9hG4bKx"))
        assert [
            (await visited.pcscf.handle(request, ue._replace(**other))).status for other in ({}, {"port": 5_999}, {"transport": "TCP"})
        ] == [
            200,
            403,
            403,
        ]
        own = notify(("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>"))
        assert (await visited.network.carry("S", own, visited.network.peer("P"))).status == 200

    async def test_a_registration_without_identities_asserts_none(self) -> None:
        visited = Visited(granted=tuple(row for row in GRANTED if row[0] != "P-Associated-URI"))
        await visited.registered()
        assert (await visited.ask(subscribe())).status == 403

    async def test_a_silent_s_cscf_is_504(self) -> None:
        visited = Visited()
        await visited.registered()
        visited.network.down("S")
        assert (await visited.ask(subscribe())).status == 504
        assert visited.log.warnings == ["request-not-delivered"]


class TestNotify:
    """§5.2.6.4: from the network to a UE."""

    async def test_it_reaches_the_ue_that_our_record_route_names(self) -> None:
        visited = Visited()
        binding = await visited.registered()
        request = notify(
            ("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>"), ("P-Charging-Vector", "x"), ("P-Asserted-Identity", "<sip:s.net>")
        )
        answer = await visited.network.carry("S", request, visited.network.peer("P"))
        onward = visited.last("UE")
        assert (answer.status, onward.uri, onward.all("Route")) == (200, "sip:alice@192.0.2.1", [])
        assert (onward.all("P-Charging-Vector"), onward.all("P-Asserted-Identity")) == ([], [])

    async def test_a_ue_that_registered_over_tcp_is_reached_at_the_port_of_its_contact_and_on_its_own_host(self) -> None:
        """A Contact may name a node of the network, which would take the P-CSCF's word."""
        visited = Visited()
        binding = await visited.registered()
        hop = visited.pcscf.dialogs._towards(binding._replace(source=binding.source._replace(transport="TCP"), contact="sip:a@s.net:5090"))
        assert hop == binding.source._replace(transport="TCP", port=5090)
        source = binding.source._replace(transport="TCP")
        contact = f"sip:alice@{source.host}:{source.port}"
        visited.pcscf.bindings.put(binding._replace(source=source, contact=contact))
        request = notify(("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>"))
        assert (await visited.network.carry("S", request, visited.network.peer("P"))).status == 200

    @pytest.mark.parametrize("own", ["", "<sip:guess@pcscf1.visited1.net;lr>", "<sip:pcscf1.visited1.net;lr>"])
    async def test_without_the_token_it_reaches_nobody(self, own: str) -> None:
        """RFC 6665 §4.2.2: 481 ends the subscription at the notifier."""
        visited = Visited()
        await visited.registered()
        assert (await visited.network.carry("S", notify(*((("Route", own),) if own else ())), visited.network.peer("P"))).status == 481
        assert not [message for message in visited.network.sent("P", "UE") if isinstance(message, Request)]

    async def test_one_for_ourselves_is_handed_on(self) -> None:
        """§5.2.3."""
        visited = Visited()
        visited.pcscf.dialogs.notified = visited.take
        assert (await visited.network.carry("S", notify(uri="sip:pcscf1.visited1.net"), visited.network.peer("P"))).status == 200

    async def test_the_last_one_still_arrives_after_the_end(self) -> None:
        """§5.2.5.2: the UE is told what the P-CSCF is told."""
        visited = Visited()
        binding = await visited.registered()
        visited.pcscf.ended(binding, "deactivated")
        visited.pcscf.ended(binding, "deactivated")
        assert visited.counter["pcscf_ended", "deactivated"] == 1
        request = notify(("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>"))
        assert (await visited.network.carry("S", request, visited.network.peer("P"))).status == 200
        await visited.clock.advance(LAST_WORDS)
        assert (await visited.network.carry("S", request, visited.network.peer("P"))).status == 481


async def test_a_device_keeps_its_token_over_re_registrations() -> None:
    visited = Visited()
    assert (await visited.registered()).token == (await visited.registered()).token
    assert len(visited.known) == 2
