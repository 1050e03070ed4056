# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1; RFC 3261 §10.3; DESIGN §4, §5 steps 1 and 4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import DigestRejected, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Credentials, build_credentials, hash_a1, parse_challenge, respond, rspauth_of
from keyferry.protocol.identity import Impi, Impu, reg_of
from keyferry.protocol.ims.marker import Marker
from keyferry.protocol.ims.registration import (
    DEFAULT_EXPIRES,
    IntervalTooBrief,
    PendingChallenge,
    RegisterView,
    ReleaseInfo,
    build_aka_challenge,
    check_answer,
    granted,
    granted_contact,
    impi_of,
    key_not_after,
    marker_for,
    masks,
    read_register,
)
from keyferry.protocol.sip.message import Request

ALICE = Impi("alice@home1.net")
XRES = Secret(b"\x00\xff:\x80resp")
CONTACT = '<sip:alice@192.0.2.1>;+sip.instance="<urn:uuid:1>";+g.keyferry.release="6"'
FIRST = Credentials(ALICE, "home1.net", "", "sip:home1.net", "")
MASKED = PendingChallenge(
    nonce="bm9uY2U=", impi=ALICE, impu=Impu("sip:alice@home1.net"), reg=reg_of("<urn:uuid:1>"), source="192.0.2.1", realm="home1.net",
    masked=True, xres=XRES, k_m=Secret(b"m" * 32), expires_at=240.0, after_resync=False,
)  # fmt: skip
RAW = MASKED._replace(masked=False, k_m=None)


def register(*extra: tuple[str, str], **changes: str | None) -> Request:
    """Return a REGISTER; `changes` exchange a header field, or take it away."""
    fields: dict[str, str | None] = {
        "Via": "SIP/2.0/UDP icscf.home1.net;branch=z9hG4bKi, SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKu;received=192.0.2.1;rport=40000",
        "To": "<sip:Alice@HOME1.net>", "Call-ID": "c1", "CSeq": "7 REGISTER", "Contact": CONTACT, "Expires": "600",
        "Authorization": build_credentials(FIRST), "Path": "<sip:pcscf1.visited1.net;lr>", **changes,
    }  # fmt: skip
    return Request("REGISTER", "sip:home1.net", (*((name, value) for name, value in fields.items() if value is not None), *extra))


def answer(pending: PendingChallenge = MASKED, xres: Secret = XRES, method: str = "REGISTER", **changes: Any) -> Credentials:
    """Return a right answer, with changes that are signed too."""
    right = Credentials(ALICE, "home1.net", pending.nonce, "sip:home1.net", "", "AKAv1-MD5", "c" * 16, qop="auth", nc="00000001")
    given = replace(right, **changes)
    ha1 = hash_a1("AKAv1-MD5", given.username, given.realm, xres)
    response = respond("AKAv1-MD5", ha1, method=method, uri=given.uri, nonce=given.nonce, qop=given.qop, nc=given.nc, cnonce=given.cnonce)
    return replace(given, response=response)


