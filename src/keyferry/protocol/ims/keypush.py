# SPDX-License-Identifier: Apache-2.0
"""The key push inside `<service-info>` of a third-party REGISTER (*ours*, DESIGN §6), its seal, and what an AS does with one."""

from __future__ import annotations

import binascii
import functools
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

from keyferry.errors import LocalProtocolError, ParseError, PushRefused
from keyferry.protocol import xmlsafe
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg, parse_as_id, parse_impi, parse_impu
from keyferry.protocol.ims.keys import check_key_id

NAMESPACE = "urn:keyferry:isc:1"

MAX_SEQ = 2**63 - 1
"""64 bits, one of them a sign in every database."""
MAX_PUSH = 32_768
"""Octets; sealed and escaped it still fits one SIP message of 64 kB. One key and ten IMPUs take 900."""
MAX_KEYS = 8
"""In one push: one device has one key an AS, two while they change."""
MAX_IMPUS = 100
"""One implicit registration set; TS 29.228 names no limit, subscriptions have under ten."""
MAX_KEY_LIFE = 7 * 86_400
"""Seconds from not-before to not-after: the 600,000 s of TS 24.229 §5.1.1.2 and a margin."""
MAX_AHEAD = 3_600
"""Seconds that a not-before may lie in the future: a clock more wrong than this is a fault to alarm about."""
GRACE = 600.0
"""Seconds that a superseded key lives on, so that a UE which has not seen its 200 OK is not locked out."""
SKEW = 60.0
"""Seconds that two clocks may differ; not-after already has this margin (DESIGN §6), so it is applied to not-before only."""

_K_AS_OCTETS = 32
_SIV_OCTETS = 16
_SEQ = re.compile(r"0|[1-9][0-9]{0,18}")
_REG = re.compile(r"[A-Za-z0-9_-]{12}")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{24}@[A-Za-z0-9.:\[\]_-]{1,230}")
_NAME = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,253}")
_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z
_PUSH = f"{{{NAMESPACE}}}push"
_SEALED = f"{{{NAMESPACE}}}sealed"
_KEY = f"{{{NAMESPACE}}}key"
_IMPU = f"{{{NAMESPACE}}}impu"
_known_as_id = functools.lru_cache(maxsize=256)(parse_as_id)  # an AS has few, a push names its own twice
_SERVICE_INFO = f"{{{NAMESPACE}}}service-info"


class PushedKey(NamedTuple):
    """One AS key of a push; times are seconds since the epoch."""

    key_id: KeyId
    k_as: Secret  # 32 octets
    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Push:
    """The complete set of keys that one AS shall have for one device of one IMPI; no keys = erase."""

    seq: int
    impi: Impi
    as_id: AsId
    reg: Reg
    keys: tuple[PushedKey, ...] = ()
    impus: tuple[Impu, ...] = ()  # the default first
    service_info: str | None = None  # the HSS's own ServiceInfo


@dataclass(frozen=True, slots=True)
class SealedPush:
    """A push under a transport key; `scscf`, `as_id` and `kid` are authenticated with it."""

    scscf: str
    as_id: AsId
    kid: str
    blob: bytes  # V || C of RFC 5297


ServiceInfo: TypeAlias = Push | SealedPush


# ---- the element


def build_push(push: Push) -> str:
    """Return the `<kf:push>` element, reverse of `parse_push`.

    Raises LocalProtocolError if it is one that no receiver would take.
    """
    if not 0 <= push.seq <= MAX_SEQ or len(push.keys) > MAX_KEYS or len(push.impus) > MAX_IMPUS or (push.keys and not push.impus):
        raise LocalProtocolError("a push needs a seq of 63 bits, a bounded number of keys and IMPUs, and an IMPU if it has keys")
    escape = xmlsafe.escape
    parts = [
        f'<kf:push xmlns:kf="{NAMESPACE}" seq="{push.seq}" impi="{escape(push.impi)}" as="{escape(push.as_id)}" reg="{escape(push.reg)}">'
    ]
    for key in push.keys:
        octets = key.k_as.reveal()
        if len(octets) != _K_AS_OCTETS:
            raise LocalProtocolError(f"an AS key has {_K_AS_OCTETS} octets")
        parts.append(
            f'<kf:key id="{escape(key.key_id)}" not-before="{build_time(key.not_before)}" not-after="{build_time(key.not_after)}">'
            f"{_base64(octets)}</kf:key>"
        )
    parts.extend(f"<kf:impu>{escape(impu)}</kf:impu>" for impu in push.impus)
    if push.service_info is not None:
        parts.append(f"<kf:service-info>{escape(push.service_info)}</kf:service-info>")
    parts.append("</kf:push>")
    element = "".join(parts)
    if len(element) > MAX_PUSH and len(element.encode()) > MAX_PUSH:
        raise LocalProtocolError(f"a push is at most {MAX_PUSH} octets")
    return element


