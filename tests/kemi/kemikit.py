# SPDX-License-Identifier: Apache-2.0
"""REGISTERs, challenges and third-party REGISTERs as Kamailio hands them to the script, and a script's state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from keyferry.kemi.push import Seal
from keyferry.kemi.scscf import KemiPolicy, KemiScscf, RspauthSource
from keyferry.kemi.store import KemiStore
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Credentials, aka_nonce, build_credentials, hash_a1, respond
from keyferry.protocol.identity import AsId, Impi, Impu
from keyferry.protocol.ims.marker import Marker, build_marker
from keyferry.stores.sealing import Keyring

IMPI, IMPU, REALM = Impi("user1_private@home1.net"), Impu("sip:user1_public1@home1.net"), "home1.net"
CK, IK = Secret(bytes(range(16))), Secret(bytes(range(16, 32)))
RES = Secret(bytes(range(32, 40)))
RAND, AUTN = bytes(range(64, 80)), bytes(range(80, 96))
MARKER = build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=True))
NONCE = aka_nonce(RAND, AUTN, MARKER)
AS_ID, SERVER, SCSCF = AsId("xcap.home1.net"), "sip:127.0.0.1:5090;transport=tcp", "scscf1.home1.net"
TRANSPORT_KEY = Secret(bytes(range(64)))
KEK = Secret(bytes(range(100, 164)))
OPENED: list[KemiStore] = []
CONTACT = "<sip:u@192.0.2.1:5060>"


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.at


class Octets:
    """Octets that differ each time, and are the same in each run."""

    def __init__(self) -> None:
        self._count = 0

    def octets(self, count: int) -> bytes:
        """Return some."""
        self._count += 1
        return self._count.to_bytes(4, "big").rjust(count, b"\x07")[-count:]


def opened(folder: Path, clock: Clock, *, kek: Secret = KEK, **limits: int) -> KemiStore:
    """Open the store of a folder, as one process of Kamailio does."""
    store = KemiStore(folder / "kemi.db", Keyring({b"kid1": kek}, b"kid1", random=Octets()), clock.now, **limits)
    OPENED.append(store)
    return store


def scscf(folder: Path, clock: Clock, warned: Callable[[str], None], rspauth: RspauthSource | None = None) -> KemiScscf:
    """Return one process's decisions."""
    policy = KemiPolicy(REALM, {SERVER: (AS_ID,)}, lambda _: Seal(SCSCF, "t1", Siv(TRANSPORT_KEY)), 600_000, 86_400.0)
    return KemiScscf(policy, opened(folder, clock), clock.now, warned, rspauth)


def register(
    authorization: str | None = None, *, cseq: int = 1, branch: str = "z9hG4bK1", contact: str = CONTACT, expires: int = 600,
    to: str = IMPU, more: str = "", call_id: str = "c1",
) -> bytes:  # fmt: skip
    """Return a REGISTER."""
    line = "" if authorization is None else f"Authorization: {authorization}\r\n"
    return (
        f"REGISTER sip:{REALM} SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7:5060;branch={branch}\r\nMax-Forwards: 70\r\n"
        f"From: <{to}>;tag=1\r\nTo: <{to}>\r\nCall-ID: {call_id}\r\nCSeq: {cseq} REGISTER\r\nContact: {contact}\r\n"
        f"Expires: {expires}\r\n{line}{more}Content-Length: 0\r\n\r\n"
    ).encode()


def empty(impi: str = IMPI) -> str:
    """Return the Authorization of a first REGISTER."""
    return f'Digest username="{impi}", realm="{REALM}", nonce="", uri="sip:{REALM}", response=""'


def answer(
    nonce: str = NONCE, *, impi: str = IMPI, nc: str = "00000001", qop: str | None = "auth", cnonce: str = "0123456789abcdef"
) -> str:
    """Return the Authorization of the answer to a challenge."""
    ha1 = hash_a1("AKAv1-MD5", impi, REALM, RES)
    uri = f"sip:{REALM}"
    if qop is None:
        response = respond("AKAv1-MD5", ha1, method="REGISTER", uri=uri, nonce=nonce)
        return build_credentials(Credentials(impi, REALM, nonce, uri, response, "AKAv1-MD5"))
    response = respond("AKAv1-MD5", ha1, method="REGISTER", uri=uri, nonce=nonce, qop=qop, nc=nc, cnonce=cnonce)
    return build_credentials(Credentials(impi, REALM, nonce, uri, response, "AKAv1-MD5", cnonce, qop=qop, nc=nc))


def response(status: str, *headers: str, cseq: int = 1, branch: str = "z9hG4bK1", call_id: str = "c1") -> bytes:
    """Return what Kamailio is about to send."""
    rows = "".join(f"{header}\r\n" for header in headers)
    return (
        f"SIP/2.0 {status}\r\nVia: SIP/2.0/UDP 192.0.2.7:5060;branch={branch};received=192.0.2.7\r\nFrom: <{IMPU}>;tag=1\r\n"
        f"To: <{IMPU}>;tag=2\r\nCall-ID: {call_id}\r\nCSeq: {cseq} REGISTER\r\n{rows}Content-Length: 0\r\n\r\n"
    ).encode()


def challenge(
    nonce: str = NONCE, *, keys: str = f'ck="{CK.reveal().hex()}", ik="{IK.reveal().hex()}"', name: str = "WWW-Authenticate", **place: str
) -> bytes:  # fmt: skip
    """Return the 401 of ims_auth."""
    return response(
        "401 Unauthorized - Challenging the UE",
        f'{name}: Digest realm="{REALM}", nonce="{nonce}", algorithm=AKAv1-MD5, {keys}, qop="auth"',
        **place,  # type: ignore[arg-type]
    )


def third_party(*, server: str = SERVER, expires: int = 600, to: str = IMPU, service_info: str | None = None) -> bytes:
    """Return what ims_isc is about to send."""
    body = "" if service_info is None else f'<ims-3gpp version="1"><service-info>{service_info}</service-info></ims-3gpp>'
    kind = "Content-Type: application/3gpp-ims+xml\r\n" if body else ""
    return (
        f"REGISTER {server} SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:6060;branch=z9hG4bK9\r\nTo: <{to}>\r\nFrom: <sip:{SCSCF}:6060>;tag=9\r\n"
        f"CSeq: 10 REGISTER\r\nCall-ID: k1\r\nMax-Forwards: 10\r\nExpires: {expires}\r\nEvent: registration\r\n"
        f"Contact: <sip:{SCSCF}:6060>\r\n{kind}Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
