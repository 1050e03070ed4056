# SPDX-License-Identifier: Apache-2.0
"""SIP over TLS, on real loopback sockets (RFC 3261 §26.2, §26.3.2.2; RFC 5922 §7)."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import struct
from pathlib import Path

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.headers import parse_via
from keyferry.protocol.sip.message import Request, Response, build_message, make_response
from keyferry.transports import sip_tcp, sip_tls
from keyferry.transports.pki import Certificate, MutualTls, Pki, mutual_tls
from keyferry.transports.sip_context import Limits
from transports.sipkit import PATIENCE, Lab, Listener, TcpPeer, ok, patiently, register, request, turns
from transports.tlskit import AS, SCSCF, TlsLab, client_of, foreign_fixture, pki_fixture, tls_of

__all__ = ["foreign_fixture", "pki_fixture"]


async def test_both_ends_know_whom_they_talk_to(pki: Pki) -> None:
    """RFC 5922 §7.3, §7.4: name and role of the verified certificate, for the handler and for the policy."""
    seen: list[SipPeer] = []

    async def note(received: Request, peer: SipPeer) -> Response:
        seen.append(peer)
        assert parse_via(received.get("Via") or "").transport == "TLS"
        return make_response(received, 200)

    async with TlsLab(tls_of(pki, AS, "as"), note) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        checked: list[SipPeer] = []
        for padding in (0, 30_000):
            response = await patiently(client.node.send(request(padding), server.tls, check=checked.append))
            assert response.status == 200
        assert {(peer.transport, peer.name, peer.role) for peer in seen} == {("TLS", SCSCF, "scscf")}
        assert checked == [server.tls._replace(role="as")] * 2  # never before the certificate was seen
        assert (client.node.connections, server.node.connections) == (1, 1)
        assert client.seen[0].peer.name == AS
        assert str(checked[0]) == f"tls:127.0.0.1:{server.tls.port}"


async def test_the_host_of_a_hop_is_the_name_if_it_has_no_other(pki: Pki) -> None:
    """RFC 5922 §7.3: the domain of the URI, not what DNS or a table made of it."""
    async with TlsLab(tls_of(pki, "localhost", "as"), ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        for host in ("LOCALHOST", "localhost"):
            assert (await patiently(client.node.send(request(), SipPeer("TLS", host, server.tls.port)))).status == 200
        assert client.node.connections == 1
        for hop in (server.tls._replace(name=""), server.tls._replace(name="1"), server.tls._replace(name="a" * 64)):
            with pytest.raises(TransportError, match="an address is none"):
                await patiently(client.node.send(request(), hop))


@pytest.mark.parametrize(
    ("name", "role", "problem"), [("as2.home1.net", "", "does not name as2"), (AS, "scscf", "not one of the role scscf")]
)
async def test_nothing_is_sent_to_a_peer_with_another_name_or_role(pki: Pki, name: str, role: str, problem: str) -> None:
    """DESIGN §6, protection policy `tls`; RFC 5922 §7.3: the connection is not used."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        with pytest.raises(TransportError, match=problem):
            await patiently(client.node.send(request(), server.tls._replace(name=name, role=role)))
        await turns(20)
        assert server.seen == client.seen == []
        assert client.tallies.counts["sip_dropped", "tls-peer"] == (0 if role else 1)


