# SPDX-License-Identifier: Apache-2.0
"""A push with which nothing is wrong but the way that it comes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from interop.ipseckit import A, Namespace, S
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, reg_of
from keyferry.protocol.ims.keypush import Push, PushedKey, seal_push
from keyferry.protocol.ims.keys import key_id
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.sip.message import build_message
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom

CLEAR = """
import socket, sys
_, own, peer, port, file = sys.argv
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((own, 0))
sock.settimeout(1.0)
try:
    sock.sendto(open(file, "rb").read(), (peer, int(port)))
    print(sock.recv(2000).split(b"\\r\\n")[0].split()[1].decode())
except (TimeoutError, PermissionError):
    print("nothing")
"""


def sealed_push(folder: Path, file: Path, seq: int = 2**50) -> None:
    """Write a whole third-party REGISTER, sealed as the S-CSCF of a world with `short` names seals: nothing is wrong with it."""
    as_id, impi, impu, now = AsId("x.h"), Impi("mallory@h"), Impu("sip:mallory@h"), int(time.time())
    k_as = Secret(os.urandom(32))
    with open_state(folder / "state", random=SystemRandom()) as state:
        kid, key = next(reversed(state.isc_keys("s.h", as_id).items()))
    push = Push(seq, impi, as_id, reg_of("<urn:uuid:1>"), (PushedKey(key_id(k_as, "h"), k_as, now, now + 600),), (impu,))
    request = build_third_party_register(
        server_name="sip:y.h:5090", scscf_uri="sip:s.h:6060", impu=impu, expires=600, call_id=os.urandom(8).hex(), cseq=1, from_tag="f",
        service_info=seal_push(push, transport_key=Siv(key), scscf="s.h", kid=kid),
    )  # fmt: skip
    branch = f"z9hG4bK{os.urandom(8).hex()}"
    file.write_bytes(build_message(request.prepending("Via", f"SIP/2.0/UDP {S}:6060;rport;branch={branch}")))


def sends(namespace: Namespace, file: Path, own: str = S) -> str:
    """Send a datagram to the application server from an address; return the status of the answer, or "nothing"."""
    return namespace.run(sys.executable, "-c", CLEAR, own, A, "5090", str(file)).stdout.strip()
