# SPDX-License-Identifier: Apache-2.0
"""RFC 3329 §2.3; TS 24.229 §5.1.1; TS 33.203 §7: the UE's side of the security agreement, before a P-CSCF that may be hostile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from keyferry.errors import EspRejected, RegistrationFailed, TransportError
from keyferry.ports import SipPeer, UeState
from keyferry.protocol.aka import AuthVector, Usim
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import parse_credentials
from keyferry.protocol.identity import reg_of
from keyferry.protocol.ims.gm_association import OVERLAP, REG_AWAIT_AUTH, SLACK, GmAssociations, State
from keyferry.protocol.ims.keys import access_keys
from keyferry.protocol.ims.security_agreement import parse_mechanisms
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.pcscf.bindings import Device
from keyferry.roles.pcscf.security import SecurityAgreement, SecurityRefused
from keyferry.roles.ue import MAX_ROUNDS, Ue, UeProfile, UeSecurity
from keyferry.transports.esp_sas import EspSas, Outer
from roles.home import REALM
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom
from roles.test_ue import ALICE, CARD, accept, challenge, status, vector

PCSCF = SipPeer("UDP", "127.0.0.4", 5060)
OUTER = Outer("127.0.0.2", 5_100)
Step = Callable[[Request], Response]
Edit = Callable[[Response], Response]


def unchanged(response: Response) -> Response:
    return response


class Gm:
    """A UE that requires protection, its P-CSCF with true tunnels on both sides, and the home network as prepared steps."""

    def __init__(self, *steps: Step) -> None:
        self.clock, random = FakeClock(), SeededRandom()
        self.steps = list(steps)
        self.seen: list[tuple[str, Request]] = []  # what went over Gm, with its transport
        self.to_pcscf: Callable[[Request], Request] = lambda request: request
        self.to_ue: Edit = unchanged
        self.rejected: list[str] = []  # reasons for which the P-CSCF threw packets away
        near, far = ip_address("127.0.0.2"), ip_address("127.0.0.4")
        self.ue_sas = EspSas(GmAssociations("ue"), self.clock, random, near, (5_102, 5_101), Outer("127.0.0.4", 14_500), far)
        self.pcscf_sas = EspSas(GmAssociations("pcscf"), self.clock, random, far, (14_502, 14_501))
        self.agreement = SecurityAgreement(self.pcscf_sas, RecordingCounter(), required=True)
        self.security = UeSecurity(self.ue_sas, ALICE.impi)
        self.av: AuthVector = vector()
        self.ue = Ue(
            UeProfile(ALICE.impi, ALICE.impus[0].impu, REALM), Usim(CARD), self, PCSCF, "sip:alice@127.0.0.2:5101", "urn:uuid:1",
            self.clock, SeededRandom(), RecordingLog(), security=self.security,
        )  # fmt: skip

    # ---- ports.SipClient

    async def send(self, request: Request, hop: SipPeer, *, check: Any = None) -> Response:
        """Carry a REGISTER to the P-CSCF, through its tunnel if `hop` says so, and the answer back."""
        self.seen.append((hop.transport, request))
        peer = SipPeer("UDP", "127.0.0.2", 5_060)
        if hop.transport == "ESP":
            association = self.ue_sas.of_peer(hop)
            packet = self.ue_sas.seal(self.ue_sas.tunnel_of(association.spi_us), b"REGISTER")
            try:
                peer = self.pcscf_sas.open(packet, OUTER)[0].peer
            except EspRejected as problem:
                self.rejected.append(problem.reason)
                raise TransportError(str(hop), "no answer") from problem
        answer = self.to_ue(self._answer(self.to_pcscf(request), peer))
        if hop.transport == "ESP":
            tunnel = self.pcscf_sas._tunnels.get(peer.spi)
            if tunnel is not None:
                self.ue_sas.open(self.pcscf_sas.seal(tunnel, b"answer"), Outer("127.0.0.4", 14_500))
        return answer

    def _answer(self, request: Request, peer: SipPeer) -> Response:
        device = Device(ALICE.impi, reg_of(request.get("Contact") or ""))
        try:
            protection = self.agreement.of_request(request, peer, device)
        except SecurityRefused as problem:
            return make_response(request, problem.status, headers=problem.headers)
        response = self.steps.pop(0)(request)
        if response.status == 401 and protection.offer is not None:
            pair = access_keys(self.av.ck, self.av.ik, self.av.rand, ALICE.impi)
            keys = Secret(pair.ck.reveal() + pair.ik.reveal())
            return response.with_headers((*response.headers, self.agreement.challenged(protection.offer, keys)))
        if protection.association is not None:
            if response.status == 200:
                self.agreement.confirmed(protection.association, int(request.get("Expires") or "0"))
            elif response.status != 401:
                self.agreement.failed(protection.association)
        return response

    # ---- what a test does

    def run(self, seq: int = 1) -> None:
        """Prepare one AKA run of the home network."""
        self.av = vector(seq)
        self.steps += [challenge(self.av), accept(self.av)]

    async def register(self, state: UeState | None = None) -> UeState:
        return await self.ue.register(state)

    async def fails(self, state: UeState | None = None) -> RegistrationFailed:
        with pytest.raises(RegistrationFailed) as caught:
            await self.register(state)
        return caught.value

    def header(self, place: int, name: str) -> list[str]:
        return self.seen[place][1].all(name)

    @property
    def transports(self) -> list[str]:
        return [transport for transport, _ in self.seen]

    @property
    def states(self) -> list[State]:
        return [each.state for each in self.ue_sas.associations.sets(ALICE.impi)]


@pytest.fixture
def gm() -> Gm:
    opened = Gm()
    opened.run()
    return opened


def with_server(text: str | None) -> Edit:
    """Change Security-Server of a 401."""
    return lambda response: response.without("Security-Server") if text is None else response.replacing("Security-Server", text)


def only(message: Any, name: str, kept: str) -> Any:
    """Take out of a list what has not `kept` in it."""
    return message.replacing(name, ", ".join(part for part in (message.get(name) or "").split(", ") if kept in part))


class TestTheAgreement:
    """TS 24.229 §5.1.1.2.2, §5.1.1.5."""

    async def test_the_first_register_offers_and_the_second_says_again_what_it_was_told(self, gm: Gm) -> None:
        """RFC 3329 §2.3.1; TS 33.203 §7.2."""
        state = await gm.register()
        assert state.k_m is not None
        assert gm.transports == ["UDP", "ESP"]
        offer = parse_mechanisms(gm.header(0, "Security-Client"))
        assert [(one.alg, one.ealg, one.mod) for one in offer] == [
            ("hmac-sha-1-96", "aes-cbc", "UDP-enc-tun"), ("hmac-sha-1-96", "null", "UDP-enc-tun"),
        ]  # fmt: skip
        assert gm.header(0, "Require") == gm.header(0, "Proxy-Require") == ["sec-agree"]
        assert gm.header(0, "Security-Verify") == []
        assert gm.header(1, "Security-Client") == gm.header(0, "Security-Client")
        assert len(gm.header(1, "Security-Verify")) == 1
        assert gm.states == [State.IN_USE]

    async def test_its_keys_are_those_of_the_challenge(self, gm: Gm) -> None:
        """DESIGN §5 step 3: CK', IK' where the marker says so; under other keys nothing opens."""
        gm.av = vector(2)
        with pytest.raises(TransportError):
            await gm.register()
        assert gm.rejected == ["icv"]
        assert len(gm.ue_sas) == 0

    @pytest.mark.parametrize(
        "server",
        [
            None,
            "",
            "tls;q=0.2",
            "ipsec-3gpp;alg=hmac-sha-1-96;ealg=aes-cbc;spi-c=5000;spi-s=5001;port-c=1;port-s=2",  # mod=trans, the default
            "ipsec-3gpp;alg=hmac-md5-96;ealg=aes-cbc;mod=UDP-enc-tun;spi-c=5000;spi-s=5001;port-c=1;port-s=2",
            "ipsec-3gpp;alg=hmac-sha-1-96;ealg=des-ede3-cbc;mod=UDP-enc-tun;spi-c=5000;spi-s=5001;port-c=1;port-s=2",
            "ipsec-3gpp;alg=hmac-sha-1-96;ealg=aes-cbc;mod=UDP-enc-tun;spi-c=5;spi-s=5001;port-c=1;port-s=2",
            "ipsec-3gpp;alg=hmac-sha-1-96;ealg=aes-cbc;mod=UDP-enc-tun;spi-c=5000;spi-s=5000;port-c=1;port-s=2",
            "ipsec-3gpp;alg=hmac-sha-1-96;ealg=aes-cbc;mod=UDP-enc-tun;spi-c=5000;spi-s=5001;port-c=1;port-s=70000",
            "ipsec-3gpp;alg=hmac-sha-1-96;ealg=aes-cbc;mod=UDP-enc-tun",
            "\x00;;=",
        ],
    )
    async def test_a_list_that_is_no_agreement_ends_the_registration_before_an_answer_goes_out(self, gm: Gm, server: str | None) -> None:
        """A response never goes out in clear: RES would be searched for."""
        gm.to_ue = with_server(server)
        await gm.fails()
        assert gm.transports == ["UDP"]
        assert len(gm.ue_sas) == 0
        assert gm.security._server == {}

    async def test_an_spi_of_its_own_is_no_agreement(self, gm: Gm) -> None:
        """TS 33.203 §7.1: the SPIs of both sides differ."""

        def echoed(response: Response) -> Response:
            return response.replacing("Security-Server", gm.header(0, "Security-Client")[0])

        gm.to_ue = echoed
        assert "does not agree" in str(await gm.fails())
        assert gm.transports == ["UDP"]


class TestAMiddleman:
    """RFC 3329 §3: who changes a list before protection begins is found out when it has begun."""

    @pytest.mark.parametrize("kept", ["ealg=null", "ealg=aes-cbc"])
    async def test_who_takes_a_mechanism_out_of_security_server_is_found_out(self, gm: Gm, kept: str) -> None:
        """Without the better one both protect differently and nothing opens; without the other, the second REGISTER tells."""
        gm.to_ue = lambda answer: answer if answer.status != 401 else only(answer, "Security-Server", kept)
        with pytest.raises((RegistrationFailed, TransportError)) as caught:
            await gm.register()
        assert gm.transports == ["UDP", "ESP"]
        if gm.rejected:
            assert kept == "ealg=null"
        else:
            assert isinstance(caught.value, RegistrationFailed)
            assert caught.value.status == 494
            assert len(gm.pcscf_sas) == 0
        assert len(gm.ue_sas) == 0

    @pytest.mark.parametrize("kept", ["ealg=null", "ealg=aes-cbc"])
    async def test_who_takes_a_mechanism_out_of_security_client_is_found_out(self, gm: Gm, kept: str) -> None:
        """The P-CSCF then knows of one, and the second REGISTER, which nobody changes, offers two."""
        gm.to_pcscf = lambda request: request if len(gm.seen) > 1 else only(request, "Security-Client", kept)
        with pytest.raises((RegistrationFailed, TransportError)) as caught:
            await gm.register()
        if gm.rejected:
            assert kept == "ealg=null"
        else:
            assert isinstance(caught.value, RegistrationFailed)
            assert caught.value.status == 494
            assert len(gm.pcscf_sas) == 0
        assert len(gm.ue_sas) == 0

    async def test_a_list_that_is_downgraded_in_security_verify_is_refused(self, gm: Gm) -> None:
        """A UE that is made to say the weaker list again."""

        def forgot(request: Request) -> Request:
            verify = request.get("Security-Verify")
            return request if verify is None else request.replacing("Security-Verify", verify.split(", ")[-1])

        gm.to_pcscf = forgot
        assert (await gm.fails()).status == 494
        assert (len(gm.ue_sas), len(gm.pcscf_sas)) == (0, 0)


class TestHostileAnswers:
    """What a P-CSCF, or somebody who plays one, may answer to a UE that requires protection."""

    @pytest.mark.parametrize("expires", [600, 0])
    async def test_a_200_in_clear_is_no_registration(self, expires: int) -> None:
        gm = Gm()
        gm.steps = [status(200, ("Expires", str(expires)))]
        await gm.fails()
        assert gm.transports == ["UDP"]
        assert len(gm.ue_sas) == 0

    @pytest.mark.parametrize("code", [403, 420, 421, 494, 500, 503])
    async def test_a_refusal_in_clear_ends_it_and_leaves_nothing(self, code: int) -> None:
        gm = Gm(status(code, ("Security-Server", "tls")))
        assert (await gm.fails()).status == code
        assert gm.transports == ["UDP"]
        assert len(gm.ue_sas) == 0

    async def test_a_challenge_whose_mac_is_wrong_makes_no_sas(self, gm: Gm) -> None:
        """TS 24.229 §5.1.1.5.3: the word that it is wrong goes the way the first REGISTER went, without a response."""
        wrong = replace(gm.av, autn=bytes(16))
        gm.steps = [challenge(wrong), status(403)]
        assert (await gm.fails()).status == 403
        assert gm.transports == ["UDP", "UDP"]
        given = parse_credentials(gm.header(1, "Authorization")[0])
        assert (given.response, given.auts) == ("", None)
        assert len(gm.ue_sas) == 0

    async def test_a_second_challenge_ends_the_set_of_the_first(self, gm: Gm) -> None:
        """TS 24.229 §5.1.1.5: one temporary set at a time, each of its own challenge."""
        second = vector(2)

        def again(request: Request) -> Response:
            gm.av = second
            return challenge(second)(request)

        gm.steps = [challenge(gm.av), again, accept(second)]
        state = await gm.register()
        assert state.k_m is not None
        assert gm.transports == ["UDP", "ESP", "ESP"]
        assert gm.states == [State.IN_USE]
        assert gm.header(1, "Security-Verify") != gm.header(2, "Security-Verify")

    async def test_challenges_without_end_are_left(self) -> None:
        gm = Gm()

        def next_one(request: Request) -> Response:
            gm.av = vector(len(gm.seen))
            return challenge(gm.av)(request)

        gm.steps = [next_one] * MAX_ROUNDS
        assert "again and again" in str(await gm.fails())
        assert len(gm.ue_sas) == 0

    async def test_min_expires_begins_again_with_a_new_offer(self, gm: Gm) -> None:
        """RFC 3261 §10.2.8; the SPIs of the first offer are not used again."""
        gm.steps.insert(0, status(423, ("Min-Expires", "700000")))
        await gm.register()
        assert gm.transports == ["UDP", "UDP", "ESP"]
        offers = [parse_mechanisms(gm.header(place, "Security-Client"))[0].spi_c for place in range(3)]
        assert offers[0] != offers[1] == offers[2]


class TestReAuthentication:
    """TS 24.229 §5.1.1.4, §5.1.1.5; TS 33.203 §7.3, §7.4."""

    async def test_it_begins_under_the_old_set_and_ends_under_a_new_one(self, gm: Gm) -> None:
        first = await gm.register()
        gm.run(2)
        second = await gm.register(first)
        assert gm.transports == ["UDP", "ESP", "ESP", "ESP"]
        assert gm.header(2, "Security-Verify") == gm.header(1, "Security-Verify") != gm.header(3, "Security-Verify")
        assert gm.header(3, "Security-Client") == gm.header(2, "Security-Client") != gm.header(1, "Security-Client")
        assert gm.states == [State.OLD, State.IN_USE]
        gm.steps.append(status(200))
        await gm.register(second)
        assert gm.header(4, "Security-Verify") == gm.header(3, "Security-Verify")

    async def test_one_that_fails_leaves_the_old_set(self, gm: Gm) -> None:
        """TS 33.203 §7.3.1: the definitive one stays, the temporary one goes."""
        first = await gm.register()
        gm.run(2)
        gm.steps[-1] = status(403)
        assert (await gm.fails(first)).status == 403
        assert gm.states == [State.IN_USE]
        gm.run(3)
        await gm.register(first)
        assert gm.transports == ["UDP", "ESP", "ESP", "ESP", "ESP", "ESP"]

    async def test_the_old_set_ends_64_t1_after_the_new_one_was_taken_into_use(self, gm: Gm) -> None:
        """RFC 3261 §17.1.2.2: the longest that something is on its way; the list that goes with it is forgotten."""
        state = await gm.register()
        gm.run(2)
        state = await gm.register(state)
        gm.steps.append(status(200))
        await gm.register(state)
        assert len(gm.security._server) == 2
        gm.clock.time += OVERLAP + 1
        gm.ue_sas.expire()
        assert gm.states == [State.IN_USE]
        assert list(gm.security._server) == [gm.ue_sas.associations.sets(ALICE.impi)[0].spi_us]

    async def test_what_was_not_answered_in_time_is_forgotten(self, gm: Gm) -> None:
        """TS 24.229 §5.2.2.1: reg-await-auth."""
        first = await gm.register()
        gm.run(2)
        gm.steps[-1] = status(503)
        await gm.fails(first)
        gm.clock.time += REG_AWAIT_AUTH + 1
        gm.ue_sas.expire()
        assert gm.states == [State.IN_USE]

    async def test_after_the_registration_and_its_slack_it_begins_in_clear(self, gm: Gm) -> None:
        first = await gm.register()
        gm.clock.time += first.expires_at - gm.clock.now() + SLACK + 1
        gm.run(2)
        second = await gm.register(first)
        assert gm.transports == ["UDP", "ESP", "UDP", "ESP"]
        assert gm.header(2, "Security-Verify") == []
        assert second.gm_keys != first.gm_keys

    async def test_a_packet_of_the_old_set_is_not_taken_again_nor_under_the_new_one(self, gm: Gm) -> None:
        """RFC 4303 §3.4.3: every set counts for itself."""
        state = await gm.register()
        old = gm.ue_sas.associations.sets(ALICE.impi)[0]
        packet = gm.ue_sas.seal(gm.ue_sas.tunnel_of(old.spi_us), b"REGISTER")
        gm.pcscf_sas.open(packet, OUTER)
        gm.run(2)
        await gm.register(state)
        new = gm.ue_sas.associations.sets(ALICE.impi)[-1]
        for replayed, reason in ((packet, "replay"), (new.spi_ps.to_bytes(4, "big") + packet[4:], "icv")):
            with pytest.raises(EspRejected) as caught:
                gm.pcscf_sas.open(replayed, OUTER)
            assert caught.value.reason == reason
        late = gm.ue_sas.seal(gm.ue_sas.tunnel_of(old.spi_us), b"late")
        assert gm.pcscf_sas.open(late, OUTER)[1].payload == b"late"  # on its way, and new


class TestOtherRequestsAndTheEnd:
    """RFC 3329 §2.4; TS 24.229 §5.1.1.6, §5.1.1.7."""

    async def test_a_request_other_than_register_goes_through_the_tunnel_with_the_list(self, gm: Gm) -> None:
        await gm.register()
        request, hop = gm.security.outgoing(Request("SUBSCRIBE", "sip:a", ()))
        assert hop.transport == "ESP"
        assert request.all("Security-Verify") == gm.header(1, "Security-Verify")
        assert (request.get("Require"), request.get("Proxy-Require"), request.get("Security-Client")) == ("sec-agree", "sec-agree", None)

    async def test_without_a_set_nothing_but_a_register_goes_out(self, gm: Gm) -> None:
        with pytest.raises(RegistrationFailed, match="ended"):
            gm.security.outgoing(Request("SUBSCRIBE", "sip:a", ()))

    async def test_a_de_registration_goes_through_the_tunnel_and_ends_it(self, gm: Gm) -> None:
        state = await gm.register()
        gm.steps.append(lambda request: make_response(request, 200))
        gone = await gm.ue.deregister(state)
        assert gm.transports[-1] == "ESP"
        assert (gone.k_m, gone.gm_keys) == (None, None)
        gm.clock.time += OVERLAP + 1
        gm.ue_sas.expire()
        assert gm.states == []
        assert gm.security._server == {}

    @pytest.mark.parametrize("who", ["network", "ue"])
    async def test_after_the_end_a_registration_begins_in_clear_at_once(self, gm: Gm, who: str) -> None:
        """§5.1.1.2: it is an initial one, and the old associations drain."""
        state = await gm.register()
        if who == "network":
            gm.security.released()
        else:
            gm.steps.append(lambda request: make_response(request, 200))
            await gm.ue.deregister(state)
        gm.run(2)
        before = len(gm.seen)
        assert (await gm.register(state)).k_m is not None
        assert gm.transports[before:] == ["UDP", "ESP"]
        assert gm.header(before, "Security-Verify") == []

    async def test_the_end_by_the_network_drops_what_was_begun_and_lets_the_rest_drain(self, gm: Gm) -> None:
        await gm.register()
        gm.security.released()
        assert gm.states == [State.IN_USE]
        with pytest.raises(RegistrationFailed, match="ended"):
            gm.security.outgoing(Request("SUBSCRIBE", "sip:a", ()))
        gm.clock.time += OVERLAP + 1
        gm.ue_sas.expire()
        with pytest.raises(RegistrationFailed, match="ended"):
            gm.security.outgoing(Request("SUBSCRIBE", "sip:a", ()))
