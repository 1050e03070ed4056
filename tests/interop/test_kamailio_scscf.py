# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio is the S-CSCF (DESIGN §10): our UE, HSS, P-CSCF, I-CSCF and AS around it; sipp as a Release 5 UE; a hostile P-CSCF."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest

from interop.capturing import capturing
from interop.kamailio_kit import AS_ID, IMPI, IMPU, REALM, Network, RawUe, keys_of, long_lived, network, nonce_of, run_of
from interop.sipp_program import sipp
from interop.test_sipp import SCENARIO, _res
from keyferry.client.session import ue_session
from keyferry.client.ue import UeClient, http_credentials
from keyferry.config import UeConfig, load_ue_config
from keyferry.errors import RegistrationFailed
from keyferry.kemi.store import SEND_AGAIN
from keyferry.ports import UeState
from keyferry.protocol.digest import check_rspauth, hash_a1, parse_authentication_info, parse_credentials
from keyferry.protocol.ims.keys import digest_password, key_id, ua_key
from keyferry.wiring.observability import StructLog
from system.key_search import KeySearch
from system.serving import keyferry, until

pytestmark = pytest.mark.interop
STRANGERS = 200  # REGISTERs in a user's name
RACES = 1  # ims_auth sends the 401 before it stores the vector, so who answers fast is challenged once more


