# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.7.1; DESIGN §6: who may push, what a push changes, what a refused one does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from keyferry.ports import SipPeer
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu, KeyId, reg_of
from keyferry.protocol.ims.keypush import Push, PushedKey, build_push, seal_push
from keyferry.protocol.ims.keys import key_id
from keyferry.protocol.ims.third_party import ThirdPartyRegister, build_third_party_register
from keyferry.protocol.sip.message import Request
from keyferry.roles.appserver import KeyAgent, PushedKeys, Pusher
from roles.home import NOTES, REALM, XCAP, RecordingKeys, key_of
from roles.network import START, FakeClock, Network, RecordingCounter, RecordingLog

OWNER = Impi("alice@home1.net")
ALICE, TEL, BOB = Impu("sip:alice@home1.net"), Impu("tel:+15551234"), Impu("sip:bob@home1.net")
PHONE, TABLET = reg_of("<urn:uuid:1>"), reg_of("<urn:uuid:2>")
NOW = int(START)
T1, T2 = key_of("t1", 64), key_of("t2", 64)


def pushed(label: str = "first", *, realm: str = REALM, until: int = NOW + 3600) -> PushedKey:
    k_as = key_of(label, 32)
    return PushedKey(key_id(k_as, realm), k_as, NOW, until)


FIRST, SECOND = pushed("first"), pushed("second")
PUSH = Push(1, OWNER, XCAP, PHONE, (FIRST,), (ALICE, TEL))


@dataclass(slots=True)
class Bench:
    """A key agent, and whoever sends to it."""

    network: Network
    clock: FakeClock
    agent: KeyAgent
    keys: RecordingKeys
    log: RecordingLog
    counter: RecordingCounter

    async def send(self, request: Request, sender: str = "S") -> int:
        return (await self.network.carry(sender, request, self.network.peer("AS"))).status

    async def push(self, push: Push = PUSH, sender: str = "S", *, to: Impu = ALICE, expires: int = 600, **seal: Any) -> int:
        sealed = seal_push(push, **{"transport_key": T1, "scscf": "scscf1.home1.net", "kid": "t1", **seal})
        return await self.send(register(sealed, to=to, expires=expires), sender)

    async def valid(self, *keys: PushedKey) -> list[bool]:
        source = PushedKeys(self.keys, self.clock)
        return [await source.lookup(key.key_id, XCAP) is not None for key in keys]

    @property
    def refused(self) -> dict[str, int]:
        return {reason: count for (name, reason), count in self.counter.counts.items() if name == "as_pushes_refused"}

    @property
    def taken(self) -> dict[str, int]:
        return {reason: count for (name, reason), count in self.counter.counts.items() if name == "as_pushes"}


def register(
    service_info: str | None, *, to: str = ALICE, expires: int = 600, scscf: str = "sip:scscf1.home1.net:6060", **more: Any
) -> Request:
    return build_third_party_register(
        server_name="sip:as1.home1.net", scscf_uri=scscf, impu=to, expires=expires, call_id="c", cseq=1, from_tag="f",
        service_info=service_info, **more,
    )  # fmt: skip


def received(request: Request) -> Request:
    return request.prepending("Via", "SIP/2.0/TLS 192.0.2.1;branch=z9hG4bKx")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    network, clock, keys, log, counter = Network(), FakeClock(), RecordingKeys(), RecordingLog(), RecordingCounter()
    network.attach("S", "scscf1.home1.net", None)
    network.attach("FAR", "scscf1.home1.net.", None, address="192.0.2.66")
    own = {(XCAP, "t1"): T1, (XCAP, "t2"): T2, (NOTES, "t1"): T1}
    pushers = {
        "scscf1.home1.net": Pusher("scscf1.home1.net", REALM, own, frozenset({REALM}), unsealed_end=True),
        "plain.home1.net": Pusher("plain.home1.net", REALM, {}, frozenset({REALM}), allow_plain=True, unsealed_end=True),
        "scscf1.other.net": Pusher("scscf1.other.net", "other.net", {(XCAP, "t1"): T2}, frozenset({"other.net"})),
    }
    agent = KeyAgent(frozenset({XCAP}), pushers, keys, clock, log, counter)
    network.attach("AS", "as1.home1.net", agent.handle)
    yield Bench(network, clock, agent, keys, log, counter)
    assert network.failures == []


