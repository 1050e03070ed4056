# SPDX-License-Identifier: Apache-2.0
"""The private CA and role certificates (RFC 5280)."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError, StateError
from keyferry.transports.http_server import tls_context
from keyferry.transports.pki import LEAF_DAYS, RENEW_DAYS, Certificate, MutualTls, Pki, client_tls, mutual_tls, peer_identity

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


def test_a_certificate_that_came_without_its_key_leaves_the_old_one_in_use(pki: Pki, tmp_path: Path, clock: SettableClock) -> None:
    """Both files are copied one after the other, and SIGHUP may come between."""
    first = pki.ensure("as.home1.net", "as")
    tls = mutual_tls(first, pki.ca_file)
    (tmp_path / "other" / "pki").mkdir(parents=True)
    for name in ("ca.pem", "pki/ca.key"):
        (tmp_path / "other" / name).write_bytes((tmp_path / name).read_bytes())
    other = Pki(tmp_path / "other", clock).ensure("as.home1.net", "as")
    first.certificate.write_bytes(other.certificate.read_bytes())
    with pytest.raises(StateError, match="does not go with its key"):
        tls.renew(pki.ensure("as.home1.net", "as"))
    assert shown(tls) == first.sha256
    first.key.write_bytes(other.key.read_bytes())
    tls.renew(pki.ensure("as.home1.net", "as"))
    assert shown(tls) == other.sha256


def shown(tls: MutualTls) -> bytes:
    """Let both contexts shake hands; return which certificate the server showed."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.client.wrap_bio(to_client, to_server, server_hostname="as.home1.net")
    server = tls.server.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return hashlib.sha256(client.getpeercert(binary_form=True) or b"").digest()


def test_a_certificate_that_cannot_be_read_is_refused_with_a_remedy(pki: Pki) -> None:
    """A renewal that raised anything else would end all the later ones."""
    first = pki.ensure("as.home1.net", "as")
    first.certificate.unlink()
    first.certificate.mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        pki.ensure("as.home1.net", "as")


def test_processes_that_start_together_for_the_first_time_share_one_ca(tmp_path: Path, clock: SettableClock) -> None:
    """Each function in a process of its own, started by one script."""
    gate = threading.Barrier(4)
    made: list[Certificate] = []

    def start(number: int) -> None:
        gate.wait()
        made.append(Pki(tmp_path, clock).ensure(f"as{number}.home1.net", "as"))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert len(made) == 4
    for each in made:
        x509.load_pem_x509_certificate(each.certificate.read_bytes()).verify_directly_issued_by(ca)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, clock: SettableClock) -> None:
    (tmp_path / "pki").touch()
    with pytest.raises(StateError, match="cannot be used"):
        Pki(tmp_path, clock).ensure("as.home1.net", "as")


@pytest.mark.parametrize("tag", [0xA3, 0xA5, 0x83])
def test_a_name_of_an_odd_kind_in_a_certificate_is_a_parse_error(pki: Pki, tag: int) -> None:
    """An x400Address, an ediPartyName, and what is not well formed."""
    found = x509.load_pem_x509_certificate(pki.ensure("as.home1.net", "as").certificate.read_bytes())
    der = found.public_bytes(serialization.Encoding.DER)
    assert der.count(b"\x82\x0cas.home1.net") == 1
    with pytest.raises(ParseError, match="cannot be read"):
        peer_identity(der.replace(b"\x82\x0cas.home1.net", bytes((tag,)) + b"\x0cas.home1.net"))


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


def test_a_ca_without_its_certificate_is_an_error_that_says_what_to_do(pki: Pki, tmp_path: Path) -> None:
    pki.ensure("xcap.home1.net", "as")
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(StateError, match="the CA's key and not its certificate"):
        pki.ensure("notes.home1.net", "as")


def test_where_the_key_of_the_ca_is_not_certificates_come_from_elsewhere(pki: Pki, tmp_path: Path, clock: SettableClock) -> None:
    """The machine of an AS holds ca.pem and its own certificate, which is used as long as there is no other."""
    made = pki.ensure("xcap.home1.net", "as")
    (tmp_path / "pki" / "ca.key").unlink()
    clock.time += (LEAF_DAYS + 1) * 86_400
    assert pki.ensure("xcap.home1.net", "as") == made
    with pytest.raises(StateError, match=r"keyferry pki issue notes\.home1\.net --role as"):
        pki.ensure("notes.home1.net", "as")


def test_a_file_that_is_no_certificate_is_an_error_that_says_what_to_do(pki: Pki) -> None:
    made = pki.ensure("xcap.home1.net", "as")
    made.certificate.write_text("not a certificate")
    with pytest.raises(StateError, match="Move it away"):
        pki.ensure("xcap.home1.net", "as")


