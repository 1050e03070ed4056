# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6: who may ask, and what is answered. Promises of the port: tests/contract/test_cx.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from contract.wires import HSS, SCSCF, SERVER_NAME, WAYS, Way, an_hss, wired
from keyferry.errors import CxError, StoreError, TransportError
from keyferry.ports import DeregistrationReason
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DiameterIdentity, Result
from keyferry.protocol.diameter.cx_fields import SERVER_NAME as SERVER_NAME_AVP
from keyferry.protocol.diameter.message import VENDOR_3GPP, DiameterMessage
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.marker import Marker, parse_marker
from keyferry.protocol.ims.registration import has_amf_bit
from keyferry.roles import cx_server
from keyferry.roles.cx_exchange import Sessions
from keyferry.roles.cx_server import MAX_ITEMS, CxPolicy, CxServer, DiameterServings
from keyferry.stores.memory import MemorySubscriberStore
from roles.home import subscriber
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom
from roles.test_cx_client import OTHER, Serving
from roles.test_hss import ALICE, ALICE_SIP, ALICE_TEL, seq_of

ROUTE = cx.Route(SCSCF, "scscf1.home1.net;1;2", "home1.net")
BOBBY_SIP = Impu("sip:bobby@home1.net")
Type = cx.ServerAssignmentType


class Peer(NamedTuple):
    origin_host: str = SCSCF.origin_host
    role: str = ""
    product: str = "keyferry"


async def a_server(policy: CxPolicy | None = None, release: int | None = None) -> CxServer:
    store = MemorySubscriberStore()
    await store.add(subscriber("alice")._replace(release=release))
    await store.add(subscriber("bobby"))
    hss = an_hss(store, amf_bit=True)
    return CxServer(hss, hss, HSS, RecordingLog(), RecordingCounter(), policy or CxPolicy())


def a_mar(server_name: str = SERVER_NAME, **more: object) -> DiameterMessage:
    return cx.build_mar(cx.Mar(ALICE, ALICE_SIP, server_name, **more), ROUTE)  # type: ignore[arg-type]


def a_sar(
    kind: Type = Type.REGISTRATION, impi: Impi | None = ALICE, impus: tuple[Impu, ...] = (ALICE_SIP,), *, has: bool = False
) -> DiameterMessage:
    return cx.build_sar(cx.Sar(impi, impus, SERVER_NAME, kind, has), ROUTE)


async def result(server: CxServer, request: DiameterMessage, peer: Peer | None = None) -> tuple[int, bool]:
    found = base.result_of(await server.handle(request, peer or Peer()))
    return found.code, found.experimental


class TestWhoMayAsk:
    """TS 33.210: within the network, peers are known; keys go to the S-CSCF that asks."""

    @pytest.mark.parametrize("name", ["sip:scscf1.home1.net", "sip:SCSCF1.home1.net.:6060;transport=tcp"])
    async def test_an_s_cscf_that_calls_itself_by_its_name_gets_a_vector(self, name: str) -> None:
        assert await result(await a_server(), a_mar(name)) == (2001, False)

    @pytest.mark.parametrize(
        ("peer", "name"),
        [
            (Peer(), "sip:scscf2.home1.net:6060"), (Peer("icscf.home1.net"), SERVER_NAME), (Peer("home1.net"), SERVER_NAME),
            (Peer(role="icscf"), SERVER_NAME), (Peer(role="hss"), SERVER_NAME),
        ],
    )  # fmt: skip
    async def test_who_claims_anothers_name_or_is_none_gets_nothing_and_moves_nobody(self, peer: Peer, name: str) -> None:
        server = await a_server()
        for request in (a_mar(name), cx.build_sar(cx.Sar(ALICE, (ALICE_SIP,), name, Type.REGISTRATION), ROUTE)):
            answer = await server.handle(request, peer)
            assert base.result_of(answer) == Result(5003, experimental=False)
            assert answer.first(612, VENDOR_3GPP) is answer.first(606, VENDOR_3GPP) is None
        assert (await result(server, cx.build_lir(cx.Lir(ALICE_SIP), ROUTE))) == (5003, True)
        assert server.log.warnings == ["cx-peer-not-authorised"] * 2  # type: ignore[attr-defined]

    async def test_behind_a_diameter_agent_names_may_differ(self) -> None:
        server = await a_server(CxPolicy(own_names=False))
        assert await result(server, a_mar(), Peer("dra.home1.net", "")) == (2001, False)
        assert server.origin_of(SERVER_NAME) == "dra.home1.net"
        assert await result(server, a_mar(), Peer("dra.home1.net", "icscf")) == (5003, False)

    async def test_a_server_name_that_is_no_sip_uri_is_shown_as_wrong(self) -> None:
        answer = await (await a_server()).handle(a_mar("scscf1.home1.net"), Peer())
        assert base.result_of(answer).code == 5004
        failed = answer.first(base.FAILED_AVP)
        assert failed is not None
        assert [avp.code for avp in failed.group] == [SERVER_NAME_AVP]


