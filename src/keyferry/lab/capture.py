# SPDX-License-Identifier: Apache-2.0
"""What crossed the SIP sockets of one process, as a pcap file, with a Wireshark profile whose keys open its Gm."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Final, NamedTuple

from keyferry.errors import ConfigError
from keyferry.ports import Clock, SipEvent, SipPeer
from keyferry.protocol.esp import ENCRYPTION, INTEGRITY, EspKeys
from keyferry.protocol.ims.gm_association import AssociationSet
from keyferry.protocol.ip_packet import InnerDatagram, build_datagram
from keyferry.protocol.sip.message import build_message
from keyferry.transports.esp_sas import EspSas, Outer

MAX_PACKETS: Final = 100_000
"""Packets kept in memory until they are written; a demonstration has about a hundred."""
LINKTYPE_RAW: Final = 101
"""Frames are IP packets."""
_PCAP = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_TCP = struct.Struct("!HHIIBBHHH")
_V4 = struct.Struct("!BBHHHBBH4s4s")
_PUSH_ACK = 0x18
PREFERENCES: Final = "esp.enable_encryption_decode: TRUE\nesp.enable_authentication_check: TRUE\n"
_CIPHERS = {"aes-cbc": "AES-CBC [RFC3602]", "null": "NULL"}


class Suite(NamedTuple):
    """How a set of SAs protects, in the words of TS 33.203 annex H."""

    alg: str
    ealg: str


@dataclass(slots=True)
class Capture:
    """Record tunnels and what SIP nodes send; packets and keys only if they shall be kept.

    The keys are those of the P-CSCF: a packet that a UE sealed with others stays closed, as it does there.
    """

    clock: Clock
    keep: bool
    suites: list[Suite] = field(default_factory=list)  # of each set, in the order of the challenges
    packets: list[tuple[float, bytes]] = field(default_factory=list)
    _ports: list[int] = field(default_factory=list)  # of the P-CSCF's tunnels, outside
    _keys: dict[int, EspKeys] = field(default_factory=dict)  # by SPI
    _sent: dict[tuple[SipPeer, SipPeer], int] = field(default_factory=dict)  # octets of TCP, by direction

    def __repr__(self) -> str:
        return f"<Capture of {len(self.packets)} packets>"

    def attach(self, sas: EspSas) -> None:
        """Record the tunnels of one side."""
        pcscf = sas.associations.side == "pcscf"
        sas.tap = _Tap(self, pcscf)
        if pcscf and sas.bound is not None:
            self._ports.append(sas.bound.port)

    def begun(self, association: AssociationSet, keys: EspKeys) -> None:
        """Note a set of SAs of the P-CSCF."""
        self.suites.append(Suite(INTEGRITY[0], ENCRYPTION[0] if len(keys.encryption) else ENCRYPTION[1]))
        if self.keep:
            for spi in (association.spi_uc, association.spi_us, association.spi_pc, association.spi_ps):
                self._keys[spi] = keys

    def sealed(self, packet: bytes, source: Outer, target: Outer) -> None:
        """Keep an ESP packet as it was sent."""
        outer = InnerDatagram(ip_address(source.host), source.port, ip_address(target.host), target.port, packet)
        self._take(self.clock.now(), build_datagram(outer))

    def observe(self, event: SipEvent) -> None:
        """Keep a SIP message in clear as it was sent: a datagram, or a TCP segment whose numbers are made up."""
        if not event.outgoing or not self.keep or event.peer.transport not in {"UDP", "TCP"}:
            return
        source, target, data = event.local, event.peer, build_message(event.message)
        if target.transport == "UDP":
            sent = InnerDatagram(ip_address(source.host), source.port, ip_address(target.host), target.port, data)
            self._take(event.at, build_datagram(sent))
            return
        way, back = (source, target), (target, source)
        done = self._sent.get(way, 0)
        self._sent[way] = done + len(data)
        self._take(event.at, _segment(source, target, 1 + done, 1 + self._sent.get(back, 0), data))

    def write(self, path: Path) -> Path:
        """Write the packets to `path`, and beside it a folder that is a profile of Wireshark and tshark (WIRESHARK_CONFIG_DIR).

        Both are for this user alone. Return the folder. Raises ConfigError.
        """
        records = (_RECORD.pack(int(at), int(at % 1 * 1e6), len(one), len(one)) + one for at, one in sorted(self.packets))
        _write(path, _PCAP.pack(0xA1B2C3D4, 2, 4, 0, 0, 262_144, LINKTYPE_RAW) + b"".join(records))
        profile = path.with_suffix(".wireshark")
        try:
            profile.mkdir(mode=0o700, exist_ok=True)
        except OSError as problem:
            raise _unwritable(profile, problem) from problem
        _write(profile / "esp_sa", "".join(f"{line}\n" for line in self._associations()).encode())
        _write(profile / "preferences", PREFERENCES.encode())
        entries = "".join(f"decode_as_entry: udp.port,{port},(none),UDPENCAP\n" for port in self._ports)
        _write(profile / "decode_as_entries", entries.encode())
        return profile

    def _associations(self) -> Iterator[str]:
        """Yield one line of Wireshark's table of SAs for each SPI."""
        for spi, keys in self._keys.items():
            cipher = _CIPHERS[ENCRYPTION[0] if len(keys.encryption) else ENCRYPTION[1]]
            secret = f"0x{keys.encryption.reveal().hex()}" if len(keys.encryption) else ""
            mac = f"0x{keys.integrity.reveal().hex()}"
            fields = ("IPv4", "*", "*", f"0x{spi:08x}", cipher, secret, "HMAC-SHA-1-96 [RFC2404]", mac, "32-bit")
            yield ",".join(f'"{each}"' for each in fields)

    def _take(self, at: float, packet: bytes) -> None:
        if self.keep and len(self.packets) < MAX_PACKETS:
            self.packets.append((at, packet))


@dataclass(frozen=True, slots=True)
class _Tap:
    """At one side's tunnels (transports.esp_sas.EspTap)."""

    capture: Capture
    keys: bool

    def begun(self, association: AssociationSet, keys: EspKeys) -> None:
        if self.keys:
            self.capture.begun(association, keys)

    def sealed(self, packet: bytes, source: Outer, target: Outer) -> None:
        self.capture.sealed(packet, source, target)


def _segment(source: SipPeer, target: SipPeer, number: int, acknowledged: int, data: bytes) -> bytes:
    """Return TCP (RFC 9293 §3.1) in IPv4: data in the middle of a connection."""
    one, other = IPv4Address(source.host).packed, IPv4Address(target.host).packed
    length = _TCP.size + len(data)
    fields = (source.port, target.port, number, acknowledged, _TCP.size // 4 << 4, _PUSH_ACK, 65_535)
    pseudo = one + other + struct.pack("!HH", 6, length)
    header = _TCP.pack(*fields, _checksum(pseudo + _TCP.pack(*fields, 0, 0) + data), 0)
    start = (0x45, 0, _V4.size + length, 0, 0x4000, 64, 6)
    return _V4.pack(*start, _checksum(_V4.pack(*start, 0, one, other)), one, other) + header + data


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    return -(int.from_bytes(data, "big") << 8 * (len(data) & 1)) % 0xFFFF or 0xFFFF


def _write(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a file that was there keeps no wider mode
            file.write(data)
    except OSError as problem:
        raise _unwritable(path, problem) from problem


def _unwritable(path: Path, problem: OSError) -> ConfigError:
    return ConfigError("--capture", f"{path} cannot be written: {problem.strerror}")