def issued(names: list[x509.GeneralName] | None, units: tuple[str, ...] = ("keyferry scscf",)) -> bytes:
    """Return a certificate in DER that names these, whoever signed it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    name = x509.Name([*subject, x509.NameAttribute(NameOID.COMMON_NAME, "common.home1.net")])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(
        subject_name=name,
        issuer_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=begin,
        not_valid_after=begin + datetime.timedelta(days=1),
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


URI, DNS = x509.UniformResourceIdentifier, x509.DNSName


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([DNS("A.home1.net"), DNS("b.home1.net.")], ("a.home1.net", "b.home1.net")),
        ([DNS("a.home1.net"), URI("sip:B.home1.net")], ("b.home1.net",)),  # a SIP URI goes before DNS names
        ([URI("sip:b.home1.net:5061;transport=tls"), URI("sip:c.home1.net?x=y")], ("b.home1.net", "c.home1.net")),
        ([URI("sip:user@b.home1.net"), DNS("a.home1.net")], ("a.home1.net",)),  # with a user part it is no domain
        ([URI("sips:b.home1.net"), URI("https://b.home1.net")], ()),
        ([DNS("*.home1.net")], ("*.home1.net",)),  # means itself, so it matches nobody
        ([x509.RFC822Name("a@home1.net")], ()),
        (None, ()),  # the common name is none
    ],
)
def test_the_sip_domains_of_a_certificate(names: list[x509.GeneralName] | None, found: tuple[str, ...]) -> None:
    """RFC 5922 §7.1, §7.2."""
    assert peer_identity(issued(names)).names == found


@pytest.mark.parametrize(
    ("units", "role"), [(("keyferry as",), "as"), ((), ""), (("Accounting", "keyferry as"), "as"), (("keyferry as", "keyferry scscf"), "")]
)
def test_the_role_is_the_one_of_the_organizational_unit(units: tuple[str, ...], role: str) -> None:
    """Two roles are none."""
    assert peer_identity(issued([DNS("a.home1.net")], units)).role == role


def test_a_certificate_of_ours_names_its_function(pki: Pki) -> None:
    """What `ensure` issues, `peer_identity` reads."""
    made = pki.ensure("scscf1.home1.net", "scscf", also=("127.0.0.1", "alias.home1.net"))
    found = peer_identity(ssl.PEM_cert_to_DER_cert(made.certificate.read_text()))
    assert found == (("scscf1.home1.net", "alias.home1.net"), "scscf", made.not_after.timestamp())


def cut_off(octets: int) -> bytes:
    """Return a certificate that lacks at least its last octet; its length varies with the signature."""
    whole = issued([DNS("a.home1.net")])
    return whole[: min(octets, len(whole) - 1)]


@given(st.binary(max_size=300) | st.integers(0, 400).map(cut_off))
def test_any_octets_are_a_certificate_or_a_parse_error(der: bytes) -> None:
    """RFC 5280 §4.1."""
    with pytest.raises(ParseError):
        peer_identity(der)


def test_contexts_show_our_certificate_and_want_the_peers(pki: Pki) -> None:
    """TS 33.310 annex E: TLS 1.2 or later, ephemeral keys, both sides proven; no tickets."""
    made = pki.ensure("scscf1.home1.net", "scscf")
    tls = mutual_tls(made, pki.ca_file)
    assert (tls.name, tls.not_after) == ("scscf1.home1.net", made.not_after.timestamp())
    for context in (tls.server, tls.client):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert all(cipher["name"].startswith(("ECDHE-", "TLS_")) for cipher in context.get_ciphers())
    assert tls.server.num_tickets == 0
    assert mutual_tls(made, pki.ca_file, clients=ssl.CERT_NONE).server.verify_mode is ssl.CERT_NONE


def test_who_has_no_certificate_trusts_one_ca_and_never_ends(pki: Pki, tmp_path: Path) -> None:
    """A phone."""
    pki.ensure("pcscf1.home1.net", "pcscf")
    tls = client_tls(pki.ca_file)
    assert (tls.name, tls.not_after, len(tls.client.get_ca_certs())) == ("", math.inf, 1)
    assert tls.client.verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(StateError, match="is no CA certificate"):
        client_tls(tmp_path / "nowhere.pem")


def test_a_key_that_does_not_fit_is_an_error_that_says_what_to_do(pki: Pki) -> None:
    one, other = pki.ensure("scscf1.home1.net", "scscf"), pki.ensure("as1.home1.net", "as")
    one.key.write_bytes(other.key.read_bytes())
    with pytest.raises(StateError, match="made again"):
        mutual_tls(one, pki.ca_file)


def test_it_is_told_how_long_a_certificate_is_good_for(pki: Pki, clock: SettableClock) -> None:
    made = pki.ensure("xcap.home1.net", "as")
    end = made.not_after.timestamp()
    left = []
    for clock.time in (end - DAY, end - 1, end + 1):
        left.append(pki.days_left(made))
    assert left == [1, 0, -1]
