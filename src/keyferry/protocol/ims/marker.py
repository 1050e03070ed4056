# SPDX-License-Identifier: Apache-2.0
"""The release marker in the server-specific data of the nonce (*ours*; RFC 3310 §3.2 leaves that field to the server)."""

from __future__ import annotations

from dataclasses import dataclass

from keyferry.errors import LocalProtocolError

RELEASE_TAG = "+g.keyferry.release"
"""The Contact parameter in which a UE states its release."""
FIRST_RELEASE = 6
"""A network of Release 5 sends no marker, so none may claim that release."""
MAX_SERVER_DATA = 64
"""Octets of server-specific data; keeps a nonce within 96 octets, 128 characters."""
MARKER_OCTETS = 4
"""Octets of a marker that says all there is to say in this release."""

_MAGIC = b"3G"
_ACCESS_KEYS, _AS_KEYS, _RSPAUTH = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Marker:
    """What the S-CSCF tells the UE about itself and about this authentication vector."""

    release: int  # 6…255
    access_keys: bool  # CK', IK' protect Gm
    as_keys: bool  # AS keys will be pushed
    rspauth: bool  # the 200 will carry rspauth

    @property
    def complete(self) -> bool:
        """Say whether all three hold ("flags 7"): without one of them a UE activates no AS key."""
        return self.access_keys and self.as_keys and self.rspauth


def build_marker(marker: Marker, octets: int = MARKER_OCTETS) -> bytes:
    """Return a marker of 4 to 64 octets: "3G", release, flags, and zeros, which only try what peers make of a long nonce.

    Raises LocalProtocolError.
    """
    if not MARKER_OCTETS <= octets <= MAX_SERVER_DATA:
        raise LocalProtocolError(f"a marker has {MARKER_OCTETS} to {MAX_SERVER_DATA} octets")
    if not FIRST_RELEASE <= marker.release <= 255:
        raise LocalProtocolError(f"a marker states a release from {FIRST_RELEASE} to 255")
    flags = marker.access_keys * _ACCESS_KEYS | marker.as_keys * _AS_KEYS | marker.rspauth * _RSPAUTH
    return (_MAGIC + bytes((marker.release, flags))).ljust(octets, b"\0")


def parse_marker(server_data: bytes) -> Marker | None:
    """Return the marker, reverse of `build_marker`; None for anything else, which means Release 5.

    Octets after the fourth and flags not known here are ignored: a later release may use them.
    """
    if not MARKER_OCTETS <= len(server_data) <= MAX_SERVER_DATA or server_data[:2] != _MAGIC or server_data[2] < FIRST_RELEASE:
        return None
    flags = server_data[3]
    return Marker(server_data[2], bool(flags & _ACCESS_KEYS), bool(flags & _AS_KEYS), bool(flags & _RSPAUTH))
