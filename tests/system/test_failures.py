# SPDX-License-Identifier: Apache-2.0
"""A registration that fails says which input disagrees: at the UE, in the log, at the operator's (docs/errors.md). Real commands."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.verdicts import ADVICE, Reason
from keyferry.stores.database import Database
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.sqlite.ue import SqliteUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from system.key_search import KeySearch
from system.serving import Lab, Served, free_port, in_clear, keyferry, make_lab, serving, ue

USER1, USER2 = Impi("user1_private@home1.net"), Impi("user2_private@home1.net")
K1, OPC1 = "465b5ce8b199b49faa5f0a2ee238a6bc", "cd63cb71954a9f4e48a5994e37a02baf"
K2, OP2 = "0396eb317b6d1c36f19c1c84cd6ffd16", "ff53bade17df5d4e793073ce9d7579fa"
OPC2 = "53c15671c60a4b731c55b4a441c0bde2"
SECRETS = KeySearch((name, bytes.fromhex(key)) for name, key in (("K1", K1), ("OPc1", OPC1), ("K2", K2), ("OP2", OP2), ("OPc2", OPC2)))
Edit = Callable[[bytes], bytes]


@contextmanager
def relay(target: int, to_ue: Edit = bytes, to_network: Edit = bytes) -> Iterator[int]:
    """Stand between a UE and its P-CSCF over UDP and change datagrams; the port is yielded."""
    front, back = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with front, back:
        front.bind(("127.0.0.1", free_port()))
        back.bind(("127.0.0.1", 0))
        peer: list[Any] = []

        def inward() -> None:
            while (got := front.recvfrom(65_536))[0]:
                peer[:] = [got[1]]
                back.sendto(to_network(got[0]), ("127.0.0.1", target))

        def outward() -> None:
            while data := back.recv(65_536):
                front.sendto(to_ue(data), peer[0])

        threads = [threading.Thread(target=work, daemon=True) for work in (inward, outward)]
        for thread in threads:
            thread.start()
        yield int(front.getsockname()[1])
        for own in (front, back):  # an empty datagram ends its thread
            front.sendto(b"", own.getsockname()) if own is back else back.sendto(b"", own.getsockname())
        for thread in threads:
            thread.join(60.0)


def user2(opc: str, *, field: str = "opc") -> Callable[[str], str]:
    """Make the second subscriber's UE of the first one's file."""

    def edit(text: str) -> str:
        changed = text.replace("user1_", "user2_").replace(K1, K2)
        return changed.replace(f'opc = "{OPC1}"', f'{field} = "{opc}"')

    return edit


def variant(lab: Lab, name: str, edit: Callable[[str], str]) -> Path:
    """Write another UE's file."""
    text = lab.ue.read_text("utf-8")
    changed = edit(text)
    assert changed != text
    file = lab.ue.with_name(f"{name}.toml")
    file.write_text(changed, "utf-8")
    return file


class Tried:
    """A `keyferry ue register` that failed, and what the network says of it."""

    def __init__(self, lab: Lab, served: Served, name: str, edit: Callable[[str], str]) -> None:
        config = variant(lab, name, edit)
        before = served.log.stat().st_size
        done = keyferry("ue", "register", "--config", config, "--state", lab.state.with_name(f"ue-{name}"), "--json")
        assert done.returncode == 1, done.stdout
        self.ue: dict[str, Any] = json.loads(done.stdout)
        self.stderr = done.stderr
        impi = USER2 if "user2_" in config.read_text("utf-8") else USER1
        status, body = served.admin(f"/failures?impi={impi}")
        assert status == 200
        self.network: dict[str, Any] = json.loads(body)["failures"][0]
        with served.log.open("rb") as log:
            log.seek(before)
            lines = [json.loads(line) for line in log]
        self.line = next(line for line in lines if line["event"] in {"authentication-failed", "authentication-repeated"})
        assert SECRETS.in_octets("output", (done.stdout + done.stderr + body).encode()) == []


@pytest.fixture(name="running", scope="module")
def running_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Served]]:
    """One network for all that does not change it; no key is ever in its log."""
    lab = make_lab(tmp_path_factory.mktemp("failures"), edit_ue=in_clear)
    with serving(lab.serve, lab.state, "--log", "json") as served:
        yield lab, served
        assert SECRETS.in_octets("log", served.log.read_bytes()) == []


def test_op_in_place_of_opc(running: tuple[Lab, Served]) -> None:
    """TS 35.206 §4.1. The network hears only that its MAC is wrong; the UE finds out why."""
    tried = Tried(*running, "op-for-opc", user2(OP2))
    assert (tried.ue["ok"], tried.ue["status"], tried.ue["reasons"]) == (False, 403, ["op-for-opc"])
    assert "give the card's value as `op`" in tried.ue["because"]
    assert tried.ue["remedy"] == ADVICE[Reason.OP_FOR_OPC].remedy
    assert "one side takes OP where the other takes OPc" in tried.stderr
    assert tried.network["reasons"] == ["mac"]
    assert (tried.line["reasons"], tried.line["remedy"]) == ("mac", ADVICE[Reason.MAC].remedy)


