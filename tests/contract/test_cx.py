# SPDX-License-Identifier: Apache-2.0
"""ports.CxClient: one suite over an HSS in the process, and over Diameter by TCP and TLS (TS 29.228 §6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from contract.wires import SERVER_NAME, WAYS, Way, Wired, wired
from keyferry.errors import CxError, SealError, SyncFailure
from keyferry.ports import Resync, ServerAssignment
from keyferry.protocol.aka import AuthVector, Usim, algorithm_of
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.ims.user_profile import parse_user_profile
from roles.home import criterion, subscriber

ALICE, ALICE_SIP, ALICE_TEL = Impi("alice@home1.net"), Impu("sip:alice@home1.net"), Impu("tel:+15550510")
NOBODY, NOBODY_SIP = Impi("nobody@home1.net"), Impu("sip:nobody@home1.net")
BOBBY_SIP = Impu("sip:bobby@home1.net")
OTHER = "sip:scscf1.home1.net:6061"  # the other's of the same host, which the same Diameter node may ask for
UNPROVEN = [ServerAssignment.AUTHENTICATION_FAILURE, ServerAssignment.AUTHENTICATION_TIMEOUT]
ENDS = [one for one in ServerAssignment if one not in (0, 1, 2, *UNPROVEN)]


@pytest.fixture(params=WAYS)
async def net(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wired]:
    async with wired(cast("Way", request.param), tmp_path) as net:
        yield net


def card_of(user: str, seq: int = 0) -> Usim:
    own = subscriber(user, algorithm="tuak" if user == "tara" else "milenage")
    return Usim(algorithm_of(own.algorithm, own.k, own.opc), (seq,) * 32)


async def mar(net: Wired, user: str = "alice", resync: Resync | None = None) -> AuthVector:
    return await net.cx.multimedia_auth(Impi(f"{user}@home1.net"), Impu(f"sip:{user}@home1.net"), SERVER_NAME, resync)


async def sar(net: Wired, assignment: ServerAssignment = ServerAssignment.REGISTRATION, server: str = SERVER_NAME) -> bytes:
    return await net.cx.server_assignment(ALICE, ALICE_SIP, server, assignment)


async def refusal(asked: object) -> tuple[int, str, bool]:
    with pytest.raises(CxError) as caught:
        await asked  # type: ignore[misc]
    return caught.value.code, caught.value.name, caught.value.experimental


class TestUserAuthorization:
    """TS 29.228 §6.1.1."""

    async def test_a_user_without_an_s_cscf_may_choose(self, net: Wired) -> None:
        assert await net.cx.user_authorization(ALICE, ALICE_SIP, "visited1.net") == UserAuthorization(None, ())

    async def test_a_user_with_one_is_sent_there(self, net: Wired) -> None:
        await sar(net)
        for kind in (AuthorizationType.REGISTRATION, AuthorizationType.DE_REGISTRATION):
            assert await net.cx.user_authorization(ALICE, ALICE_TEL, "visited1.net", kind) == UserAuthorization(SERVER_NAME)

    async def test_with_capabilities_whom_to_choose_from_is_said_whoever_is_assigned(self, net: Wired) -> None:
        net.hss.scscfs = (SERVER_NAME, OTHER)
        await sar(net)
        found = await net.cx.user_authorization(ALICE, ALICE_SIP, "", AuthorizationType.REGISTRATION_AND_CAPABILITIES)
        assert (found.server_name, set(found.candidates)) == (None, {SERVER_NAME, OTHER})
        # The order is a preference.
        assert (
            found.candidates
            == (await net.hss.user_authorization(ALICE, ALICE_SIP, "", AuthorizationType.REGISTRATION_AND_CAPABILITIES)).candidates
        )

    @pytest.mark.parametrize(
        ("impi", "impu", "kind", "code", "name"),
        [
            (NOBODY, NOBODY_SIP, 0, 5001, "DIAMETER_ERROR_USER_UNKNOWN"),
            (ALICE, BOBBY_SIP, 0, 5002, "DIAMETER_ERROR_IDENTITIES_DONT_MATCH"),
            (ALICE, ALICE_SIP, 1, 5003, "DIAMETER_ERROR_IDENTITY_NOT_REGISTERED"),
        ],
    )
    async def test_refusals_are_those_of_cx(self, net: Wired, impi: Impi, impu: Impu, kind: int, code: int, name: str) -> None:
        assert await refusal(net.cx.user_authorization(impi, impu, "", AuthorizationType(kind))) == (code, name, True)


class TestLocationInfo:
    """TS 29.228 §6.1.4."""

    async def test_it_names_the_s_cscf_that_serves(self, net: Wired) -> None:
        await sar(net)
        assert await net.cx.location_info(ALICE_TEL) == SERVER_NAME

    async def test_who_is_not_served_or_not_known_is_refused(self, net: Wired) -> None:
        assert await refusal(net.cx.location_info(ALICE_SIP)) == (5003, "DIAMETER_ERROR_IDENTITY_NOT_REGISTERED", True)
        assert await refusal(net.cx.location_info(NOBODY_SIP)) == (5001, "DIAMETER_ERROR_USER_UNKNOWN", True)


class TestMultimediaAuth:
    """TS 29.228 §6.3; TS 33.102 §6.3."""

    @pytest.mark.parametrize("user", ["alice", "tara"])
    async def test_a_card_takes_the_vector_and_both_have_the_same_keys(self, net: Wired, user: str) -> None:
        card = card_of(user)
        for _ in range(3):
            vector = await mar(net, user)
            answer = card.authenticate(vector.rand, vector.autn)
            assert (answer.res, answer.ck, answer.ik) == (vector.xres, vector.ck, vector.ik)

    async def test_the_vectors_keys_print_nothing(self, net: Wired) -> None:
        vector = await mar(net)
        assert not any(
            key.reveal().hex() in repr(vector) or repr(key.reveal())[2:-1] in repr(vector) for key in (vector.xres, vector.ck, vector.ik)
        )

    async def test_it_assigns_the_s_cscf(self, net: Wired) -> None:
        await mar(net)
        assert await net.store.server_name(ALICE) == SERVER_NAME

    async def test_a_card_that_is_ahead_is_followed(self, net: Wired) -> None:
        card, vector = card_of("alice", 5000), await mar(net)
        with pytest.raises(SyncFailure) as caught:
            card.authenticate(vector.rand, vector.autn)
        again = await mar(net, resync=Resync(vector.rand, caught.value.auts))
        assert card.authenticate(again.rand, again.autn).res == again.xres

    async def test_a_resynchronisation_that_the_card_did_not_make_is_refused(self, net: Wired) -> None:
        vector = await mar(net)
        name = "DIAMETER_UNABLE_TO_COMPLY"
        assert await refusal(mar(net, resync=Resync(vector.rand, bytes(14)))) == (5012, name, False)
        after = await mar(net)
        assert card_of("alice").authenticate(after.rand, after.autn).res == after.xres

    async def test_many_at_the_same_time_have_their_own_vectors(self, net: Wired) -> None:
        users = ("alice", "bobby", "tara")
        vectors = await asyncio.gather(*(mar(net, user) for _ in range(40) for user in users))
        assert len({vector.autn for vector in vectors}) == len({vector.rand for vector in vectors}) == 120
        for place, user in enumerate(users):
            card = card_of(user)
            for vector in vectors[place::3]:
                assert card.authenticate(vector.rand, vector.autn).res == vector.xres

    async def test_refusals_are_those_of_cx(self, net: Wired) -> None:
        for impi, impu, code in ((NOBODY, NOBODY_SIP, 5001), (ALICE, BOBBY_SIP, 5002)):
            found = await refusal(net.cx.multimedia_auth(impi, impu, SERVER_NAME))
            assert (found[0], found[2]) == (code, True)


class TestServerAssignment:
    """TS 29.228 §6.1.2."""

    @pytest.mark.parametrize("assignment", [ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION])
    async def test_a_registration_brings_the_profile(self, net: Wired, assignment: ServerAssignment) -> None:
        profile = parse_user_profile(await sar(net, assignment))
        assert (profile.impi, profile.impus, list(profile.profiles[0].criteria)) == (ALICE, (ALICE_SIP, ALICE_TEL), [criterion()])
        assert await net.store.server_name(ALICE) == SERVER_NAME

    async def test_no_assignment_brings_the_profile_to_who_is_assigned_and_to_nobody_else(self, net: Wired) -> None:
        """§6.1.2.1."""
        for assigned in (None, OTHER):
            await net.store.set_server_name(ALICE, assigned)
            assert await refusal(sar(net, ServerAssignment.NO_ASSIGNMENT)) == (5012, "DIAMETER_UNABLE_TO_COMPLY", False)
            assert await net.store.server_name(ALICE) == assigned
        await mar(net)
        assert parse_user_profile(await sar(net, ServerAssignment.NO_ASSIGNMENT)).impi == ALICE
        assert (await net.store.assignment(ALICE)).serving is None

    @pytest.mark.parametrize("kind", [ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION])
    async def test_nobody_takes_over_whom_another_serves_without_a_challenge(self, net: Wired, kind: ServerAssignment) -> None:
        """§6.1.2.1, §8.1."""
        await sar(net)
        assert await refusal(sar(net, kind, OTHER)) == (5005, "DIAMETER_ERROR_IDENTITY_ALREADY_REGISTERED", True)
        assert await net.store.server_name(ALICE) == SERVER_NAME

    @pytest.mark.parametrize("assignment", UNPROVEN)
    async def test_a_failed_authentication_ends_no_registration(self, net: Wired, assignment: ServerAssignment) -> None:
        """§6.1.2.1: the registration state stays."""
        await sar(net)
        await mar(net)
        assert await sar(net, assignment) == b""
        assert await net.store.server_name(ALICE) == SERVER_NAME

    @pytest.mark.parametrize("assignment", UNPROVEN)
    async def test_who_failed_and_is_not_registered_is_free(self, net: Wired, assignment: ServerAssignment) -> None:
        await mar(net)
        await sar(net, assignment)
        assert await net.store.server_name(ALICE) is None

    @pytest.mark.parametrize("assignment", ENDS)
    async def test_what_ends_the_assignment_brings_nothing(self, net: Wired, assignment: ServerAssignment) -> None:
        await sar(net)
        assert await sar(net, assignment) == b""
        assert await net.store.server_name(ALICE) is None

    async def test_only_who_is_assigned_ends_it(self, net: Wired) -> None:
        await sar(net)
        assert await sar(net, ServerAssignment.USER_DEREGISTRATION, OTHER) == b""
        assert await net.store.server_name(ALICE) == SERVER_NAME

    async def test_who_failed_elsewhere_stays_where_he_was(self, net: Wired) -> None:
        await sar(net)
        await net.cx.multimedia_auth(ALICE, ALICE_SIP, OTHER)
        await sar(net, ServerAssignment.AUTHENTICATION_FAILURE, OTHER)
        assert await net.store.server_name(ALICE) == SERVER_NAME

    async def test_refusals_are_those_of_cx(self, net: Wired) -> None:
        for impi, impu, code in ((NOBODY, NOBODY_SIP, 5001), (ALICE, BOBBY_SIP, 5002)):
            found = await refusal(net.cx.server_assignment(impi, impu, SERVER_NAME, ServerAssignment.REGISTRATION))
            assert (found[0], found[2]) == (code, True)


@pytest.mark.parametrize("way", WAYS[1:])
async def test_what_fails_in_the_hss_is_no_refusal(tmp_path: Path, way: Way) -> None:
    """In the process its own exception is the S-CSCF's 500 too."""
    async with wired(way, tmp_path) as net:

        async def fails(*_: object) -> None:
            raise SealError("a row was tampered with")

        net.store.for_vector = fails  # type: ignore[method-assign, assignment]
        assert await refusal(mar(net)) == (5012, "DIAMETER_UNABLE_TO_COMPLY", False)
        assert net.log.warnings == ["cx-request-failed"]


@pytest.mark.parametrize("way", WAYS[1:])
async def test_what_was_asked_is_counted_at_both_ends(tmp_path: Path, way: Way) -> None:
    async with wired(way, tmp_path) as net:
        await mar(net)
        await refusal(net.cx.location_info(NOBODY_SIP))
        assert net.counter["cx_requests", "MAR SUCCESS"] == 2
        assert net.counter["cx_requests", "LIR ERROR_USER_UNKNOWN"] == 2
