# SPDX-License-Identifier: Apache-2.0
"""TLS over memory buffers, both ends here."""

from __future__ import annotations

import pytest

from keyferry.errors import TransportError
from keyferry.transports.pki import Pki, client_tls
from keyferry.transports.tls_stream import TlsStream
from transports.tlskit import AS, SCSCF, tls_of
from transports.tlskit import foreign_fixture as foreign_fixture
from transports.tlskit import pki_fixture as pki_fixture


def shake(client: TlsStream, server: TlsStream) -> tuple[bytes, bytes]:
    """Carry octets to and fro until there are none; return what each read."""
    client.begin()
    read = [b"", b""]
    while (up := client.outgoing()) or (down := server.outgoing()):
        if up:
            read[1] += server.feed(up)
        else:
            read[0] += client.feed(down)
    return read[0], read[1]


def pair(pki: Pki) -> tuple[TlsStream, TlsStream]:
    client = TlsStream(tls_of(pki, SCSCF, "scscf"), calls=True, name=AS)
    server = TlsStream(tls_of(pki, AS, "as"), calls=False)
    shake(client, server)
    return client, server


def test_both_learn_who_the_other_is(pki: Pki) -> None:
    client, server = pair(pki)
    assert client.shaken and server.shaken
    assert (client.identity.names, client.identity.role) == ((AS,), "as")
    assert (server.identity.names, server.identity.role) == ((SCSCF,), "scscf")


def test_octets_arrive_whole_also_piece_by_piece_and_over_a_record(pki: Pki) -> None:
    client, server = pair(pki)
    sent = bytes(range(256)) * 800
    client.write(sent)
    ciphered = client.outgoing()
    assert sent not in ciphered
    assert b"".join(server.feed(ciphered[at : at + 1000]) for at in range(0, len(ciphered), 1000)) == sent
    server.write(b"answer")
    assert client.feed(server.outgoing()) == b"answer"


def test_a_goodbye_is_noticed_and_one_without_a_handshake_is_nothing(pki: Pki) -> None:
    client, server = pair(pki)
    client.close()
    assert server.feed(client.outgoing()) == b"" and server.ended
    TlsStream(tls_of(pki, AS, "as"), calls=False).close()


def test_a_changed_record_is_refused(pki: Pki) -> None:
    client, server = pair(pki)
    client.write(b"message")
    ciphered = bytearray(client.outgoing())
    ciphered[-1] ^= 1
    with pytest.raises(TransportError, match="TLS"):
        server.feed(bytes(ciphered))


def test_what_is_no_tls_is_refused(pki: Pki) -> None:
    server = TlsStream(tls_of(pki, AS, "as"), calls=False)
    with pytest.raises(TransportError):
        server.feed(b"GET / HTTP/1.1\r\n\r\n")


def test_a_certificate_of_another_ca_is_refused_and_the_reason_said(pki: Pki, foreign: Pki) -> None:
    client = TlsStream(tls_of(foreign, SCSCF, "scscf"), calls=True, name=AS)
    server = TlsStream(tls_of(pki, AS, "as"), calls=False)
    with pytest.raises(TransportError, match="certificate"):
        shake(client, server)
    assert client.outgoing()  # the alert


def test_a_client_without_a_certificate_is_refused(pki: Pki) -> None:
    client = TlsStream(client_tls(pki.ca_file), calls=True, name=AS)
    server = TlsStream(tls_of(pki, AS, "as"), calls=False)
    with pytest.raises(TransportError, match="certificate"):
        shake(client, server)
