# SPDX-License-Identifier: Apache-2.0
"""What an S-CSCF decides about a REGISTER (TS 24.229 §5.4.1, Release 17; RFC 3261 §10.3; DESIGN §4, §5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from keyferry.errors import DigestRejected, ParseError, RemoteProtocolError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    Challenge,
    Credentials,
    build_challenge,
    check_response,
    hash_a1,
    is_digest,
    parse_credentials,
    rspauth_of,
)
from keyferry.protocol.identity import Impi, Impu, Reg, parse_impi, parse_impu, reg_of
from keyferry.protocol.ims.marker import RELEASE_TAG, Marker
from keyferry.protocol.sip.headers import (
    NameAddr,
    build_name_addr,
    parse_cseq,
    parse_expires,
    parse_name_addr,
    parse_name_addr_list,
    parse_via_list,
)
from keyferry.protocol.sip.message import Request, octets_of

AKA_ALGORITHM = "AKAv1-MD5"
DEFAULT_EXPIRES = 600_000  # seconds; what TS 24.229 §5.1.1.2.1 lets a UE ask for
MIN_MASKED_RES = 8  # octets; a shorter RES can be searched off line, so it carries no AS keys (DESIGN §5)
MIN_CNONCE = 16  # characters, for a masked AV (DESIGN §5 step 4)
AMF_BIT = 0x01  # of the second octet
MAX_CONTACTS = 10  # in one REGISTER; a UE registers one
MAX_CONTACT = 2_048  # octets; a 200 lists the Contacts of 16 devices and fits one message
MAX_PATH = 10  # entries; one proxy adds one

_NONE = ("",)  # the rows of a field that is not there

ReleaseInfo = Literal["always", "capable"]


class RegisterView(NamedTuple):
    """What the S-CSCF reads in a REGISTER."""

    impi: Impi
    impu: Impu
    credentials: Credentials | None
    contact: str  # one Contact value, "" for "*"
    contact_uri: str
    reg: Reg
    release: int | None  # what the UE stated
    expires: int  # seconds asked for; 0 de-registers
    every_contact: bool  # Contact: *
    call_id: str
    cseq: int
    path: tuple[str, ...]
    bottom_via: str  # the last Via row

    @property
    def source(self) -> str:
        """Where the UE sent from, as its P-CSCF saw or confirmed it (RFC 3261 §18.2.1); without the port, which is cheap to change.

        Raises ParseError.
        """
        via = parse_via_list(self.bottom_via)[-1]
        return via.received or via.host


def read_register(request: Request) -> RegisterView:
    """Read a REGISTER that `check_request` has passed.

    Raises ParseError; a REGISTER with more than one Contact is refused (RFC 5626-less UEs have one).
    """
    rows = request.rows()
    impu = parse_impu(parse_name_addr(rows.get("To", _NONE)[0]).uri)
    credentials = _credentials(rows.get("Authorization", ()))
    impi = parse_impi(credentials.username) if credentials else impi_of(impu)
    expires = parse_expires(rows["Expires"][0]) if "Expires" in rows else DEFAULT_EXPIRES
    contacts = rows.get("Contact", [])
    path = tuple(rows.get("Path", ()))
    if len(contacts) > MAX_CONTACTS or len(path) > MAX_PATH:
        raise ParseError("REGISTER", "too many Contact or Path values")
    if any(octets_of(contact) > MAX_CONTACT for contact in contacts):
        raise ParseError("Contact", f"is over {MAX_CONTACT} octets")
    if contacts == ["*"]:
        if expires != 0:
            raise ParseError("Contact", '"*" needs Expires: 0 (RFC 3261 §10.2.2)')
        contact, uri, reg, release, every = "", "", reg_of(""), None, True
    else:
        address = _one_contact(contacts)
        contact, uri, every = contacts[0], address.uri, False
        reg, release = reg_of(address.parameter("+sip.instance") or address.uri), stated_release(address)
        own = address.parameter("expires")
        expires = parse_expires(own) if own else expires
    return RegisterView(
        impi=impi, impu=impu, credentials=credentials, contact=contact, contact_uri=uri, reg=reg, release=release, expires=expires,
        every_contact=every, call_id=rows.get("Call-ID", _NONE)[0], cseq=parse_cseq(rows.get("CSeq", _NONE)[0]).number, path=path,
        bottom_via=rows.get("Via", _NONE)[-1],
    )  # fmt: skip


def deregisters(request: Request) -> bool:
    """Tell whether a REGISTER asks for no time at all, as an I-CSCF reads it. Raises ParseError."""
    contacts = request.all("Contact")
    if contacts and "expires" in contacts[0].lower():
        own = parse_name_addr_list(contacts[0])[0].parameter("expires")
        if own is not None:
            return parse_expires(own) == 0
    text = request.get("Expires")
    return text is not None and parse_expires(text) == 0


def integrity_protected(view: RegisterView) -> bool:
    """Tell whether the P-CSCF says that the REGISTER came over security associations (§7.2A.2); to be believed of a trusted peer only."""
    if view.credentials is None:
        return False
    values = [value for name, value in view.credentials.parameters if name.lower() == "integrity-protected"]
    return values == ["yes"]


def impi_of(impu: Impu) -> Impi:
    """Derive the IMPI that a REGISTER without Authorization means (TS 24.229 §5.4.1.1)."""
    scheme, _, rest = impu.partition(":")
    if scheme == "tel":
        raise ParseError("REGISTER", "has no Authorization, and a tel URI names no private identity")
    return parse_impi(rest)


def stated_release(contact: NameAddr) -> int | None:
    """Return the release that a UE states in its Contact (DESIGN §4); None for one that is not 6…255."""
    text = contact.parameter(RELEASE_TAG)
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 3):
        return None
    return int(text) if 6 <= int(text) <= 255 else None


def masks(*, stated: int | None, own_release: int, policy: bool, xres: Secret) -> bool:
    """Decide whether this AV's 401 carries CK', IK' (DESIGN §5 step 1); once per AV."""
    return policy and own_release >= 6 and stated is not None and stated >= 6 and len(xres) >= MIN_MASKED_RES


