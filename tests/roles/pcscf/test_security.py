# SPDX-License-Identifier: Apache-2.0
"""RFC 3329 §2.3; TS 24.229 §5.2.2; TS 33.203 §7, annex H: the P-CSCF's side of the security agreement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from keyferry.ports import SipPeer
from keyferry.protocol.digest import parse_credentials
from keyferry.protocol.identity import reg_of
from keyferry.protocol.ims.gm_association import AssociationSet, GmAssociations, State
from keyferry.protocol.ims.security_agreement import UDP_TUNNEL, Mechanism, build_mechanisms, ipsec_3gpp, parse_mechanisms
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.pcscf.bindings import Binding
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.pcscf.security import SecurityAgreement
from keyferry.transports.esp_sas import EspSas
from roles.network import FakeClock, Network, RecordingCounter, RecordingLog, SeededRandom

UE = SipPeer("UDP", "127.0.0.2", 5060)
CONTACT = '<sip:alice@127.0.0.2:5100>;+sip.instance="<urn:uuid:1>"'
SM1 = 'Digest username="alice@home1.net", realm="home1.net", nonce="", uri="sip:home1.net", response=""'
SM7 = SM1.replace('nonce=""', 'nonce="bm9uY2U="').replace('response=""', 'response="00112233445566778899aabbccddeeff"')
CHALLENGE = f'Digest realm="home1.net", nonce="bm9uY2U=", algorithm=AKAv1-MD5, ck="{"01" * 16}", ik="{"02" * 16}"'
OFFER = [ipsec_3gpp(alg="hmac-sha-1-96", ealg=ealg, spi_c=1_000, spi_s=1_001, port_c=5_101, port_s=5_100) for ealg in ("aes-cbc", "null")]
CLIENT = build_mechanisms(OFFER)
TAGS = (("Require", "sec-agree"), ("Proxy-Require", "sec-agree"))


@dataclass(slots=True)
class Visited:
    """A P-CSCF that protects Gm, before whatever the home network answers."""

    network: Network
    pcscf: Pcscf
    sas: EspSas
    security: SecurityAgreement
    clock: FakeClock
    counter: RecordingCounter
    answers: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)

    async def answer(self, request: Request, peer: SipPeer) -> Response:
        status, headers = self.answers.pop(0)
        return make_response(request, status, headers=headers)

    async def ask(self, request: Request, status: int = 0, *headers: tuple[str, str], peer: SipPeer = UE) -> Response:
        """Give the P-CSCF a request, and its answer to the home network if one is expected to be asked."""
        asked = len(self.network.sent("P", "I"))
        if status:
            self.answers.append((status, list(headers)))
        response = await self.pcscf.handle(request.prepending("Via", f"SIP/2.0/UDP {peer.host}:{peer.port};branch=z9hG4bKx"), peer)
        assert len(self.network.sent("P", "I")) == asked + bool(status)
        return response

    async def challenged(self, *, peer: SipPeer = UE, client: str = CLIENT, **changes: str) -> tuple[SipPeer, str]:
        """SM1 and SM6; return where SM7 would come from, and Security-Server."""
        before = set(map(id, self.live))
        answer = await self.ask(register(("Security-Client", client), *TAGS, **changes), 401, ("WWW-Authenticate", CHALLENGE), peer=peer)
        assert answer.status == 401
        made = next(each for each in self.live if id(each) not in before)
        return self.sas.hop(made), answer.get("Security-Server") or ""

    @property
    def live(self) -> list[AssociationSet]:
        return [tunnel.association for tunnel in self.sas._tunnels.values()]

    @property
    def onward(self) -> Request:
        message = self.network.sent("P", "I")[-1]
        assert isinstance(message, Request)
        return message

    @property
    def word(self) -> str | None:
        return parse_credentials(self.onward.get("Authorization") or "").parameter("integrity-protected")


def build(*, required: bool) -> Visited:
    network, clock, counter, random = Network(), FakeClock(), RecordingCounter(), SeededRandom()
    network.attach("UE", "ue.invalid", None)
    network.attach("I", "icscf.home1.net", lambda request, peer: opened.answer(request, peer))
    sip = network.attach("P", "pcscf1.visited1.net", None)
    sas = EspSas(GmAssociations("pcscf"), clock, random, ip_address("127.0.0.4"), (14_501, 14_500))
    security = SecurityAgreement(sas, counter, required)
    pcscf = Pcscf(
        sip, network, "sip:pcscf1.visited1.net", "sip:icscf.home1.net", "visited1.net", clock, random, RecordingLog(), counter,
        security=security,
    )  # fmt: skip
    opened = Visited(network, pcscf, sas, security, clock, counter)
    return opened


@pytest.fixture
async def visited() -> AsyncIterator[Visited]:
    yield build(required=False)


def register(*extra: tuple[str, str], credentials: str = SM1, contact: str = CONTACT, expires: str = "600") -> Request:
    return Request(
        "REGISTER",
        "sip:home1.net",
        (
            ("Max-Forwards", "70"), ("From", "<sip:alice@home1.net>;tag=1"), ("To", "<sip:alice@home1.net>"), ("Call-ID", "c"),
            ("CSeq", "1 REGISTER"), ("Contact", contact), ("Expires", expires), ("Authorization", credentials), *extra,
        ),
    )  # fmt: skip


def sm7(server: str, *, client: str = CLIENT, credentials: str = SM7, contact: str = CONTACT, expires: str = "600") -> Request:
    extra = (("Security-Client", client), ("Security-Verify", server), *TAGS)
    return register(*extra, credentials=credentials, contact=contact, expires=expires)


class TestBeforeProtection:
    """§5.2.2.1."""

    async def test_the_challenge_brings_our_list(self, visited: Visited) -> None:
        """TS 33.203 annex H: SPIs that are not the UE's, the preferred first."""
        _, server = await visited.challenged()
        mine = parse_mechanisms([server])
        assert [(each.alg, each.ealg, each.mod, each.port_s, each.q) for each in mine] == [
            ("hmac-sha-1-96", "aes-cbc", UDP_TUNNEL, 14_500, 1_000),
            ("hmac-sha-1-96", "null", UDP_TUNNEL, 14_500, 900),
        ]
        assert {mine[0].spi_c, mine[0].spi_s}.isdisjoint({1_000, 1_001})

    async def test_the_agreement_goes_no_further_and_the_word_is_no(self, visited: Visited) -> None:
        await visited.ask(register(("Security-Client", CLIENT), ("Require", "sec-agree, gruu"), ("Proxy-Require", "sec-agree")), 403)
        assert (visited.onward.all("Security-Client"), visited.onward.all("Proxy-Require")) == ([], [])
        assert visited.onward.all("Require") == ["gruu, path"]
        assert visited.word == "no"

    async def test_a_ue_without_it_is_served_as_ever(self, visited: Visited) -> None:
        answer = await visited.ask(register(), 401, ("WWW-Authenticate", CHALLENGE))
        assert (answer.status, answer.get("Security-Server")) == (401, None)
        assert (await visited.ask(register(credentials=SM7), 200)).status == 200
        assert visited.word == "no"
        assert visited.live == []

    async def test_where_it_is_required_it_is_421(self) -> None:
        """RFC 3329 §2.3.1: with Require, and what this server has."""
        answer = await build(required=True).ask(register())
        assert (answer.status, answer.get("Require")) == (421, "sec-agree")
        assert len(parse_mechanisms(answer.all("Security-Server"))) == 2

    async def test_where_it_is_required_tls_is_enough_and_the_word_is_still_no(self) -> None:
        """RFC 3261 §26.3.1: the UE knows us by our certificate; who it is, the connection does not say (TS 24.229 §5.2.2.1)."""
        visited = build(required=True)
        answer = await visited.ask(register(), 401, ("WWW-Authenticate", CHALLENGE), peer=SipPeer("TLS", "192.0.2.9", 40_000))
        assert answer.status == 401
        assert visited.word == "no"

    @pytest.mark.parametrize(
        ("extra", "status"),
        [
            (TAGS, 494),
            ((("Security-Client", CLIENT.replace("hmac-sha-1-96", "hmac-md5-96")),), 494),
            ((("Security-Client", "tls"),), 494),
            ((("Security-Client", CLIENT.replace("UDP-enc-tun", "trans")),), 494),
        ],
        ids=["none", "other algorithms", "other mechanism", "other mode"],
    )
    async def test_nothing_in_common_is_494(self, visited: Visited, extra: tuple[tuple[str, str], ...], status: int) -> None:
        answer = await visited.ask(register(*extra))
        assert answer.status == status
        assert answer.get("Security-Server")
        assert visited.counter["gm_agreement", str(status)] == 1

    async def test_an_answer_in_clear_of_who_asked_for_protection_is_403(self, visited: Visited) -> None:
        """It would be registered without."""
        _, server = await visited.challenged()
        assert (await visited.ask(sm7(server))).status == 403

    async def test_the_word_that_a_challenge_is_wrong_may_come_in_clear(self, visited: Visited) -> None:
        """§5.1.1.5.3: without keys there is no other way."""
        await visited.challenged()
        for credentials in (SM1.replace('nonce=""', 'nonce="bm9uY2U="'), SM7 + ', auts="AAAA"'):
            assert (await visited.ask(register(("Security-Client", CLIENT), credentials=credentials), 403)).status == 403

    async def test_a_challenge_without_keys_does_not_pass(self, visited: Visited) -> None:
        """§5.2.2.1: there is nothing to protect Gm with."""
        bare = 'Digest realm="home1.net", nonce="bm9uY2U=", algorithm=AKAv1-MD5'
        answer = await visited.ask(register(("Security-Client", CLIENT)), 401, ("WWW-Authenticate", bare))
        assert answer.status == 500
        assert visited.live == []

    async def test_a_security_server_of_somebody_behind_does_not_pass(self, visited: Visited) -> None:
        answer = await visited.ask(register(), 401, ("WWW-Authenticate", CHALLENGE), ("Security-Server", CLIENT))
        assert answer.get("Security-Server") is None