class TestUserAuthorization:
    """TS 29.228 §6.1.1, table 6.1.1.2."""

    @pytest.mark.parametrize(
        ("kind", "registered", "found"),
        [(0, False, (2001, True)), (0, True, (2002, True)), (1, True, (2001, False)), (1, False, (5003, True)), (2, True, (2001, False))],
    )
    async def test_results(self, kind: int, registered: bool, found: tuple[int, bool]) -> None:
        server = await a_server()
        if registered:
            await server.handle(a_sar(), Peer())
        uar = cx.build_uar(cx.Uar(ALICE, ALICE_SIP, "v", cx.UserAuthorizationType(kind)), ROUTE)
        answer = await server.handle(uar, Peer("icscf.home1.net", "icscf"))
        assert tuple(base.result_of(answer)) == found
        if found[0] < 3000:
            uaa = cx.parse_uaa(answer)
            assert (uaa.server_name, uaa.capabilities) == (SERVER_NAME if registered and kind < 2 else None, None)


class TestMultimediaAuth:
    """TS 29.228 §6.3."""

    @pytest.mark.parametrize(("wanted", "given"), [(0, 1), (1, 1), (3, 3), (MAX_ITEMS + 1, MAX_ITEMS), (2**32 - 1, MAX_ITEMS)])
    async def test_some_vectors_may_be_had_at_once_in_the_order_of_their_use(self, wanted: int, given: int) -> None:
        maa = cx.parse_maa(await (await a_server()).handle(a_mar(items=wanted), Peer()))
        assert [seq_of(item.vector) for item in maa.items] == list(range(1, given + 1))

    @pytest.mark.parametrize("scheme", ["SIP Digest", "NASS-Bundled", ""])
    async def test_other_schemes_than_aka_are_refused(self, scheme: str) -> None:
        assert await result(await a_server(), a_mar(scheme=scheme)) == (5006, True)

    async def test_who_leaves_the_scheme_to_the_hss_gets_aka(self) -> None:
        assert len(cx.parse_maa(await (await a_server()).handle(a_mar(scheme=cx.UNKNOWN_SCHEME), Peer())).items) == 1

    @pytest.mark.parametrize("rspauth", [True, False])
    async def test_a_stock_s_cscf_gets_the_marker_for_users_of_release_6(self, rspauth: bool) -> None:
        """DESIGN §10: there the Contact decides nothing; AMF says under AUTN's MAC what the marker says."""
        server = await a_server(CxPolicy(marker_for=frozenset({SCSCF.origin_host}), rspauth=rspauth), release=6)
        for item in cx.parse_maa(await server.handle(a_mar(items=2), Peer())).items:
            assert parse_marker(item.server_data) == Marker(6, access_keys=True, as_keys=True, rspauth=rspauth)
            assert has_amf_bit(item.vector.autn[6:8])

    async def test_who_proves_rspauth_is_told_of_each_vector_with_a_marker_and_of_no_other(self) -> None:
        """DESIGN §10."""
        told: list[tuple[Impi, bytes, bytes]] = []

        async def tell(impi: Impi, vector: AuthVector, data: bytes) -> None:
            told.append((impi, vector.rand, data))

        for release in (6, 5):
            server = await a_server(CxPolicy(marker_for=frozenset({SCSCF.origin_host})), release=release)
            server.gave = tell
            items = cx.parse_maa(await server.handle(a_mar(items=2), Peer())).items
            if release == 6:
                assert told == [(ALICE, item.vector.rand, item.server_data) for item in items]
        assert len(told) == 2

    async def test_a_store_that_keeps_none_costs_nobody_the_vector(self) -> None:
        log, store = RecordingLog(), MemorySubscriberStore()
        await store.add(subscriber("alice")._replace(release=6))
        hss = an_hss(store)

        async def full(impi: Impi, vector: AuthVector, data: bytes) -> None:
            raise StoreError("hss.db: database or disk is full")

        server = CxServer(hss, hss, HSS, log, RecordingCounter(), CxPolicy(marker_for=frozenset({SCSCF.origin_host})), full)
        assert (await result(server, a_mar())) == (2001, False)
        assert log.warnings == ["rspauth-not-kept"]

    @pytest.mark.parametrize(("release", "host"), [(5, SCSCF.origin_host), (None, SCSCF.origin_host), (6, "scscf2.home1.net")])
    async def test_others_get_none(self, release: int | None, host: str) -> None:
        server = await a_server(CxPolicy(marker_for=frozenset({host})), release)
        (item,) = cx.parse_maa(await server.handle(a_mar(), Peer())).items
        assert item.server_data == b""
        assert not has_amf_bit(item.vector.autn[6:8])


