# SPDX-License-Identifier: Apache-2.0
"""The script inside S-CSCF configurations that `keyferry kamailio` did not write: five lines let it in (docs/kamailio.md).

One is the ordinary sample's; the other that of docker_open5gs, changed by the very commands of docs/how-to/open5gs.md, where
KEYFERRY_DOCKER_OPEN5GS names a copy of that repository.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from docs.console import ROOT, blocks, commands
from interop.kamailio_kit import AS_ID, IMPI, REALM, Network, RawUe, kamailio_python, keys_of, network, nonce_of, run_of
from interop.peers import docker_open5gs, program
from interop.test_kamailio_scscf import life, settled
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu, reg_of
from keyferry.protocol.ims.keypush import Push, PushedKey, seal_push
from keyferry.protocol.ims.keys import key_id
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from system.key_search import KeySearch
from system.serving import keyferry, until
from system.staying import metric

pytestmark = pytest.mark.interop
LINES = (
    ("\nroute {\n", '\ninclude_file "@DIR@/beside.cfg"\n\nroute {\n'),
    ("route[REGISTER] {\n", "route[REGISTER] {\n  route(KEYFERRY_REGISTER);\n"),
    ('  xlog("L_INFO", "authenticated\\n");\n', '  xlog("L_INFO", "authenticated\\n");\n  route(KEYFERRY_ACCEPTED);\n'),
    ('isc_match_filter_reg("0", "location")', "route(KEYFERRY_PUSH_FIRST)"),
    ('isc_match_filter_reg("1", "location")', "route(KEYFERRY_PUSH_AGAIN)"),
)
IMPI_5, IMPU_5 = Impi("user2_private@home1.net"), "sip:user2_public1@home1.net"
K_5 = Secret(bytes.fromhex("0396eb317b6d1c36f19c1c84cd6ffd16"))
OPC_5 = derive_opc(K_5, Secret(bytes.fromhex("ff53bade17df5d4e793073ce9d7579fa")))
ENDS = 'keyferry_as_pushes_total{reason="erased"}'
LAB = "ims.mnc001.mcc001.3gppnetwork.org"
GUIDE = ROOT / "docs/how-to/open5gs.md"


def the_sample(directory: Path, ports: Mapping[str, int]) -> Path:
    """Return the ordinary configuration with the five lines in it."""
    text = (Path(__file__).parent / "native_scscf.cfg").read_text("utf-8")
    for old, new in LINES:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    # the operator's own idea of which messages corex need not look at, and of what it does with them
    theirs = 'modparam("corex", "nio_min_msg_len", 3000)\nmodparam("corex", "nio_intercept", 0)\n'
    text = text.replace('include_file "', f'{theirs}include_file "')
    file = directory.parent / "native.cfg"
    file.write_text(text.replace("@PORT@", str(ports["6060"])).replace("@DIR@", str(directory)), "utf-8")
    return file


def the_labs(directory: Path, ports: Mapping[str, int]) -> Path:
    """Return the configuration of docker_open5gs, as the guide's commands and then its own scscf_init.sh leave it."""
    folder, made = directory.parent / "docker_open5gs", directory.parent / "kamailio_scscf"
    shutil.copytree(docker_open5gs(), folder, ignore=shutil.ignore_patterns(".git"))
    for command in commands(GUIDE):
        if "docker_open5gs/scscf/" in command.text:
            subprocess.run(["bash", "-ec", command.text], cwd=folder.parent, check=True)
    script = (folder / "scscf/scscf_init.sh").read_text("utf-8")
    start = re.search(
        r"^mkdir -p /var/run/kamailio\nkeyferry kamailio /etc/kamailio_scscf/keyferry .*\nexec kamailio -m 64 -M 8 .*$", script, re.M
    )
    assert start
    script = script.replace(start[0], "exit 0").replace("/mnt/scscf", str(folder / "scscf")).replace("/etc/kamailio_scscf", str(made))
    environment = {"MCC": "001", "MNC": "01", "SCSCF_IP": "127.0.0.1", "SCSCF_BIND_PORT": "0", "PYHSS_BIND_PORT": str(ports["3868"])}
    subprocess.run(["bash", "-ec", script], env={"PATH": os.environ["PATH"]} | environment, check=True)
    places = {
        "/etc/kamailio_scscf/keyferry": str(directory), "/etc/kamailio_scscf": str(made), "/var/run/kamailio": str(made),
        "127.0.0.1:6060": f"127.0.0.1:{ports['6060']}", f"scscf.{LAB}:6060": f"scscf1.home1.net:{ports['6060']}",
        '<Acceptor port="0" bind="127.0.0.1"/>': "", f"scscf.{LAB}": "scscf1.home1.net", f"hss.{LAB}": "localhost", LAB: "home1.net",
    }  # fmt: skip
    for name in ("scscf.cfg", "kamailio_scscf.cfg", "scscf.xml"):
        text = (made / name).read_text("utf-8")
        for old, new in places.items():
            text = text.replace(old, new)
        (made / name).write_text(text, "utf-8")
    return made / "kamailio_scscf.cfg"


