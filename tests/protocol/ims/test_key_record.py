# SPDX-License-Identifier: Apache-2.0
"""The records that cross the KeySource port (DESIGN §7)."""

from __future__ import annotations

import subprocess
import sys

from keyferry import ports
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims.key_record import KeyRecord, Offer


def test_a_record_prints_no_key() -> None:
    """STYLE: `Secret` prints its length only."""
    secret = b"0123456789abcdef" * 2
    record = KeyRecord(
        KeyId("k@h"), AsId("a.example"), Impi("i@h"), Reg("r"), (Impu("tel:+1"),), Secret(secret), 1.0, 2.0, superseded=False
    )
    assert secret.decode() not in repr(record)
    assert "Secret(32 octets)" in repr(record)


def test_the_port_has_them_and_an_application_need_not_import_it() -> None:
    """DESIGN §12: what is behind the door needs neither SIP nor XML."""
    assert (ports.KeyRecord, ports.Offer) == (KeyRecord, Offer)
    code = "import sys, keyferry.protocol.ims.key_record; print(sorted(name for name in sys.modules if 'sip' in name or 'lxml' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