class FullStore(MemorySubscriberStore):
    async def reassign(self, impi: Impi, change: object) -> NoReturn:
        raise StoreError("hss.db: database or disk is full")


class TestServerAssignment:
    """TS 29.228 §6.1.2."""

    @pytest.mark.parametrize(
        ("kind", "code"), [(Type.USER_DEREGISTRATION, 3004), (Type.AUTHENTICATION_FAILURE, 3004), (Type.RE_REGISTRATION, 2001)]
    )
    async def test_an_end_that_may_be_from_before_we_stood_still_is_not_carried_out(self, kind: Type, code: int) -> None:
        server = await a_server()
        assert (await result(server, a_sar())) == (2001, False)
        server.stood_still = lambda: True
        assert (await result(server, a_sar(kind))) == (code, False)
        assert await server.hss.location_info(ALICE_SIP) == SERVER_NAME

    @pytest.mark.parametrize(
        ("kind", "code"), [(Type.USER_DEREGISTRATION, 3004), (Type.AUTHENTICATION_TIMEOUT, 3004), (Type.REGISTRATION, 5012)]
    )
    async def test_an_end_that_cannot_be_stored_is_not_refused_for_good(self, kind: Type, code: int) -> None:
        log, store = RecordingLog(), FullStore()
        await store.add(subscriber("alice"))
        hss = an_hss(store)
        server = CxServer(hss, hss, HSS, log, RecordingCounter())
        assert (await result(server, a_sar(kind))) == (code, False)
        assert log.warnings == ["cx-request-failed"]

    async def test_a_profile_that_is_there_already_is_not_sent(self) -> None:
        server = await a_server()
        assert cx.parse_saa(await server.handle(a_sar(), Peer())).user_data
        assert not cx.parse_saa(await server.handle(a_sar(Type.RE_REGISTRATION, has=True), Peer())).user_data

    @pytest.mark.parametrize(
        ("kind", "found"),
        [
            (Type.USER_DEREGISTRATION, (2001, False)), (Type.USER_DEREGISTRATION_STORE_SERVER_NAME, (2004, True)),
            (Type.TIMEOUT_DEREGISTRATION_STORE_SERVER_NAME, (2004, True)), (Type.DEREGISTRATION_TOO_MUCH_DATA, (2001, False)),
        ],
    )  # fmt: skip
    async def test_every_de_registration_ends_the_assignment(self, kind: Type, found: tuple[int, bool]) -> None:
        server = await a_server()
        await server.handle(a_sar(), Peer())
        assert await result(server, a_sar(kind)) == found
        assert await result(server, cx.build_lir(cx.Lir(ALICE_SIP), ROUTE)) == (5003, True)

    @pytest.mark.parametrize("kind", [Type.UNREGISTERED_USER, Type.AAA_USER_DATA_REQUEST, Type.PGW_UPDATE, Type.RESTORATION])
    async def test_services_that_this_hss_does_not_have_are_refused(self, kind: Type) -> None:
        assert await result(await a_server(), a_sar(kind)) == (5007, True)

    @pytest.mark.parametrize(("impi", "impus"), [(ALICE, ()), (None, (ALICE_TEL,)), (ALICE, (ALICE_SIP, ALICE_TEL))])
    async def test_a_de_registration_may_name_either_or_all(self, impi: Impi | None, impus: tuple[Impu, ...]) -> None:
        server = await a_server()
        await server.handle(a_sar(), Peer())
        assert await result(server, a_sar(Type.ADMINISTRATIVE_DEREGISTRATION, impi, impus)) == (2001, False)
        assert await result(server, cx.build_lir(cx.Lir(ALICE_SIP), ROUTE)) == (5003, True)

    async def test_who_takes_over_a_user_without_a_challenge_is_told_who_serves(self) -> None:
        """TS 29.228 §6.1.2.1: the SAA has the Server-Name of the S-CSCF assigned."""
        server = await a_server(CxPolicy(own_names=False))
        await server.handle(a_sar(), Peer())
        sar = cx.Sar(ALICE, (ALICE_SIP,), "sip:scscf2.home1.net", Type.REGISTRATION)
        answer = await server.handle(cx.build_sar(sar, ROUTE), Peer("scscf2.home1.net"))
        named = answer.first(SERVER_NAME_AVP, VENDOR_3GPP)
        assert named is not None
        assert (tuple(base.result_of(answer)), named.data.decode()) == ((5005, True), SERVER_NAME)

    async def test_identities_of_two_users_do_not_go_together(self) -> None:
        assert await result(await a_server(), a_sar(Type.USER_DEREGISTRATION, ALICE, (ALICE_SIP, BOBBY_SIP))) == (5002, True)

    async def test_a_registration_is_of_one_public_identity(self) -> None:
        assert await result(await a_server(), a_sar(impus=(ALICE_SIP, ALICE_TEL))) == (5009, False)