class TestPushes:
    """DESIGN §6."""

    async def test_a_push_is_stored_before_its_200_and_says_whose_the_key_is(self, bench: Bench) -> None:
        assert await bench.push() == 200
        record = await PushedKeys(bench.keys, bench.clock).lookup(FIRST.key_id, XCAP)
        assert record is not None
        assert (record.impi, record.reg, record.impus, record.k_as) == (OWNER, PHONE, (ALICE, TEL), FIRST.k_as)
        assert bench.taken == {"stored": 1}

    async def test_the_log_tells_fingerprints_only(self, bench: Bench) -> None:
        await bench.push()
        assert bench.log.fields("push-taken")["keys"] == [FIRST.k_as.fingerprint()]
        assert FIRST.k_as.reveal().hex() not in repr(bench.log.events)

    async def test_a_re_authentication_brings_a_new_key_and_the_old_one_lives_until_the_new_is_used(self, bench: Bench) -> None:
        await bench.push()
        await bench.push(replace(PUSH, seq=2, keys=(SECOND,)))
        assert await bench.valid(FIRST, SECOND) == [True, True]
        source = PushedKeys(bench.keys, bench.clock)
        record = await source.lookup(SECOND.key_id, XCAP)
        assert record is not None
        await source.used(record)
        assert await bench.valid(FIRST, SECOND) == [False, True]

    async def test_or_until_ten_minutes_are_over(self, bench: Bench) -> None:
        await bench.push()
        await bench.push(replace(PUSH, seq=2, keys=(SECOND,)))
        await bench.clock.advance(601)
        assert await bench.valid(FIRST, SECOND) == [False, True]

    async def test_a_key_ends_at_its_not_after(self, bench: Bench) -> None:
        await bench.push()
        await bench.clock.advance(3600)
        assert await bench.valid(FIRST) == [False]

    async def test_an_empty_push_erases_what_the_device_had(self, bench: Bench) -> None:
        await bench.push()
        assert await bench.push(replace(PUSH, seq=2, keys=(), impus=()), expires=0) == 200
        assert await bench.valid(FIRST) == [False]
        assert bench.taken == {"stored": 1, "erased": 1}

    async def test_two_devices_of_one_impi_keep_their_own_keys(self, bench: Bench) -> None:
        await bench.push()
        await bench.push(replace(PUSH, reg=TABLET, keys=(SECOND,)))
        await bench.push(replace(PUSH, seq=2, keys=(), impus=()), expires=0)
        assert await bench.valid(FIRST, SECOND) == [False, True]

    async def test_a_push_delayed_past_the_de_registration_revives_nothing(self, bench: Bench) -> None:
        assert await bench.push(replace(PUSH, seq=5, keys=(), impus=()), expires=0) == 200
        assert await bench.push(replace(PUSH, seq=4)) == 200
        assert await bench.valid(FIRST) == [False]
        assert bench.taken == {"erased": 1, "stale": 1}
        await bench.clock.advance(1800)
        await bench.keys.sweep(bench.clock.now())
        assert await bench.push(replace(PUSH, seq=4)) == 200
        assert await bench.valid(FIRST) == [False]

    async def test_a_retransmission_changes_nothing(self, bench: Bench) -> None:
        await bench.push()
        assert await bench.push() == 200
        assert await bench.push(replace(PUSH, keys=(SECOND,))) == 200  # the same seq: it is the same push, whatever it holds
        assert await bench.valid(FIRST, SECOND) == [True, False]

    async def test_the_second_transport_key_works_during_rotation(self, bench: Bench) -> None:
        assert await bench.push(transport_key=T2, kid="t2") == 200
        assert await bench.valid(FIRST) == [True]

    async def test_a_plain_block_is_taken_from_this_machine_if_the_pusher_may(self, bench: Bench) -> None:
        assert await bench.send(register(build_push(PUSH), scscf="sip:plain.home1.net")) == 200
        assert await bench.valid(FIRST) == [True]

    async def test_any_identity_of_the_set_may_stand_in_to(self, bench: Bench) -> None:
        assert await bench.push(to=TEL) == 200
        assert await bench.valid(FIRST) == [True]


