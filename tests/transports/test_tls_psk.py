# SPDX-License-Identifier: Apache-2.0
"""TLS-PSK listeners: who is believed, and who is not (RFC 8446 §4.2.11, RFC 5489; DESIGN §7)."""

from __future__ import annotations

import asyncio
import random
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from asgi.doorkit import FakeCounter, Pki
from keyferry.asgi.exchange import Message, Receive, Send
from keyferry.errors import ConfigError, LocalProtocolError, SealError
from keyferry.protocol.ims.keys import TLS12_PSK_SUITES, UA_DIGEST, UA_TLS13_PSK, psk_identity, ua_key
from keyferry.transports.http_server import tls_context
from keyferry.transports.tls_psk import DEFAULT_SUITE, PskDoor, PskObject, PskVersion, check_psk, psk_context, ua_id_of
from transports.pskkit import (
    AS_ID,
    Connection,
    FakeLog,
    PskKeys,
    Wire,
    client_context,
    context_of,
    make_psk_door,
    psk_record,
    psk_serving,
    refused,
    who,
)

needs_psk = pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")
both = pytest.mark.parametrize("version", ["1.3", "1.2"])
ALICE, BOB = psk_record("alice"), psk_record("bob")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def test_an_older_python_is_told_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"listen_psk13: TLS-PSK needs Python 3\.13, and this is 3\.11\.7\. Run keyferry with Python 3\.13"
    ):
        check_psk("listen_psk13", (3, 11, 7), has_psk=True)
    with pytest.raises(ConfigError, match="without pre-shared keys"):
        check_psk("listen_psk13", (3, 13, 0), has_psk=False)
    check_psk("listen_psk13", (3, 13, 0), has_psk=True)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python can")
def test_this_older_python_opens_no_listener() -> None:
    with pytest.raises(ConfigError, match=r"Python 3\.13"):
        psk_context(make_psk_door(ALICE))


@needs_psk
@both
@pytest.mark.parametrize("suite", sorted(TLS12_PSK_SUITES))
def test_a_key_is_the_identity_after_the_handshake_and_not_before(version: PskVersion, suite: str) -> None:
    door = make_psk_door(ALICE, version=version, suite=suite)
    wire = Wire(psk_context(door), context_of(ALICE, version, suite=suite))
    assert isinstance(wire.server, PskObject)
    while not wire.step("client") or not wire.step("server"):
        wire.step("server")
        if not wire.ends["server"]:
            assert wire.server.proof is None
    assert wire.server.proof is not None
    assert wire.server.proof.record is ALICE
    assert wire.server.proof.ua_id == ua_id_of(version, suite)
    assert wire.server.proof.suite == (suite if version == "1.2" else wire.client.cipher()[0])  # type: ignore[index]
    assert counted(door) == ["granted"]


@needs_psk
@both
def test_openssls_suites_are_numbered_as_the_ua_ids_say(version: PskVersion) -> None:
    """TS 33.220 annex H: 010001 and the suite's number."""
    for suite in TLS12_PSK_SUITES:
        context = client_context("1.2", "x", b"y", suites=suite)
        numbers = {cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()}
        assert ua_id_of("1.2", suite) == b"\x01\x00\x01" + numbers[suite].to_bytes(2, "big")
    assert ua_id_of("1.3", "whatever") == bytes.fromhex("0100000007")
    with pytest.raises(LocalProtocolError):
        ua_id_of("1.2", "PSK-NULL-SHA")


WRONG = ("wrong key", "unknown", "no grammar", "empty", "other Ua id", "other prefix", "other AS")


