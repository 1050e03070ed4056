# SPDX-License-Identifier: Apache-2.0
"""Our AS behind S-CSCFs of others: third-party REGISTERs in the shapes of third_party.toml, over real sockets (TS 24.229 §5.4.1.7)."""

from __future__ import annotations

import itertools
import random
import re
import secrets
import socket
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, reg_of
from keyferry.protocol.ims.keypush import Push, PushedKey, seal_push
from keyferry.protocol.ims.keys import key_id
from keyferry.protocol.xmlsafe import escape
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from system.serving import EVENT_LIMIT, Served, make_lab, serving
from system.staying import metric

SHAPES: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "third_party.toml").read_text("utf-8"))["vector"]
AS_ID, SCSCF = AsId("xcap.home1.net"), "scscf1.home1.net"
COUNTS = {
    "stored": 'as_pushes_total{reason="stored"}', "no-keys": 'as_pushes_total{reason="no-keys"}',
    "ended": 'as_pushes_total{reason="erased"}', "unreadable": 'as_pushes_refused_total{reason="unreadable"}',
}  # fmt: skip
LISTED = f'pushers = ["{SCSCF}"]\nunsealed_ends = ["{SCSCF}"]\n'


@dataclass(slots=True)
class Behind:
    """An AS that serves, and the S-CSCF that tells it of users, each time another one."""

    served: Served
    transport_key: Secret
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def user(self) -> tuple[Impu, str]:
        """Return a new user, and the block that gives the AS a key of theirs."""
        number, now, k_as = next(self._numbers), int(time.time()), Secret(secrets.token_bytes(32))
        impu = Impu(f"sip:user{number}@home1.net")
        key = PushedKey(key_id(k_as, "home1.net"), k_as, now, now + 600)
        push = Push(1, Impi(f"user{number}@home1.net"), AS_ID, reg_of(f"<urn:uuid:{number}>"), (key,), (impu,))
        return impu, seal_push(push, transport_key=self.transport_key, scscf=SCSCF, kid="t1")

    def send(self, shape: dict[str, Any], impu: Impu, block: str, proto: str) -> int:
        """Send a shape as it stands there, and return the status."""
        answer = _exchange(self.octets(shape, impu, block, proto), self.served.port("as", AS_ID, proto.lower()), proto)
        return int(answer.split(b" ", 2)[1])

    def octets(self, shape: dict[str, Any], impu: Impu, block: str, proto: str) -> bytes:
        """Return what an S-CSCF would send."""
        words = {"block": block, "escaped": escape(block), "impu": impu}
        body = _filled(shape["body"].removeprefix("\n"), words).rstrip("\n").replace("\n", "\r\n").encode()
        words |= {
            "via": f"SIP/2.0/{proto} 127.0.0.1:5054;rport;branch=z9hG4bK{secrets.token_hex(6)}", "id": secrets.token_hex(8),
            "length": str(len(body)),
        }  # fmt: skip
        head = _filled(shape["head"].removeprefix("\n"), words).replace("\n", "\r\n").encode()
        return head + b"\r\n" + body

    def state(self, effect: str) -> tuple[int, int]:
        """Return how often the AS has counted an effect, and how many keys it has."""
        return int(metric(self.served, f"keyferry_{COUNTS[effect]}")), int(self.served.health()["keys"][AS_ID])


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], text)


def _exchange(data: bytes, port: int, proto: str) -> bytes:
    kind = socket.SOCK_STREAM if proto == "TCP" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as own:
        own.settimeout(EVENT_LIMIT)
        own.connect(("127.0.0.1", port))
        own.sendall(data)
        return own.recv(65535)


@pytest.fixture(name="behind", scope="module")
def behind_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """An AS alone: nothing of ours pushes to it."""
    lab = make_lab(tmp_path_factory.mktemp("behind"), lambda text: text.replace("listen_sip = ", LISTED + "listen_sip = ", 1))
    transport_key = Secret(secrets.token_bytes(64))
    with open_state(lab.state, random=SystemRandom()) as state:
        state.write_isc_keys(SCSCF, AS_ID, {"t1": transport_key})
    with serving(lab.serve, lab.state, "--role", "as", "--role", "admin") as served:
        yield Behind(served, transport_key)


@pytest.mark.parametrize("proto", ["TCP", "UDP"])
@pytest.mark.parametrize("shape", SHAPES, ids=[shape["id"] for shape in SHAPES])
def test_each_shape_has_its_effect_and_no_other(behind: Behind, shape: dict[str, Any], proto: str) -> None:
    """TS 24.229 §5.7.1.1: and what went before is untouched."""
    (other, others), (impu, block), effect = behind.user(), behind.user(), shape["effect"]
    push = SHAPES[0]
    assert behind.send(push, other, others, proto) == 200
    if effect == "ended":
        assert behind.send(push, impu, block, proto) == 200
    counted, keys = behind.state(effect)
    assert behind.send(shape, impu, block, proto) == (400 if effect == "unreadable" else 200)
    change = {"stored": 1, "ended": -1}.get(effect, 0)
    assert behind.state(effect) == (counted + 1, keys + change)


def test_no_damage_of_a_shape_stops_the_as(behind: Behind) -> None:
    """Octets that are lost, doubled or others: each costs its message, and changes no key of anybody else."""
    chance, (impu, block) = random.Random(24_229), behind.user()
    assert behind.send(SHAPES[0], impu, block, "TCP") == 200
    keys = behind.state("stored")[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        for turn in range(20):
            for shape in SHAPES:
                data = behind.octets(shape, Impu("sip:nobody@home1.net"), block, "UDP")
                place = chance.randrange(len(data))
                noise = chance.choice((b"", chance.randbytes(3), data[place : place + 40] * 2, b"<", b"\r\n", b"\0"))
                own.sendto(
                    data[:place] + noise + data[place + chance.randrange(40) :], ("127.0.0.1", behind.served.port("as", AS_ID, "udp"))
                )
            if turn % 5 == 0:
                assert behind.state("stored")[1] == keys  # and it has time to read them
    assert behind.send(SHAPES[0], *behind.user(), "UDP") == 200
    assert behind.state("stored")[1] == keys + 1
    assert not re.search(r"internal-error[^\n]* [1-9]", behind.served.admin("/metrics")[1])


def test_an_end_without_a_seal_ends_nothing_where_the_s_cscf_can_seal(tmp_path: Path) -> None:
    """DESIGN §6: any program of the machine can say so; it is answered 200 all the same, and is no alarm."""
    end = next(shape for shape in SHAPES if shape["id"] == "clearwater-end")
    lab = make_lab(tmp_path, lambda text: text.replace("listen_sip = ", f'pushers = ["{SCSCF}"]\nlisten_sip = ', 1))
    transport_key = Secret(secrets.token_bytes(64))
    with open_state(lab.state, random=SystemRandom()) as state:
        state.write_isc_keys(SCSCF, AS_ID, {"t1": transport_key})
    with serving(lab.serve, lab.state, "--role", "as", "--role", "admin") as served:
        behind = Behind(served, transport_key)
        impu, block = behind.user()
        assert behind.send(SHAPES[0], impu, block, "TCP") == 200
        assert behind.send(end, impu, "", "TCP") == 200
        assert served.health()["keys"][AS_ID] == 1
        assert metric(served, 'keyferry_as_pushes_total{reason="unproven-end"}') == 1
