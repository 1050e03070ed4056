# SPDX-License-Identifier: Apache-2.0
"""ESP in user space (RFC 4303), in UDP (RFC 3948), tunnel mode, with the keys of TS 33.203 annex I (Release 17).

What is sealed is a whole inner IP packet. A socket that carries ESP in UDP also carries keep-alives and, in other
systems, IKE: `kind_of` tells them apart. Nothing here draws randomness: the IV is an argument.
"""

from __future__ import annotations

from enum import Enum, auto
from struct import Struct
from typing import Final, NamedTuple

from keyferry.errors import EspRejected, LocalProtocolError, ParseError
from keyferry.protocol.crypto.cbc import BLOCK_OCTETS, ICV_OCTETS, AesCbc, HmacSha196
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.ip_packet import InnerDatagram, build_datagram, parse_datagram

INTEGRITY: Final = ("hmac-sha-1-96",)
ENCRYPTION: Final = ("aes-cbc", "null")
"""What is implemented, best first, as TS 33.203 annex H signals it in `alg` and `ealg`."""
IPV4: Final = 4
IPV6: Final = 41
"""Next header of tunnel mode (RFC 4303 §2.6). 59, a dummy packet, is forbidden on Gm (TS 33.203 §M.6.2)."""
MIN_SPI = 256
"""0 never appears on the wire and 1 to 255 are reserved (RFC 4303 §2.1)."""
MAX_SPI = 2**32 - 1
MAX_SEQUENCE = 2**32 - 1
"""Extended sequence numbers are not signalled on Gm, so an SA ends here: a number used twice would undo anti-replay."""
WINDOW = 64
"""Packets that may overtake another: the default of RFC 4303 §3.4.3."""
MAX_PACKET = 65_507
"""Octets: what one UDP datagram over IPv4 carries."""
KEEPALIVE = b"\xff"
"""RFC 3948 §2.3."""
KEY_OCTETS = 16
"""Of CK and of IK."""

_HEADER = Struct("!II")
_HEADER_OCTETS = _HEADER.size
_WORD_OCTETS = 4
_PADDING = bytes(range(1, 256))  # RFC 4303 §2.4: 1, 2, 3 …


class EspKeys(NamedTuple):
    """The keys of all SAs of one set; TS 33.203 §6.2, §6.3: the same in both directions."""

    encryption: Secret  # empty for "null"
    integrity: Secret


def expand_keys(ck: Secret, ik: Secret, *, alg: str, ealg: str) -> EspKeys:
    """Make ESP keys of what the P-CSCF was given as CK and IK, 16 octets each (TS 33.203 annex I).

    Raises LocalProtocolError.
    """
    if len(ck) != KEY_OCTETS or len(ik) != KEY_OCTETS:
        raise LocalProtocolError(f"CK and IK have {KEY_OCTETS} octets each")
    if alg not in INTEGRITY or ealg not in ENCRYPTION:
        raise LocalProtocolError("an algorithm of ESP that is not implemented")
    # IK is followed by 32 zero bits: HMAC-SHA-1-96 takes 160.
    return EspKeys(ck if ealg == "aes-cbc" else Secret(b""), Secret(ik.reveal() + bytes(4)))


class Kind(Enum):
    """What a UDP datagram on the port of encapsulated ESP is (RFC 3948 §2)."""

    ESP = auto()
    KEEPALIVE = auto()  # to be ignored
    NON_ESP = auto()  # IKE behind four zero octets


def kind_of(datagram: bytes) -> Kind:
    """Tell ESP from what shares its port; ESP still has to be opened."""
    if datagram == KEEPALIVE:
        return Kind.KEEPALIVE
    return Kind.NON_ESP if datagram[:4] == b"\0\0\0\0" else Kind.ESP


def spi_of(packet: bytes) -> int:
    """Return the SPI by which the SA of a packet is found.

    Raises EspRejected.
    """
    if not _HEADER_OCTETS <= len(packet) <= MAX_PACKET:
        raise EspRejected("length")
    return int.from_bytes(packet[:4], "big")


class OutboundSa:
    """Seal the packets of one direction; the sequence number is in here, so there must be one object per SPI."""

    __slots__ = ("_cipher", "_mac", "sequence", "spi")

    def __init__(self, spi: int, keys: EspKeys, *, sequence: int = 0) -> None:
        """Take the SPI that the receiver chose, and the sequence number that was sent last.

        Raises LocalProtocolError.
        """
        if not 0 <= sequence <= MAX_SEQUENCE:
            raise LocalProtocolError("a sequence number of ESP has 32 bits")
        self.spi = _spi(spi)
        self.sequence = sequence
        self._cipher = _cipher(keys)
        self._mac = HmacSha196(keys.integrity)

    @property
    def iv_octets(self) -> int:
        """How long an IV `seal` wants: 16, or 0 without encryption."""
        return BLOCK_OCTETS if self._cipher else 0

    def seal(self, inner: bytes, next_header: int, iv: bytes) -> bytes:
        """Return one ESP packet; the IV must be new and unpredictable each time.

        Raises LocalProtocolError, before the sequence number could start again too.
        """
        if self.sequence >= MAX_SEQUENCE:
            raise LocalProtocolError("the sequence numbers of an SA are used up")
        if len(iv) != self.iv_octets:
            raise LocalProtocolError(f"the IV has {self.iv_octets} octets")
        pad = self._padding(len(inner))
        if self.packet_octets(len(inner)) > MAX_PACKET:
            raise LocalProtocolError(f"an ESP packet in UDP has at most {MAX_PACKET} octets")
        plain = inner + _PADDING[:pad] + bytes((pad, next_header))
        body = iv + self._cipher.encrypt(iv, plain) if self._cipher else plain
        packet = _HEADER.pack(self.spi, self.sequence + 1) + body
        self.sequence += 1
        return packet + self._mac.icv(packet)

    def packet_octets(self, inner: int) -> int:
        """Return how long the ESP packet of an inner packet of so many octets is."""
        return _HEADER_OCTETS + self.iv_octets + inner + self._padding(inner) + 2 + ICV_OCTETS

    def _padding(self, inner: int) -> int:
        return -(inner + 2) % (BLOCK_OCTETS if self._cipher else _WORD_OCTETS)

    def seal_datagram(self, datagram: InnerDatagram, iv: bytes) -> bytes:
        """Return a UDP datagram in IP in ESP (tunnel mode).

        Raises LocalProtocolError.
        """
        return self.seal(build_datagram(datagram), IPV4 if datagram.source.version == 4 else IPV6, iv)