def claims(version: PskVersion, wrong: str) -> tuple[str, bytes]:
    """Return what a client says that must not get in, and the key that it uses."""
    ua_id = ua_id_of(version, DEFAULT_SUITE)
    right = psk_identity(ua_id, ALICE.key_id)
    other = UA_DIGEST if wrong == "other Ua id" else ua_id
    key = ua_key(ALICE.k_as, other).reveal()
    elsewhere = psk_record("alice elsewhere", as_id="notes.home1.net")  # type: ignore[arg-type]
    said: dict[str, tuple[str, bytes]] = {
        "wrong key": (right, b"w" * 32),
        "unknown": (psk_identity(ua_id, BOB.key_id), key),
        "no grammar": (ALICE.key_id, key),
        "empty": ("", key),
        "other Ua id": (psk_identity(other, ALICE.key_id), key),
        "other prefix": (right.replace("IMS-AS-key", "3GPP-bootstrapping"), key),
        "other AS": (psk_identity(ua_id, elsewhere.key_id), ua_key(elsewhere.k_as, ua_id).reveal()),
    }
    return said[wrong]


@needs_psk
@both
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_key_and_an_unknown_one_are_refused_in_the_same_words(version: PskVersion, wrong: str) -> None:
    if version == "1.3" and wrong == "empty":
        pytest.skip("against RFC 8446 §4.2.11: OpenSSL's client cannot say it")
    elsewhere = psk_record("alice elsewhere", as_id="notes.home1.net")  # type: ignore[arg-type]
    seen = []
    for identity, key in (claims(version, wrong), claims(version, "wrong key")):
        door = make_psk_door(ALICE, elsewhere, version=version)
        wire = Wire(psk_context(door), client_context(version, identity, key))
        with pytest.raises(ssl.SSLError) as told:
            wire.shake()
        assert isinstance(wire.server, PskObject)
        assert wire.server.proof is None
        with pytest.raises(ssl.SSLError) as heard:
            wire.client.do_handshake()
        assert isinstance(door.log, FakeLog)
        assert counted(door) == ["refused"]
        assert [event for event, _ in door.log.seen] == ["psk-refused"]
        assert key.hex() not in repr(door.log.seen)
        seen.append((told.value.reason, heard.value.reason, set(door.log.seen[0][1])))
    assert seen[0] == seen[1]


@needs_psk
@both
@pytest.mark.parametrize("suites", [None, "ALL:@SECLEVEL=0", "PSK:@SECLEVEL=0", "ECDHE-PSK-AES128-CBC-SHA256"])
def test_a_wrong_key_with_any_suite_is_refused_by_every_listener_certificates_included(
    version: PskVersion, suites: str | None, tmp_path: Path
) -> None:
    """A client may offer what it likes, TLS_AES_256_GCM_SHA384 included; without `verify` it would take any certificate."""
    identity = psk_identity(ua_id_of(version, DEFAULT_SUITE), ALICE.key_id)
    pem = Pki(tmp_path).issue(AS_ID, "server").pem
    servers = [psk_context(make_psk_door(ALICE, version="1.3")), psk_context(make_psk_door(ALICE, version="1.2")), tls_context(pem, pem)]
    for server in servers:
        client = client_context(version, identity, b"w" * 32, suites=suites)
        wire = Wire(server, client)
        with pytest.raises(ssl.SSLError):
            wire.shake()
        assert getattr(wire.server, "proof", None) is None
        client = client_context(version, identity, b"w" * 32, suites=suites)
        client.verify_mode = ssl.CERT_NONE
        wire = Wire(server, client)
        try:
            wire.shake()
        except ssl.SSLError:
            pass
        else:  # it forgot its key and took the certificate: a stranger like any other, and never on a listener for keys
            assert server is servers[2]
        assert getattr(wire.server, "proof", None) is None


@needs_psk
@both
def test_a_certificate_in_the_context_lets_nobody_be_somebody(version: PskVersion, tmp_path: Path) -> None:
    """OpenSSL falls back to it after it has called back with a known name: an authentication bypass, were the name believed."""
    pem = Pki(tmp_path).issue(AS_ID, "server").pem
    identity = psk_identity(ua_id_of(version, DEFAULT_SUITE), ALICE.key_id)
    for suites in (DEFAULT_SUITE, "ALL"):
        door = make_psk_door(ALICE, version=version)
        server = psk_context(door)
        server.load_cert_chain(pem)
        server.set_ciphers("ALL")
        client = client_context(version, identity, b"w" * 32, suites=suites)
        client.verify_mode = ssl.CERT_NONE
        wire = Wire(as_it_is(server), client)
        assert isinstance(wire.server, PskObject)
        with pytest.raises(ssl.SSLError) as problem:
            wire.shake()
        fell_back = version == "1.3" or suites == "ALL"
        assert ("ended without a key that we know" in str(problem.value)) is fell_back  # OpenSSL itself was content
        assert wire.server.claimed == (identity if version == "1.3" or not fell_back else None)
        assert wire.server.proof is None
        assert counted(door) == ["refused"]