async def test_a_policy_that_refuses_the_role_stops_the_request(pki: Pki) -> None:
    """ports.SipClient: `check` sees name and role before anything is sent."""

    def only_scscf(peer: SipPeer) -> None:
        if peer.role != "scscf":
            raise PermissionError(peer.role)

    async with TlsLab(tls_of(pki, AS, "as"), ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        with pytest.raises(PermissionError, match="as"):
            await patiently(client.node.send(request(), server.tls, check=only_scscf))
        await turns(20)
        assert server.seen == []


async def test_connections_are_shared_only_under_the_same_verified_name(pki: Pki) -> None:
    """RFC 5923 §5, §9: an alias of the address is not an alias of the name."""
    both = mutual_tls(pki.ensure("as3.home1.net", "as", also=("as4.home1.net",)), pki.ca_file)
    async with TlsLab(both, ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        for name in ("as3.home1.net", "as4.home1.net", "as3.home1.net", "as4.home1.net"):
            hop = server.tls._replace(name=name)
            checked: list[SipPeer] = []
            await patiently(client.node.send(request(), hop, check=checked.append))
            assert checked[0].name == name
        assert client.node.connections == 2
        with pytest.raises(TransportError, match="does not name"):
            await patiently(client.node.send(request(), server.tls._replace(name=AS)))


async def test_requests_may_go_back_to_the_name_that_connected(pki: Pki) -> None:
    """RFC 5923 §5: over the connection a peer opened, if its certificate shows the name that is wanted."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf"), ok) as client:
        await patiently(client.node.send(request(), server.tls))
        back = next(event.peer for event in server.seen)
        assert (await patiently(server.node.send(request(), back))).status == 200
        assert server.node.connections == 1
        with pytest.raises(TransportError):  # nobody listens there, and that connection has another name
            await patiently(server.node.send(request(), back._replace(name=AS)))


async def test_a_certificate_of_another_ca_opens_nothing(pki: Pki, foreign: Pki) -> None:
    """The private CA alone is trusted, in both directions."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server, TlsLab(tls_of(foreign, SCSCF, "scscf"), ok) as stranger:
        with pytest.raises(TransportError, match=r"certificate: (unable to get|self.signed|certificate signature)"):
            await patiently(stranger.node.send(request(), server.tls))
        await server.gone()
        await turns(20)
        assert server.seen == []
        trusting = TlsLab(mutual_tls(foreign.ensure(SCSCF, "scscf"), pki.ca_file))  # trusts us, is not trusted
        async with trusting:
            with pytest.raises(TransportError, match=r"TLS:|closed|ended"):
                await patiently(trusting.node.send(request(), server.tls))
        await turns(20)
        assert server.seen == []
        assert server.tallies.counts["sip_dropped", "tls-handshake"] == 2


async def test_a_client_without_a_certificate_is_refused_unless_phones_are_let_in(pki: Pki) -> None:
    """RFC 3261 §26.3.2.1: user agents have none; then there is no name."""
    context = ssl.create_default_context(cafile=pki.ca_file)
    context.check_hostname = False
    async with TlsLab(tls_of(pki, AS, "as"), ok) as strict:
        with contextlib.suppress(OSError):  # TLS 1.3: the client learns it with its first read
            phone = await client_of(strict.tls, context)
            phone.send(register(1, transport="TLS"))
            assert await phone.ended()
            await phone.close()
        await strict.tallies.until("sip_dropped", "tls-handshake")
        assert strict.seen == []
    async with TlsLab(tls_of(pki, "pcscf1.home1.net", "pcscf", clients=ssl.CERT_NONE), ok) as open_door:
        phone = await client_of(open_door.tls, context)
        phone.send(b"\r\n\r\n")
        assert await patiently(phone.reader.readexactly(2)) == b"\r\n"
        phone.send(register(1, transport="TLS"))
        assert (await phone.response()).status == 200
        assert (open_door.seen[0].peer.name, open_door.seen[0].peer.role) == ("", "")
        await phone.close()


async def test_a_certificate_without_a_sip_domain_is_refused(pki: Pki, tmp_path: Path) -> None:
    """RFC 5922 §7.1, §7.4: a common name is none."""
    nameless = without_names(pki, tmp_path)
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server, TlsLab(mutual_tls(nameless, pki.ca_file)) as client:
        with pytest.raises(TransportError):
            await patiently(client.node.send(request(), server.tls))
        await server.tallies.until("sip_dropped", "tls-peer")
        assert server.seen == []


def without_names(pki: Pki, folder: Path) -> Certificate:
    """Issue a certificate with a common name only."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    ca = x509.load_pem_x509_certificate(pki.ca_file.read_bytes())
    ca_key = serialization.load_pem_private_key((pki.ca_file.parent / "pki" / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SCSCF)]),
            issuer_name=ca.subject,
            public_key=key.public_key(),
            serial_number=1,
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    certificate, key_file = folder / "nameless.pem", folder / "nameless.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return Certificate(SCSCF, "scscf", certificate, key_file, made.not_valid_after_utc, b"")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_forward_secrecy_and_no_tickets_in_both_versions(pki: Pki, version: ssl.TLSVersion) -> None:
    """TS 33.310 annex E: TLS 1.2 or later, ephemeral keys; a resumption would skip the certificate."""
    mine = tls_of(pki, SCSCF, "scscf")
    mine.client.maximum_version = mine.client.minimum_version = version
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server:
        peer = await client_of(server.tls, mine.client)
        peer.send(register(1, transport="TLS"))
        await peer.response()
        made = peer.writer.get_extra_info("ssl_object")
        assert made.cipher()[0].startswith(("ECDHE-", "TLS_"))
        assert made.session is None or not made.session.has_ticket
        await peer.close()


async def test_old_versions_and_ciphers_without_forward_secrecy_are_refused(pki: Pki) -> None:
    """TS 33.310 annex E."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server:
        mine = tls_of(pki, SCSCF, "scscf")
        mine.client.maximum_version = ssl.TLSVersion.TLSv1_2
        mine.client.set_ciphers("AES256-GCM-SHA384")
        with pytest.raises(OSError):
            await patiently(client_of(server.tls, mine.client))
        await server.tallies.until("sip_dropped", "tls-handshake")


async def test_a_handshake_that_does_not_end_is_ended(pki: Pki) -> None:
    """Limits.handshake; until then it counts as a connection."""
    async with TlsLab(tls_of(pki, AS, "as"), ok, Limits(handshake=3.0, connections=1)) as server:
        silent = await client_of(server.tls, None)
        async with asyncio.timeout(PATIENCE):
            while not server.node.connections:
                await asyncio.sleep(0)
        crowded = await client_of(server.tls, None)
        assert await crowded.ended()
        server.move(3.1)
        assert await silent.ended()
        await server.gone()
        assert server.tallies.counts["sip_dropped", "tls-handshake"] == 1
        assert server.tallies.counts["sip_dropped", "too-many-connections"] == 1
        await silent.close()
        await crowded.close()


@pytest.mark.parametrize("data", [b"REGISTER sip:a SIP/2.0\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""])
async def test_what_is_not_tls_is_refused(pki: Pki, data: bytes) -> None:
    """A plain SIP client on the TLS port, octets of no meaning, nothing at all."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server:
        plain = await client_of(server.tls, None)
        plain.send(data)
        plain.writer.write_eof()
        assert await plain.ended() or data
        await server.tallies.until("sip_dropped", "tls-handshake")
        await server.gone()
        assert server.seen == []
        await plain.close()


async def test_a_reset_amid_the_handshake_is_survived(pki: Pki) -> None:
    """RFC 9293 §3.5.2."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server:
        rude = await client_of(server.tls, None)
        async with asyncio.timeout(PATIENCE):
            while not server.node.connections:
                await asyncio.sleep(0)
        rude.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rude.writer.transport.abort()
        await server.tallies.until("sip_dropped", "tls-handshake")
        await server.gone()
        assert server.tallies.events == []  # strangers do not fill the log


async def test_a_server_that_does_not_shake_hands_is_an_error(pki: Pki) -> None:
    """Limits.connect covers both; a server that speaks something else, or closes, is one at once."""
    async with TlsLab(tls_of(pki, SCSCF, "scscf")) as client, Listener() as listener:
        hop = SipPeer("TLS", "127.0.0.1", listener.hop.port, AS)
        sending = asyncio.create_task(client.node.send(request(), hop))
        peer = await listener.connection()
        await turns(20)
        client.move(5.1)
        with pytest.raises(TransportError, match="no connection in 5 s"):
            await patiently(sending)
        assert (await patiently(peer.reader.read()))[:1] == b"\x16"  # a ClientHello, then the end
        await peer.close()
        for answer, problem in ((b"SIP/2.0 400 Bad Request\r\n\r\n", "TLS: "), (b"", "ended the handshake")):
            sending = asyncio.create_task(client.node.send(request(), hop))
            peer = await listener.connection()
            peer.send(answer)
            await peer.close()
            with pytest.raises(TransportError, match=problem):
                await patiently(sending)
        await client.gone()


async def test_without_a_certificate_of_ours_there_is_no_tls(pki: Pki) -> None:
    """An error says what to give."""
    async with Lab() as client:
        with pytest.raises(TransportError, match="no certificate"):
            await client.node.send(request(), SipPeer("TLS", "127.0.0.1", 1, AS))
        await client.node.listen("127.0.0.1", 0, ("UDP",), tls=tls_of(pki, SCSCF, "scscf"))
        async with TlsLab(tls_of(pki, AS, "as"), ok) as server:  # outgoing TLS needs no listener
            assert (await patiently(client.node.send(request(), server.tls))).status == 200


async def test_tls_listens_on_the_port_after(pki: Pki) -> None:
    """RFC 3261 §19.1.2: 5061 beside 5060."""
    async with TlsLab(tls_of(pki, AS, "as")) as first:
        pass
    port = first.udp.port  # free again
    lab = Lab()
    found = await lab.node.listen("127.0.0.1", port, ("UDP", "TCP", "TLS"), tls=tls_of(pki, AS, "as"))
    assert [(peer.transport, peer.port - port) for peer in found] == [("UDP", 0), ("TCP", 0), ("TLS", 1)]
    await lab.node.aclose()


async def test_goodbye_is_said_and_answers_still_go_out(pki: Pki) -> None:
    """close_notify; a peer that says it first gets what it asked for."""
    go = asyncio.Event()

    async def wait(received: Request, peer: SipPeer) -> Response:
        await go.wait()
        return make_response(received, 200)

    async with TlsLab(tls_of(pki, AS, "as"), wait) as server:
        mine = tls_of(pki, SCSCF, "scscf")
        pipe = Pipe(mine.client)
        reader, writer = await asyncio.open_connection(server.tls.host, server.tls.port)
        await pipe.shake(reader, writer)
        writer.write(pipe.cipher(register(1, transport="TLS")) + pipe.goodbye())
        async with asyncio.timeout(PATIENCE):
            while not server.node.in_progress:
                await asyncio.sleep(0)
        await turns(20)
        go.set()
        assert b"SIP/2.0 200 OK" in await pipe.until(reader, b"\r\n\r\n")
        server.move(sip_tcp.LINGER + 0.1)
        assert await patiently(reader.read()) != b""  # the server's close_notify
        writer.close()
        await server.gone()


class Pipe:
    """A TLS client over memory buffers, for what ordinary clients do not do."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.input, self.output = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.input, self.output, server_hostname="x.net")

    async def shake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                writer.write(self.output.read())
                self.input.write(await patiently(reader.read(65_536)))
            else:
                writer.write(self.output.read())
                return

    def cipher(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.output.read()

    def goodbye(self) -> bytes:
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self.output.read()

    async def until(self, reader: asyncio.StreamReader, end: bytes) -> bytes:
        found = b""
        while end not in found:
            self.input.write(await patiently(reader.read(65_536)))
            with contextlib.suppress(ssl.SSLWantReadError):
                while octets := self.tls.read():
                    found += octets
        return found


async def test_a_broken_record_ends_the_connection_and_its_requests(pki: Pki) -> None:
    """RFC 8446 §5.2: a record that does not open is fatal."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server:
        pipe = Pipe(tls_of(pki, SCSCF, "scscf").client)
        reader, writer = await asyncio.open_connection(server.tls.host, server.tls.port)
        await pipe.shake(reader, writer)
        writer.write(pipe.cipher(register(1, transport="TLS")))
        await pipe.until(reader, b"\r\n\r\n")
        writer.write(b"\x17\x03\x03\x00\x20" + bytes(32))
        await server.tallies.until("sip_dropped", "tls-record")
        await server.gone()
        writer.close()


async def test_a_connection_that_is_gone_is_opened_again_to_the_same_name(pki: Pki) -> None:
    """RFC 3261 §18.2.2, with the certificate checked again."""
    go = asyncio.Event()

    async def wait(received: Request, peer: SipPeer) -> Response:
        await go.wait()
        return make_response(received, 200)

    async with TlsLab(tls_of(pki, AS, "as"), wait) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        sending = asyncio.create_task(client.node.send(request(), server.tls))
        async with asyncio.timeout(PATIENCE):
            while not server.node.in_progress:
                await asyncio.sleep(0)
        sending.cancel()
        assert client.node._tls is not None
        for connection in list(client.node._tls._connections):
            connection.abort("cut")
        await client.gone()
        await turns(20)
        go.set()
        async with asyncio.timeout(PATIENCE):
            while server.node.in_progress:
                await asyncio.sleep(0)
        server.move(sip_tcp.LINGER + 0.1)
        async with asyncio.timeout(PATIENCE):
            while not any(not event.outgoing for event in client.seen):
                await asyncio.sleep(0)


async def test_our_certificate_says_when_it_is_about_to_end(pki: Pki) -> None:
    """Limits.expiry_warning: once a day, until it is renewed."""
    mine = tls_of(pki, AS, "as")
    lab = TlsLab(mine)
    lab.clock.time += mine.not_after - lab.clock.now() - 10 * sip_tls.DAY - 60
    async with lab:
        assert [(event, fields["days_left"]) for event, fields in lab.tallies.events] == [("sip-certificate-expiring", 10)]
        lab.move(sip_tls.DAY + 1)
        assert [fields["days_left"] for _, fields in lab.tallies.events] == [10, 9]
        assert lab.tallies.counts["sip_certificate", "expiring"] == 2
        certificate = pki.ensure(AS, "as")
        renewed = mine.renew(certificate)
        lab.node.renew(MutualTls(renewed.server, renewed.client, renewed.name, renewed.not_after + 400 * sip_tls.DAY))
        lab.move(sip_tls.DAY + 1)
        assert len(lab.tallies.events) == 2
    lab = TlsLab(mine)
    lab.clock.time += mine.not_after - lab.clock.now() + 1
    async with lab:
        assert lab.tallies.counts["sip_certificate", "expired"] == 1
    plain = Lab()
    plain.node.renew(mine)  # nothing to renew


async def test_a_connection_outlives_no_certificate(pki: Pki) -> None:
    """The peer's certificate ended: the next request shakes hands again."""
    async with TlsLab(tls_of(pki, AS, "as"), ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        await patiently(client.node.send(request(), server.tls))
        client.clock.time += pki.ensure(AS, "as").not_after.timestamp() - client.clock.now() + 1
        client.node.tick()
        await client.gone()


async def test_a_peer_that_does_not_read_is_given_up_over_tls_too(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """HIGH_WATER, MAX_BACKLOG: counted in ciphered octets."""
    monkeypatch.setattr(sip_tcp, "MAX_BACKLOG", 100_000)

    async def long(received: Request, peer: SipPeer) -> Response:
        await asyncio.sleep(0)
        return make_response(received, 200, body=bytes(60_000))

    async with TlsLab(tls_of(pki, AS, "as"), long) as server:
        pipe = Pipe(tls_of(pki, SCSCF, "scscf").client)
        reader, writer = await asyncio.open_connection(server.tls.host, server.tls.port, limit=1_000)
        await pipe.shake(reader, writer)
        asking = b"".join(register(1, transport="TLS", branch=f"z9hG4bK{number}") for number in range(400))
        writer.write(pipe.cipher(asking))
        await server.tallies.until("sip_dropped", "unreachable")
        await server.gone()
        writer.close()


async def test_plain_hops_have_no_name() -> None:
    """A name on a hop over TCP says nothing: nothing verifies it."""
    async with Lab(ok) as server, Lab() as client:
        checked: list[SipPeer] = []
        hop = server.tcp._replace(name=AS, role="as")
        assert (await patiently(client.node.send(request(), hop, check=checked.append))).status == 200
        assert checked == [server.tcp, server.tcp]


async def test_a_response_over_tls_is_matched(pki: Pki) -> None:
    """RFC 3261 §17.1.3."""
    async with TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        got: asyncio.Queue[bytes] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = TcpPeer(reader, writer)
            received = await peer.request()
            await got.put(b"")
            peer.send(build_message(make_response(received, 202)))
            await peer.ended()
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls_of(pki, AS, "as").server)
        hop = SipPeer("TLS", "127.0.0.1", server.sockets[0].getsockname()[1], AS)
        assert (await patiently(client.node.send(request(), hop))).status == 202
        await client.node.aclose()
        server.close()
        await got.get()
