# SPDX-License-Identifier: Apache-2.0
"""No key in what looks on: a protected Gm, traces of files and live ones, attacks, the administrator's listener (docs/security.md).

Every search is shown to find a key that is planted where it looked.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from keyferry.client.ue import Isim, open_ue
from keyferry.config import Subscriber
from keyferry.lab.capture import Capture
from keyferry.lab.demo import demo_config
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import parse_aka_nonce, parse_challenge
from keyferry.protocol.esp import expand_keys
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.protocol.ims.keys import access_keys
from keyferry.protocol.sip.message import Response, build_message
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.esp_sas import EspSas
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from system.key_search import KeySearch
from system.serving import EVENT_LIMIT, make_lab, until
from system.test_secrets import KEY_FILES, Recorded, _hop, _keys_of, folder_fixture

__all__ = ["folder_fixture"]

IMPI = "user1_private@home1.net"
ATTACKS = ("strip-release", "alter-keys", "isc-rebind")


def clean_and_searched(search: KeySearch, folder: Path, *, leave_out: Iterable[str] = (), plant: Iterable[Path], key: bytes) -> None:
    """Find no key below a folder; and find `key` in each file of `plant` when it is put there."""
    excepted = frozenset(leave_out)
    assert search.in_files(folder, leave_out=excepted) == []
    for path in plant:
        was = path.read_bytes()
        assert was, f"{path.name} is empty: nothing was searched"
        path.write_bytes(was[: len(was) // 2] + key.hex().encode() + was[len(was) // 2 :])
        assert search.in_files(folder, leave_out=excepted) == [f"{path.relative_to(folder)}: a recorded key"]
        path.write_bytes(was)


def a_key(recorded: Recorded) -> bytes:
    """Return the longest key that was recorded."""
    return bytes.fromhex(max(recorded.ledger.read_text().split(), key=len))


def test_a_trace_of_a_capture_prints_no_key_though_the_capture_holds_some(folder: Path, tmp_path: Path) -> None:
    """CK', IK' stand in the 401 on Mw, and the profile is there to hold the keys of Gm; nothing else has any."""
    recorded = Recorded(folder, tmp_path / "ledger")
    recorded.run("demo", "--capture", folder / "demo.pcap")
    recorded.run("trace", folder / "demo.pcap")
    recorded.run("trace", folder / "demo.pcap", "--json")
    search = recorded.search()
    on_purpose = {"demo.pcap", "demo.wireshark/esp_sa"}
    assert {line.partition(":")[0] for line in search.in_files(folder)} == on_purpose
    outputs = sorted(folder.glob("*.out"))
    assert [path.name for path in outputs] == ["1-demo.out", "2-trace.out", "3-trace.out"]
    assert b"marker: release 6" in outputs[1].read_bytes()
    clean_and_searched(search, folder, leave_out=on_purpose, plant=outputs, key=a_key(recorded))


def test_a_live_trace_and_the_admin_listener_print_no_key(folder: Path, tmp_path: Path) -> None:
    lab = make_lab(folder)
    recorded = Recorded(folder, tmp_path / "ledger")
    server = recorded.start("serve", "--config", lab.serve, "--state", lab.state, "--log", "json")
    port = lab.ports["8080"]
    common = ("--config", lab.ue, "--state", lab.state)
    follow = ("trace", "--follow", IMPI, "--admin", f"127.0.0.1:{port}")
    lookers = []
    try:
        until(lambda: any(b"ready" in path.read_bytes() for path in folder.glob("*-serve.out")), seconds=EVENT_LIMIT, what="serve is ready")
        lookers = [recorded.start(*follow), recorded.start(*follow, "--json")]
        until(
            lambda: sum(b"following" in path.read_bytes() for path in folder.glob("*-trace.err")) == 2,
            seconds=EVENT_LIMIT,
            what="both follow",
        )
        recorded.run("ue", "register", *common)
        answers = [folder / f"admin-{place}.json" for place in range(len(ASKED))]
        for path, (method, target, body) in zip(answers, ASKED, strict=True):
            path.write_bytes(_asked(port, method, target, body))
        assert IMPI.encode() in answers[2].read_bytes()
        recorded.run("ue", "deregister", *common)
    finally:
        server.terminate()
        assert server.wait(30) == 0
        assert [one.wait(30) for one in lookers] == [0] * len(lookers)
    followed = sorted(folder.glob("*-trace.out"))
    assert all(b"rspauth" in path.read_bytes() for path in followed)
    assert all(b"ESP" in path.read_bytes() for path in followed)
    leave_out = KEY_FILES | {path.relative_to(folder).as_posix() for path in (folder / "state" / "isc").glob("*")}
    plant = [*followed, *answers, *folder.glob("*-serve.err")]
    clean_and_searched(recorded.search(), folder, leave_out=leave_out, plant=plant, key=a_key(recorded))


JSON = {"Content-Type": "application/json"}
ASKED = (
    ("GET", "/health", b""),
    ("GET", "/metrics", b""),
    ("GET", f"/registrations?impi={IMPI}", b""),
    ("GET", "/registrations?limit=5", b""),
    ("GET", "/registrations?impi=%00", b""),
    ("GET", "/nothing", b""),
    ("POST", f"/registrations/{IMPI}/reauthenticate", b"{}"),
    ("POST", f"/registrations/{IMPI}/deregister", b'{"event": "none"}'),
)


def _asked(port: int, method: str, target: str, body: bytes) -> bytes:
    """Return status, header fields and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, target, body or None, JSON if body else {})
        response = connection.getresponse()
        return f"{response.status} {response.headers}".encode() + response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_prints_no_key_of_the_network_that_it_attacked(folder: Path, tmp_path: Path, name: str) -> None:
    """Whatever the hostile party got hold of, and though the judge knows all."""
    recorded = Recorded(folder, tmp_path / "ledger")
    recorded.run("lab", "attack", name)
    recorded.run("lab", "attack", name, "--json")
    outputs = sorted(folder.glob("*.out"))
    assert json.loads(outputs[1].read_text())["ok"] is True
    assert len(recorded.ledger.read_text().split()) > 100
    clean_and_searched(recorded.search(), folder, plant=outputs, key=a_key(recorded))