class TestUnderProtection:
    """§5.2.2.2."""

    async def test_a_right_answer_is_passed_on_as_protected_and_its_200_confirms_the_set(self, visited: Visited) -> None:
        peer, server = await visited.challenged()
        answer = await visited.ask(sm7(server), 200, ("Contact", CONTACT + ";expires=300"), peer=peer)
        assert (answer.status, visited.word) == (200, "yes")
        assert visited.onward.all("Security-Verify") == []
        association = visited.sas.of_peer(peer)
        assert association.state is State.ESTABLISHED
        assert association.expires_at == visited.clock.monotonic() + 330
        assert visited.pcscf.fingerprint("alice@home1.net", CONTACT) is not None

    @pytest.mark.parametrize("status", [403, 500, 504])
    async def test_a_refusal_ends_the_temporary_set(self, visited: Visited, status: int) -> None:
        peer, server = await visited.challenged()
        await visited.ask(sm7(server), status, peer=peer)
        assert visited.live == []
        assert (await visited.ask(sm7(server), peer=peer)).status == 403

    @pytest.mark.parametrize("change", ["verify gone", "verify shorter", "client changed", "verify unreadable"])
    async def test_lists_that_changed_on_the_way_are_494_and_the_set_ends(self, visited: Visited, change: str) -> None:
        """TS 33.203 §7.2: bidding down is found out."""
        peer, server = await visited.challenged()
        changed = {
            "verify gone": sm7(server).without("Security-Verify"),
            "verify shorter": sm7(server.split(", ")[1]),
            "client changed": sm7(server, client=build_mechanisms(OFFER[1:])),
            "verify unreadable": sm7("ipsec-3gpp;alg"),
        }
        assert (await visited.ask(changed[change], peer=peer)).status == 494
        assert visited.live == []

    @pytest.mark.parametrize(
        "request_",
        [
            lambda server: sm7(server, credentials=SM7.replace("alice", "bobby")),
            lambda server: sm7(server, contact=CONTACT.replace("uuid:1", "uuid:2")),
        ],
        ids=["another subscriber", "another device"],
    )
    async def test_nobody_else_registers_under_a_set(self, visited: Visited, request_: object) -> None:
        peer, server = await visited.challenged()
        assert callable(request_)
        assert (await visited.ask(request_(server), peer=peer)).status == 403
        assert visited.counter["gm_agreement", "identity"] == 1
        assert len(visited.live) == 1

    async def test_only_register_passes(self, visited: Visited) -> None:
        peer, server = await visited.challenged()
        other = Request("MESSAGE", "sip:home1.net", sm7(server).replacing("CSeq", "1 MESSAGE").headers)
        assert (await visited.ask(other, peer=peer)).status == 405

    async def test_re_authentication_sets_up_another_beside_it(self, visited: Visited) -> None:
        """§5.2.2.2: over the set in use, with a new Security-Client."""
        first, server = await visited.challenged()
        await visited.ask(sm7(server), 200, peer=first)
        client = build_mechanisms([each_with(each, 2_000) for each in OFFER])
        again = await visited.ask(sm7(server, client=client, credentials=SM1), 401, ("WWW-Authenticate", CHALLENGE), peer=first)
        assert visited.word == "yes"
        assert len(visited.live) == 2
        second = visited.sas.hop(next(each for each in visited.sas.associations.sets(user()) if each.state is State.TEMPORARY))
        await visited.ask(sm7(again.get("Security-Server") or "", client=client), 200, peer=second)
        assert visited.sas.of_peer(second).state is State.ESTABLISHED
        assert visited.sas.of_peer(first).state is State.ESTABLISHED

    async def test_a_late_register_over_the_old_set_does_not_bring_its_keys_back(self, visited: Visited) -> None:
        """Its 2xx arrives after the newer set was taken into use: the Gm keys stay the newer set's."""
        first, server = await visited.challenged()
        await visited.ask(sm7(server), 200, peer=first)
        client = build_mechanisms([each_with(each, 2_000) for each in OFFER])
        challenge = ("WWW-Authenticate", CHALLENGE.replace("01" * 16, "03" * 16))
        again = await visited.ask(sm7(server, client=client, credentials=SM1), 401, challenge, peer=first)
        second = visited.sas.hop(next(each for each in visited.live if each.state is State.TEMPORARY))
        await visited.ask(sm7(again.get("Security-Server") or "", client=client), 200, peer=second)
        newer = visited.pcscf.fingerprint("alice@home1.net", CONTACT)
        visited.sas.associations.received(visited.sas.of_peer(second), visited.clock.monotonic())
        assert visited.sas.of_peer(first).state is State.OLD
        await visited.ask(sm7(server), 200, peer=first)
        assert visited.pcscf.fingerprint("alice@home1.net", CONTACT) == newer

    async def test_a_refusal_over_a_set_in_use_does_not_end_it(self, visited: Visited) -> None:
        peer, server = await visited.challenged()
        await visited.ask(sm7(server), 200, peer=peer)
        await visited.ask(sm7(server, credentials=SM1), 500, peer=peer)
        assert (await visited.ask(sm7("tls", credentials=SM1), peer=peer)).status == 494
        assert visited.sas.of_peer(peer).state is State.ESTABLISHED

    async def test_a_de_registration_ends_the_sets_after_a_while(self, visited: Visited) -> None:
        peer, server = await visited.challenged()
        await visited.ask(sm7(server), 200, peer=peer)
        await visited.ask(sm7(server, expires="0"), 200, peer=peer)
        assert visited.pcscf.fingerprint("alice@home1.net", CONTACT) is None
        visited.clock.time += 32
        visited.sas.expire()
        assert (visited.live, visited.security._agreed) == ([], {})

    async def test_a_star_over_the_set_of_one_device_ends_those_of_all(self, visited: Visited) -> None:
        """RFC 3261 §10.2.2: it is challenged, and its answer comes over a set of its own."""
        other_phone, other = SipPeer("UDP", "127.0.0.3", 5060), CONTACT.replace("uuid:1", "uuid:2")
        first, server = await visited.challenged()
        await visited.ask(sm7(server), 200, peer=first)
        client = build_mechanisms([each_with(each, 3_000) for each in OFFER])
        second, theirs = await visited.challenged(client=client, peer=other_phone, contact=other)
        await visited.ask(sm7(theirs, client=client, contact=other), 200, peer=second)
        client = build_mechanisms([each_with(each, 2_000) for each in OFFER])
        sm1 = sm7(server, client=client, credentials=SM1, contact="*", expires="0")
        again = await visited.ask(sm1, 401, ("WWW-Authenticate", CHALLENGE), peer=first)
        third = visited.sas.hop(next(each for each in visited.live if each.state is State.TEMPORARY))
        answer = sm7(again.get("Security-Server") or "", client=client, contact="*", expires="0")
        assert (await visited.ask(answer, 200, peer=third)).status == 200
        assert visited.pcscf.gm_keys == {}
        visited.clock.time += 32
        visited.sas.expire()
        assert (visited.live, visited.security._agreed) == ([], {})

    async def test_a_star_of_another_subscriber_over_a_set_is_refused(self, visited: Visited) -> None:
        peer, server = await visited.challenged()
        await visited.ask(sm7(server), 200, peer=peer)
        star = sm7(server, credentials=SM1.replace("alice", "bobby"), contact="*", expires="0")
        assert (await visited.ask(star, peer=peer)).status == 403

    async def test_a_stranger_elsewhere_ends_nobodys_set(self, visited: Visited) -> None:
        """The address is part of whose set it is."""
        peer, server = await visited.challenged()
        await visited.challenged(peer=SipPeer("UDP", "127.0.0.66", 5060))
        assert (await visited.ask(sm7(server), 200, peer=peer)).status == 200

    async def test_a_set_that_ended_while_the_home_network_thought_is_counted(self, visited: Visited) -> None:
        peer, _ = await visited.challenged()
        association = visited.sas.of_peer(peer)
        visited.sas.failed(association)
        assert visited.security.confirmed(association, 600) is None
        assert visited.counter["gm_agreement", "set-gone"] == 1


