# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.2.2; TS 33.203 §6.1; RFC 3327, RFC 3329 §2.3.1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from keyferry.ports import SipPeer
from keyferry.ports.correlation import correlation
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import parse_challenge, parse_credentials
from keyferry.protocol.ims.charging import correlation_of
from keyferry.protocol.ims.gm_association import REG_AWAIT_AUTH
from keyferry.protocol.sip.message import Request, Response, build_message, make_response
from keyferry.roles.pcscf.bindings import LAST_WORDS
from keyferry.roles.pcscf.proxy import Pcscf
from roles.network import FakeClock, Network, RecordingCounter, RecordingLog, SeededRandom

CONTACT = '<sip:alice@192.0.2.1>;+sip.instance="<urn:uuid:1>"'
CREDENTIALS = 'Digest username="alice@home1.net", realm="home1.net", nonce="", uri="sip:home1.net", response=""'
ANSWER = CREDENTIALS.replace('nonce=""', 'nonce="bm9uY2U="').replace('response=""', 'response="0"')
CK, IK = "0123456789abcdef" * 2, "FEDCBA9876543210" * 2
CHALLENGE = f'Digest realm="home1.net", nonce="bm9uY2U=", algorithm=AKAv1-MD5, qop="auth", ck="{CK}", ik="{IK}"'
KEYS = Secret(bytes.fromhex(CK + IK)).fingerprint()


@dataclass(slots=True)
class Visited:
    """A P-CSCF between a UE and whatever the home network answers."""

    network: Network
    pcscf: Pcscf
    log: RecordingLog
    counter: RecordingCounter
    answers: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)

    async def answer(self, request: Request, peer: SipPeer) -> Response:
        status, headers = self.answers.pop(0)
        return make_response(request, status, headers=headers)

    async def ask(self, request: Request, status: int = 200, *headers: tuple[str, str]) -> Response:
        self.answers.append((status, list(headers)))
        return await self.network.carry("UE", request, self.network.peer("P"))

    @property
    def onward(self) -> Request:
        message = self.network.sent("P", "I")[-1]
        assert isinstance(message, Request)
        return message

    @property
    def gm(self) -> str | None:
        return self.pcscf.fingerprint("alice@home1.net", CONTACT)


@pytest.fixture
async def visited() -> AsyncIterator[Visited]:
    network, log, counter = Network(), RecordingLog(), RecordingCounter()
    network.attach("UE", "ue.invalid", None)
    network.attach("I", "icscf.home1.net", lambda request, peer: opened.answer(request, peer))
    sip = network.attach("P", "pcscf1.visited1.net", lambda request, peer: opened.pcscf.handle(request, peer))
    pcscf = Pcscf(
        sip, network, "sip:pcscf1.visited1.net", "sip:icscf.home1.net", "visited1.net", FakeClock(), SeededRandom(), log, counter
    )  # fmt: skip
    opened = Visited(network, pcscf, log, counter)
    yield opened
    assert network.failures == []


def register(*extra: tuple[str, str], contact: str = CONTACT, expires: str = "600", method: str = "REGISTER") -> Request:
    return Request(
        method,
        "sip:home1.net",
        (
            ("Max-Forwards", "70"), ("From", "<sip:alice@home1.net>;tag=1"), ("To", "<sip:alice@home1.net>"), ("Call-ID", "c"),
            ("CSeq", f"1 {method}"), ("Contact", contact), ("Expires", expires), *extra,
        ),
    )  # fmt: skip


def has_keys(response: Response) -> bool:
    """Tell whether CK or IK, in any spelling, is left in a message."""
    octets = build_message(response).lower()
    return any(key.lower().encode() in octets for key in (CK, IK)) or b"ck=" in octets or b"ik=" in octets


