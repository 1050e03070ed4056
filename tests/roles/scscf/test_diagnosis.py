# SPDX-License-Identifier: Apache-2.0
"""Why a registration failed, as log and operator see it (TS 24.229 §5.4.1.2.3; docs/errors.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from keyferry.errors import CxError, KeyferryError, RegistrationFailed, StoreError, SyncFailure
from keyferry.ports import SubscribedImpu, Subscriber
from keyferry.protocol.aka import Usim, algorithm_of
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Credentials, encode_base64, hash_a1, parse_aka_nonce, parse_challenge, respond
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.failures import MAX_STRANGERS, TRIALS_A_SECOND, Failure
from keyferry.protocol.ims.response_trial import MAX_HASHED
from keyferry.protocol.ims.verdicts import Reason
from keyferry.protocol.sip.message import Response
from roles.home import REALM, SIP_OF, XCAP, Home, open_home, subscriber
from roles.manual import Manual
from roles.network import settle

ALICE = Impi("alice@home1.net")


@pytest.fixture(name="home")
async def home_fixture() -> AsyncIterator[Home]:
    async with open_home() as home:
        home.network.attach("X", "ue9.visited1.net", None)
        yield home


class Client(Manual):
    """A client that does not look at AUTN, and hashes what a test says."""

    def wrong(self, challenged: Response, *, opc: Secret | None = None, **hashed: Any) -> Credentials:
        challenge = parse_challenge(challenged.get("WWW-Authenticate") or "")
        own = subscriber(self.impi.partition("@")[0])
        res = algorithm_of("milenage", own.k, opc or own.opc).f2345(parse_aka_nonce(challenge.nonce).rand).res
        uri = f"sip:{REALM}"
        ha1 = hash_a1("AKAv1-MD5", self.impi, hashed.pop("realm", REALM), hashed.pop("password", res))
        values = {"uri": uri, "nonce": challenge.nonce, "qop": "auth", "nc": "00000001", "cnonce": "c" * 32, **hashed}
        response = respond("AKAv1-MD5", ha1, method="REGISTER", **values)
        return Credentials(self.impi, REALM, challenge.nonce, uri, response, "AKAv1-MD5", "c" * 32, qop="auth", nc="00000001")


def last(home: Home, impi: Impi = ALICE) -> Failure:
    return home.diagnosis.book.of_impi(impi)[0]


def reasons(home: Home) -> list[tuple[str, ...]]:
    return [failure.analysis.reasons for failure in home.diagnosis.book.of_impi(ALICE)]


class TestResponses:
    """RFC 3310 §3.3."""

    async def test_another_realm_in_the_hash_is_named_in_log_and_book(self, home: Home) -> None:
        client = Client(home)
        answered = await client.send(client.wrong(await client.send(), realm=""))
        assert answered.status == 403
        fields = home.log.fields("authentication-failed")
        assert fields["reasons"] == "realm"
        assert fields["because"] == 'the realm is not the one of the challenge: "" was hashed'
        assert "realm of the 401" in str(fields["remedy"])
        found = last(home)
        assert (found.function, found.status, found.source, found.reg, found.count) == ("S-CSCF", 403, "127.0.0.7", found.reg, 1)
        assert found.reg is not None
        assert home.counter["scscf_failures", "realm"] == 1

    async def test_the_hss_names_op_in_place_of_opc_and_gives_a_verdict_alone(self, home: Home) -> None:
        """The operator gave OP as OPc; the client has derived rightly."""
        own = subscriber("alice")
        client = Client(home)
        await client.send(client.wrong(await client.send(), opc=derive_opc(own.k, own.opc)))
        assert last(home).analysis.reasons == (Reason.OP_FOR_OPC,)
        written = repr(home.log.events) + repr(home.diagnosis.book.last())
        for key in (own.k, own.opc, derive_opc(own.k, own.opc)):
            assert key.reveal().hex() not in written

    async def test_a_client_that_repeats_an_old_run_is_seen(self, home: Home) -> None:
        client = Client(home)
        old = parse_challenge((await client.send()).get("WWW-Authenticate") or "").nonce
        own = subscriber("alice")
        res = algorithm_of("milenage", own.k, own.opc).f2345(parse_aka_nonce(old).rand).res
        await client.send(client.wrong(await client.send(), password=res))
        assert last(home).analysis.reasons == (Reason.RAND,)
        assert "1 before the one asked" in last(home).analysis.text

    async def test_another_k_stays_unexplained(self, home: Home) -> None:
        client = Client(home)
        await client.send(client.wrong(await client.send(), password=Secret(b"12345678")))
        assert last(home).analysis.reasons == (Reason.UNEXPLAINED,)
        assert last(home).analysis.text.endswith("no usual mistake explains it")

    async def test_without_an_analyst_it_says_that_k_was_not_tried(self, home: Home) -> None:
        """A Diameter HSS gives vectors and nothing else."""
        home.scscf = replace(home.scscf, authenticator=replace(home.scscf.authenticator, diagnosis=replace(home.diagnosis, analyst=None)))
        client, own = Client(home), subscriber("alice")
        await client.send(client.wrong(await client.send(), opc=derive_opc(own.k, own.opc)))
        assert "this HSS has no analysis" in last(home).analysis.text
        await client.send(replace(client.wrong(await client.send()), auts=encode_base64(bytes(14))))
        assert last(home).analysis.text == "MAC-S in AUTS is wrong, or AUTS has another form"

    async def test_an_empty_response_is_the_ue_that_did_not_accept_autn(self, home: Home) -> None:
        client = Client(home)
        await client.send(replace(client.wrong(await client.send()), response=""))
        assert last(home).analysis.reasons == (Reason.MAC,)

    async def test_a_user_is_analysed_once_in_a_while_and_what_needs_no_trial_is_always_said(self, home: Home) -> None:
        client = Client(home)
        for _ in range(2):
            await client.send(client.wrong(await client.send(), uri=""))
        assert reasons(home) == [(Reason.NOT_ANALYSED,), (Reason.URI,)]
        await client.send(replace(client.wrong(await client.send()), realm="home2.net"))
        assert last(home).analysis.reasons == (Reason.REALM,)
        await home.clock.advance(5.0)
        await client.send(client.wrong(await client.send(), uri="", qop=None))
        assert last(home).analysis.reasons == (Reason.URI, Reason.QOP)

    async def test_failed_logins_of_many_buy_few_trials(self) -> None:
        """A stranger must not be able to spend our CPU time."""
        users = [subscriber(f"user{number}", impus=(SubscribedImpu(Impu(f"sip:user{number}@home1.net")),)) for number in range(30)]
        async with open_home(subscribers=users) as home:
            home.network.attach("X", "ue9.visited1.net", None)
            for user in users:
                client = Client(home, user.impi.partition("@")[0])
                await client.send(client.wrong(await client.send(), realm=""))
            found = [failure.analysis.reasons for failure in home.diagnosis.book.last()]
            assert found.count((Reason.REALM,)) == TRIALS_A_SECOND
            assert found.count((Reason.NOT_ANALYSED,)) == 30 - TRIALS_A_SECOND

    async def test_an_answer_that_is_too_long_is_not_analysed(self, home: Home) -> None:
        client = Client(home)
        await client.send(replace(client.wrong(await client.send()), cnonce="c" * MAX_HASHED))
        assert last(home).analysis.reasons == (Reason.NOT_ANALYSED,)

    async def test_a_store_of_keys_that_fails_leaves_the_403(self, home: Home) -> None:
        async def fails(impi: Impi) -> Subscriber | None:
            raise StoreError("the disk")

        client = Client(home)
        given = client.wrong(await client.send(), password=Secret(b"other"))
        home.subscribers.get = fails  # type: ignore[method-assign]
        assert (await client.send(given)).status == 403
        assert last(home).analysis.reasons == (Reason.UNEXPLAINED,)
        assert "analysis-failed" in home.log.warnings

    async def test_an_answer_to_an_earlier_or_a_shortened_nonce_is_named(self, home: Home) -> None:
        client = Client(home)
        first = client.answer(await client.send())
        second = client.answer(await client.send())
        assert (await client.send(second)).status == 200
        assert (await client.send(first)).status == 401
        assert "an earlier challenge, 1 before the last" in last(home).analysis.text
        given = client.answer(await client.send())
        assert (await client.send(replace(given, nonce=given.nonce[:43] + "="))).status == 401
        assert "a challenge, changed or cut; it has 44 characters" in last(home).analysis.text
        assert (await client.send(replace(given, nonce="dW5rbm93bg=="))).status == 401
        assert len(home.diagnosis.book) == 2  # nobody's nonce says nothing
        again = client.answer(await client.send())
        assert (await client.send(again)).status == 200
        assert (await client.send(again)).status == 401
        assert "the last challenge, which is answered or over" in last(home).analysis.text

    async def test_a_ue_whose_home_is_another_network_is_noted_and_goes_on(self, home: Home) -> None:
        client = Client(home)
        first = Credentials(client.impi, "home2.net", "", "sip:home2.net", "")
        challenged = await client.send(first)
        assert challenged.status == 401
        assert last(home).analysis.text.endswith('the UE\'s home is "home2.net", this network\'s "home1.net"')
        assert home.log.warnings == []
        assert (await client.send(client.answer(challenged))).status == 200


class TestSynchronisation:
    """TS 33.102 §6.3.5."""

    def auts(self, challenged: Response, seq: int, card: Subscriber | None = None) -> str:
        own = card or subscriber("alice")
        nonce = parse_aka_nonce(parse_challenge(challenged.get("WWW-Authenticate") or "").nonce)
        with pytest.raises(SyncFailure) as caught:
            Usim(algorithm_of("milenage", own.k, own.opc), (seq,) * 32).authenticate(nonce.rand, nonce.autn)
        return encode_base64(caught.value.auts)

    async def test_the_distance_is_known_before_the_hss_follows(self, home: Home) -> None:
        client = Client(home)
        challenged = await client.send()
        again = await client.send(replace(client.wrong(challenged), auts=self.auts(challenged, 1 + 700)))
        assert again.status == 401
        assert last(home).analysis.reasons == (Reason.SQN,)
        assert "the challenge is behind the card; SQN_MS - SQN_HE is +700 in SEQ (IND 0 of the card, 1 of the" in last(home).analysis.text
        assert home.log.warnings == []  # it is over
        assert home.log.fields("authentication-repeated")["reasons"] == "sqn"

    async def test_a_loop_says_so(self, home: Home) -> None:
        client = Client(home)
        challenged = await client.send()
        again = await client.send(replace(client.wrong(challenged), auts=self.auts(challenged, 700)))
        await home.clock.advance(3.0)
        assert (await client.send(replace(client.wrong(again), auts=self.auts(again, 900)))).status == 403
        assert last(home).analysis.reasons == (Reason.RESYNC_LOOP, Reason.SQN)
        assert "+199 in SEQ" in last(home).analysis.text

    async def test_a_wrong_auts_is_explained(self, home: Home) -> None:
        client = Client(home)
        challenged = await client.send()
        nonce = parse_aka_nonce(parse_challenge(challenged.get("WWW-Authenticate") or "").nonce)
        own = subscriber("alice")
        card = algorithm_of("milenage", own.k, own.opc)
        sqn = bytes(5) + b"\x40"
        auts = bytes(a ^ b for a, b in zip(sqn, card.f5_star(nonce.rand), strict=True)) + card.f1_star(nonce.rand, sqn, own.amf)
        assert (await client.send(replace(client.wrong(challenged), auts=encode_base64(auts)))).status == 403
        assert last(home).analysis.reasons == (Reason.AUTS_AMF,)
        assert "DIAMETER_UNABLE_TO_COMPLY" in last(home).problem

    async def test_a_wrong_auts_that_nobody_analysed_is_wrong_all_the_same(self, home: Home) -> None:
        for _ in range(2):
            client = Client(home)
            await client.send(replace(client.wrong(await client.send()), auts=encode_base64(bytes(14))))
        assert reasons(home) == [(Reason.AUTS,), (Reason.AUTS,)]


class TestOthers:
    """What else keeps a UE out."""

    async def test_a_challenge_that_nobody_answers_is_noted_when_its_time_is_over(self, home: Home) -> None:
        await Client(home).send()
        await home.clock.advance(241.0)
        await home.scscf.sweep()
        assert last(home).analysis.reasons == (Reason.UNANSWERED,)
        assert home.log.warnings == ["challenge-unanswered"]

    async def test_whom_the_hss_does_not_know_has_a_place_of_its_own(self, home: Home) -> None:
        """Names that a stranger makes up push nobody out."""
        client = Client(home)
        await client.send(client.wrong(await client.send(), realm=""))
        for number in range(MAX_STRANGERS + 5):
            client.impi = Impi(f"eve{number}@home1.net")
            assert (await client.send()).status == 403
        assert len(home.diagnosis.book) == MAX_STRANGERS + 1
        assert last(home).analysis.reasons == (Reason.REALM,)
        assert last(home, Impi(f"eve{MAX_STRANGERS}@home1.net")).analysis.reasons == (Reason.USER_UNKNOWN,)

    async def test_an_icscf_reports_an_identity_of_another(self, home: Home) -> None:
        device = home.device(impu="sip:bobby@home1.net")
        with pytest.raises(RegistrationFailed) as caught:
            await device.register()
        assert caught.value.reasons == ("refused",)
        assert (last(home).function, last(home).analysis.reasons) == ("I-CSCF", (Reason.IDENTITIES,))

    async def test_other_errors_of_the_hss_keep_their_name(self, home: Home) -> None:
        home.diagnosis.cx(ALICE, CxError(3004, "DIAMETER_TOO_BUSY"), 504)
        assert last(home).analysis.text == "the HSS could not be asked, or had too much to do: DIAMETER_TOO_BUSY"
        home.diagnosis.cx(ALICE, CxError(5012, "DIAMETER_UNABLE_TO_COMPLY"), 500)
        assert last(home).analysis.text == "the HSS refused or failed: DIAMETER_UNABLE_TO_COMPLY"

    async def test_a_number_of_rfc_6733_is_not_that_of_cx(self, home: Home) -> None:
        """5001 is USER_UNKNOWN of TS 29.229, and AVP_UNSUPPORTED of RFC 6733."""
        home.diagnosis.cx(ALICE, CxError(5001, "DIAMETER_AVP_UNSUPPORTED"), 500)
        assert last(home).analysis.reasons == (Reason.HSS,)

    async def test_a_key_that_was_not_delivered_is_there_until_it_is(self) -> None:
        async with open_home(push={"push_wait": 0.01}) as home:
            home.servers[XCAP].answers = [500]
            device = home.device()
            await device.register()
            assert last(home).analysis.reasons == (Reason.PUSH,)
            assert (last(home).server, last(home).problem) == (SIP_OF[XCAP], "the AS answered 500")
            assert [key[1] for key in home.scscf.notifier.owed_to(device.impi)] == [XCAP]
            await home.clock.advance(60.0)
            await settle()
            assert home.diagnosis.book.of_impi(ALICE) == []
            assert home.scscf.notifier.owed_to(device.impi) == []


async def test_any_card_of_a_stranger_gets_a_verdict_and_no_exception(home: Home) -> None:
    """The way of a UE whose K is another's, whole."""
    device = home.device(card=algorithm_of("milenage", Secret(b"k" * 16), subscriber("alice").opc))
    with pytest.raises(KeyferryError):
        await device.register()
    assert reasons(home) == [(Reason.MAC,)]
