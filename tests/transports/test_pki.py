# SPDX-License-Identifier: Apache-2.0
"""The private CA and role certificates (RFC 5280)."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.transports.http_server import tls_context
from keyferry.transports.pki import LEAF_DAYS, RENEW_DAYS, Certificate, Pki

DAY = 86_400.0


class SettableClock:
    """A clock that a test turns."""

    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        """Return what it was set to."""
        return self.time

    def monotonic(self) -> float:
        """Return the same."""
        return self.time


@pytest.fixture(name="clock")
def clock_fixture() -> SettableClock:
    import datetime

    return SettableClock(datetime.datetime.now(datetime.UTC).timestamp())


@pytest.fixture(name="pki")
def pki_fixture(tmp_path: Path, clock: SettableClock) -> Pki:
    return Pki(tmp_path, clock)


def handshake(made: Certificate, ca: Path, name: str) -> None:
    """Shake hands over a socket pair: the server with the certificate, the client trusting the CA alone."""
    ours, theirs = socket.socketpair()
    server = threading.Thread(target=_serve, args=(theirs, made), daemon=True)
    server.start()
    client = ssl.create_default_context(cafile=str(ca))
    try:
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            assert wrapped.version() in {"TLSv1.2", "TLSv1.3"}
    finally:
        ours.close()
        server.join(5)


def _serve(sock: socket.socket, made: Certificate) -> None:
    try:
        tls_context(made.certificate, made.key).wrap_socket(sock, server_side=True).close()
    except OSError:
        sock.close()


def test_a_client_that_trusts_the_ca_accepts_the_certificate_for_its_name_only(pki: Pki) -> None:
    made = pki.ensure("xcap.home1.net", "as")
    handshake(made, pki.ca_file, "xcap.home1.net")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, pki.ca_file, "notes.home1.net")


def test_a_certificate_is_kept_until_it_is_near_its_end(pki: Pki, clock: SettableClock) -> None:
    first = pki.ensure("xcap.home1.net", "as")
    clock.time += (LEAF_DAYS - RENEW_DAYS - 1) * DAY
    assert pki.ensure("xcap.home1.net", "as").sha256 == first.sha256
    clock.time += 2 * DAY
    renewed = pki.ensure("xcap.home1.net", "as")
    assert renewed.sha256 != first.sha256
    assert renewed.not_after > first.not_after


def test_a_certificate_is_made_again_when_its_names_change(pki: Pki) -> None:
    first = pki.ensure("xcap.home1.net", "as")
    second = pki.ensure("xcap.home1.net", "as", also=("localhost", "127.0.0.1"))
    assert second.sha256 != first.sha256
    assert pki.ensure("xcap.home1.net", "as", also=("localhost", "127.0.0.1")).sha256 == second.sha256


def test_a_certificate_of_another_ca_is_made_again(pki: Pki, tmp_path: Path, clock: SettableClock) -> None:
    first = pki.ensure("xcap.home1.net", "as")
    other = Pki(tmp_path / "other", clock)
    (tmp_path / "other").mkdir()
    foreign = other.ensure("xcap.home1.net", "as")
    first.certificate.write_bytes(foreign.certificate.read_bytes())
    assert pki.ensure("xcap.home1.net", "as").sha256 not in {first.sha256, foreign.sha256}


def test_private_keys_are_readable_by_their_owner_only(pki: Pki, tmp_path: Path) -> None:
    made = pki.ensure("xcap.home1.net", "as")
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pki" / "ca.key").stat().st_mode & 0o777 == 0o600


def test_every_certificate_is_listed(pki: Pki) -> None:
    assert pki.all() == []
    pki.ensure("xcap.home1.net", "as")
    pki.ensure("scscf1.home1.net", "scscf")
    assert [(one.name, one.role) for one in pki.all()] == [("xcap.home1.net", "as"), ("scscf1.home1.net", "scscf")]


@pytest.mark.parametrize("lost", ["ca.pem", "pki/ca.key"])
def test_half_a_ca_is_an_error_that_says_what_to_do(pki: Pki, tmp_path: Path, lost: str) -> None:
    pki.ensure("xcap.home1.net", "as")
    (tmp_path / lost).unlink()
    with pytest.raises(StateError, match="one half of the CA"):
        pki.ensure("notes.home1.net", "as")


def test_a_file_that_is_no_certificate_is_an_error_that_says_what_to_do(pki: Pki) -> None:
    made = pki.ensure("xcap.home1.net", "as")
    made.certificate.write_text("not a certificate")
    with pytest.raises(StateError, match="Move it away"):
        pki.ensure("xcap.home1.net", "as")