class TestTowardsTheHomeNetwork:
    """§5.2.2, requests."""

    async def test_what_the_network_needs_is_added(self, visited: Visited) -> None:
        """§5.2.2.1; RFC 3327 §5.2; RFC 7315 §4.3, §4.6."""
        await visited.ask(register(("Authorization", CREDENTIALS)))
        onward = visited.onward
        assert onward.all("Path") == ["<sip:pcscf1.visited1.net;lr>"]
        assert onward.all("Require") == ["path"]
        assert onward.all("P-Visited-Network-ID") == ['"visited1.net"']
        assert [value[:12] for value in onward.all("P-Charging-Vector")] == ['icid-value="']
        assert onward.get("Max-Forwards") == "69"

    async def test_every_request_has_its_own_icid(self, visited: Visited) -> None:
        await visited.ask(register())
        first = visited.onward.get("P-Charging-Vector")
        await visited.ask(register())
        assert visited.onward.get("P-Charging-Vector") != first

    async def test_first_register_and_answer_have_one_id_in_their_icids(self, visited: Visited) -> None:
        """RFC 7315 §4.6: each has its own; ours say which belong together, to the log, too."""
        await visited.ask(register(("Authorization", CREDENTIALS)), 401, ("WWW-Authenticate", CHALLENGE))
        first = visited.onward.get("P-Charging-Vector") or ""
        await visited.ask(register(("Authorization", ANSWER)))
        second = visited.onward.get("P-Charging-Vector") or ""
        assert second == first.replace("-1", "-2") != first
        assert correlation_of(second) == correlation_of(first) == correlation()

    async def test_what_proxies_are_required_to_know_and_this_one_does_not_is_420(self, visited: Visited) -> None:
        """RFC 4475 §3.3.5; RFC 3261 §16.3 step 5: Proxy-Require concerns the proxy, Require does not."""
        answer = await visited.ask(register(("Proxy-Require", "noProxiesSupportThis, norDoAnyProxiesSupportThis"), ("Require", "other")))
        assert (answer.status, answer.get("Unsupported")) == (420, "noProxiesSupportThis, norDoAnyProxiesSupportThis")

    async def test_other_requirements_stay(self, visited: Visited) -> None:
        await visited.ask(register(("Require", "outbound, path"), ("Require", "gruu")))
        assert visited.onward.all("Require") == ["outbound, path, gruu"]

    @pytest.mark.parametrize(
        "name",
        [
            "Path",
            "P-Associated-URI",
            "P-Visited-Network-ID",
            "P-Charging-Vector",
            "P-Charging-Function-Addresses",
            "P-Asserted-Identity",
            "Service-Route",
        ],
    )
    async def test_what_only_the_network_may_write_is_taken_out(self, visited: Visited, name: str) -> None:
        """RFC 3325 §4, RFC 7315 §5: a UE is outside the trust domain."""
        await visited.ask(register((name, "<sip:forged.invalid;lr>"), (name.lower(), "<sip:forged.invalid;lr>")))
        assert b"forged" not in build_message(visited.onward)

    @pytest.mark.parametrize("claim", ["", ', integrity-protected="yes"', ", INTEGRITY-PROTECTED=yes", ", integrity-protected=tls-yes"])
    async def test_the_ues_word_about_protection_is_overwritten(self, visited: Visited, claim: str) -> None:
        """§5.2.2.1, §7.2A.2: this P-CSCF has no security association, so it says no."""
        await visited.ask(register(("Authorization", CREDENTIALS + claim)))
        credentials = parse_credentials(visited.onward.get("Authorization") or "")
        assert credentials.parameters == (("integrity-protected", "no"),)
        assert credentials.username == "alice@home1.net"

    async def test_it_is_overwritten_in_every_authorization(self, visited: Visited) -> None:
        claim = CREDENTIALS + ', integrity-protected="yes"'
        await visited.ask(register(("Authorization", claim), ("Authorization", claim)))
        values = visited.onward.all("Authorization")
        assert [parse_credentials(value).parameter("integrity-protected") for value in values] == ["no", "no"]

    async def test_without_authorization_none_is_made(self, visited: Visited) -> None:
        await visited.ask(register())
        assert visited.onward.all("Authorization") == []

    async def test_credentials_of_another_scheme_count_as_none(self, visited: Visited) -> None:
        """RFC 4475 §3.3.7."""
        await visited.ask(register(("Authorization", "Basic YWxpY2U6eA==")))
        assert visited.onward.all("Authorization") == []

    @pytest.mark.parametrize("value", ["Digest x", CREDENTIALS + ', integrity-protected="no", integrity-protected="yes"'])
    async def test_credentials_that_cannot_be_read_go_no_further(self, visited: Visited, value: str) -> None:
        assert (await visited.ask(register(("Authorization", value)))).status == 400
        assert visited.network.sent("P", "I") == []

    @pytest.mark.parametrize("header", [("Require", "sec-agree"), ("Proxy-Require", "path, Sec-Agree"), ("Require", "x,sec-agree,y")])
    async def test_security_agreement_is_420(self, visited: Visited, header: tuple[str, str]) -> None:
        """RFC 3329 §2.3.1; RFC 3261 §8.2.2.3."""
        answer = await visited.ask(register(header))
        assert (answer.status, answer.get("Unsupported")) == (420, "sec-agree")
        assert visited.network.sent("P", "I") == []

    @pytest.mark.parametrize("extra", [["SIP/2.0/UDP 192.0.2.66;branch=z9hG4bKx"], ["SIP/2.0/UDP 192.0.2.66;branch=z9hG4bKx"] * 2])
    async def test_a_via_below_the_ues_own_is_400(self, visited: Visited, extra: list[str]) -> None:
        """It would pass for an address that this P-CSCF saw, and the S-CSCF counts challenges by that."""
        assert (await visited.ask(register(*(("Via", value) for value in extra)))).status == 400
        assert visited.network.sent("P", "I") == []

    async def test_another_method_is_405(self, visited: Visited) -> None:
        answer = await visited.ask(register(method="MESSAGE"))
        assert (answer.status, answer.get("Allow")) == (405, "REGISTER, SUBSCRIBE, NOTIFY")

    @pytest.mark.parametrize(
        ("warnings", "warning"), [(False, None), (True, '399 pcscf1.visited1.net "I-CSCF icscf.home1.net: no answer in 32 s"')]
    )
    async def test_a_silent_home_network_is_504_that_names_it_in_a_laboratory_alone(
        self, visited: Visited, warnings: bool, warning: str | None
    ) -> None:
        visited.pcscf.warnings = warnings
        visited.network.down("I")
        answer = await visited.ask(register())
        assert (answer.status, answer.get("Warning")) == (504, warning)
        assert visited.log.warnings == ["home-network-unreachable"]

    async def test_a_home_network_that_nobody_can_find_is_504(self, visited: Visited) -> None:
        visited.pcscf.icscf = "sip:gone.home1.net"
        assert (await visited.ask(register())).status == 504

    async def test_no_hop_left_is_483(self, visited: Visited) -> None:
        assert (await visited.ask(register().replacing("Max-Forwards", "0"))).status == 483

    async def test_a_route_of_the_ue_goes_no_further(self, visited: Visited) -> None:
        """§5.2.2.1: to the home network's entry point, by what we know, and the S-CSCF does not see where the UE would have it go."""
        await visited.ask(register(("Route", "<sip:pcscf1.visited1.net;lr>, <sip:elsewhere.invalid;lr>"), ("Authorization", CREDENTIALS)))
        assert visited.onward.all("Route") == []