@pytest.fixture(name="running", scope="module")
def running_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Start everything once."""
    with network(tmp_path_factory.mktemp("kamailio")) as found:
        yield found


def test_a_ue_registers_four_times_and_leaves(running: Network, tmp_path: Path) -> None:
    """TS 24.229 §5.4.1: each time the AS has the key that the UE has, and the older one dies; no key is on a wire or in a log.

    Every capture, Kamailio's whole log and all of ours are searched for every key in play. What Cx carries is the one exception, and shows
    that the search finds what is there.
    """
    ports, state = running.ports, running.folder / "ue"
    filters = {
        "mw": f"port {ports['6060']} or port {ports['5062']}",
        "gm-isc-mt": f"(port {ports['5060']} or port {ports['5090']} or port {ports['8443']}) and not port {ports['5062']}",
        "cx": f"port {ports['3868']}",
    }
    with ExitStack() as stack:
        files = {name: stack.enter_context(capturing(tmp_path / f"{name}.pcap", which)) for name, which in filters.items()}
        fingerprints = asyncio.run(life(running, state))
        until(lambda: running.keys_at_as() == 0, seconds=10, what="the keys are erased at the AS")
        until(lambda: len(_nonces(files["mw"])) >= 5, seconds=10, what="dumpcap has written what it saw")
    assert len(set(fingerprints)) == 4
    captured = {name: file.read_bytes() for name, file in files.items()}
    runs = [run_of(nonce) for nonce in _nonces(files["mw"])]
    assert 5 <= len(runs) <= 5 + 5 * RACES
    secret = KeySearch([found for run in runs for found in run.secrets()] + long_lived(running))
    access = KeySearch([found for run in runs for found in run.access()])
    for run in runs:
        assert len(KeySearch(run.access()).in_octets("Mw", captured["mw"])) == 2  # CK', IK' for the P-CSCF, and not CK, IK:
    assert secret.in_octets("Mw", captured["mw"]) == []
    assert secret.in_octets("Cx", captured["cx"]) == ["Cx: CK", "Cx: IK", "Cx: XRES"]
    assert access.in_octets("Cx", captured["cx"]) == []
    logs = (running.kamailio_log, running.parts.log, running.folder / "state.log")
    for name, octets in {"gm-isc-mt": captured["gm-isc-mt"], **{log.name: log.read_bytes() for log in logs}}.items():
        assert len(octets) > 100
        assert [*secret.in_octets(name, octets), *access.in_octets(name, octets)] == []
    assert {run.k_as.fingerprint() for run in runs} >= set(fingerprints)


def _nonces(capture: Path) -> list[str]:
    """Return the nonces of the 401s in a capture, each once."""
    found = re.findall(rb'WWW-Authenticate: [^\r]*?nonce="([^"]+)"', capture.read_bytes())
    return [nonce.decode() for nonce in dict.fromkeys(found)]


async def life(running: Network, folder: Path) -> list[str]:
    """Register four times, log in with the key of each, and leave; return the fingerprints."""
    found = []
    path = f"simservs.ngn.etsi.org/users/{IMPU}/simservs.xml"
    ue = load_ue_config(running.ue)
    ca = msgspec.structs.replace(ue, ue=msgspec.structs.replace(ue.ue, ca=str(running.parts.ca)))
    async with ue_session(ca, folder, StructLog("none")) as session:
        for turn in range(4):
            before = len(running.pushed())
            state = await registered(session.client)
            assert state.rspauth
            assert state.masked
            k_as = http_credentials(state, AS_ID).k_as.fingerprint()
            await eventually(partial(running.has_pushed, before), "the AS has a key")
            assert running.pushed()[-1] == [k_as]
            assert await asyncio.to_thread(running.keys_at_as) == (2 if turn else 1)  # the older one lives until the newer is used:
            async with session.http(f"https://{AS_ID}:{running.ports['8443']}/", base=True) as client:
                assert (await client.get(path)).status_code == 200
            await eventually(lambda: running.keys_at_as() == 1, "the older key is gone")
            found.append(k_as)
        await session.client.deregister()
    return found


async def registered(client: UeClient) -> UeState:
    """Register, once more where ims_auth was slow."""
    for _ in range(RACES):
        try:
            return await client.register()
        except RegistrationFailed:
            continue
    return await client.register()


async def eventually(wanted: Callable[[], bool], what: str) -> None:
    """Wait for it."""
    await asyncio.to_thread(until, wanted, seconds=5, what=what)


def test_contact_star_erases_the_keys_of_every_device(running: Network) -> None:
    """RFC 3261 §10.2.2: two devices of the user, and one that ends both."""
    asyncio.run(_leave_all(running))


async def _leave_all(running: Network) -> None:
    async with (
        ue_session(load_ue_config(running.ue), running.folder / "one", StructLog("none")) as first,
        ue_session(_second_device(running.ue), running.folder / "two", StructLog("none")) as second,
    ):
        for session in (first, second):
            before = len(running.pushed())
            await registered(session.client)
            await eventually(partial(running.has_pushed, before), "the AS has a key")
        assert await asyncio.to_thread(running.keys_at_as) == 2
        await second.client.deregister(every=True)
        await eventually(lambda: running.keys_at_as() == 0, "no key is left")


def _second_device(file: Path) -> UeConfig:
    ue = load_ue_config(file)
    return msgspec.structs.replace(ue, ue=msgspec.structs.replace(ue.ue, instance="urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"))


def test_sipp_registers_as_release_5_and_gets_no_push(running: Network, tmp_path: Path) -> None:
    """RFC 3310: its nonce has no marker, its P-CSCF gets CK, IK as ever; the AS hears of it, and gets no key."""
    told = re.compile(rb"REGISTER sip:[^ ]+ SIP/2.0\r\n(?:[^\r]+\r\n)*To: <sip:user2_public1@home1.net>(?:.*?)\r\n\r\n", re.DOTALL)
    with capturing(tmp_path / "isc.pcap", f"port {running.ports['5090']}") as isc:
        before = len(running.pushed())
        _sipp_registers(running, tmp_path)
        until(lambda: told.search(isc.read_bytes()), seconds=10, what="the AS has got the third-party REGISTER of sipp's user")
    assert b"kf:sealed" not in isc.read_bytes()
    assert len(running.pushed()) == before


def _sipp_registers(running: Network, tmp_path: Path) -> None:
    slow = tmp_path / "register.xml"
    text = SCENARIO.read_text()
    slow.write_text(text.replace('<recv response="401" auth="true"/>', '<recv response="401" auth="true"/>\n  <pause milliseconds="50"/>'))
    for attempt in range(5):
        messages = tmp_path / f"messages-{attempt}.log"
        done = sipp(running.ports["5060"], "u1", slow, messages)
        if done.returncode == 0:
            break
        assert _has_zero_in_res(messages), done.stdout + done.stderr
    else:
        pytest.fail("sipp did not register")


def _has_zero_in_res(messages: Path) -> bool:
    """Tell sipp's known fault (tests/interop/test_sipp.py): one RES in 32."""
    return 0 in _res(base64.b64decode(nonce_of(messages.read_text(errors="replace")))[:16])