def test_opc_in_place_of_op(running: tuple[Lab, Served]) -> None:
    """The UE derives twice."""
    tried = Tried(*running, "opc-for-op", user2(OPC2, field="op"))
    assert tried.ue["reasons"] == ["op-for-opc"]
    assert "what this card has as OP is OPc" in tried.ue["because"]


def test_another_k(running: tuple[Lab, Served]) -> None:
    tried = Tried(*running, "other-k", lambda text: text.replace(K1, K1[::-1]))
    assert tried.ue["reasons"] == ["k-or-opc"]
    assert (tried.network["reasons"], tried.network["status"], tried.network["function"]) == (["mac"], 403, "S-CSCF")
    assert tried.network["impi"] == USER1


def test_another_amf(running: tuple[Lab, Served]) -> None:
    """TS 33.102 §6.3.3: somebody on the way changes the AMF in AUTN, which its MAC protects."""

    def other_amf(data: bytes) -> bytes:
        def edited(found: re.Match[bytes]) -> bytes:
            octets = base64.b64decode(found[1])
            return b'nonce="' + base64.b64encode(octets[:22] + b"\x00\x00" + octets[24:]) + b'"'

        return re.sub(rb'nonce="([^"]{20,})"', edited, data) if data.startswith(b"SIP/2.0 401") else data

    lab, served = running
    with relay(lab.ports["5060"], to_ue=other_amf) as port:
        tried = Tried(lab, served, "amf", lambda text: text.replace(f":{lab.ports['5060']}", f":{port}"))
    assert tried.ue["reasons"] == ["amf"]
    assert tried.ue["because"].endswith("AUTN shows 0000, its MAC is of 8001")  # the HSS says that keys will come (amf_bit)
    assert (tried.network["reasons"], tried.network["status"]) == (["nonce"], 401)
    assert "a challenge, changed or cut" in tried.line["because"]


@pytest.mark.parametrize(
    ("name", "old", "new", "reasons", "because"),
    [
        ("realm", b'realm="home1.net"', b'realm="ho.me.net"', ["realm"], 'the answer says "ho.me.net", the challenge "home1.net"'),
        ("uri", b'uri="sip:home1.net"', b'uri="sip:home9.net"', ["uri"], '"sip:home1.net" was hashed'),
        ("qop", b"nc=00000001", b"nc=00000002", ["qop"], "nc is not 00000001"),
    ],
)
def test_an_answer_that_was_changed_on_its_way(
    running: tuple[Lab, Served], name: str, old: bytes, new: bytes, reasons: list[str], because: str
) -> None:
    """RFC 7616 §3.4: the S-CSCF finds which input of the hash disagrees; the UE knows only that it was refused."""
    lab, served = running
    with relay(lab.ports["5060"], to_network=lambda data: data.replace(old, new) if b"\r\nCSeq: 1 " not in data else data) as port:
        edit = user2(OP2, field="op") if name == "uri" else str  # one user is analysed once a second
        tried = Tried(lab, served, name, lambda text: edit(text).replace(f":{lab.ports['5060']}", f":{port}"))
    assert (tried.ue["reasons"], tried.network["reasons"], tried.line["reasons"]) == (["refused"], reasons, ",".join(reasons))
    assert because in tried.network["because"]
    assert because in tried.line["because"]
    assert tried.network["reg"] == tried.line["reg"]


def test_a_ue_whose_home_is_another_network(running: tuple[Lab, Served]) -> None:
    """It registers, its keys are not activated, and the operator sees why."""
    lab, served = running
    config = variant(lab, "home", lambda text: text.replace('home_domain = "home1.net"', 'home_domain = "home2.net"'))
    done = keyferry("ue", "register", "--config", config, "--state", lab.state.with_name("ue-home"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["no_keys_because"] == "the challenge is not from the home realm"
    (found, *_) = json.loads(served.admin(f"/failures?impi={USER1}")[1])["failures"]
    assert (found["reasons"], found["status"]) == (["realm"], 401)
    assert 'the UE\'s home is "home2.net", this network\'s "home1.net"' in found["because"]


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("unknown", '"user1_private@', '"user9_private@', "user-unknown"),
        ("identity", "sip:user1_public1", "sip:user2_public1", "identities"),
    ],
)
def test_whom_the_hss_does_not_let_in(running: tuple[Lab, Served], name: str, old: str, new: str, reason: str) -> None:
    """TS 29.229 §6.2.2."""
    lab, served = running
    config = variant(lab, name, lambda text: text.replace(old, new))
    done = keyferry("ue", "register", "--config", config, "--state", lab.state.with_name(f"ue-{name}"))
    assert done.returncode == 1
    assert "403" in done.stderr
    (found, *_) = json.loads(served.admin("/failures?limit=1")[1])["failures"]
    assert (found["reasons"], found["function"]) == ([reason], "I-CSCF")


