# SPDX-License-Identifier: Apache-2.0
"""A flood of REGISTERs in a victim's name: `strangers.py PORT IMPI IMPU RATE SECONDS SOURCES NONCE`.

It sends from so many addresses of 127.0.0.0/8, in turn, and reads no answer; NONCE is what its Authorization claims to answer, "" for
none. It prints {"sent", "seconds"} twice: when two thirds are sent, and at the end.
"""

from __future__ import annotations

import json
import socket
import sys
import time

TICK = 0.002  # seconds
TEMPLATE = (
    "REGISTER sip:home1.net SIP/2.0\r\nVia: SIP/2.0/UDP {host}:{port};branch=z9hG4bKstranger{number};rport\r\nMax-Forwards: 70\r\n"
    "From: <{impu}>;tag={number}\r\nTo: <{impu}>\r\nCall-ID: stranger{number}@{host}\r\nCSeq: 1 REGISTER\r\n"
    "Contact: <sip:stranger{number}@{host}:{port}>\r\nExpires: 600\r\nSupported: path\r\n"
    'Authorization: Digest username="{impi}", realm="home1.net", nonce="{nonce}", uri="sip:home1.net", response="{response}"\r\n'
    "Content-Length: 0\r\n\r\n"
)


def main() -> None:
    """Send, and say what was sent."""
    port, impi, impu, rate, seconds, sources, nonce = sys.argv[1:]
    doors = [_door(number) for number in range(int(sources))]
    response = "0" * 32 if nonce else ""
    begun, sent, most = time.monotonic(), 0, int(float(rate) * float(seconds))
    while sent < most:
        due = min(most, int((time.monotonic() - begun) * float(rate)) + 1)
        for number in range(sent, due):
            door = doors[number % len(doors)]
            host, own = door.getsockname()
            text = TEMPLATE.format(host=host, port=own, number=number, impu=impu, impi=impi, nonce=nonce, response=response)
            door.sendto(text.encode(), ("127.0.0.1", int(port)))
        if sent < most * 2 // 3 <= due:
            _tell(due, begun)
        sent = due
        time.sleep(TICK)
    _tell(sent, begun)


def _tell(sent: int, begun: float) -> None:
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - begun}), flush=True)


def _door(number: int) -> socket.socket:
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.bind((f"127.66.{number // 250}.{number % 250 + 1}", 0))
    return door


if __name__ == "__main__":
    main()