class InboundSa:
    """Open the packets of one direction, each at most once."""

    __slots__ = ("_cipher", "_mac", "_received", "_window", "highest", "spi")

    def __init__(self, spi: int, keys: EspKeys, *, window: int = WINDOW) -> None:
        """Take the SPI that we chose.

        Raises LocalProtocolError.
        """
        if window < 32:
            raise LocalProtocolError("an anti-replay window has at least 32 packets (RFC 4303 §3.4.3)")
        self.spi = _spi(spi)
        self.highest = 0  # sequence number seen
        self._window = window
        self._received = 0  # bit n: `highest` - n was seen
        self._cipher = _cipher(keys)
        self._mac = HmacSha196(keys.integrity)

    def open(self, packet: bytes) -> tuple[int, bytes]:
        """Return next header and inner packet.

        Replay is looked at first as that is cheap, but the window moves only for a packet whose ICV is right, and
        nothing is decrypted before (RFC 4303 §3.4.3, §3.4.4). Raises EspRejected.
        """
        body_octets = len(packet) - _HEADER_OCTETS - ICV_OCTETS
        if not 0 < body_octets <= MAX_PACKET - _HEADER_OCTETS - ICV_OCTETS:
            raise EspRejected("length")
        spi, sequence = _HEADER.unpack_from(packet)
        if spi != self.spi:
            raise EspRejected("spi")
        self._check_replay(sequence)
        if not self._mac.agrees(packet[:-ICV_OCTETS], packet[-ICV_OCTETS:]):
            raise EspRejected("icv")
        self._advance(sequence)
        return _without_trailer(self._decrypted(packet[_HEADER_OCTETS:-ICV_OCTETS]))

    def open_datagram(self, packet: bytes) -> InnerDatagram:
        """Return the UDP datagram of tunnel mode; whether this SA may carry it is for `AssociationSet.check_inbound`.

        Raises EspRejected.
        """
        next_header, inner = self.open(packet)
        try:
            datagram = parse_datagram(inner)
        except ParseError as problem:
            raise EspRejected("inner") from problem
        if next_header != (IPV4 if datagram.source.version == 4 else IPV6):
            raise EspRejected("next-header")
        return datagram

    def _check_replay(self, sequence: int) -> None:
        behind = self.highest - sequence
        if sequence == 0 or behind >= self._window or (behind >= 0 and self._received >> behind & 1):
            raise EspRejected("replay")

    def _advance(self, sequence: int) -> None:
        ahead = sequence - self.highest
        if ahead <= 0:
            self._received |= 1 << -ahead
            return
        # A jump over the whole window forgets all of it; shifting by up to 2**32 bits would take the memory for them.
        kept = (self._received << ahead) & ((1 << self._window) - 1) if ahead < self._window else 0
        self._received = kept | 1
        self.highest = sequence

    def _decrypted(self, body: bytes) -> bytes:
        if self._cipher is None:
            if len(body) % _WORD_OCTETS:
                raise EspRejected("length")
            return body
        if len(body) % BLOCK_OCTETS or len(body) < 2 * BLOCK_OCTETS:
            raise EspRejected("length")
        return self._cipher.decrypt(body[:BLOCK_OCTETS], body[BLOCK_OCTETS:])


def _without_trailer(plain: bytes) -> tuple[int, bytes]:
    """Take off padding, pad length and next header (RFC 4303 §2.4 to §2.6)."""
    pad, next_header = plain[-2], plain[-1]
    end = len(plain) - 2 - pad
    if end < 0 or plain[end:-2] != _PADDING[:pad]:
        raise EspRejected("padding")
    if next_header not in {IPV4, IPV6}:
        raise EspRejected("next-header")
    return next_header, plain[:end]


def _spi(spi: int) -> int:
    if not MIN_SPI <= spi <= MAX_SPI:
        raise LocalProtocolError(f"an SPI is a number from {MIN_SPI} to 2**32-1")
    return spi


def _cipher(keys: EspKeys) -> AesCbc | None:
    return AesCbc(keys.encryption) if len(keys.encryption) else None