def parse_push(data: bytes) -> Push:
    """Parse a `<kf:push>` element; elements and attributes it does not know are ignored.

    Raises ParseError.
    """
    return _push_of(xmlsafe.parse(data, what="push", max_octets=MAX_PUSH))


def _push_of(root: xmlsafe.Element) -> Push:
    if root.tag != _PUSH:
        raise ParseError("push", "is another element")
    keys = tuple([_key_of(element) for element in _bounded(root, _KEY, MAX_KEYS)])
    if len({key.key_id for key in keys}) < len(keys):
        raise ParseError("push", "repeats a key id")
    # an alias may have the same canonical form as another: one is enough
    impus = tuple(dict.fromkeys([parse_impu(xmlsafe.text(element, "push")) for element in _bounded(root, _IMPU, MAX_IMPUS)]))
    if keys and not impus:
        raise ParseError("push", "has keys but no IMPU")
    return Push(
        seq=_seq_of(_attribute(root, "seq", _SEQ)),
        impi=parse_impi(_attribute(root, "impi", None)),
        as_id=_as_id_of(root),
        reg=Reg(_attribute(root, "reg", _REG)),
        keys=keys,
        impus=impus,
        service_info=xmlsafe.child_text(root, _SERVICE_INFO, "push"),
    )


def _key_of(element: xmlsafe.Element) -> PushedKey:
    octets = _octets(xmlsafe.text(element, "push"))
    if len(octets) != _K_AS_OCTETS:
        raise ParseError("push", f"has a key of other than {_K_AS_OCTETS} octets")
    not_before = parse_time(_attribute(element, "not-before", None))
    not_after = parse_time(_attribute(element, "not-after", None))
    return PushedKey(KeyId(_attribute(element, "id", _KEY_ID)), Secret(octets), not_before, not_after)


def _bounded(root: xmlsafe.Element, tag: str, limit: int) -> list[xmlsafe.Element]:
    found = xmlsafe.children(root, tag)
    if len(found) > limit:
        raise ParseError("push", f"has more than {limit} of one element")
    return found


def _attribute(element: xmlsafe.Element, name: str, form: re.Pattern[str] | None) -> str:
    value = element.get(name)
    if value is None or (form is not None and not form.fullmatch(value)):
        raise ParseError("push", f"attribute {name} is missing or has another form")
    return value


def _seq_of(digits: str) -> int:
    seq = int(digits)
    if seq > MAX_SEQ:
        raise ParseError("push", "seq has more than 63 bits")
    return seq


def _as_id_of(element: xmlsafe.Element) -> AsId:
    value = _attribute(element, "as", None)
    as_id = _known_as_id(value)
    if as_id != value:  # it goes into key derivation and associated data octet for octet
        raise ParseError("push", "attribute as is not in canonical form")
    return as_id


@functools.lru_cache(maxsize=1024)
def build_time(seconds: int) -> str:
    """Return seconds since the epoch as `YYYY-MM-DDTHH:MM:SSZ`, reverse of `parse_time`.

    Raises LocalProtocolError before 1970 and after 9999.
    """
    if not 0 <= seconds <= _LAST_SECOND:
        raise LocalProtocolError("a time lies between 1970 and 9999")
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19] + "Z"


def parse_time(text: str) -> int:
    """Return `YYYY-MM-DDTHH:MM:SSZ` as seconds since the epoch (a form of ISO 8601; no leap second, no fraction, no offset).

    Raises ParseError.
    """
    if not _TIME.fullmatch(text):
        raise ParseError("time", "not of the form YYYY-MM-DDTHH:MM:SSZ")
    try:
        seconds = int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise ParseError("time", "no such day or hour") from None
    if seconds < 0:
        raise ParseError("time", "before 1970")
    return seconds