class TestRefusals:
    """DESIGN §6: each is counted under its reason, raises an alarm and changes nothing."""

    async def check(self, bench: Bench, answer: int, reason: str, status: int = 403) -> None:
        assert answer == status
        assert bench.refused == {reason: 1}
        assert bench.log.warnings == ["push-refused"]
        assert bench.log.fields("push-refused")["reason"] == reason
        assert bench.taken == {}
        assert await bench.keys.count(bench.clock.now()) == 0

    async def test_a_pusher_that_is_not_listed(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(scscf="scscf9.home1.net"), "pusher")

    @pytest.mark.parametrize(
        "peer",
        [
            SipPeer("TLS", "192.0.2.1", 5061, "scscf1.other.net", "scscf"),
            SipPeer("TLS", "192.0.2.1", 5061, "scscf1.home1.net", "pcscf"),
            SipPeer("TLS", "192.0.2.1", 5061, "scscf1.home1.net", ""),
            SipPeer("TLS", "192.0.2.1", 5061, "", ""),
            SipPeer("TCP", "127.0.0.1", 5060, "scscf1.home1.net", "scscf"),
        ],
        ids=["another pusher", "another role", "another CA's", "no certificate", "no TLS"],
    )
    async def test_a_certificate_that_is_not_the_pushers(self, bench: Bench, peer: SipPeer) -> None:
        """Policy `tls`: a right seal is not enough, for keys and for their end."""
        agent = replace(bench.agent, over_tls=True)
        sealed = seal_push(PUSH, transport_key=T1, scscf="scscf1.home1.net", kid="t1")
        await self.check(bench, (await agent.handle(received(register(sealed)), peer)).status, "peer")
        assert (await agent.handle(received(register(None, expires=0)), peer)).status == 403
        right = SipPeer("TLS", "192.0.2.1", 5061, "scscf1.home1.net", "scscf")
        assert (await agent.handle(received(register(sealed)), right)).status == 200

    @pytest.mark.parametrize("name", ["", "scscf1.other.net", "as2.home1.net", "SCSCF1.home1.net"])
    async def test_an_sa_that_is_not_the_pushers(self, bench: Bench, name: str) -> None:
        """Policy `ipsec`: a right seal is not enough, for keys and for their end."""
        agent = replace(bench.agent, through_ipsec=True)
        sealed = seal_push(PUSH, transport_key=T1, scscf="scscf1.home1.net", kid="t1")
        peer = SipPeer("UDP", "192.0.2.1", 5060, name)
        await self.check(bench, (await agent.handle(received(register(sealed)), peer)).status, "peer")
        assert (await agent.handle(received(register(None, expires=0)), peer)).status == 403
        right = peer._replace(name="scscf1.home1.net")
        assert (await agent.handle(received(register(sealed)), right)).status == 200
        assert await bench.valid(FIRST) == [True]
        assert (await agent.handle(received(register(None, expires=0)), right)).status == 200  # one that cannot seal ends them like this
        assert await bench.valid(FIRST) == [False]

    async def test_an_unknown_kid(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(kid="t3"), "kid")

    async def test_a_seal_that_does_not_open(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(transport_key=T2), "seal")

    async def test_a_seal_moved_to_another_kid(self, bench: Bench) -> None:
        sealed = seal_push(PUSH, transport_key=T1, scscf="scscf1.home1.net", kid="t1").replace('kid="t1"', 'kid="t2"')
        await self.check(bench, await bench.send(register(sealed)), "seal")

    async def test_an_as_id_that_is_not_ours(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(replace(PUSH, as_id=NOTES)), "as")

    async def test_a_seal_moved_to_our_as_id(self, bench: Bench) -> None:
        """The AS_ID is authenticated with the seal: an AS cannot pass its push on to another."""
        sealed = seal_push(replace(PUSH, as_id=NOTES), transport_key=T1, scscf="scscf1.home1.net", kid="t1")
        await self.check(bench, await bench.send(register(sealed.replace(NOTES, XCAP))), "seal")

    async def test_a_realm_that_is_not_the_pushers(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(replace(PUSH, keys=(pushed(realm="other.net"),))), "realm")

    async def test_an_operator_cannot_push_for_anothers_users(self, bench: Bench) -> None:
        push = replace(PUSH, keys=(pushed(realm="other.net"),))
        await self.check(bench, await bench.push(push, transport_key=T2, scscf="scscf1.other.net"), "impu")

    async def test_a_key_id_that_is_not_its_keys(self, bench: Bench) -> None:
        wrong = FIRST._replace(k_as=SECOND.k_as)
        await self.check(bench, await bench.push(replace(PUSH, keys=(wrong,))), "key-id")

    async def test_a_to_that_is_not_among_the_impus(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(to=BOB), "impu")

    async def test_keys_with_a_de_registration(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(sender="FAR", expires=0), "expires")

    async def test_keys_with_a_de_registration_of_an_s_cscf_that_copies_the_profile(self, bench: Bench) -> None:
        """Kamailio's ims_isc puts the ServiceInfo into an end, too: no key comes of it, and the one that came of it before ends."""
        assert await bench.push() == 200
        assert await bench.push(expires=0) == 200
        assert await bench.valid(FIRST) == [False]
        assert bench.taken == {"stored": 1, "erased": 1}

    async def test_keys_are_not_ended_by_what_another_s_cscf_could_not_have_sealed(self, bench: Bench) -> None:
        """On one machine a copy of a sealed push says who sealed it; an end without a seal is believed of those alone who cannot seal."""
        pushers = {**bench.agent.pushers, "scscf1.home1.net": replace(bench.agent.pushers["scscf1.home1.net"], unsealed_end=False)}
        bench.network.attach("AS", "as1.home1.net", replace(bench.agent, pushers=pushers).handle)
        assert await bench.push() == 200
        copy = seal_push(PUSH, transport_key=T1, scscf="scscf1.home1.net", kid="t1")
        assert await bench.send(register(copy, expires=0, scscf="sip:plain.home1.net")) == 403
        assert await bench.valid(FIRST) == [True]

    async def test_a_life_that_is_too_long(self, bench: Bench) -> None:
        await self.check(bench, await bench.push(replace(PUSH, keys=(pushed(until=NOW + 8 * 86_400),))), "lifetime")

    async def test_a_plain_block_of_a_pusher_that_must_seal(self, bench: Bench) -> None:
        await self.check(bench, await bench.send(register(build_push(PUSH))), "plain")

    async def test_a_plain_block_from_another_machine(self, bench: Bench) -> None:
        await self.check(bench, await bench.send(register(build_push(PUSH), scscf="sip:plain.home1.net"), "FAR"), "plain")

    async def test_a_plain_block_for_another_as(self, bench: Bench) -> None:
        block = build_push(replace(PUSH, as_id=NOTES))
        await self.check(bench, await bench.send(register(block, scscf="sip:plain.home1.net")), "as")

    @pytest.mark.parametrize(
        "block",
        [
            '<kf:push xmlns:kf="urn:keyferry:isc:1"/>',
            '<kf:other xmlns:kf="urn:keyferry:isc:1"/>',
            build_push(PUSH).replace('seq="1"', 'seq="-1"'),
            build_push(PUSH)[:-1],
        ],
        ids=["empty", "another element", "seq", "cut"],
    )
    async def test_what_cannot_be_read(self, bench: Bench, block: str) -> None:
        await self.check(bench, await bench.send(register(block)), "unreadable", 400)

    async def test_a_sealed_one_whose_inside_cannot_be_read(self, bench: Bench) -> None:
        """A pusher of another version."""

        class Garbled(Siv):
            def seal(self, plaintext: bytes, associated: Any) -> bytes:
                return super().seal(b"<other/>", associated)

        await self.check(bench, await bench.push(transport_key=Garbled(T1)), "unreadable", 400)

    async def test_a_from_that_names_no_host(self, bench: Bench) -> None:
        await self.check(bench, await bench.send(register(build_push(PUSH), scscf="tel:+1555")), "unreadable", 400)

    @pytest.mark.parametrize(
        "change",
        [{"impi": Impi("bob@home1.net"), "impus": (ALICE, BOB)}, {"reg": TABLET}],
        ids=["another IMPI", "another device"],
    )
    async def test_a_key_re_bound_to_somebody_else(self, bench: Bench, change: dict[str, Any]) -> None:
        await bench.push()
        assert await bench.push(replace(PUSH, seq=9, **change)) == 403
        assert bench.refused == {"rebound": 1}
        record = await bench.keys.lookup(FIRST.key_id, XCAP, bench.clock.now())
        assert record is not None
        assert (record.impi, record.impus, record.reg) == (OWNER, (ALICE, TEL), PHONE)

    async def test_a_key_re_bound_to_another_as_of_the_same_agent(self, bench: Bench) -> None:
        both = replace(bench.agent, as_ids=frozenset({XCAP, NOTES}))
        bench.network.attach("AS", "as1.home1.net", both.handle)
        await bench.push()
        assert await bench.push(replace(PUSH, seq=9, as_id=NOTES)) == 403
        assert bench.refused == {"rebound": 1}
        assert await bench.valid(FIRST) == [True]

    async def test_a_refused_push_leaves_what_was_there(self, bench: Bench) -> None:
        await bench.push()
        bad = replace(PUSH, seq=2, keys=(SECOND._replace(key_id=KeyId("A" * 24 + "@home1.net")),))
        assert await bench.push(bad) == 403
        assert await bench.valid(FIRST) == [True]
        assert await bench.push(replace(PUSH, seq=2, keys=(SECOND,))) == 200  # its seq was not used up