@pytest.fixture(name="running", scope="module", params=[the_sample, the_labs], ids=["sample", "docker_open5gs"])
def running_fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Start everything once for each; the profile's own ServiceInfo is a key for the phone of Release 5, as an HSS could give it."""
    if request.param is the_labs:
        docker_open5gs()
    folder = tmp_path_factory.mktemp("beside")
    transport_key, k_as, now = Secret(secrets.token_bytes(64)), Secret(secrets.token_bytes(32)), int(time.time())
    with open_state(folder / "state", random=SystemRandom()) as state:
        state.write_isc_keys("scscf1.home1.net", AS_ID, {"t1": transport_key})
    key = PushedKey(key_id(k_as, REALM), k_as, now, now + 3600)
    push = Push(1, IMPI_5, AS_ID, reg_of("<urn:uuid:5>"), (key,), (Impu(IMPU_5),))
    block = seal_push(push, transport_key=transport_key, scscf="scscf1.home1.net", kid="t1")
    unsealed = 'pushers = ["scscf1.home1.net"]\nunsealed_ends = ["scscf1.home1.net"]\n'
    more = f"app = 'xcap'\n{unsealed}service_info = '{block}'"
    with network(folder, edit=lambda text: text.replace('app = "xcap"', more), configured=request.param) as found:
        yield found


def test_a_ue_registers_four_times_and_leaves(running: Network) -> None:
    """TS 24.229 §5.4.1: each time the AS has the key that the UE has, and it logs in with it; at the end no key is left."""
    fingerprints = asyncio.run(life(running, running.folder / "ue"))
    assert len(set(fingerprints)) == 4
    until(lambda: running.keys_at_as() == 0, seconds=10, what="the keys are erased at the AS")


def test_its_p_cscf_gets_masked_keys_and_the_log_none(running: Network) -> None:
    """DESIGN §10: whatever levels the operator's file sets before the line that includes ours."""
    ue = RawUe(running.ports["6060"])
    challenge = ue.challenged()
    run = run_of(nonce_of(challenge))
    assert keys_of(challenge) == run.masked
    response = ue.send(settled(lambda: ue.answer(run)))
    assert response.startswith("SIP/2.0 200"), response
    until(lambda: [run.k_as.fingerprint()] in running.pushed(), seconds=5, what="the AS has its key")
    assert KeySearch(run.secrets()).in_octets("kamailio.log", running.kamailio_log.read_bytes()) == []
    ue.close()


def test_a_register_that_can_be_read_in_two_ways_is_refused(running: Network) -> None:
    """The check comes before ims_auth sees it."""
    good = f'Digest username="{IMPI}", realm="{REALM}", nonce="", uri="sip:{REALM}", response=""'
    ue = RawUe(running.ports["6060"])
    assert ue.send(ue.request(good + "\r\nAuthorization: " + good.replace("user1", "user2"))).startswith("SIP/2.0 400")
    ue.close()


def test_the_guides_own_settings_can_be_written(tmp_path: Path) -> None:
    """What is not run of the guide: its addresses are containers'. Kamailio answers the lab's I- and P-CSCF, and nobody else."""
    program("kamailio")
    config = tmp_path / "network.toml"
    config.write_text(next(block.body for block in blocks(GUIDE) if block.file == config.name), "utf-8")
    words = ("--config", config, "--state", tmp_path / "state", "--python", kamailio_python(), "--stderr")
    written = keyferry("kamailio", tmp_path / "kamailio", *words)
    assert written.returncode == 0, written.stderr
    text = (tmp_path / "kamailio/beside.cfg").read_text("utf-8")
    assert "if (!(src_ip == 172.22.0.19 || src_ip == 172.22.0.21))" in text


def test_what_is_no_registration_passes_the_script_untouched(running: Network) -> None:
    """Every message on its way out meets it: those of calls, too."""
    ue = RawUe(running.ports["6060"])
    register = ue.request("Digest").partition("Contact:")[0].replace("REGISTER", "OPTIONS")
    response = ue.send(f"{register}Content-Length: 0\r\n\r\n".replace(f"sip:{REALM} ", f"sip:scscf1.{REALM}:{running.ports['6060']} "))
    assert re.match(r"SIP/2\.0 (200|405) ", response), response
    assert response.count("CSeq: ") == 1
    ue.close()


def test_a_phone_of_release_5_is_none_the_wiser_and_ims_isc_pushes_by_itself(running: Network) -> None:
    """Its nonce has no marker, its P-CSCF gets raw keys; what ims_isc makes of the profile's ServiceInfo is a push like any other.

    Its end is told to the application servers too, with Contact: * as well, of a user of whom the script knows no device; ims_isc copies
    the ServiceInfo into it, which is a key no more.
    """
    pushed, keys, ends = len(running.pushed()), running.keys_at_as(), metric(running.parts, ENDS)
    ue = RawUe(running.ports["6060"], IMPI_5, IMPU_5)
    _register(ue)
    until(lambda: len(running.pushed()) == pushed + 1, seconds=5, what="the AS has the key of the profile")
    assert running.keys_at_as() == keys + 1
    _register(ue, expires=0)
    until(lambda: metric(running.parts, ENDS) == ends + 1, seconds=5, what="the AS was told of the end")
    assert running.keys_at_as() == keys
    _register(ue)
    _register(ue, expires=0, contact="*")
    until(lambda: metric(running.parts, ENDS) == ends + 2, seconds=5, what="the AS was told of the other end")
    ue.close()


def _register(ue: RawUe, *, expires: int = 600, contact: str = "") -> None:
    challenge = ue.challenged(expires=expires, contact=contact)
    run = run_of(nonce_of(challenge), K_5, OPC_5)
    assert keys_of(challenge) == (run.ck.reveal().hex(), run.ik.reveal().hex())
    response = ue.send(settled(lambda: ue.answer(run, expires=expires, contact=contact)))
    assert response.startswith("SIP/2.0 200"), response