def test_a_200_carries_the_rspauth_that_ims_auth_loses(running: Network) -> None:
    """RFC 7616 §3.5: flags 7 are true, also of a 200 that is sent again; and of nobody else's."""
    ue = RawUe(running.ports["6060"])
    run = run_of(nonce_of(ue.challenged()))
    request = settled(lambda: ue.answer(run))
    response = ue.send(request)
    assert response.startswith("SIP/2.0 200"), response
    info = re.findall(r"^Authentication-Info: (.*)\r$", response, re.MULTILINE)
    assert len(info) == 1
    credentials = parse_credentials(re.search(r"^Authorization: (.*)\r$", request, re.MULTILINE)[1])  # type: ignore[index]
    check_rspauth(parse_authentication_info(info[0]), hash_a1("AKAv1-MD5", IMPI, REALM, run.res), credentials, algorithm="AKAv1-MD5")
    assert ue.send(request) == response
    ue.close()


def test_a_challenge_without_a_stated_release_is_masked_all_the_same(running: Network) -> None:
    """DESIGN §10: the Contact decides nothing, so a P-CSCF that strips it wins nothing; nor does one that asks again."""
    ue = RawUe(running.ports["6060"])
    request = ue.request(f'Digest username="{IMPI}", realm="{REALM}", nonce="", uri="sip:{REALM}", response=""')
    first, again = ue.send(request), ue.send(request)
    run = run_of(nonce_of(first))
    assert keys_of(first) == keys_of(again) == run.masked
    ue.close()


def test_the_key_pushed_is_of_the_challenge_that_was_answered(running: Network) -> None:
    """DESIGN §10: a REGISTER that the P-CSCF makes up between challenge and answer changes nothing."""
    ue = RawUe(running.ports["6060"])
    run = run_of(nonce_of(ue.challenged()))
    fabricated = run_of(nonce_of(ue.challenged()))
    assert fabricated.nonce != run.nonce
    response = ue.send(settled(lambda: ue.answer(run)))
    assert response.startswith("SIP/2.0 200"), response
    until(lambda: [run.k_as.fingerprint()] in running.pushed(), seconds=5, what="the AS has the key of the challenge that was answered")
    assert [fabricated.k_as.fingerprint()] not in running.pushed()
    ue.close()


def test_an_rtr_erases_the_keys_at_the_as(running: Network) -> None:
    """TS 29.228 §6.1.3: Kamailio tells no script of it, so the script learns it from the HSS; who registers again has keys again."""
    for _ in range(2):
        before, ue = len(running.pushed()), RawUe(running.ports["6060"])
        run = run_of(nonce_of(ue.challenged()))
        assert ue.send(settled(partial(ue.answer, run))).startswith("SIP/2.0 200")
        until(partial(running.has_pushed, before), seconds=5, what="the AS has a key")
        assert running.keys_at_as() >= 1
        admin = f"127.0.0.1:{running.ports['HSS']}"
        done = keyferry("subscriber", "terminate", IMPI, "--admin", admin, "--state", running.folder / "state", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: running.keys_at_as() == 0, seconds=10, what="no key is left at the AS")
        until(lambda: _owed(running) == 0, seconds=10, what="Kamailio has heard that the AS knows it")
        ue.close()


def _owed(running: Network) -> int:
    with closing(sqlite3.connect(running.folder / "kamailio/state/kemi.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM owed").fetchone()[0])


def test_two_hundred_strangers_between_his_two_registers_take_no_user_his_key(running: Network) -> None:
    """Each is challenged in the user's name; the user's own challenge waits, his key is pushed, and it works at the AS."""
    with closing(RawUe(running.ports["6060"])) as ue, closing(RawUe(running.ports["6060"])) as strangers:
        run = run_of(nonce_of(ue.challenged()))
        assert {strangers.challenged()[:11] for _ in range(STRANGERS)} == {"SIP/2.0 401"}
        assert ue.send(ue.answer(run)).startswith("SIP/2.0 200")
        until(lambda: [run.k_as.fingerprint()] in running.pushed(), seconds=5, what="the AS has the user's key")
        until(lambda: _owed(running) == 0, seconds=SEND_AGAIN - 1, what="Kamailio has heard that the AS has it")
        auth = httpx.DigestAuth(key_id(run.k_as, REALM), digest_password(ua_key(run.k_as)).reveal())
        context = ssl.create_default_context(cafile=str(running.parts.ca))
        with httpx.Client(verify=context, auth=auth, headers={"Host": AS_ID}) as client:
            url = f"https://127.0.0.1:{running.ports['8443']}/simservs.ngn.etsi.org/users/{IMPU}/simservs.xml"
            assert client.get(url, extensions={"sni_hostname": AS_ID}).status_code == 200


