# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5, §6, §10: what the script decides at each step, against a P-CSCF that lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from kemi.kemikit import (
    AS_ID,
    CK,
    IK,
    IMPI,
    IMPU,
    NONCE,
    RAND,
    REALM,
    SCSCF,
    SERVER,
    TRANSPORT_KEY,
    Clock,
    answer,
    challenge,
    empty,
    register,
    response,
    scscf,
    third_party,
)  # fmt: skip
from keyferry.errors import TransportError
from keyferry.kemi.scscf import NOTHING, KemiScscf
from keyferry.protocol.digest import Credentials, aka_nonce, parse_authentication_info
from keyferry.protocol.identity import Reg
from keyferry.protocol.ims.keypush import Push, SealedPush, open_push, parse_service_info
from keyferry.protocol.ims.keys import application_master_key, as_key
from keyferry.protocol.ims.third_party import parse_ims_body
from keyferry.protocol.sip.message import parse_message

K_AS = as_key(application_master_key(CK, IK, RAND, IMPI), AS_ID)
SECOND = aka_nonce(bytes(16), bytes(16), b"3G\x06\x07")


class Hss:
    """Gives rspauth once for a nonce."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, credentials: Credentials) -> str:
        """Return it, or refuse."""
        self.asked.append(credentials.nonce)
        if len(self.asked) > 1:
            raise TransportError("hss", "proven before")
        return "0" * 32


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    """Time."""
    return Clock()


@pytest.fixture(name="warned")
def warned_fixture() -> list[str]:
    """What the log gets."""
    return []


@pytest.fixture(name="hss")
def hss_fixture() -> Hss:
    """Our HSS."""
    return Hss()


@pytest.fixture(name="kemi")
def kemi_fixture(tmp_path: Path, clock: Clock, warned: list[str], hss: Hss) -> KemiScscf:
    """One process of Kamailio."""
    return scscf(tmp_path, clock, warned.append, hss)


def pushed(body: bytes | None) -> Push:
    """Open what the AS gets."""
    assert body is not None
    sealed = parse_service_info(parse_ims_body(body) or "")
    assert isinstance(sealed, SealedPush)
    assert (sealed.scscf, sealed.as_id, sealed.kid) == (SCSCF, AS_ID, "t1")
    return open_push(sealed, TRANSPORT_KEY)


def registered(kemi: KemiScscf, nonce: str = NONCE, *, expires: int = 600, contact: str = "<sip:u@192.0.2.1:5060>") -> bytes:
    """Go through a registration as Kamailio would; return the REGISTER that answered."""
    assert kemi.asked(register(empty(), branch="z9hG4bKa" + nonce[:4]))
    assert kemi.challenge(challenge(nonce, branch="z9hG4bKa" + nonce[:4])).startswith(b"SIP/2.0 401")
    second = register(answer(nonce), cseq=2, branch="z9hG4bKb" + nonce[:4], expires=expires, contact=contact)
    assert kemi.asked(second)
    assert kemi.accepted(second)
    return second


def push(kemi: KemiScscf, second: bytes, **request: object) -> bytes | None:
    """Let ims_isc make a third-party REGISTER."""
    assert kemi.pushing(second)
    assert kemi.next_device()
    body = kemi.third_party(third_party(**request))  # type: ignore[arg-type]
    assert not kemi.next_device()
    assert kemi.pushed()
    return body


def test_the_as_gets_the_ues_key(kemi: KemiScscf, clock: Clock) -> None:
    found = pushed(push(kemi, registered(kemi), service_info="own words"))
    assert (found.impi, found.as_id, found.impus, found.service_info) == (IMPI, AS_ID, (IMPU,), "own words")
    assert [key.k_as for key in found.keys] == [K_AS]
    assert (found.keys[0].not_before, found.keys[0].not_after) == (int(clock.now()), int(clock.now()) + 660)


def test_sequence_numbers_rise_and_the_end_erases(kemi: KemiScscf) -> None:
    second = registered(kemi)
    first, then = pushed(push(kemi, second)), pushed(push(kemi, second))
    end = pushed(push(kemi, second, expires=0))  # the network's own end: ims_isc says 0 where the REGISTER did not
    assert first.seq < then.seq < end.seq
    assert first.reg == end.reg
    assert end.keys == ()


def test_no_key_outlives_what_was_granted_or_the_days_end(kemi: KemiScscf, clock: Clock) -> None:
    second = registered(kemi, expires=4_000_000_000)
    assert pushed(push(kemi, second, expires=4_000_000_000)).keys[0].not_after == int(clock.now()) + 86_400


def test_no_key_outlives_what_the_contact_asked_for(kemi: KemiScscf, clock: Clock) -> None:
    """ims_isc tells the AS the greater of Expires and the Contact's own; Kamailio grants the latter."""
    second = registered(kemi, expires=80_000, contact="<sip:u@192.0.2.1:5060>;expires=60")
    assert pushed(push(kemi, second, expires=80_000)).keys[0].not_after <= clock.now() + 120