class TestReading:
    """TS 24.229 §5.4.1.1, §5.4.1.2."""

    def test_a_register_is_read_whole(self) -> None:
        assert read_register(register()) == RegisterView(
            impi=ALICE, impu=Impu("sip:Alice@home1.net"), credentials=FIRST, contact=CONTACT, contact_uri="sip:alice@192.0.2.1",
            reg=reg_of("<urn:uuid:1>"), release=6, expires=600, every_contact=False, call_id="c1", cseq=7,
            path=("<sip:pcscf1.visited1.net;lr>",), bottom_via=register().all("Via")[-1],
        )  # fmt: skip

    def test_the_contacts_own_lifetime_goes_before_the_header(self) -> None:
        """RFC 3261 §10.3 step 6."""
        assert read_register(register(Contact="<sip:alice@192.0.2.1>;expires=60")).expires == 60
        assert read_register(register(Contact="<sip:alice@192.0.2.1>;expires=0")).expires == 0

    def test_without_any_lifetime_the_networks_own_holds(self) -> None:
        assert read_register(register(Expires=None)).expires == DEFAULT_EXPIRES

    def test_a_device_without_an_instance_is_its_contact(self) -> None:
        """DESIGN §6: reg."""
        assert read_register(register(Contact="<sip:alice@192.0.2.1>")).reg == reg_of("sip:alice@192.0.2.1")

    def test_a_star_ends_every_contact(self) -> None:
        """RFC 3261 §10.2.2."""
        view = read_register(register(Contact="*", Expires="0"))
        assert (view.every_contact, view.contact, view.contact_uri, view.release, view.expires) == (True, "", "", None, 0)

    @pytest.mark.parametrize("expires", ["600", None])
    def test_a_star_needs_expires_0(self, expires: str | None) -> None:
        with pytest.raises(ParseError):
            read_register(register(Contact="*", Expires=expires))

    @pytest.mark.parametrize(
        "request_",
        [
            register(Contact=None),
            register(("Contact", "<sip:b@192.0.2.2>")),
            register(Contact="<sip:a@192.0.2.1>, <sip:b@192.0.2.2>"),
            register(*(("Contact", f"<sip:b@192.0.2.{n}>") for n in range(10))),
            register(*(("Path", f"<sip:p{n}.net;lr>") for n in range(10))),
            register(("Authorization", build_credentials(FIRST))),
            register(To="<mailto:alice@home1.net>"),
            register(Authorization='Digest username="alice", realm="home1.net", nonce="", uri="sip:home1.net", response=""'),
            register(Authorization=build_credentials(FIRST) + ', realm="visited1.net"'),
            register(Expires="soon"),
        ],
        ids=["no Contact", "two Contacts", "two in one row", "eleven Contacts", "eleven Paths", "two Authorizations", "To no IMPU",
             "username no IMPI", "a repeated parameter", "Expires no number"],
    )  # fmt: skip
    def test_what_is_ambiguous_is_refused(self, request_: Request) -> None:
        with pytest.raises(ParseError) as caught:
            read_register(request_)
        assert caught.value.status == 400

    def test_without_authorization_the_impi_follows_from_the_impu(self) -> None:
        """TS 24.229 §5.4.1.1."""
        view = read_register(register(Authorization=None, To="<sip:alice@home1.net;user=phone>"))
        assert view.credentials is None
        assert view.impi == ALICE

    def test_a_tel_uri_names_no_impi(self) -> None:
        with pytest.raises(ParseError):
            impi_of(Impu("tel:+15551234"))

    @pytest.mark.parametrize(
        ("tag", "release"),
        [
            ("6", 6),
            ("255", 255),
            ("06", 6),
            ("5", None),
            ("256", None),
            ("0006", None),
            ("", None),
            ("six", None),
            ("٦", None),
            ("-6", None),
        ],
    )
    def test_the_release_stated_is_6_to_255(self, tag: str, release: int | None) -> None:
        """DESIGN §4."""
        assert read_register(register(Contact=f'<sip:alice@192.0.2.1>;+g.keyferry.release="{tag}"')).release == release

    @pytest.mark.parametrize(
        ("via", "source"),
        [
            ("SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKu", "192.0.2.1"),
            ("SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKu", "192.0.2.1"),
            ("SIP/2.0/UDP ue.invalid:5060;branch=z9hG4bKu;received=198.51.100.7", "198.51.100.7"),
            ("SIP/2.0/UDP ue.invalid:5060;branch=z9hG4bKu;received=198.51.100.7;rport=40000", "198.51.100.7"),
        ],
    )
    def test_the_source_is_what_the_p_cscf_saw(self, via: str, source: str) -> None:
        """RFC 3581 §4."""
        assert read_register(register(("Via", via))).source == source


class TestMasking:
    """DESIGN §5 step 1, §4."""

    @pytest.mark.parametrize(
        ("stated", "own", "policy", "octets", "masked"),
        [
            (6, 6, True, 8, True),
            (17, 6, True, 16, True),
            (None, 6, True, 8, False),
            (5, 6, True, 8, False),
            (6, 5, True, 8, False),
            (6, 6, False, 8, False),
            (6, 6, True, 7, False),
            (6, 6, True, 4, False),
        ],
    )
    def test_every_condition_is_needed(self, stated: int | None, own: int, policy: bool, octets: int, masked: bool) -> None:
        assert masks(stated=stated, own_release=own, policy=policy, xres=Secret(b"x" * octets)) is masked

    @pytest.mark.parametrize(
        ("masked", "stated", "own", "info", "flags"),
        [
            (True, 6, 6, "always", True),
            (False, 6, 6, "always", False),
            (False, None, 6, "always", False),
            (False, None, 6, "capable", None),
            (False, 6, 6, "capable", False),
            (False, 6, 5, "always", None),
            (False, None, 5, "always", None),
        ],
    )
    def test_the_marker_says_what_this_av_gets(
        self, masked: bool, stated: int | None, own: int, info: ReleaseInfo, flags: bool | None
    ) -> None:
        expected = None if flags is None else Marker(6, access_keys=flags, as_keys=flags, rspauth=flags)
        assert marker_for(masked=masked, stated=stated, own_release=own, release_info=info) == expected

    @pytest.mark.parametrize(("pending", "qop"), [(MASKED, ("auth",)), (RAW, ())])
    def test_a_challenge_carries_the_keys_for_the_p_cscf_and_asks_for_qop_if_masked(
        self, pending: PendingChallenge, qop: tuple[str, ...]
    ) -> None:
        """TS 24.229 §7.2A.1."""
        challenge = parse_challenge(build_aka_challenge(pending, Secret(b"\x01" * 16), Secret(b"\xff" * 16)))
        assert (challenge.realm, challenge.nonce, challenge.algorithm, challenge.qop) == ("home1.net", "bm9uY2U=", "AKAv1-MD5", qop)
        assert (challenge.parameter("ck"), challenge.parameter("ik")) == ("01" * 16, "ff" * 16)