def test_the_command_shows_all_or_one_user_for_people_and_for_scripts(running: tuple[Lab, Served]) -> None:
    lab, served = running
    Tried(lab, served, "again", lambda text: text.replace(K1, K1[::-1]))
    admin = ("--admin", f"127.0.0.1:{lab.ports['8080']}")
    shown = keyferry("failures", *admin)
    assert shown.returncode == 0, shown.stderr
    assert "the UE did not accept the MAC in AUTN" in " ".join(shown.stdout.split())
    assert USER1 in shown.stdout
    ue(lab, "register")
    one = keyferry("failures", *admin, "--impi", USER1)
    assert "1 registered, 0 challenged and not answered" in one.stdout
    assert "with AS keys, until 20" in one.stdout
    printed = json.loads(keyferry("failures", *admin, "--impi", USER1, "--json").stdout)
    assert printed["failures"][0]["reasons"] == ["mac"]
    assert len(printed["registrations"]) == 1
    assert (printed["challenges"], printed["owed"]) == (0, [])
    assert SECRETS.in_octets("output", (shown.stdout + one.stdout + json.dumps(printed)).encode()) == []
    nobody = keyferry("failures", *admin, "--impi", "nobody@home1.net")
    assert "0 registered" in nobody.stdout
    assert "no failure is remembered" in nobody.stdout
    gone = keyferry("failures", "--admin", "127.0.0.1:1")
    assert (gone.returncode, "is `keyferry serve` running" in gone.stderr) == (1, True)


def _set_ue(lab: Lab, seq: int) -> None:
    async def change() -> None:
        with open_state(lab.state, random=SystemRandom()) as state, Database(state.path("ue.db")) as database:
            store = SqliteUeStore(database, state.keyring)
            before = await store.load(USER1)
            assert before is not None
            await store.save(replace(before, seq_ms=(seq,) * 32))

    asyncio.run(change())


def _set_hss(lab: Lab, seq: int) -> None:
    async def change() -> None:
        with open_state(lab.state, random=SystemRandom()) as state, Database(state.path("hss.db")) as database:
            await SqliteSubscriberStore(database, state.keyring).reserve_seq(USER1, seq, 1, anew=True)

    asyncio.run(change())


def _last(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(served.admin(f"/failures?impi={USER1}")[1])["failures"][0]
    return found


def test_an_sqn_that_is_behind_or_ahead_is_named_with_its_distance(lab: Lab) -> None:
    """TS 33.102 annex C: the HSS follows, the UE registers, and both say how far they were apart."""
    with serving(lab.serve, lab.state, "--log", "json") as served:
        ue(lab, "register")  # SEQ 1
        _set_ue(lab, 5_000)
        assert ue(lab, "register")["keys"] is True  # SEQ 2, AUTS, SEQ 5001
        behind = "the challenge is behind the card; SQN_MS - SQN_HE is +4998 in SEQ (IND 0 of the card, 2 of the challenge)"
        found = _last(served)
        assert (found["reasons"], found["status"]) == (["sqn"], 401)
        assert behind in found["because"]
        assert behind in served.log.read_text("utf-8")
    ahead = 5_001 + (1 << 28) + 1_000
    _set_hss(lab, ahead - 1)
    with serving(lab.serve, lab.state) as served:
        done = keyferry("ue", "register", "--config", lab.ue, "--state", lab.state, "--json")
        assert json.loads(done.stdout)["registered"] is True
        far = f"ahead by more than 2^28, which a card refuses (annex C.3); SQN_MS - SQN_HE is -{(1 << 28) + 1_000} in SEQ"
        assert far in done.stderr
        assert far in _last(served)["because"]


def test_a_key_that_an_application_server_refuses_is_shown(tmp_path: Path) -> None:
    """The alarm of a key that was not delivered."""
    lab = make_lab(tmp_path, lambda text: text.replace('app = "notes" ', 'pushers = ["scscf9.home1.net"]\napp = "notes" '))
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["registered"] is True
        found = _last(served)
        assert (found["reasons"], found["server"]) == (["push"], f"sip:notes-as.home1.net:{lab.ports['5091']}")
        assert "the AS answered 403" in found["problem"]
        shown = keyferry("failures", "--admin", f"127.0.0.1:{served.port('admin')}", "--impi", USER1)
        assert f"NOT DELIVERED: notes.home1.net at sip:notes-as.home1.net:{lab.ports['5091']}" in shown.stdout