class TestBodyless:
    """DESIGN §6: what Kamailio and Clearwater send."""

    async def test_expires_0_erases_the_keys_of_that_pusher_whose_impus_hold_to(self, bench: Bench) -> None:
        other = Push(1, Impi("bob@home1.net"), XCAP, TABLET, (SECOND,), (BOB,))
        await bench.push()
        await bench.push(other, to=BOB)
        assert await bench.send(register(None, to=TEL, expires=0)) == 200
        assert await bench.valid(FIRST, SECOND) == [False, True]
        assert bench.log.fields("keys-erased")["keys"] == 1

    async def test_the_keys_of_another_pusher_stay(self, bench: Bench) -> None:
        await bench.push()
        assert await bench.send(register(None, expires=0, scscf="sip:plain.home1.net")) == 200
        assert await bench.valid(FIRST) == [True]

    async def test_from_a_pusher_that_can_seal_it_changes_nothing(self, bench: Bench) -> None:
        """One datagram of any program on the host would otherwise end a user's keys."""
        sealing = replace(PUSH, keys=(pushed("first", realm="other.net"),), impus=(Impu("sip:alice@other.net"),))
        sealed = seal_push(sealing, transport_key=T2, scscf="scscf1.other.net", kid="t1")
        assert await bench.send(register(sealed, to="sip:alice@other.net", scscf="sip:scscf1.other.net")) == 200
        end = register(None, to="sip:alice@other.net", expires=0, scscf="sip:scscf1.other.net")
        assert await bench.send(end) == 200
        assert bench.taken == {"stored": 1, "unproven-end": 1}
        assert await bench.valid(*sealing.keys) == [True]

    async def test_from_another_machine_it_changes_nothing(self, bench: Bench) -> None:
        """Nothing proves who sent it."""
        await bench.push()
        assert await bench.send(register(None, expires=0), "FAR") == 200
        assert bench.taken == {"stored": 1, "unproven-end": 1}
        assert await bench.valid(FIRST) == [True]

    async def test_from_a_pusher_that_is_not_listed_it_changes_nothing_and_is_no_alarm(self, bench: Bench) -> None:
        """An S-CSCF tells its application servers of phones that have no keys, too; a refusal would be an alarm each time."""
        await bench.push()
        assert await bench.send(register(None, expires=0, scscf="sip:scscf9.home1.net")) == 200
        assert bench.refused == {}
        assert await bench.valid(FIRST) == [True]

    @pytest.mark.parametrize("info", [None, "text of the HSS", "<other/>"])
    async def test_a_registration_without_our_block_changes_nothing(self, bench: Bench, info: str | None) -> None:
        await bench.push()
        assert await bench.send(register(info)) == 200
        assert await bench.valid(FIRST) == [True]
        assert bench.taken == {"stored": 1, "no-keys": 1}


