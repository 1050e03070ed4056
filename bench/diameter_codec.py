# SPDX-License-Identifier: Apache-2.0
"""Measure what a Diameter message costs to make and to read: ours, and what the library's codec takes for the same octets.

    python bench/diameter_codec.py
    python bench/diameter_codec.py --rounds 20000 --json

Processor time in microseconds, the least of some repetitions, so that what the machine does besides counts as little as may be.
`build` is from values to octets, `parse` from octets to values, identities and keys checked. The library's columns are its AVPs of the
same values made and rendered, and its plain messages read and each value decoded; it checks none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from diameter.message import Avp, AvpGrouped, Message

from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import DiameterIdentity
from keyferry.protocol.diameter.message import parse_message, render_message
from keyferry.protocol.identity import Impi, Impu

REPETITIONS = 7
HSS = DiameterIdentity("hss.home1.net", "home1.net")
ROUTE = cx.Route(DiameterIdentity("scscf1.home1.net", "home1.net"), "scscf1.home1.net;1732752000;17", "home1.net", "hss.home1.net")
IMPI, IMPU, SERVER = Impi("user1_private@home1.net"), Impu("sip:user1_public1@home1.net"), "sip:scscf1.home1.net:6060"
VECTOR = AuthVector(bytes(range(16)), bytes(range(16)), Secret(bytes(8)), Secret(bytes(16)), Secret(bytes(16)))
PROFILE = b"<IMSSubscription>" + b"x" * 1_500 + b"</IMSSubscription>"


def commands() -> dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]]:
    """Return how the messages of a registration are made and read."""
    mar = cx.Mar(IMPI, IMPU, SERVER)
    sar = cx.Sar(IMPI, (IMPU,), SERVER, cx.ServerAssignmentType.REGISTRATION)
    asked, assigned = cx.build_mar(mar, ROUTE), cx.build_sar(sar, ROUTE)
    maa, saa = cx.Maa(IMPI, IMPU, (cx.AuthItem(VECTOR),)), cx.Saa(IMPI, PROFILE)
    return {
        "MAR": (lambda: render_message(cx.build_mar(mar, ROUTE)), lambda data: cx.parse_mar(parse_message(data))),
        "MAA": (lambda: render_message(cx.build_maa(asked, maa, HSS)), lambda data: cx.parse_maa(parse_message(data))),
        "SAR": (lambda: render_message(cx.build_sar(sar, ROUTE)), lambda data: cx.parse_sar(parse_message(data))),
        "SAA": (lambda: render_message(cx.build_saa(assigned, saa, HSS)), lambda data: cx.parse_saa(parse_message(data))),
    }


def values_of(avps: list[Any]) -> list[Any]:
    """Return code, vendor and value of the library's AVPs, and of those in groups."""
    return [(avp.code, avp.vendor_id, values_of(avp.value) if isinstance(avp, AvpGrouped) else avp.value) for avp in avps]


def made_of(values: list[Any]) -> list[Avp]:
    """Return the library's AVPs of values."""
    return [Avp.new(code, vendor, value=made_of(value) if isinstance(value, list) else value) for code, vendor, value in values]


def rendered_by_library(header: Any, values: list[Any]) -> bytes:
    """Make a message of values, and its octets."""
    return bytes(Message(header, made_of(values)).as_bytes())


def read_by_library(octets: bytes) -> list[Any]:
    """Read a message, and its values."""
    return values_of(Message.from_bytes(octets, plain_msg=True).avps)


def least(work: Callable[[], object], rounds: int) -> float:
    """Return the microseconds of one call."""
    found = []
    for _ in range(REPETITIONS):
        began = time.process_time()
        for _ in range(rounds):
            work()
        found.append(time.process_time() - began)
    return min(found) / rounds * 1e6


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return the figures of each message."""
    report = {}
    for name, (build, parse) in commands().items():
        octets = build()
        theirs = Message.from_bytes(octets, plain_msg=True)
        values = values_of(theirs.avps)
        remade = Message(theirs.header, made_of(values)).as_bytes()
        if remade != octets:
            raise SystemExit(f"the library renders another {name}")
        report[name] = {
            "octets": float(len(octets)),
            "build": least(build, rounds),
            "parse": least(partial(parse, octets), rounds),
            "library_build": least(partial(rendered_by_library, theirs.header, values), rounds),
            "library_parse": least(partial(read_by_library, octets), rounds),
        }
    return report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5_000, help="messages of each kind, in each of seven repetitions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    report = measure(options.rounds)
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    sys.stdout.write("microseconds  octets  build  parse  library: render  read\n")
    for name, row in report.items():
        figures = (row["octets"], row["build"], row["parse"], row["library_build"], row["library_parse"])
        sys.stdout.write("{:12}  {:6.0f} {:6.1f} {:6.1f} {:16.1f} {:5.1f}\n".format(name, *figures))


if __name__ == "__main__":
    main()