def test_a_state_that_is_locked_is_answered_503(running: Network) -> None:
    """400 would say that the UE is wrong, and it would not come again."""
    ue = RawUe(running.ports["6060"])
    with closing(sqlite3.connect(running.folder / "kamailio/state/kemi.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = ue.challenged()
    assert answer.startswith("SIP/2.0 503"), answer
    assert "\r\nRetry-After: 5\r\n" in answer
    assert ue.challenged().startswith("SIP/2.0 401")
    ue.close()


def test_an_answer_that_comes_twice_registers_and_pushes_once(running: Network) -> None:
    """Two workers take the same answer in two transactions at the same time; and it comes later from another Contact."""
    first, second = RawUe(running.ports["6060"]), RawUe(running.ports["6060"])
    run = run_of(nonce_of(first.challenged()))
    request = settled(partial(first.answer, run))
    before = len(running.pushed())
    with ThreadPoolExecutor(2) as pool:
        again = second.moved(request)
        statuses = sorted(found[8:11] for found in pool.map(lambda sent: sent[0].send(sent[1]), ((first, request), (second, again))))
    assert statuses == ["200", "401"]
    other = second.moved(request).replace("<sip:raw@", "<sip:other@")
    assert second.send(other).startswith("SIP/2.0 401")
    until(partial(running.has_pushed, before), seconds=5, what="the AS has a key")
    assert running.pushed()[before:] == [[run.k_as.fingerprint()]]
    for ue in (first, second):
        ue.close()


def test_the_check_says_what_works_and_what_does_not(running: Network) -> None:
    """`--check`: Kamailio's own look at its file, the script inside its Python, the state, the HSS's socket, HSS and AS."""
    command = ("kamailio", running.folder / "kamailio", "--config", running.config, "--check", "--json")
    done = keyferry(*command)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)["checks"]
    assert [each["what"] for each in found[:6]] == ["files", "kamailio -c", "script", "state", "rspauth", "HSS"]
    state = running.folder / "kamailio/state"
    state.chmod(0o755)
    try:
        done = keyferry(*command)
    finally:
        state.chmod(0o700)
    assert done.returncode == 1
    bad = [each for each in json.loads(done.stdout)["checks"] if not each["ok"]]
    assert [each["what"] for each in bad] == ["state"]
    assert "chmod 700" in bad[0]["problem"]


def test_a_register_that_can_be_read_in_two_ways_is_refused(running: Network) -> None:
    """Two Authorizations, one on two lines, a quoted name: two readers could take different users from each."""
    good = f'Digest username="{IMPI}", realm="{REALM}", nonce="", uri="sip:{REALM}", response=""'
    ue = RawUe(running.ports["6060"])
    for bad in (
        good + "\r\nAuthorization: " + good.replace("user1", "user2"),
        good.replace(", nonce", ",\r\n nonce"),
        good.replace("user1_", "us\\er1_"),
        good.replace('realm="home1.net"', 'realm="other.net"'),
    ):
        assert ue.send(ue.request(bad)).startswith("SIP/2.0 400"), bad
    ue.close()


def settled(make: Callable[[], str]) -> str:
    """Give ims_auth the moment between its 401 and the storing of the vector; a UE, whose card takes 50 ms, does too."""
    time.sleep(0.1)
    return make()


def test_an_rtr_of_our_hss_ends_a_registration_at_kamailio(running: Network) -> None:
    """TS 29.228 §6.1.3: Kamailio answers none that names no public identity, so our HSS asks again, and knows from then on."""
    log = running.folder / "state.log"
    for _ in range(2):
        asyncio.run(_registered_once(running))
        ended = keyferry("subscriber", "terminate", IMPI, "--admin", f"127.0.0.1:{running.ports['HSS']}", "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert msgspec.json.decode(ended.stdout)["told"] is True
    assert log.read_text("utf-8").count("diameter-no-answer") == 1


async def _registered_once(running: Network) -> None:
    async with ue_session(load_ue_config(running.ue), running.folder / "rtr", StructLog("none")) as session:
        await registered(session.client)