async def test_a_command_that_no_s_cscf_asks_is_not_supported() -> None:
    server = await a_server()
    request = cx.build_ppr(cx.Ppr(ALICE, b"<x/>"), ROUTE)
    answer = await server.handle(request, Peer())
    assert (base.result_of(answer), answer.error) == (Result(3001, experimental=False), True)
    assert server.counter["cx_requests", "PPR COMMAND_UNSUPPORTED"] == 1  # type: ignore[index]


async def test_the_nodes_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cx_server, "MAX_SERVERS", 2)
    server = await a_server(CxPolicy(own_names=False))
    for number in range(4):
        await server.handle(a_mar(f"sip:scscf{number}.home1.net"), Peer("dra.home1.net"))
    assert [server.origin_of(f"sip:scscf{number}.home1.net") for number in (0, 3)] == ["scscf0.home1.net", "dra.home1.net"]


class TestWhatTheHssAsks:
    """TS 29.228 §6.1.3, §6.2.1: over the wire that the S-CSCF has opened."""

    @pytest.mark.parametrize("way", WAYS[1:])
    async def test_it_reaches_the_s_cscf_that_is_connected(self, tmp_path: Path, way: Way) -> None:
        serving = Serving()
        async with wired(way, tmp_path, serving=serving) as net:
            assert net.servings is not None
            found = net.servings.at(SERVER_NAME)
            assert found is not None
            await found.registration_termination(ALICE, (ALICE_SIP,), DeregistrationReason.REMOVE_S_CSCF, "moved")
            await found.push_profile(OTHER, b"<IMSSubscription/>")
            assert serving.asked == [(ALICE, (ALICE_SIP,), DeregistrationReason.REMOVE_S_CSCF, "moved"), (OTHER, b"<IMSSubscription/>")]
            serving.problem = cx.error_for(cx.CxResult.ERROR_USER_UNKNOWN)
            with pytest.raises(CxError) as caught:
                await found.registration_termination(ALICE, (), DeregistrationReason.PERMANENT_TERMINATION, "")
            assert (caught.value.code, caught.value.experimental) == (5001, True)

    async def test_an_s_cscf_of_another_realm_is_asked_in_its_own(self, tmp_path: Path) -> None:
        """RFC 6733 §6.1.1; it would refuse what is for another realm."""
        serving = Serving()
        async with wired("tcp", tmp_path, serving=serving, asker=DiameterIdentity(SCSCF.origin_host, "ims.home1.net")) as net:
            assert net.servings is not None
            found = net.servings.at(SERVER_NAME)
            assert found is not None
            await found.registration_termination(ALICE, (), DeregistrationReason.REMOVE_S_CSCF, "")
            assert len(serving.asked) == 1

    async def test_who_is_not_connected_cannot_be_asked(self, tmp_path: Path) -> None:
        async with wired("tcp", tmp_path) as net:
            assert net.servings is not None
            assert net.servings.at("sip:scscf2.home1.net") is net.servings.at("no uri") is None

    async def test_an_answer_that_does_not_come_is_no_refusal(self) -> None:
        clock, log, counter = FakeClock(), RecordingLog(), RecordingCounter()

        class Silent:
            async def send_to(self, origin_host: str, request: DiameterMessage, *, timeout: float) -> DiameterMessage:
                await asyncio.sleep(0)
                raise TransportError(origin_host, f"no answer in {timeout:g} s")

        servings = DiameterServings(
            Silent(), lambda: {SCSCF.origin_host: SCSCF.origin_realm}, lambda _: SCSCF.origin_host, HSS,
            Sessions("hss", clock, SeededRandom()), log, counter,
        )  # fmt: skip
        found = servings.at(SERVER_NAME)
        assert found is not None
        with pytest.raises(CxError) as caught:
            await found.push_profile(ALICE, b"<x/>")
        assert caught.value.code == 3002
        assert counter["cx_requests", "PPR UNABLE_TO_DELIVER"] == 1