async def test_a_protected_gm_shows_no_key_in_its_messages_nor_in_its_packets(folder: Path) -> None:
    """CK', IK' go from the S-CSCF to the P-CSCF in the 401, as in the specification; on Gm nothing, inside ESP as outside."""
    events: list[SipEvent] = []
    k, opc = Secret(os.urandom(16)), Secret(os.urandom(16))
    settings = Subscriber(impi="a@home1.net", impus=["sip:a@home1.net"], k=k, opc=opc)
    random, clock, log = SystemRandom(), SystemClock(), StructLog("none")
    capture = Capture(clock, keep=True)
    async with AsyncExitStack() as stack:
        state = stack.enter_context(open_state(folder / "state", random=random))
        system = System(demo_config("short", [settings], "required"), state, clock, random, log, Metrics(), observer=events.append)
        stack.push_async_callback(system.stop)
        await system.start()
        hop, gm = (next(one for one in system.listeners if (one.role, one.proto) == ("pcscf", proto)) for proto in ("udp", "esp"))
        profile = UeProfile(parse_impi("a@home1.net"), parse_impu("sip:a@home1.net"), "home1.net")
        opened = open_ue(
            profile, Isim("milenage", k, opc), pcscf=SipPeer("UDP", hop.host, hop.port), store=MemoryUeStore(), clock=clock,
            random=random, log=log, observer=events.append, gm=SipPeer("UDP", gm.host, gm.port),
        )  # fmt: skip
        client = await stack.enter_async_context(opened)
        assert system.pcscf is not None
        for security in (system.pcscf.security, client.ue.security):
            assert security is not None
            assert isinstance(security.gm, EspSas)
            capture.attach(security.gm)
        registered = await client.register()
        await client.register()
        await client.deregister()
        challenges = [event for event in events if isinstance(event.message, Response) and event.message.status == 401]
        keys = [*_keys_of(profile, k, opc, registered, challenges), *_gm_keys_of(profile, k, opc, challenges)]
        search = KeySearch(keys)
        found = {name for event in events for name in search.in_octets(_hop(event), build_message(event.message))}
        hops = ("S-CSCF sends", "I-CSCF gets", "I-CSCF sends", "P-CSCF gets")
        assert found == {f"{hop} 401: {name}" for hop in hops for name in ("CK'", "IK'")}
        packets = b"".join(packet for _, packet in capture.packets)
        assert len(capture.packets) >= 4
        assert search.in_octets("ESP", packets) == []
        assert all(search.in_octets("ESP", packets[:100] + key + packets[100:]) for _, key in keys if len(key) >= 16)
        assert search.in_files(folder) == []
        (folder / "planted").write_bytes(keys[-1][1])
        assert f"planted: {keys[-1][0]}" in search.in_files(folder)


def _gm_keys_of(profile: UeProfile, k: Secret, opc: Secret, challenges: list[SipEvent]) -> Iterator[tuple[str, bytes]]:
    for nonce in sorted({parse_challenge(event.message.get("WWW-Authenticate") or "").nonce for event in challenges}):
        rand = parse_aka_nonce(nonce).rand
        f2345 = Milenage(k, opc).f2345(rand)
        pair = access_keys(f2345.ck, f2345.ik, rand, profile.impi)
        esp = expand_keys(pair.ck, pair.ik, alg="hmac-sha-1-96", ealg="aes-cbc")
        yield from (("CK'", pair.ck.reveal()), ("IK'", pair.ik.reveal()), ("integrity key", esp.integrity.reveal()))