def test_who_leaves_gets_no_key_whatever_ims_isc_says(kemi: KemiScscf) -> None:
    registered(kemi)
    end = register(answer(), cseq=3, branch="z9hG4bKe", expires=0)
    assert kemi.asked(end)
    assert kemi.accepted(end)
    assert push(kemi, end, expires=600) is None


def test_nothing_is_pushed_before_the_answer_was_accepted(kemi: KemiScscf) -> None:
    assert kemi.asked(register(empty()))
    kemi.challenge(challenge())
    assert push(kemi, register(answer(), cseq=2, branch="z9hG4bK2")) is None


def test_a_made_up_register_between_challenge_and_answer_changes_nothing(kemi: KemiScscf) -> None:
    """DESIGN §10: never "the latest 401"."""
    assert kemi.asked(register(empty()))
    kemi.challenge(challenge())
    assert kemi.asked(register(empty(), branch="z9hG4bKx"))
    kemi.challenge(challenge(SECOND, branch="z9hG4bKx"))
    second = register(answer(), cseq=2, branch="z9hG4bK2")
    assert kemi.asked(second)
    assert kemi.accepted(second)
    assert pushed(push(kemi, second)).keys[0].k_as == K_AS
    assert push(kemi, register(answer(SECOND), cseq=3, branch="z9hG4bK3")) is None


def test_only_configured_servers_and_the_users_own_identity_get_a_key(kemi: KemiScscf) -> None:
    second = registered(kemi)
    assert push(kemi, second, server="sip:127.0.0.1:5091") is None
    assert push(kemi, second, server=SERVER.upper()) is None
    assert push(kemi, second, to="sip:other@home1.net") is None
    assert push(kemi, second, service_info="naf=other.home1.net") is None
    assert kemi.third_party(third_party()) is None  # nobody says whose it is
    assert push(kemi, second) is not None


def test_a_key_is_not_pushed_when_its_time_is_over(kemi: KemiScscf, clock: Clock) -> None:
    second = registered(kemi)
    clock.at += 86_401
    assert push(kemi, second) is None


def test_contact_star_erases_every_device(kemi: KemiScscf) -> None:
    """A block for each, since body-less requests prove no pusher to an AS on the same machine."""
    first = registered(kemi)
    regs = {pushed(push(kemi, first)).reg}
    other = registered(kemi, SECOND, contact="<sip:other@192.0.2.1>")
    regs.add(pushed(push(kemi, other)).reg)
    third = aka_nonce(bytes(15) + b"3", bytes(16), b"3G\x06\x07")
    end = registered(kemi, third, expires=0, contact="*")
    assert kemi.pushing(end)
    erased = set()
    while kemi.next_device():
        block = pushed(kemi.third_party(third_party(expires=0)))
        assert block.keys == ()
        erased.add(block.reg)
        assert kemi.third_party(third_party()) is None
    assert kemi.pushed()
    assert erased == regs
    for register_of in (first, other, end):
        assert not kemi.pushing(register_of) or kemi.third_party(third_party()) is None
        assert not kemi.next_device() or kemi.third_party(third_party()) is None


def test_contact_star_of_a_user_without_pushes_tells_the_as_all_the_same(kemi: KemiScscf) -> None:
    """TS 24.229 §5.4.1.7: each AS hears of the end; there is no key that a block could erase."""
    end = registered(kemi, expires=0, contact="*")
    assert kemi.pushing(end)
    assert kemi.next_device()
    assert kemi.third_party(third_party(expires=0)) is None
    assert not kemi.next_device()
    assert kemi.store.devices(IMPI) == []


def test_contact_star_erases_more_devices_than_sixteen(kemi: KemiScscf) -> None:
    for number in range(20):
        kemi.store.next_seq(IMPI, AS_ID, Reg(f"{number:012}"))
    assert kemi.pushing(registered(kemi, expires=0, contact="*"))
    erased = set()
    while kemi.next_device():
        erased.add(pushed(kemi.third_party(third_party(expires=0))).reg)
    assert len(erased) == 20


def test_an_end_leaves_nothing_to_push(kemi: KemiScscf) -> None:
    registered(kemi)
    end = registered(kemi, SECOND, expires=0)
    assert pushed(push(kemi, end, expires=0)).keys == ()
    assert push(kemi, register(answer(SECOND), cseq=9, branch="z9hG4bK9")) is None  # the same answer again, with another Expires