class TestRequests:
    """TS 24.229 §5.7.1; RFC 3261 §8.2."""

    async def test_another_method_is_405(self, bench: Bench) -> None:
        request = register(None).replacing("CSeq", "1 MESSAGE")
        answer = await bench.network.carry("S", Request("MESSAGE", request.uri, request.headers), bench.network.peer("AS"))
        assert (answer.status, answer.get("Allow")) == (405, "REGISTER, OPTIONS")
        assert answer.get("Keyferry-Store") is None

    async def test_each_200_says_which_key_store_there_is_and_no_other_answer_does(self, bench: Bench) -> None:
        """By it the S-CSCF sees that we lost our keys; OPTIONS asks for nothing else (RFC 3261 §11)."""
        expected = ", ".join(f"{as_id};id={bench.agent.keys.store_id}" for as_id in sorted(bench.agent.as_ids))
        request = register("colour=blue")
        query = Request("OPTIONS", request.uri, (*request.without("CSeq").headers, ("CSeq", "1 OPTIONS")))
        for each in (request, query):
            answer = await bench.network.carry("S", each, bench.network.peer("AS"))
            assert (answer.status, answer.get("Keyferry-Store")) == (200, expected)
        assert answer.get("Allow") == "REGISTER, OPTIONS"
        refused = await bench.network.carry("S", request.without("Expires"), bench.network.peer("AS"))
        assert (refused.status, refused.get("Keyferry-Store")) == (400, None)

    @pytest.mark.parametrize("method", ["REGISTER", "OPTIONS"])
    async def test_an_extension_that_is_required_and_unknown_is_420(self, bench: Bench, method: str) -> None:
        """RFC 3261 §8.2.2.3."""
        headers = register(None).replacing("CSeq", f"1 {method}").headers
        request = Request(method, "sip:as1.home1.net", (*headers, ("Require", "path, x-odd"), ("Require", "timer")))
        answer = await bench.network.carry("S", request, bench.network.peer("AS"))
        assert (answer.status, answer.get("Unsupported")) == (420, "path, x-odd, timer")

    async def test_a_request_without_expires_is_refused(self, bench: Bench) -> None:
        assert await bench.send(register(None).without("Expires")) == 400
        assert bench.refused == {"unreadable": 1}

    async def test_a_request_that_is_none_is_refused_before_anything_is_read(self, bench: Bench) -> None:
        assert await bench.send(register(None).without("To")) == 400
        assert bench.refused == {}

    async def test_an_as_id_of_the_key_source_is_part_of_the_question(self, bench: Bench) -> None:
        await bench.push()
        source = PushedKeys(bench.keys, bench.clock)
        assert await source.lookup(FIRST.key_id, NOTES) is None
        assert await source.lookup(KeyId("unknown@home1.net"), XCAP) is None


