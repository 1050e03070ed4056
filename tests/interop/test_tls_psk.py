# SPDX-License-Identifier: Apache-2.0
"""TLS-PSK with clients that keyferry did not write: openssl s_client (1.2 and 1.3) and gnutls-cli (1.3)."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest

from interop.peers import program
from system.serving import Lab, Served, lab_fixture, served_fixture, ue, until

__all__ = ["lab_fixture", "served_fixture"]

pytestmark = [pytest.mark.interop, pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")]

AS_ID = "notes.home1.net"
SUITE = "ECDHE-PSK-CHACHA20-POLY1305"
GET = f"GET / HTTP/1.1\r\nHost: {AS_ID}\r\nConnection: close\r\n\r\n"
ADMITTED = "you have no note"
LIMIT = 30.0  # seconds


@pytest.fixture(name="keys")
def keys_fixture(lab: Lab, served: Served) -> dict[str, str]:
    """Register, and return what `keyferry ue status --show-psk` prints."""
    ue(lab, "register")
    return ue(lab, "status", "--show-psk", AS_ID)


def s_client(port: int, identity: str, key: str, *options: str, request: str = GET) -> str:
    """Run openssl s_client until the server closes, and return all that it printed."""
    command = [
        program("openssl"), "s_client", "-ign_eof", "-connect", f"127.0.0.1:{port}", "-servername", AS_ID,
        "-psk_identity", identity, "-psk", key, *options,
    ]  # fmt: skip
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.stdout + done.stderr


def test_openssl_over_tls_1_3(served: Served, keys: dict[str, str]) -> None:
    """RFC 8446 §4.2.11: an external key."""
    said = s_client(served.port("as", AS_ID, "psk13"), keys["tls13_identity"], keys["tls13_key"], "-tls1_3")
    assert ADMITTED in said
    assert re.search(r"Reused, TLSv1\.3, Cipher is TLS_\w+_SHA256", said)
    assert "no peer certificate available" in said


def test_openssl_over_tls_1_2(served: Served, keys: dict[str, str]) -> None:
    """RFC 5489, RFC 7905; the hint is that of RFC 4279 §5.2."""
    identity, key = keys[f"tls12_{SUITE}_identity"], keys[f"tls12_{SUITE}_key"]
    said = s_client(served.port("as", AS_ID, "psk12"), identity, key, "-tls1_2", "-cipher", "PSK")
    assert ADMITTED in said
    assert f"New, TLSv1.2, Cipher is {SUITE}" in said
    assert "PSK identity hint: IMS-AS-key" in said


def test_openssl_comes_back_with_a_session_and_shakes_hands_again(served: Served, keys: dict[str, str]) -> None:
    """RFC 5246 §7.3: a session id that the server does not know."""
    identity, key = keys[f"tls12_{SUITE}_identity"], keys[f"tls12_{SUITE}_key"]
    said = s_client(served.port("as", AS_ID, "psk12"), identity, key, "-tls1_2", "-reconnect")
    assert said.count(f"New, TLSv1.2, Cipher is {SUITE}") >= 5
    assert "Reused" not in said


WRONG = {
    "a wrong key": ({"key": "77" * 32}, "psk13", ()),
    "an unknown identity": ({"identity": "IMS-AS-key;0100000007;" + "A" * 24 + "@home1.net"}, "psk13", ()),
    "a suite of SHA-384": ({}, "psk13", ("-ciphersuites", "TLS_AES_256_GCM_SHA384")),
    "every suite and a wrong key": ({"key": "77" * 32}, "psk13", ("-ciphersuites", "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256")),
    "another suite of 1.2": ({}, "psk12", ("-tls1_2", "-cipher", "PSK-AES128-GCM-SHA256:ECDHE-PSK-AES128-CBC-SHA256")),
    "a wrong key in 1.2": ({"key": "77" * 32}, "psk12", ("-tls1_2", "-cipher", "ALL")),
    "the key of 1.3 in 1.2": ({}, "psk12", ("-tls1_2", "-cipher", "ALL")),
    "the wrong version": ({}, "psk13", ("-tls1_2",)),
    "a listener with a certificate": ({"key": "77" * 32}, "https", ("-ciphersuites", "TLS_AES_256_GCM_SHA384")),
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_openssl_without_the_key_gets_no_further(served: Served, keys: dict[str, str], wrong: str) -> None:
    changed, proto, options = WRONG[wrong]
    said = {"identity": keys["tls13_identity"], "key": keys["tls13_key"], **changed}
    got = s_client(served.port("as", AS_ID, proto), said["identity"], said["key"], *options)
    assert ADMITTED not in got
    assert "HTTP/1.1 2" not in got and "HTTP/1.1 404" not in got
    _, metrics = served.admin("/metrics")
    assert 'keyferry_door_total{reason="granted"}' not in metrics
    if proto != "https":
        assert 'keyferry_tls_psk_total{reason="refused"} 1.0' in metrics
        until(lambda: served.log.read_text().count("psk-refused") == 1, seconds=5, what="one line about it")
        assert said["key"] not in served.log.read_text()
    else:
        assert "HTTP/1.1 401" in got  # it took the certificate, as anybody may, and is a stranger


@pytest.mark.parametrize("wrong", [False, True])
def test_gnutls_over_tls_1_3(served: Served, keys: dict[str, str], wrong: bool) -> None:
    """GnuTLS 3.7.9 of Debian 12; it crashes on TLS 1.2 with ECDHE-PSK, in its own code."""
    key = "77" * 32 if wrong else keys["tls13_key"]
    command = [
        program("gnutls-cli"), "--port", str(served.port("as", AS_ID, "psk13")), "--sni-hostname", AS_ID, "--no-ca-verification",
        "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+PSK", "--pskusername", keys["tls13_identity"], "--pskkey", key,
        "127.0.0.1",
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(GET)
        process.stdin.flush()
        assert process.stdout is not None
        end = threading.Timer(LIMIT, process.kill)
        end.start()
        said = process.stdout.read()  # the server closes; an end of the input would close too early
        end.cancel()
    assert (ADMITTED in said) is not wrong, said
    if not wrong:
        assert f"PSK authentication. Connected as '{keys['tls13_identity']}'" in said