def as_it_is(server: ssl.SSLContext) -> ssl.SSLContext:
    """Keep a context that a test changed from making a new one for each connection."""
    server.wrap_bio = lambda *args, **named: ssl.SSLContext.wrap_bio(server, *args, **named)  # type: ignore[method-assign]
    return server


def counted(door: PskDoor) -> list[str]:
    """Return what was counted of handshakes."""
    assert isinstance(door.counter, FakeCounter)
    return [text.removeprefix("tls_psk ") for text in door.counter.seen]


@needs_psk
def test_tls_1_3_without_a_suite_of_sha_256_ends_without_the_application() -> None:
    """RFC 8446 §4.2.11: an external key has one hash."""
    door = make_psk_door(ALICE)
    client = context_of(ALICE, "1.3")
    server = psk_context(door)
    wire = Wire(server, client)
    wire.step("client")
    octets = wire.server_in.read()
    suites = b"\x13\x02\x13\x03\x13\x01"  # as OpenSSL offers them, in its order
    assert suites in octets
    wire.server_in.write(octets.replace(suites, b"\x13\x02" * 3))
    with pytest.raises(ssl.SSLError):
        wire.step("server")
    assert isinstance(wire.server, PskObject)
    assert wire.server.proof is None
    assert counted(door) == ["refused"]


@needs_psk
@both
def test_no_session_is_resumed(version: PskVersion) -> None:
    """A resumed session of TLS 1.2 would never call back; the client that tries gets a whole handshake."""
    door = make_psk_door(ALICE, version=version)
    server, client = psk_context(door), context_of(ALICE, version)
    first = Wire(server, client).shake()
    first.close()
    again = Wire(server, client, first.client.session).shake()
    assert isinstance(again.server, PskObject)
    assert again.server.proof is not None
    assert again.server.session_reused is (version == "1.3")
    assert first.client.session is None or not first.client.session.has_ticket
    assert counted(door) == ["granted", "granted"]


@needs_psk
def test_no_session_is_resumed_where_one_context_served_both() -> None:
    """And if OpenSSL did resume one, nobody would be there."""
    door = make_psk_door(ALICE, version="1.2")
    server, client = as_it_is(psk_context(door)), context_of(ALICE, "1.2")
    first = Wire(server, client).shake()
    first.close()
    again = Wire(server, client, first.client.session)
    with pytest.raises(ssl.SSLError, match="without a key that we know"):
        again.shake()
    assert again.server.session_reused
    assert counted(door) == ["granted", "refused"]


@needs_psk
@pytest.mark.parametrize(
    ("second", "right"), [("alice", True), ("bob", True), ("bob", False)], ids=["the same", "another with its key", "another without"]
)
def test_a_second_client_hello_may_not_claim_another_name(second: str, right: bool) -> None:
    """RFC 8446 §4.1.2: after a HelloRetryRequest."""
    door = make_psk_door(ALICE, BOB)
    server = psk_context(door)
    server.set_ecdh_curve("secp384r1")  # not what a client sends a share for at first
    client = client_context("1.3", "", b"")
    of = {record.impi.partition("@")[0]: record for record in (ALICE, BOB)}
    names = iter(["alice", second])

    def claim(_hint: str | None) -> tuple[str, bytes]:
        record = of[next(names)]
        key = ua_key(record.k_as, UA_TLS13_PSK).reveal() if right or record is ALICE else b"w" * 32
        return psk_identity(UA_TLS13_PSK, record.key_id), key

    if sys.version_info >= (3, 13):
        client.set_psk_client_callback(claim)
    wire = Wire(server, client)
    assert isinstance(wire.server, PskObject)
    if second == "alice":
        wire.shake()
        assert wire.server.proof is not None
        assert wire.server.proof.record is ALICE
    else:
        with pytest.raises(ssl.SSLError):
            wire.shake()
        assert wire.server.proof is None
    assert wire.server.claimed == psk_identity(UA_TLS13_PSK, of[second].key_id)


