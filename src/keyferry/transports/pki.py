# SPDX-License-Identifier: Apache-2.0
"""The private CA and the certificates of roles (X.509, RFC 5280; TS 33.310 §6.1, Release 17)."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import math
import os
import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyferry.errors import ParseError, StateError
from keyferry.ports import Clock

CA_DAYS = 3650
LEAF_DAYS = 397  # what browsers accept at most
RENEW_DAYS = 30  # a certificate with less left is made again at start
ROLE_OU = "keyferry "  # organizational unit of a leaf: "keyferry as", "keyferry scscf" …
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # TLS 1.2 with forward secrecy; TLS 1.3 has no other

_SIP_DOMAIN = re.compile(r"sip:([A-Za-z0-9.\-]+)(?::[0-9]+)?(?:[;?].*)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate on disk with what a reader wants to know."""

    name: str
    role: str
    certificate: Path
    key: Path
    not_after: datetime.datetime
    sha256: bytes  # of the DER


class PeerIdentity(NamedTuple):
    """Whom a verified certificate names."""

    names: tuple[str, ...]  # SIP domain identities (RFC 5922 §7.1), lower case, as the certificate lists them
    role: str  # of a certificate of ours: "scscf", "as" …; "" in one of another CA
    not_after: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class MutualTls:
    """The TLS contexts of one function: it proves its own name and role if it has a certificate, and trusts one CA alone."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    name: str  # "" without a certificate
    not_after: float  # of our certificate, seconds since the epoch

    def renew(self, certificate: Certificate) -> MutualTls:
        """Use a new certificate of the same name from the next handshake on; return what now is known of it. Raises StateError.

        One that does not go with its key changes nothing.
        """
        # The first is tried in vain: a context that took the certificate, and not the key, would shake hands with nobody any more.
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.server, self.client):
            try:
                context.load_cert_chain(certificate.certificate, certificate.key)
            except OSError as problem:
                raise StateError(str(certificate.certificate), "does not go with its key", "Copy both files there again") from problem
        return MutualTls(self.server, self.client, certificate.name, certificate.not_after.timestamp())


class Pki:
    """Keep a CA and role certificates in a directory: `ca.pem` beside it, everything else in `pki/`."""

    def __init__(self, state: Path, clock: Clock, *, folder: str = "pki", ca: str = "ca.pem", permitted: Sequence[str] = ()) -> None:
        """Take the directory, and of a CA that is not the network's own where it lies and for which host names alone it is good."""
        self._state = state
        self._folder = state / folder
        self._ca = ca
        self._permitted = frozenset(permitted)
        self._clock = clock

    @property
    def ca_file(self) -> Path:
        """Return where the CA certificate lies."""
        return self._state / self._ca

    def days_left(self, certificate: Certificate) -> int:
        """Return how many whole days a certificate is good for; under 0 when it has expired."""
        return (certificate.not_after - self._now()).days

    def ensure(self, name: str, role: str, *, also: Sequence[str] = ()) -> Certificate:
        """Return the certificate of a role, made (again) if there is none, it is near its end, or its names differ.

        Where ca.pem is without the CA's key, certificates come from elsewhere: the one that is here is used until its end and beyond.
        Raises StateError.
        """
        with self._alone():
            return self._ensure(name, role, also)

    def check(self, name: str, role: str) -> None:
        """Refuse what `ensure` would refuse, and a certificate that is not its key's; nothing is made. Raises StateError."""
        if not self._folder.is_dir() and not self.ca_file.exists():
            return
        if not self.ca_file.is_file():
            self._check_ca_key()
            return
        found = self._found(name, role, (), issuing=(self._folder / "ca.key").is_file())
        if found is not None:
            mutual_tls(found, self.ca_file)

    def _ensure(self, name: str, role: str, also: Sequence[str]) -> Certificate:
        issuing = self._ensure_ca()
        found = self._found(name, role, also, issuing=issuing)
        return self._issue(name, role, also, *self._files(name, role)) if found is None else found

    def _files(self, name: str, role: str) -> tuple[Path, Path]:
        return self._folder / f"{role}-{name}.pem", self._folder / f"{role}-{name}.key"

    def _found(self, name: str, role: str, also: Sequence[str], *, issuing: bool) -> Certificate | None:
        """Return the certificate that is here, None if one has to be made. Raises StateError: it cannot be, or what is here is not ours."""
        folder = self._files(name, role)
        try:
            found = x509.load_pem_x509_certificate(folder[0].read_bytes())
            left = found.not_valid_after_utc - self._now()
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            same = set(names.get_values_for_type(x509.DNSName)) == {name, *(text for text in also if not _is_ip(text))}
            if (left.days >= RENEW_DAYS or not issuing) and same and folder[1].is_file() and self._issued_by_ca(found):
                return _describe(name, role, *folder, found)
        except FileNotFoundError:
            pass
        except OSError as problem:
            remedy = "Check the owner and the mode of both files"
            raise StateError(str(folder[0]), f"cannot be read: {problem.strerror}", remedy) from problem
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as problem:
            raise StateError(
                str(folder[0]), "is not a certificate of ours", "Move it away; it is made again at the next start"
            ) from problem
        if not issuing:
            remedy = f"Run `keyferry pki issue {name} --role {role}` where pki/ca.key is, and copy both files here"
            raise StateError(str(folder[0]), "is no certificate of ca.pem for this name, and the CA's key is not here", remedy)
        return None

    def all(self) -> list[Certificate]:
        """Return every role certificate."""
        found = []
        for path in sorted(self._folder.glob("*.pem")):
            role, _, name = path.stem.partition("-")
            found.append(_describe(name, role, path, path.with_suffix(".key"), x509.load_pem_x509_certificate(path.read_bytes())))
        return found

    def ends(self) -> list[tuple[str, str, float]]:
        """Return name, role and end, seconds since the epoch, of every certificate that can be read; the CA's role is "ca"."""
        found = []
        for path in (*sorted(self._folder.glob("*.pem")), self.ca_file):
            role, _, name = path.stem.partition("-")
            end = not_after_of(path)
            if end is not None:
                found.append((name or path.stem, role, end))
        return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes away: two that start for the first time would make two CAs, and one would trust nobody."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as problem:
            raise StateError(str(self._folder), f"cannot be used: {problem.strerror}", "Check its owner and its mode") from problem
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)

    def _ensure_ca(self) -> bool:
        """Return whether certificates can be issued here."""
        key_file = self._folder / "ca.key"
        if self._permitted and not self._permits():
            self.ca_file.unlink(missing_ok=True)
            key_file.unlink(missing_ok=True)
        if self.ca_file.is_file():
            return key_file.is_file()
        self._check_ca_key()
        key = ec.generate_private_key(ec.SECP256R1())
        title = f"keyferry CA for {len(self._permitted)} hosts alone" if self._permitted else "keyferry lab CA"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
        builder = self._builder(name, name, key.public_key(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        if self._permitted:  # RFC 5280 §4.2.1.10: whoever gets at the key can pretend to be these, and nobody else
            names = [x509.DNSName(host) for host in sorted(self._permitted)]
            builder = builder.add_extension(x509.NameConstraints(names, None), critical=True)
        _write_key(key_file, key)
        _write(self.ca_file, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), 0o644)
        return True

    def _check_ca_key(self) -> None:
        if (self._folder / "ca.key").exists():
            raise StateError(str(self._state), "holds the CA's key and not its certificate", "Restore ca.pem, or remove pki/ca.key")

    def _issue(self, name: str, role: str, also: Sequence[str], certificate_file: Path, key_file: Path) -> Certificate:
        ca = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        ca_key = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
            raise StateError(str(self._folder / "ca.key"), "is not an EC key of ours", "Restore it, or remove ca.pem and pki/ca.key")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, ROLE_OU + role), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        names += [x509.IPAddress(ipaddress.ip_address(text)) if _is_ip(text) else x509.DNSName(text) for text in also]
        builder = self._builder(subject, ca.subject, key.public_key(), LEAF_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        ca_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        made = builder.add_extension(ca_id, critical=False).sign(ca_key, hashes.SHA256())
        _write_key(key_file, key)
        _write(certificate_file, made.public_bytes(serialization.Encoding.PEM), 0o644)
        return _describe(name, role, certificate_file, key_file, made)

    def _builder(self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        now = self._now()
        builder = x509.CertificateBuilder(
            subject_name=subject, issuer_name=issuer, public_key=key, serial_number=x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=days))
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)

    def _permits(self) -> bool:
        """Tell whether the CA that is here is good for just the names wanted."""
        try:
            found = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
            names = found.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
        except (OSError, ValueError, x509.ExtensionNotFound):
            return False
        left = found.not_valid_after_utc - self._now()
        return {name.value for name in names} == self._permitted and left.days >= RENEW_DAYS

    def _issued_by_ca(self, found: x509.Certificate) -> bool:
        try:
            found.verify_directly_issued_by(x509.load_pem_x509_certificate(self.ca_file.read_bytes()))
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def not_after_of(path: Path) -> float | None:
    """Return when the first certificate of a PEM file ends, seconds since the epoch; None where it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None


def mutual_tls(certificate: Certificate, ca_file: Path, *, clients: ssl.VerifyMode = ssl.CERT_REQUIRED) -> MutualTls:
    """Return contexts for mutual TLS: 1.2 with forward secrecy, or 1.3; no tickets, no renegotiation.

    The peer's chain is verified here, its name is not: whoever uses the client context compares it (RFC 5922 §7.2, which OpenSSL's own
    comparison does not follow: a SIP URI goes before DNS names, and a wildcard means nothing). `clients` other than CERT_REQUIRED lets
    clients without a certificate in, such as phones. Raises StateError.
    """
    server, client = _contexts()
    server.verify_mode = clients
    for context in (server, client):
        try:
            context.load_cert_chain(certificate.certificate, certificate.key)
            context.load_verify_locations(ca_file)
        except OSError as problem:
            raise StateError(
                str(certificate.certificate), "does not go with its key and CA", "Move it away; it is made again at the next start"
            ) from problem
    return MutualTls(server, client, certificate.name, certificate.not_after.timestamp())


def client_tls(ca_file: Path) -> MutualTls:
    """Return contexts for one that has no certificate, such as a phone: it can only call, and trusts one CA. Raises StateError."""
    server, client = _contexts()
    try:
        client.load_verify_locations(ca_file)
    except OSError as problem:
        remedy = "Copy ca.pem of the network's state directory there, or set `ca`"
        raise StateError(str(ca_file), "is no CA certificate that can be read", remedy) from problem
    return MutualTls(server, client, "", math.inf)


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    server.num_tickets = 0
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return server, client


def peer_identity(der: bytes) -> PeerIdentity:
    """Read whom a certificate names (RFC 5922 §7.1): hosts of `sip:` URIs without user part, only else DNS names, never the common name.

    The chain must have been verified. Raises ParseError.
    """
    try:
        found = x509.load_der_x509_certificate(der)
        units = [str(one.value) for one in found.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
        names = _sip_domains(found)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as problem:
        raise ParseError("certificate", "not X.509, or with names that cannot be read") from problem
    roles = [unit.removeprefix(ROLE_OU) for unit in units if unit.startswith(ROLE_OU)]
    return PeerIdentity(names, roles[0] if len(roles) == 1 else "", found.not_valid_after_utc.timestamp())


def _sip_domains(found: x509.Certificate) -> tuple[str, ...]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    uris = (_SIP_DOMAIN.fullmatch(uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier))
    domains = [uri.group(1) for uri in uris if uri is not None]
    return tuple(domain.lower().rstrip(".") for domain in domains or names.get_values_for_type(x509.DNSName))


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _describe(name: str, role: str, certificate: Path, key: Path, found: x509.Certificate) -> Certificate:
    return Certificate(name, role, certificate, key, found.not_valid_after_utc, found.fingerprint(hashes.SHA256()))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write(path, key.private_bytes(encoding, form, serialization.NoEncryption()), 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