def each_with(mechanism: Mechanism, spi: int) -> Mechanism:
    return ipsec_3gpp(alg="hmac-sha-1-96", ealg=mechanism.ealg, spi_c=spi, spi_s=spi + 1, port_c=5_101, port_s=5_100)


def user() -> str:
    return f"alice@home1.net {reg_of('<urn:uuid:1>')} 127.0.0.2"


class TestOtherRequests:
    """§5.2.6.1, §5.2.5.2: what is not a REGISTER, and the end that the network says."""

    @staticmethod
    def subscribe() -> Request:
        headers = (("From", "<sip:alice@home1.net>;tag=1"), ("To", "<sip:alice@home1.net>"), ("Call-ID", "c"), ("CSeq", "1 SUBSCRIBE"))
        return Request("SUBSCRIBE", "sip:alice@home1.net", (*headers, ("Contact", "<sip:alice@127.0.0.2:5100>")))

    @staticmethod
    def binding(visited: Visited) -> Binding:
        (found,) = visited.pcscf.bindings.of_resource("sip:alice@home1.net")
        return found

    async def registered(self, visited: Visited) -> SipPeer:
        hop, server = await visited.challenged()
        granted = [
            ("Contact", CONTACT + ";expires=600"),
            ("P-Associated-URI", "<sip:alice@home1.net>"),
            ("Service-Route", "<sip:I@icscf.home1.net;lr>"),
        ]
        assert (await visited.ask(sm7(server), 200, *granted, peer=hop)).status == 200
        return hop

    async def test_one_over_the_associations_is_of_their_user(self, visited: Visited) -> None:
        hop = await self.registered(visited)
        assert (await visited.ask(self.subscribe(), 200, peer=hop)).status == 200
        assert visited.onward.all("P-Asserted-Identity") == ["<sip:alice@home1.net>"]

    async def test_one_in_clear_of_a_ue_that_has_associations_is_refused(self, visited: Visited) -> None:
        await self.registered(visited)
        assert (await visited.ask(self.subscribe())).status == 403

    async def test_one_in_clear_over_tcp_with_the_registered_contact_is_refused(self, visited: Visited) -> None:
        """Over TCP any port of the UE's host would do: that the UE has associations is what refuses it."""
        await self.registered(visited)
        assert (await visited.ask(self.subscribe(), peer=SipPeer("TCP", "127.0.0.2", 5100))).status == 403

    async def test_one_over_a_temporary_set_of_a_registered_device_is_refused(self, visited: Visited) -> None:
        """Anybody can have a set made in another's name; until an answer over it was right it speaks for nobody."""
        await self.registered(visited)
        client = build_mechanisms([each_with(each, 2_000) for each in OFFER])
        temporary, _ = await visited.challenged(client=client)
        assert (await visited.ask(self.subscribe(), peer=temporary)).status == 403

    async def test_one_over_a_set_that_nobody_registered_over_is_refused(self, visited: Visited) -> None:
        hop, _ = await visited.challenged()
        assert (await visited.ask(self.subscribe(), peer=hop)).status == 403
        assert (await visited.ask(self.subscribe(), peer=hop._replace(spi=9))).status == 403

    async def test_requests_for_the_ue_go_through_its_tunnel(self, visited: Visited) -> None:
        await self.registered(visited)
        user = visited.live[0].user
        assert visited.security.hop(user) == visited.sas.hop(visited.live[0])
        assert visited.security.hop("nobody") is None

    async def test_an_end_by_the_network_ends_the_associations(self, visited: Visited) -> None:
        """TS 33.203 §7.4; the last NOTIFY still passes."""
        await self.registered(visited)
        visited.pcscf.ended(self.binding(visited), "rejected")
        assert (await visited.ask(self.subscribe(), peer=visited.sas.hop(visited.live[0]))).status == 403
        await visited.clock.advance(33)
        visited.sas.expire()
        assert visited.live == []

    async def test_a_register_over_associations_whose_registration_is_over_is_refused_here(self, visited: Visited) -> None:
        """§5.2.5.2: nothing that the UE begins goes to the core as protected; one in clear is a new registration."""
        hop = await self.registered(visited)
        binding = self.binding(visited)
        visited.pcscf.ended(binding, "deactivated")
        verify = build_mechanisms(visited.security._agreed[hop.spi].server)
        again = sm7(verify, credentials=SM1)
        assert (await visited.ask(again, peer=hop)).status == 504  # TS 24.229 §5.1.1.4.1: then the UE registers anew
        assert visited.counter["gm_agreement", "ended"] == 1
        assert visited.security.hop(binding.user) == hop  # the way of a last NOTIFY
        client = build_mechanisms([each_with(each, 2_000) for each in OFFER])
        new, server = await visited.challenged(client=client)
        assert (await visited.ask(sm7(server, client=client), 200, peer=new)).status == 200
        assert visited.word == "yes"
        assert (await visited.ask(again, peer=hop)).status == 504
        assert (await visited.ask(self.subscribe(), peer=hop)).status == 403

    async def test_a_notify_for_a_ue_without_associations_left_is_504(self, visited: Visited) -> None:
        await self.registered(visited)
        binding = self.binding(visited)
        visited.pcscf.bindings.put(binding._replace(user="gone"))
        headers = (("From", "<sip:a@b>;tag=1"), ("To", "<sip:a@b>;tag=2"), ("Call-ID", "c"), ("CSeq", "1 NOTIFY"))
        request = Request("NOTIFY", binding.contact, (*headers, ("Route", f"<sip:{binding.token}@pcscf1.visited1.net;lr>")))
        assert (await visited.ask(request)).status == 504