def with_amf_bit(amf: bytes) -> bytes:
    """Return an AMF (2 octets) whose bit 15, proprietary, says that its AV will be masked (TS 33.102 annex H; DESIGN §4)."""
    return amf[:1] + bytes([amf[1] | AMF_BIT])


def has_amf_bit(amf: bytes) -> bool:
    """Tell whether an AMF (2 octets) says that its AV is masked."""
    return bool(amf[1] & AMF_BIT)


def marker_for(*, masked: bool, stated: int | None, own_release: int, release_info: ReleaseInfo) -> Marker | None:
    """Return the marker that the nonce shall carry, if any (DESIGN §4)."""
    if own_release < 6 or (stated is None and release_info == "capable"):
        return None
    return Marker(release=own_release, access_keys=masked, as_keys=masked, rspauth=masked)


class PendingChallenge(NamedTuple):
    """One AV that waits for its answer: XRES and, if masked, K_M; never CK, IK (invariant S3)."""

    nonce: str
    impi: Impi
    impu: Impu
    reg: Reg
    source: str
    realm: str
    masked: bool
    xres: Secret
    k_m: Secret | None
    expires_at: float  # reg-await-auth, TS 24.229 §5.4.1.2.1
    after_resync: bool
    bare: bool = False  # without a marker that it would have had (DESIGN §4)
    call_id: str = ""  # of the REGISTER that was challenged


def build_aka_challenge(pending: PendingChallenge, ck: Secret, ik: Secret) -> str:
    """Build WWW-Authenticate with the keys for the P-CSCF (TS 24.229 §5.4.1.2.1, §7.2A.1)."""
    return build_challenge(
        Challenge(
            realm=pending.realm,
            nonce=pending.nonce,
            algorithm=AKA_ALGORITHM,
            qop=("auth",) if pending.masked else (),
            parameters=(("ck", ck.reveal().hex()), ("ik", ik.reveal().hex())),
        )
    )


def check_answer(pending: PendingChallenge, credentials: Credentials, method: str = "REGISTER") -> str | None:
    """Verify the answer to a challenge (DESIGN §5 step 4); return rspauth where a qop was used.

    Raises DigestRejected.
    """
    if credentials.username != pending.impi or credentials.realm != pending.realm:
        raise DigestRejected("the answer names another user or realm than the challenge")
    offered = credentials.algorithm is None or credentials.algorithm.lower() == AKA_ALGORITHM.lower()
    if not offered or (pending.masked and credentials.algorithm is None):
        raise DigestRejected("the answer uses another algorithm than the challenge")
    if pending.masked:
        _check_masked(credentials)
    ha1 = hash_a1(AKA_ALGORITHM, credentials.username, credentials.realm, pending.xres)
    check_response(ha1, credentials, algorithm=AKA_ALGORITHM, method=method)
    return rspauth_of(ha1, credentials, algorithm=AKA_ALGORITHM) if credentials.qop else None


def _check_masked(credentials: Credentials) -> None:
    # Every one of these is an input of rspauth: fixing them leaves a middleman no freedom to reuse an answer.
    if credentials.qop != "auth" or credentials.nc != "00000001" or len(credentials.cnonce or "") < MIN_CNONCE:
        raise DigestRejected("the answer to a masked challenge needs qop=auth, nc=00000001 and a cnonce of 16 characters")


def granted(asked: int, *, minimum: int, maximum: int) -> int:
    """Return the seconds granted (RFC 3261 §10.3 step 6). Raises IntervalTooBrief."""
    if 0 < asked < minimum:
        raise IntervalTooBrief(minimum)
    return min(asked, maximum)


class IntervalTooBrief(RemoteProtocolError):
    """Report an Expires under the minimum: 423 with Min-Expires."""

    def __init__(self, minimum: int) -> None:
        super().__init__(f"Expires is under {minimum} seconds", status=423)
        self.minimum = minimum


def granted_contact(contact: str, seconds: int) -> str:
    """Return a Contact value as the 200 carries it: as received, with the lifetime granted (RFC 3261 §10.3 step 8)."""
    address = parse_name_addr_list(contact)[0]
    kept = tuple((name, value) for name, value in address.parameters if name.lower() != "expires")
    return build_name_addr(address._replace(parameters=(*kept, ("expires", str(seconds)))))


def key_not_after(*, expires_at: float, aka_time: float, key_max_age: float) -> int:
    """Return when an AS key ends, whole seconds since the epoch (DESIGN §6)."""
    return int(min(expires_at + 60, aka_time + key_max_age))


def _one_contact(contacts: list[str]) -> NameAddr:
    if len(contacts) != 1:
        raise ParseError("REGISTER", "needs exactly one Contact")
    addresses = parse_name_addr_list(contacts[0])
    if len(addresses) != 1 or not addresses[0].uri:
        raise ParseError("REGISTER", "needs exactly one Contact")
    return addresses[0]


def _credentials(rows: Sequence[str]) -> Credentials | None:
    values = [text for text in rows if is_digest(text)]
    if len(values) > 1:
        raise ParseError("Authorization", "more than one")
    return parse_credentials(values[0]) if values else None