class TestAnswers:
    """DESIGN §5 step 4."""

    def test_a_right_answer_to_a_masked_challenge_earns_rspauth(self) -> None:
        given = answer()
        ha1 = hash_a1("AKAv1-MD5", ALICE, "home1.net", XRES)
        assert check_answer(MASKED, given) == rspauth_of(ha1, given, algorithm="AKAv1-MD5")

    @pytest.mark.parametrize(
        "changes",
        [
            {"qop": None, "nc": None, "cnonce": None},
            {"qop": "auth-int"},
            {"nc": "00000002"},
            {"nc": "1"},
            {"cnonce": "c" * 15},
            {"algorithm": None},
            {"algorithm": "MD5"},
            {"algorithm": "AKAv2-MD5"},
            {"username": "bob@home1.net"},
            {"realm": "visited1.net"},
        ],
        ids=str,
    )
    def test_a_masked_answer_has_no_freedom(self, changes: dict[str, Any]) -> None:
        """Each change is signed with the right RES: it is refused all the same."""
        with pytest.raises(DigestRejected):
            check_answer(MASKED, answer(**changes))

    def test_a_masked_answer_without_cnonce_is_refused(self) -> None:
        with pytest.raises(DigestRejected):
            check_answer(MASKED, replace(answer(), cnonce=None))

    @pytest.mark.parametrize("pending", [MASKED, RAW])
    def test_a_wrong_response_is_refused(self, pending: PendingChallenge) -> None:
        for wrong in (answer(xres=Secret(b"other RES")), answer(method="INVITE"), replace(answer(), response=""), answer(uri="sip:x")):
            with pytest.raises(DigestRejected):
                check_answer(pending, replace(wrong, uri="sip:home1.net"))

    def test_a_raw_challenge_takes_the_answers_of_release_5(self) -> None:
        """RFC 3310 §3.3; the flows of TS 24.228 have no qop."""
        bare: dict[str, Any] = {"qop": None, "nc": None, "cnonce": None}
        assert check_answer(RAW, answer(**bare)) is None
        assert check_answer(RAW, answer(**bare, algorithm=None)) is None
        assert check_answer(RAW, answer(nc="0000000a", cnonce="c")) is not None
        with pytest.raises(DigestRejected):
            check_answer(RAW, answer(**bare, algorithm="MD5"))

    @given(st.binary(min_size=4, max_size=16), st.binary(min_size=4, max_size=16))
    def test_only_the_same_res_answers(self, xres: bytes, res: bytes) -> None:
        pending = RAW._replace(xres=Secret(xres))
        given = answer(pending, Secret(res), qop=None, nc=None, cnonce=None)
        if xres == res:
            check_answer(pending, given)
        else:
            with pytest.raises(DigestRejected):
                check_answer(pending, given)


class TestLifetimes:
    """RFC 3261 §10.3; DESIGN §6."""

    def test_a_lifetime_is_cut_to_the_maximum(self) -> None:
        assert granted(600, minimum=60, maximum=3600) == 600
        assert granted(60, minimum=60, maximum=3600) == 60
        assert granted(2**32 - 1, minimum=60, maximum=3600) == 3600

    def test_0_is_never_too_brief(self) -> None:
        assert granted(0, minimum=60, maximum=3600) == 0

    def test_a_brief_one_is_423(self) -> None:
        """RFC 3261 §10.3 step 6."""
        with pytest.raises(IntervalTooBrief) as caught:
            granted(59, minimum=60, maximum=3600)
        assert (caught.value.status, caught.value.minimum) == (423, 60)

    def test_the_contact_comes_back_with_the_lifetime_granted(self) -> None:
        """RFC 3261 §10.3 step 8."""
        assert granted_contact("<sip:a@192.0.2.1>;q=0.5;expires=9999", 600) == "<sip:a@192.0.2.1>;q=0.5;expires=600"
        assert granted_contact(CONTACT, 60) == CONTACT + ";expires=60"

    def test_a_key_ends_a_minute_after_the_registration_or_at_its_age(self) -> None:
        assert key_not_after(expires_at=1000.9, aka_time=0.0, key_max_age=86400.0) == 1060
        assert key_not_after(expires_at=100_000.0, aka_time=5.5, key_max_age=86400.0) == 86405