@pytest.mark.parametrize("weak", [{"qop": None}, {"nc": "00000002"}, {"cnonce": "short"}])
def test_an_answer_that_rspauth_would_not_bind_gives_no_key(kemi: KemiScscf, warned: list[str], weak: dict[str, str]) -> None:
    kemi.asked(register(empty()))
    kemi.challenge(challenge())
    second = register(answer(**weak), cseq=2, branch="z9hG4bK2")
    assert kemi.asked(second)
    assert not kemi.accepted(second)
    assert push(kemi, second) is None
    assert warned


def test_a_challenge_that_nobody_asked_for_leaves_as_500(kemi: KemiScscf, warned: list[str]) -> None:
    """IMPI is an input of the keys, and a 401 does not name it."""
    leaves = kemi.challenge(challenge())
    assert leaves.startswith(b"SIP/2.0 500")
    assert CK.reveal().hex().encode() not in leaves
    assert CK.reveal().hex() not in "".join(warned)


def test_a_challenge_that_cannot_be_read_leaves_as_nothing(kemi: KemiScscf) -> None:
    assert kemi.challenge(b"SIP/2.0 401 " + b"x" * 100) == NOTHING


def test_a_challenge_sent_again_is_the_same_even_after_its_transaction(kemi: KemiScscf, clock: Clock) -> None:
    kemi.asked(register(empty()))
    first = kemi.challenge(challenge())
    clock.at += 61
    kemi.asked(register(empty(), branch="z9hG4bKother"))  # sweeps
    assert kemi.challenge(challenge()) == first


def test_a_nonce_with_other_keys_does_not_leave(kemi: KemiScscf) -> None:
    kemi.asked(register(empty()))
    kemi.challenge(challenge())
    again = kemi.challenge(challenge(keys=f'ck="{"ab" * 16}", ik="{IK.reveal().hex()}"'))
    assert again.startswith(b"SIP/2.0 500")


def test_an_unmarked_challenge_passes_and_leaves_no_key(kemi: KemiScscf) -> None:
    bare = challenge(aka_nonce(RAND, bytes(16)))
    assert kemi.asked(register(empty()))
    assert kemi.challenge(bare) == bare
    second = register(answer(aka_nonce(RAND, bytes(16))), cseq=2, branch="z9hG4bK2")
    assert kemi.asked(second)
    assert not kemi.accepted(second)
    assert push(kemi, second) is None


def test_a_transaction_cannot_be_taken_over_by_another_user(kemi: KemiScscf) -> None:
    assert kemi.asked(register(empty()))
    assert not kemi.asked(register(empty("user2_private@home1.net")))


def test_the_200_carries_rspauth_each_time_it_is_sent(kemi: KemiScscf, hss: Hss) -> None:
    second = registered(kemi)
    answered = response("200 OK", cseq=2, branch="z9hG4bKb" + NONCE[:4])
    leaves = kemi.answered(answered)
    assert leaves is not None
    assert leaves == kemi.answered(answered)
    info = parse_authentication_info(parse_message(leaves).get("Authentication-Info") or "")
    assert (info.rspauth, info.qop, info.nc, info.cnonce) == ("0" * 32, "auth", "00000001", "0123456789abcdef")
    assert hss.asked == [NONCE]
    assert kemi.answered(response("200 OK", cseq=3)) is None
    assert kemi.answered(answered.replace(b"2 REGISTER", b"2 INVITE")) is None
    assert second


def test_without_rspauth_the_registration_goes_on(kemi: KemiScscf, hss: Hss, warned: list[str]) -> None:
    hss.asked.append("before")
    second = registered(kemi)
    assert push(kemi, second) is not None
    assert kemi.answered(response("200 OK", cseq=2, branch="z9hG4bKb" + NONCE[:4])) is None
    assert any("rspauth" in words for words in warned)


def test_leaving_is_told(kemi: KemiScscf) -> None:
    assert kemi.leaving(register(answer(), expires=0))
    assert kemi.leaving(register(answer(), contact="<sip:u@192.0.2.1>;expires=0", expires=0))
    assert not kemi.leaving(register(answer()))


def test_another_process_goes_on_where_one_stopped(kemi: KemiScscf, tmp_path: Path, clock: Clock, warned: list[str]) -> None:
    """Kamailio's workers: one takes the REGISTER, another sends the 401, a third one pushes."""
    others = [scscf(tmp_path, clock, warned.append, Hss()) for _ in range(3)]
    first, second = register(empty()), register(answer(), cseq=2, branch="z9hG4bK2")
    assert kemi.asked(first)
    assert others[0].challenge(challenge()).startswith(b"SIP/2.0 401")
    assert others[1].asked(second)
    assert kemi.accepted(second)
    assert pushed(push(others[2], second)).keys[0].k_as == K_AS
    assert others[1].answered(response("200 OK", cseq=2, branch="z9hG4bK2")) is not None
    assert REALM in pushed(push(others[2], second)).keys[0].key_id
