# SPDX-License-Identifier: Apache-2.0
"""Release 5 and Release 6 UEs at Release 5 and Release 6 S-CSCFs, through real sockets (DESIGN §5, the table and S1, S3)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keyferry.client.session import ue_session
from keyferry.config import UeConfig, load_config, load_ue_config
from keyferry.ports import SipEvent, UeState
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.digest import AkaNonce, parse_aka_nonce, parse_challenge, parse_credentials
from keyferry.protocol.identity import parse_impi
from keyferry.protocol.ims.activation import NO_MARKER
from keyferry.protocol.ims.keys import access_keys, application_master_key
from keyferry.protocol.ims.marker import Marker, parse_marker
from keyferry.protocol.sip.message import Request, Response, build_message
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from system.serving import Lab, keyferry, make_lab, serving, ue

NO_KEYS = {"xcap.home1.net": 0, "notes.home1.net": 0}
ONE_KEY_EACH = {"xcap.home1.net": 1, "notes.home1.net": 1}
RELEASE_5_UE = "this UE states no release, so the network ferries no keys (Release 5 behaviour)"
RELEASE_5_SCSCF = NO_MARKER
DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"


# ---- as a user sees it: processes


def test_a_release_5_ue_registers_and_nothing_is_pushed(tmp_path: Path) -> None:
    """DESIGN §5, the table: Release 5 UE, Release 6 S-CSCF."""
    lab = make_lab(tmp_path, edit_ue=_ue_release_5)
    with serving(lab.serve, lab.state) as served:
        shown = ue(lab, "register")
        assert (shown["registered"], shown["masked"], shown["keys"]) == (True, False, False)
        assert shown["no_keys_because"] == RELEASE_5_UE
        assert served.health() == {"ok": True, "registrations": 1, "keys": NO_KEYS}
        assert 'keyferry_scscf_authenticated_total{reason="raw"} 1.0' in served.admin("/metrics")[1]


def test_a_release_6_ue_at_a_release_5_scscf_says_clearly_that_there_are_no_keys(tmp_path: Path) -> None:
    """DESIGN §5, the table: Mt needs another mechanism."""
    lab = make_lab(tmp_path, _scscf_release_5)
    with serving(lab.serve, lab.state) as served:
        shown = ue(lab, "register")
        assert (shown["registered"], shown["release"], shown["masked"], shown["keys"]) == (True, 5, False, False)
        assert shown["no_keys_because"] == RELEASE_5_SCSCF
        asked = keyferry("ue", "get", "--config", lab.ue, "--state", lab.state, DOCUMENT)
        assert asked.returncode == 1
        assert asked.stderr == f"keyferry: no AS keys: {RELEASE_5_SCSCF}\n"
        assert served.health() == {"ok": True, "registrations": 1, "keys": NO_KEYS}


def test_a_ue_that_requires_keys_refuses_a_release_5_scscf(tmp_path: Path) -> None:
    """DESIGN §4: `require_keys = true` refuses to go on."""
    lab = make_lab(tmp_path, _scscf_release_5, lambda text: text.replace("[hosts]", "require_keys = true\n[hosts]", 1))
    with serving(lab.serve, lab.state):
        tried = keyferry("ue", "register", "--config", lab.ue, "--state", lab.state)
        assert tried.returncode == 1
        assert RELEASE_5_SCSCF in tried.stderr


def test_a_home_network_that_goes_back_to_release_5_is_noticed_and_its_old_keys_are_erased(tmp_path: Path) -> None:
    """DESIGN §4: later absence of the marker is reported as `downgraded`. §6: the set of keys is complete; empty erases."""
    lab = make_lab(tmp_path)
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["keys"]
        assert served.health()["keys"] == ONE_KEY_EACH
    lab.serve.write_text(_scscf_release_5(lab.serve.read_text()))
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["no_keys_because"] == f"downgraded: {RELEASE_5_SCSCF}"
        assert served.health()["keys"] == NO_KEYS
    lab.serve.write_text(lab.serve.read_text().replace("release = 5", "release = 6"))
    with serving(lab.serve, lab.state) as served:
        assert ue(lab, "register")["keys"]
        assert served.health()["keys"] == ONE_KEY_EACH


# ---- as an observer sees it: the same functions in this process, every message of theirs


@dataclass(slots=True)
class Observed:
    """One registration: what every SIP node sent and received, what the P-CSCF holds, what the AS holds."""

    events: list[SipEvent] = field(default_factory=list)
    pcscf_keys: list[bytes] = field(default_factory=list)
    key_counts: dict[str, int] = field(default_factory=dict)
    state: UeState | None = None
    stores_scanned: int = 0
    found_in_stores: list[str] = field(default_factory=list)

    def challenge(self) -> AkaNonce:
        """Return the nonce of the 401 that reached the UE."""
        (text,) = (one.message.get("WWW-Authenticate") for one in self._sent("P-CSCF") if _status(one) == 401)
        return parse_aka_nonce(parse_challenge(text or "").nonce)

    def marker(self) -> Marker | None:
        """Return what the S-CSCF said of itself."""
        return parse_marker(self.challenge().server_data)

    def third_party(self) -> list[Request]:
        """Return what the S-CSCF sent to application servers."""
        return [one.message for one in self._sent("S-CSCF") if isinstance(one.message, Request)]

    def wire(self, *nodes: str) -> bytes:
        """Return every octet that these nodes sent or received."""
        return b"\n".join(build_message(one.message) for one in self.events if one.node in nodes)

    def _sent(self, node: str) -> list[SipEvent]:
        return [one for one in self.events if one.node == node and one.outgoing]


@dataclass(slots=True)
class Aka:
    """What the subscriber's card computes for a challenge: an independent view of who may hold what."""

    ck: bytes
    ik: bytes
    access: bytes  # CK' || IK'
    k_m: bytes

    def forms_of_raw(self) -> Iterator[tuple[str, bytes]]:
        """Return CK and IK in every form that a log, a message or a database may hold them in."""
        for name, key in (("CK", self.ck), ("IK", self.ik), ("CK || IK", self.ck + self.ik), ("K_M", self.k_m)):
            yield f"{name} raw", key
            yield f"{name} hex", key.hex().encode()
            yield f"{name} HEX", key.hex().upper().encode()
            for encoded in (base64.b64encode(key), base64.urlsafe_b64encode(key)):
                yield f"{name} base64", encoded[: len(key) * 4 // 3 - 1]  # without what depends on what follows


def _aka(config: UeConfig, nonce: AkaNonce) -> Aka:
    assert config.ue.opc is not None
    run = Milenage(config.ue.k, config.ue.opc).f2345(nonce.rand)
    impi = parse_impi(config.ue.impi)
    access = access_keys(run.ck, run.ik, nonce.rand, impi)
    k_m = application_master_key(run.ck, run.ik, nonce.rand, impi)
    return Aka(run.ck.reveal(), run.ik.reveal(), access.ck.reveal() + access.ik.reveal(), k_m.reveal())


async def _observe(lab: Lab) -> Observed:
    """Register once."""
    observed = Observed()
    config = load_ue_config(lab.ue)

    def observe(event: SipEvent) -> None:
        observed.events.append(event)
        credentials = event.message.get("Authorization") if isinstance(event.message, Request) else None
        if event.node == "UE" and event.outgoing and credentials and parse_credentials(credentials).nonce:
            # Between the 401 and the second REGISTER: the one time at which a challenge is pending.
            _scan(observed, lab.state, _aka(config, parse_aka_nonce(parse_credentials(credentials).nonce)))

    async with _system(lab, observe) as system, ue_session(config, lab.ue.parent / "ue", StructLog("none"), observer=observe) as session:
        observed.state = await session.client.register()
        assert system.pcscf is not None
        observed.pcscf_keys = [held.reveal() for held in system.pcscf.gm_keys.values()]
        for server in system.servers:
            observed.key_counts[server.as_id] = await server.keys.count(system.clock.now())
        _scan(observed, lab.state, _aka(config, observed.challenge()))
    return observed


@asynccontextmanager
async def _system(lab: Lab, observe: Callable[[SipEvent], None]) -> AsyncIterator[System]:
    random = SystemRandom()
    with open_state(lab.state, random=random, exclusive=True) as state:
        system = System(load_config(lab.serve), state, SystemClock(), random, StructLog("none"), Metrics(), observer=observe)
        await system.start()
        try:
            yield system
        finally:
            await system.stop()


def _scan(observed: Observed, folder: Path, aka: Aka) -> None:
    observed.stores_scanned += 1
    for file in folder.rglob("*"):
        octets = file.read_bytes() if file.is_file() else b""
        observed.found_in_stores += [f"{file.name}: {form}" for form, needle in aka.forms_of_raw() if needle in octets]


@pytest.mark.parametrize("scscf_release", [5, 6])
async def test_a_release_5_ue_gets_raw_keys_and_no_key_block(tmp_path: Path, scscf_release: int) -> None:
    """DESIGN §5 step 2: not masked, so no K_M is ever derived. S1: nothing is pushed."""
    lab = make_lab(tmp_path, _scscf_release_5 if scscf_release == 5 else str, _ue_release_5)
    observed = await _observe(lab)
    assert observed.marker() == (None if scscf_release == 5 else Marker(6, access_keys=False, as_keys=False, rspauth=False))
    _is_raw(lab, observed)


async def test_a_release_6_ue_gets_raw_keys_and_no_key_block_from_a_release_5_scscf(tmp_path: Path) -> None:
    """DESIGN §5, the table; §4: no marker means Release 5."""
    lab = make_lab(tmp_path, _scscf_release_5)
    observed = await _observe(lab)
    assert observed.marker() is None
    assert observed.challenge().server_data == b""
    _is_raw(lab, observed)


async def test_a_release_6_network_that_does_not_mask_pushes_nothing(tmp_path: Path) -> None:
    """S1: a key is pushed only for an AV whose 401 carried CK', IK'."""
    lab = make_lab(tmp_path, lambda text: text.replace("[admin]", "mask = false\n[admin]", 1))
    observed = await _observe(lab)
    _is_raw(lab, observed)


async def test_nobody_but_the_ends_holds_the_keys_of_a_masked_vector(tmp_path: Path) -> None:
    """S3: CK, IK are on no wire, not in the P-CSCF and in no file, while CK', IK' are where they belong."""
    lab = make_lab(tmp_path)
    observed = await _observe(lab)
    aka = _aka(load_ue_config(lab.ue), observed.challenge())
    assert observed.marker() == Marker(6, access_keys=True, as_keys=True, rspauth=True)
    assert observed.key_counts == ONE_KEY_EACH
    assert observed.state is not None
    assert observed.state.masked

    gm, inside, everything = observed.wire("UE"), observed.wire("I-CSCF", "S-CSCF"), observed.wire(*{one.node for one in observed.events})
    access = (aka.access[:16].hex().encode(), aka.access[16:].hex().encode())
    assert all(key in inside for key in access)
    assert not any(key in gm for key in access)
    held = b"".join(observed.pcscf_keys)
    assert observed.pcscf_keys == [aka.access]
    for form, needle in aka.forms_of_raw():
        assert needle not in everything, form
        assert needle not in held, form
    assert observed.stores_scanned == 2
    assert observed.found_in_stores == []


def test_the_scan_of_the_stores_finds_every_form(tmp_path: Path) -> None:
    """S3: a scan that finds nothing must be one that could have found something."""
    aka = Aka(ck=bytes(range(16)), ik=bytes(range(100, 116)), access=bytes(32), k_m=bytes(range(200, 232)))
    forms = dict(aka.forms_of_raw())
    assert forms["CK || IK base64"] in base64.b64encode(aka.ck + aka.ik + b"more")
    (tmp_path / "a.db-wal").write_bytes(b"page " + base64.b64encode(aka.ik + b"more") + b" page")
    observed = Observed()
    _scan(observed, tmp_path, aka)
    assert set(observed.found_in_stores) == {"a.db-wal: IK base64"}


def _is_raw(lab: Lab, observed: Observed) -> None:
    """Check everything that a registration with CK, IK on Gm must be."""
    aka = _aka(load_ue_config(lab.ue), observed.challenge())
    assert observed.state is not None
    assert observed.state.expires_at > 0
    assert not observed.state.masked
    assert observed.state.k_m is None
    assert observed.pcscf_keys == [aka.ck + aka.ik]
    assert aka.ck.hex().encode() in observed.wire("S-CSCF")
    assert aka.ck.hex().encode() not in observed.wire("UE")
    assert observed.key_counts == NO_KEYS
    third_party = observed.third_party()
    assert {request.uri.partition(":")[2].partition(":")[0] for request in third_party} == {"xcap-as.home1.net", "notes-as.home1.net"}
    assert not any(b"keyferry" in request.body or b"sealed" in request.body for request in third_party)
    assert observed.found_in_stores == []


def _status(event: SipEvent) -> int:
    return event.message.status if isinstance(event.message, Response) else 0


def _scscf_release_5(text: str) -> str:
    return text.replace("release = 6 ", "release = 5 ", 1)


def _ue_release_5(text: str) -> str:
    return text.replace("release = 6 ", "release = 5 ", 1)