def _base64(octets: bytes) -> str:
    return binascii.b2a_base64(octets, newline=False).decode("ascii")


def _octets(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text.strip(" \t\r\n").encode("ascii"), strict_mode=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are ValueErrors
        raise ParseError("push", "has text that is not base64") from None


# ---- the seal


def _siv(key: Secret | Siv) -> Siv:
    return key if isinstance(key, Siv) else Siv(key)


def _associated(scscf: str, as_id: str, kid: str) -> list[bytes]:
    return [b"keyferry-isc-1", scscf.encode("ascii"), as_id.encode("ascii"), kid.encode("ascii")]


def seal_push(push: Push, *, transport_key: Secret | Siv, scscf: str, kid: str) -> str:
    """Return `<kf:sealed>` with the push under AES-256-SIV (RFC 5297); `transport_key` has 64 octets or is scheduled, `kid` is its name.

    Raises LocalProtocolError.
    """
    if not _NAME.fullmatch(scscf) or not _KID.fullmatch(kid) or not push.as_id.isascii():
        raise LocalProtocolError("the S-CSCF name, the kid or the AS_ID has a character that the element cannot carry")
    blob = _siv(transport_key).seal(build_push(push).encode("utf-8"), _associated(scscf, push.as_id, kid))
    return f'<kf:sealed xmlns:kf="{NAMESPACE}" from="{scscf}" as="{xmlsafe.escape(push.as_id)}" kid="{kid}">{_base64(blob)}</kf:sealed>'


def parse_service_info(text: str) -> ServiceInfo | None:
    """Return the push that the text of a `<service-info>` is, sealed or plain; None if it is something that is not ours.

    Raises ParseError if it is ours and malformed.
    """
    text = text.strip(" \t\r\n")
    if NAMESPACE not in text or not text.startswith("<"):
        return None
    root = xmlsafe.parse(text, what="service-info", max_octets=2 * MAX_PUSH)
    if root.tag == _SEALED:
        blob = _octets(xmlsafe.text(root, "push"))
        if not _SIV_OCTETS < len(blob) <= _SIV_OCTETS + MAX_PUSH:
            raise ParseError("push", "sealed octets are too few or too many")
        return SealedPush(_attribute(root, "from", _NAME), _as_id_of(root), _attribute(root, "kid", _KID), blob)
    if root.tag == _PUSH:
        if len(text) > MAX_PUSH:
            raise ParseError("push", f"longer than {MAX_PUSH} octets", status=413)
        return _push_of(root)
    if root.tag.startswith(f"{{{NAMESPACE}}}"):
        raise ParseError("push", "is neither a push nor a sealed one")
    return None


def open_push(sealed: SealedPush, transport_key: Secret | Siv) -> Push:
    """Open a sealed push with the key of its (scscf, as_id, kid).

    Raises SealError, ParseError, PushRefused("as") if what is inside was meant for another AS than the seal.
    """
    plaintext = _siv(transport_key).open(sealed.blob, _associated(sealed.scscf, sealed.as_id, sealed.kid))
    push = parse_push(plaintext)
    if push.as_id != sealed.as_id:
        raise PushRefused("as")
    return push


# ---- the receiver


class HeldKey(NamedTuple):
    """A key that an AS holds; times are seconds since the epoch."""

    key_id: KeyId
    k_as: Secret
    not_before: int
    not_after: int
    superseded_until: float | None = None  # None: current


class HeldSet(NamedTuple):
    """What an AS holds of (pusher, impi, as_id, reg); without keys it is a tombstone that remembers `seq`."""

    pusher: str
    impi: Impi
    as_id: AsId
    reg: Reg
    seq: int
    impus: tuple[Impu, ...]
    keys: tuple[HeldKey, ...]
    service_info: str | None
    tombstone_until: float  # seconds since the epoch: no older push holds a key that lives longer


class PushOutcome(NamedTuple):
    """What to hold from now on; every outcome is answered 200."""

    held: HeldSet
    stored: int  # keys of this push that are held now
    stale: bool  # an older push came late and was ignored


Owner: TypeAlias = tuple[Impi, AsId, Reg]


def receive(
    held: HeldSet | None, push: Push, *, pusher: str, realm: str, now: float, owner_of: Callable[[KeyId], Owner | None]
) -> PushOutcome:
    """Decide on a push from `pusher`, an S-CSCF of the home network `realm` that the caller has authenticated.

    `held` is the set of (pusher, push.impi, push.as_id, push.reg), `owner_of` tells whose a key id is, whoever pushed it.
    A refused push changes nothing. Raises PushRefused: realm, key-id, rebound, lifetime; LocalProtocolError if `held` is another set.
    """
    if held is not None:
        if (held.pusher, held.impi, held.as_id, held.reg) != (pusher, push.impi, push.as_id, push.reg):
            raise LocalProtocolError("the held set is not the one that the push names")
        if push.seq <= held.seq:  # equal: a retransmission, whatever it holds
            return PushOutcome(held, 0, stale=push.seq < held.seq)
    old = held.keys if held is not None else ()
    for key in push.keys:
        _check_key(key, push, old, realm=realm, now=now, owner_of=owner_of)
    current = tuple([HeldKey(*key) for key in push.keys if key.not_after > now])
    superseded = _superseded(old, push, now) if push.keys else ()
    # As no key outlives now + MAX_AHEAD + MAX_KEY_LIFE, an older push that comes after the tombstone's end brings only dead keys.
    until = max(now + MAX_AHEAD + MAX_KEY_LIFE, held.tombstone_until if held is not None else 0.0)
    kept = HeldSet(pusher, push.impi, push.as_id, push.reg, push.seq, push.impus, current + superseded, push.service_info, until)
    return PushOutcome(kept, len(current), stale=False)


def _check_key(
    key: PushedKey, push: Push, old: tuple[HeldKey, ...], *, realm: str, now: float, owner_of: Callable[[KeyId], Owner | None]
) -> None:
    if key.key_id.partition("@")[2] != realm:
        raise PushRefused("realm")
    check_key_id(key.key_id, key.k_as, realm)
    if not key.not_before < key.not_after <= key.not_before + MAX_KEY_LIFE or key.not_before > now + MAX_AHEAD:
        raise PushRefused("lifetime")
    if owner_of(key.key_id) not in {None, (push.impi, push.as_id, push.reg)}:
        raise PushRefused("rebound")
    for other in old:
        # check_key_id makes this impossible but for a collision; the rule must not hang on one function
        if other.key_id == key.key_id and other.k_as != key.k_as:
            raise PushRefused("rebound")


def _superseded(old: tuple[HeldKey, ...], push: Push, now: float) -> tuple[HeldKey, ...]:
    named = {key.key_id for key in push.keys}
    kept = []
    for key in old:
        until = min(now + GRACE, key.not_after, key.superseded_until if key.superseded_until is not None else now + GRACE)
        if key.key_id not in named and until > now:
            kept.append(key._replace(superseded_until=until))
    return tuple(kept[:MAX_KEYS])  # the newest stand first


def valid(key: HeldKey, now: float, *, skew: float = SKEW) -> bool:
    """Tell whether a request may be proved with the key at `now`."""
    end = key.not_after if key.superseded_until is None else min(key.not_after, key.superseded_until)
    return key.not_before - skew <= now < end


def after_use(held: HeldSet, key_id: KeyId, now: float) -> HeldSet:
    """Return the set after a request proved `key_id`: the use of a current key ends the superseded ones."""
    if any(key.key_id == key_id and key.superseded_until is None and valid(key, now) for key in held.keys):
        return held._replace(keys=tuple([key for key in held.keys if key.superseded_until is None]))
    return held


def erased(held: HeldSet) -> HeldSet:
    """Return the set after a body-less Expires 0: no key is left, and `seq` still refuses what is older."""
    return held._replace(keys=())


def check_domains(push: Push, domains: Collection[str]) -> None:
    """Check that every SIP IMPU of a push is in one of the pusher's `domains`, so that one operator cannot name another's users.

    A tel URI has no domain and passes. Raises PushRefused("impu").
    """
    for impu in push.impus:
        scheme, _, rest = impu.partition(":")
        if scheme != "tel" and rest.rpartition("@")[2].partition(":")[0] not in domains:
            raise PushRefused("impu")