class TestTowardsTheUe:
    """TS 33.203 §6.1: SM6 holds RAND and AUTN, no key."""

    async def test_the_keys_stay_here_and_the_rest_goes_on(self, visited: Visited) -> None:
        """§5.2.2.2; §7.2A.1."""
        answer = await visited.ask(register(), 401, ("WWW-Authenticate", CHALLENGE))
        assert not has_keys(answer)
        challenge = parse_challenge(answer.get("WWW-Authenticate") or "")
        assert (challenge.nonce, challenge.algorithm, challenge.qop, challenge.parameters) == ("bm9uY2U=", "AKAv1-MD5", ("auth",), ())

    @pytest.mark.parametrize(
        "headers",
        [
            [("WWW-Authenticate", CHALLENGE), ("WWW-Authenticate", CHALLENGE)],
            [("Proxy-Authenticate", CHALLENGE)],
            [("WWW-Authenticate", CHALLENGE), ("Proxy-Authenticate", CHALLENGE)],
            [("www-authenticate", CHALLENGE.replace("ck=", "CK=").replace("ik=", "Ik="))],
            [("WWW-Authenticate", CHALLENGE.replace(f', ik="{IK}"', ""))],
            [("WWW-Authenticate", CHALLENGE.replace(f'ck="{CK}", ', ""))],
            [("WWW-Authenticate", CHALLENGE.replace(f'"{CK}"', CK))],
        ],
        ids=["two headers", "Proxy-Authenticate", "both", "other case", "ck alone", "ik alone", "bare"],
    )
    async def test_no_key_gets_through(self, visited: Visited, headers: list[tuple[str, str]]) -> None:
        answer = await visited.ask(register(), 401, *headers)
        assert answer.status == 401
        assert not has_keys(answer)

    @pytest.mark.parametrize(
        "value",
        [
            CHALLENGE + ", " + CHALLENGE,
            CHALLENGE + f', ck="{CK}"',
            CHALLENGE.replace("Digest ", "Basic "),
            CHALLENGE.replace('realm="home1.net"', "realm"),
            CHALLENGE.replace(CK, "not hexadecimal"),
            CHALLENGE.replace(CK, CK[:-2]),
            CHALLENGE.replace(f'"{IK}"', f'"{IK}00"'),
        ],
        ids=["two in one", "ck twice", "another scheme", "no value", "not hex", "short", "long"],
    )
    async def test_a_challenge_that_cannot_be_read_does_not_pass(self, visited: Visited, value: str) -> None:
        """What cannot be read cannot be searched for keys."""
        answer = await visited.ask(register(), 401, ("WWW-Authenticate", value))
        assert answer.status == 500
        assert not has_keys(answer)
        assert visited.counter["pcscf_challenge_unreadable"] == 1
        assert visited.gm is None

    @pytest.mark.parametrize("status", [200, 403, 407, 500])
    async def test_no_other_response_carries_a_challenge(self, visited: Visited, status: int) -> None:
        answer = await visited.ask(register(), status, ("WWW-Authenticate", CHALLENGE), ("Proxy-Authenticate", CHALLENGE))
        assert answer.status == status
        assert not has_keys(answer)

    async def test_charging_stays_in_the_network(self, visited: Visited) -> None:
        """RFC 7315 §5.6."""
        answer = await visited.ask(register(), 200, ("P-Charging-Vector", "icid-value=1"), ("P-Charging-Function-Addresses", "ccf=1.2.3.4"))
        assert (answer.get("P-Charging-Vector"), answer.get("P-Charging-Function-Addresses")) == (None, None)

    async def test_a_401_to_a_star_stores_no_key_and_shows_none(self, visited: Visited) -> None:
        answer = await visited.ask(register(contact="*", expires="0"), 401, ("WWW-Authenticate", CHALLENGE))
        assert not has_keys(answer)
        assert visited.pcscf.gm_keys == {}
        assert (await visited.ask(register(contact="*", expires="0"))).status == 200