@needs_psk
@pytest.mark.parametrize("problem", [SealError("a row was changed"), RuntimeError("a bug")])
@both
def test_a_source_that_fails_lets_nobody_in_and_raises_nothing(
    version: PskVersion, problem: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    door = make_psk_door(ALICE, version=version)
    keys = door.sources[0]
    assert isinstance(keys, PskKeys)
    keys.problem = problem
    with pytest.raises(ssl.SSLError):
        Wire(psk_context(door), context_of(ALICE, version)).shake()
    assert "refused" in counted(door)
    assert capfd.readouterr().err == ""  # where Python would print what a callback raises


@needs_psk
@both
def test_outside_of_a_handshake_no_key_is_given(version: PskVersion) -> None:
    door = make_psk_door(ALICE, version=version)
    given = door.key_for(psk_identity(door.ua_id, ALICE.key_id))
    assert len(given) == 32
    assert given != ua_key(ALICE.k_as, door.ua_id).reveal()


@needs_psk
@both
def test_handshakes_that_interleave_step_by_step_are_attributed_right(version: PskVersion) -> None:
    """The callback is the context's, not the connection's: 40 handshakes at once, the steps of all in a random order."""
    everyone = [psk_record(f"user{number}") for number in range(40)]
    server = psk_context(make_psk_door(*everyone, version=version))
    lot = random.Random(version)
    for _ in range(5):
        wires = [(record, Wire(server, context_of(record, version))) for record in everyone]
        steps = [(wire, side) for _, wire in wires for side in ("client", "server")] * 4
        lot.shuffle(steps)
        for wire, side in steps:
            wire.step(side)
        for record, wire in wires:
            wire.shake()
            assert isinstance(wire.server, PskObject)
            assert wire.server.proof is not None
            assert wire.server.proof.record is record


@needs_psk
@both
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_forty_connections_at_once_are_attributed_right(version: PskVersion, loop: str) -> None:
    everyone = [psk_record(f"user{number}") for number in range(20)]

    async def one(port: int, number: int) -> None:
        record = everyone[number % len(everyone)]
        if number % 4 == 3:  # among them those who claim another's name
            assert await refused(port, context_of(record, version, key=b"w" * 32))
            return
        connection = await Connection.open(port, context_of(record, version))
        for _ in range(5):
            assert (await connection.get())[2] == record.impi
            await asyncio.sleep(0)
        await connection.close()

    async def all_at_once() -> None:
        door = make_psk_door(*everyone, version=version)
        async with psk_serving(door) as port, asyncio.TaskGroup() as group:
            for number in range(56):
                group.create_task(one(port, number))
        assert counted(door).count("granted") == 42
        assert counted(door).count("refused") == 14

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(all_at_once())


@needs_psk
@both
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_request_of_one_connection_never_carries_anothers_identity(version: PskVersion, loop: str) -> None:
    """What a request can hold, and what happens beside it, changes nothing of who sent it."""
    scopes: list[dict[str, object]] = []

    async def noting(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(dict(scope))
        await who(scope, receive, send)

    async def attempts() -> None:
        door = make_psk_door(ALICE, BOB, version=version)
        async with psk_serving(door, noting) as port:
            mallory = await Connection.open(port, context_of(BOB, version))
            alice = await Connection.open(port, context_of(ALICE, version))
            claim = psk_identity(door.ua_id, ALICE.key_id)
            fields = (
                f"keyferry.psk: {claim}", f"Keyferry-Psk: {claim}", f"X-Keyferry.Psk: {claim}", f"Authorization: PSK {claim}",
                f"X-3GPP-Asserted-Identity: {ALICE.impus[0]}", "Forwarded: for=alice", "X-Forwarded-User: alice",
            )  # fmt: skip
            assert (await alice.get())[2] == ALICE.impi
            assert (await mallory.get(*fields))[2] == BOB.impi
            assert (await mallory.get(target=f"/?keyferry.psk={claim}"))[2] == BOB.impi
            # Between two of his requests handshakes in her name run, whole ones, refused ones, and one that never goes on.
            again = await Connection.open(port, context_of(ALICE, version))
            assert await refused(port, context_of(ALICE, version, key=b"w" * 32))
            _, unfinished = await asyncio.open_connection("127.0.0.1", port)
            unfinished.write(client_hello(version, claim))
            await unfinished.drain()
            assert (await mallory.get())[2] == BOB.impi
            assert (await again.get())[2] == ALICE.impi
            # A second request in one write, the first one's body holding a request in her name.
            smuggled = f"GET / HTTP/1.1\r\nHost: {AS_ID}\r\nkeyferry.psk: {claim}\r\n\r\n"
            mallory.write(f"POST / HTTP/1.1\r\nHost: {AS_ID}\r\nContent-Length: {len(smuggled)}\r\n\r\n{smuggled}{smuggled}{smuggled}")
            for _ in range(3):
                assert (await mallory.answer())[2] == BOB.impi
            for one in (mallory, alice, again):
                await one.close()
            unfinished.close()
        by_port = {scope["client"]: scope["keyferry.psk"].record.impi for scope in scopes}  # type: ignore[attr-defined]
        assert all(by_port[scope["client"]] == scope["keyferry.psk"].record.impi for scope in scopes)  # type: ignore[attr-defined]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(attempts())


def client_hello(version: PskVersion, claim: str) -> bytes:
    """Return the first flight of a client that claims a name."""
    out = ssl.MemoryBIO()
    client = client_context(version, claim, b"w" * 32).wrap_bio(ssl.MemoryBIO(), out, server_hostname=AS_ID)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


@needs_psk
@both
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_what_is_refused_never_reaches_the_application(version: PskVersion, loop: str) -> None:
    reached: list[str] = []

    async def noting(scope: Message, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])
        await who(scope, receive, send)

    async def attempts() -> None:
        elsewhere = psk_record("alice elsewhere", as_id="notes.home1.net")  # type: ignore[arg-type]
        door = make_psk_door(ALICE, elsewhere, version=version)
        contexts = [client_context(version, *claims(version, wrong)) for wrong in WRONG if wrong != "empty"]
        contexts.append(client_context(version, *claims(version, "wrong key"), suites="ALL:@SECLEVEL=0"))
        contexts.append(client_context("1.2", psk_identity(door.ua_id, ALICE.key_id), b"w" * 32, suites="ECDHE-PSK-AES128-CBC-SHA256"))
        contexts.append(client_context("1.2" if version == "1.3" else "1.3", psk_identity(door.ua_id, ALICE.key_id), b"w" * 32))
        contexts.append(ssl._create_unverified_context())  # no key at all
        async with psk_serving(door, noting) as port:
            for context in contexts:
                assert await refused(port, context, target="/secret")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /secret HTTP/1.1\r\nHost: xcap.home1.net\r\n\r\n")
            assert b"200" not in await reader.read()
            writer.close()
            right = await Connection.open(port, context_of(ALICE, version))
            assert (await right.get(target="/mine"))[0] == 200
            await right.close()
        assert isinstance(door.log, FakeLog)
        assert {event for event, _ in door.log.seen} == {"psk-refused"}
        assert {tuple(sorted(fields)) for _, fields in door.log.seen} == {("as_id", "claimed", "version")}
        assert counted(door) == ["refused"] * (len(contexts) + 1) + ["granted"]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(attempts())
    assert reached == ["/mine"]