class TestRegistered:
    """TS 24.229 §5.7.1.1: the AS subscribes where From says, so not everybody's From counts."""

    @pytest.mark.parametrize(
        ("scscf", "sender", "sealed", "told"),
        [
            ("sip:scscf1.home1.net:6060", "S", True, True),
            ("sip:scscf1.home1.net:6060", "S", False, True),
            ("sip:scscf1.home1.net:6060", "FAR", True, True),
            ("sip:scscf1.home1.net:6060", "FAR", False, False),
            ("sip:192.0.2.99:6060", "S", False, False),
            ("sip:192.0.2.99:6060", "S", True, False),
            ("tel:+15551234", "S", False, False),
        ],
    )
    async def test_only_what_is_of_a_pusher_is_told(self, bench: Bench, scscf: str, sender: str, sealed: bool, told: bool) -> None:
        heard: list[ThirdPartyRegister] = []
        bench.network.attach("AS", "as1.home1.net", replace(bench.agent, registered=heard.append).handle)
        info = seal_push(PUSH, transport_key=T1, scscf="scscf1.home1.net", kid="t1") if sealed else None
        assert await bench.send(register(info, scscf=scscf), sender) == 200
        assert len(heard) == told

    async def test_over_tls_the_certificate_counts(self, bench: Bench) -> None:
        heard: list[ThirdPartyRegister] = []
        agent = replace(bench.agent, over_tls=True, registered=heard.append)
        for name, role in (("scscf1.home1.net", "as"), ("as2.home1.net", "as"), ("scscf1.home1.net", "scscf")):
            await agent.handle(received(register(None)), SipPeer("TLS", "192.0.2.1", 5061, name, role))
        assert len(heard) == 1

    async def test_through_ipsec_the_identity_counts(self, bench: Bench) -> None:
        heard: list[ThirdPartyRegister] = []
        agent = replace(bench.agent, through_ipsec=True, registered=heard.append)
        for name in ("", "as2.home1.net", "scscf1.home1.net"):
            await agent.handle(received(register(None)), SipPeer("UDP", "192.0.2.1", 5060, name))
        assert len(heard) == 1


def test_what_user_ids_are_made_with_comes_from_who_keeps_it(bench: Bench) -> None:
    """Not from the store of keys: user ids outlive it."""
    assert PushedKeys(bench.keys, bench.clock).user_id_key(XCAP) is None
    kept = PushedKeys(bench.keys, bench.clock, lambda as_id: Secret(as_id.encode()))
    assert kept.user_id_key(XCAP) == Secret(XCAP.encode())