class TestGmKeys:
    """TS 33.203 §7.4: what protects Gm, by subscriber and device."""

    async def challenged(self, visited: Visited, contact: str = CONTACT, user: str = "alice", key: str = CK) -> None:
        credentials = CREDENTIALS.replace("alice", user)
        await visited.ask(register(("Authorization", credentials), contact=contact), 401, ("WWW-Authenticate", CHALLENGE.replace(CK, key)))

    async def answered(self, visited: Visited, contact: str = CONTACT, *, status: int = 200, expires: str = "600") -> None:
        await visited.ask(register(("Authorization", ANSWER), contact=contact, expires=expires), status)

    @pytest.mark.parametrize(("status", "held"), [(200, KEYS), (403, None)])
    async def test_a_2xx_to_the_answer_confirms_them(self, visited: Visited, status: int, held: str | None) -> None:
        await self.challenged(visited)
        assert visited.gm is None
        await self.answered(visited, status=status)
        assert visited.gm == held

    async def test_a_challenge_alone_replaces_nothing(self, visited: Visited) -> None:
        """Anybody can cause one in another's name."""
        await self.challenged(visited)
        await self.answered(visited)
        await self.challenged(visited, key="00" * 16)
        assert visited.gm == KEYS

    async def test_those_of_another_subscriber_on_the_device_are_others(self, visited: Visited) -> None:
        await self.challenged(visited, user="bobby")
        await self.answered(visited)
        assert visited.gm is None

    async def test_a_2xx_without_a_challenge_makes_none(self, visited: Visited) -> None:
        await self.answered(visited)
        assert visited.gm is None

    @pytest.mark.parametrize(("contact", "expires"), [(CONTACT, "0"), (CONTACT + ";expires=0", "600")])
    async def test_a_de_registration_ends_them(self, visited: Visited, contact: str, expires: str) -> None:
        await self.challenged(visited)
        await self.answered(visited)
        await self.answered(visited, contact, expires=expires)
        assert visited.gm is None
        await self.answered(visited, contact, expires=expires)  # and again: nothing is left to end

    async def test_those_of_a_registration_that_ran_out_are_forgotten(self, visited: Visited) -> None:
        """DESIGN §3: keys are dropped where they are of no use any more, whether or not the network says so."""
        await self.challenged(visited)
        await self.answered(visited)
        assert isinstance(visited.pcscf.clock, FakeClock)
        await visited.pcscf.clock.advance(599)
        assert (await visited.pcscf.sweep(), visited.gm) == (0, KEYS)
        await visited.pcscf.clock.advance(1)
        assert (await visited.pcscf.sweep(), visited.gm, len(visited.pcscf.bindings)) == (1, None, 0)

    async def test_two_devices_have_their_own(self, visited: Visited) -> None:
        other = CONTACT.replace("uuid:1", "uuid:2")
        for contact in (CONTACT, other):
            await self.challenged(visited, contact)
            await self.answered(visited, contact)
        await self.answered(visited, expires="0")
        assert (visited.gm, visited.pcscf.fingerprint("alice@home1.net", other)) == (None, KEYS)

    @pytest.mark.parametrize("status", [200, 403])
    async def test_a_star_that_is_granted_ends_those_of_every_device_of_the_subscriber_alone(self, visited: Visited, status: int) -> None:
        """RFC 3261 §10.2.2."""
        devices = [("alice", CONTACT), ("alice", CONTACT.replace("uuid:1", "uuid:2")), ("bobby", CONTACT.replace("uuid:1", "uuid:3"))]
        for user, contact in devices:
            await self.challenged(visited, contact, user)
            await visited.ask(register(("Authorization", ANSWER.replace("alice", user)), contact=contact))
        await self.challenged(visited, "*")
        await visited.ask(register(("Authorization", ANSWER), contact="*", expires="0"), status)
        held = [visited.pcscf.fingerprint(f"{user}@home1.net", contact) == KEYS for user, contact in devices]
        assert held == [status != 200, status != 200, True]
        now = visited.pcscf.clock.now()
        ended = [binding.ended for user in ("alice", "bobby") for binding in visited.pcscf.bindings.of_impi(f"{user}@home1.net")]
        assert ended == [status == 200, status == 200, False]
        left = [binding.expires_at - now for binding in visited.pcscf.bindings.of_impi("alice@home1.net")]
        assert all(seconds == (LAST_WORDS if status == 200 else 600) for seconds in left)

    async def test_a_star_that_asks_for_time_and_gets_a_2xx_binds_nobody(self, visited: Visited) -> None:
        """RFC 3261 §10.2.2: a registrar refuses it."""
        await self.challenged(visited, "*")
        await self.answered(visited, "*")
        assert (visited.pcscf.gm_keys, len(visited.pcscf.bindings)) == ({}, 0)

    async def test_a_device_without_an_instance_is_its_contact(self, visited: Visited) -> None:
        await self.challenged(visited, "<sip:alice@192.0.2.1>;q=1")
        await self.answered(visited, "<sip:alice@192.0.2.1>")
        assert visited.pcscf.fingerprint("alice@home1.net", "<sip:alice@192.0.2.1>") == KEYS

    async def test_the_oldest_goes_when_there_are_too_many(self, visited: Visited) -> None:
        visited.pcscf.max_devices = 2
        for number in (1, 2, 1, 3):
            await self.challenged(visited, f"<sip:a{number}@192.0.2.1>")
            await self.answered(visited, f"<sip:a{number}@192.0.2.1>")
        held = [visited.pcscf.fingerprint("alice@home1.net", f"<sip:a{number}@192.0.2.1>") for number in (1, 2, 3)]
        assert held == [KEYS, None, KEYS]

    async def test_keys_of_a_challenge_that_nobody_answers_are_dropped_in_time(self, visited: Visited) -> None:
        """TS 24.229 table 7.8: reg-await-auth. Anybody can cause challenges, and never answer."""
        for number in range(5):
            await self.challenged(visited, f"<sip:a{number}@192.0.2.1>")
        assert isinstance(visited.pcscf.clock, FakeClock)
        await visited.pcscf.clock.advance(REG_AWAIT_AUTH)
        await self.challenged(visited)
        assert len(visited.pcscf._offered) == 1
        await self.answered(visited)
        assert (visited.gm, len(visited.pcscf._offered)) == (KEYS, 0)

    async def test_a_2xx_whose_request_states_no_lifetime_counts_as_a_registration(self, visited: Visited) -> None:
        await self.challenged(visited)
        await visited.ask(register(("Authorization", ANSWER)).without("Expires"), 200)
        assert visited.gm == KEYS
