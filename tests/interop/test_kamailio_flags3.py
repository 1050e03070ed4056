# SPDX-License-Identifier: Apache-2.0
"""A Kamailio without our HSS's rspauth: flags 3, and a UE that leaves the proof to each application server (DESIGN §10)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import pytest

from interop.kamailio_kit import AS_ID, IMPU, Network, RawUe, network
from interop.test_kamailio_scscf import eventually, registered
from keyferry.client.session import ue_session
from keyferry.config import UeConfig, load_ue_config
from keyferry.errors import RegistrationFailed
from keyferry.wiring.observability import StructLog
from system.serving import until

pytestmark = pytest.mark.interop


@pytest.fixture(name="running", scope="module")
def running_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Start everything once."""
    with network(tmp_path_factory.mktemp("flags3"), edit=_without_rspauth) as found:
        yield found


def _without_rspauth(text: str) -> str:
    text, count = re.subn(r"(?m)^rspauth_socket = .*\n", "", text)
    assert count == 1
    return text.replace("marker_for = ", "marker_flags = 3\nmarker_for = ")


def _ue(running: Network, **settings: object) -> UeConfig:
    ue = load_ue_config(running.ue)
    return msgspec.structs.replace(ue, ue=msgspec.structs.replace(ue.ue, ca=str(running.parts.ca), **settings))


async def test_a_ue_that_wants_rspauth_of_the_s_cscf_has_no_keys(running: Network, tmp_path: Path) -> None:
    async with ue_session(_ue(running), tmp_path, StructLog("none")) as session:
        state = await registered(session.client)
        assert (state.k_m, state.rspauth, state.masked) == (None, False, True)
        assert "does not promise rspauth" in state.no_keys_because


@pytest.mark.parametrize("psk", ["off", "prefer"])
async def test_a_ue_that_leaves_the_proof_to_each_as_logs_in_by_digest_alone(running: Network, tmp_path: Path, psk: str) -> None:
    """The document is written, so the server has proved the key; TLS-PSK is not tried, and no other client gets the key."""
    path = f"simservs.ngn.etsi.org/users/{IMPU}/simservs.xml"
    async with ue_session(_ue(running, rspauth="as", psk=psk), tmp_path, StructLog("none")) as session:
        before = len(running.pushed())
        state = await registered(session.client)
        assert (state.k_m is not None, state.rspauth, state.pinned) == (True, False, ())
        await eventually(partial(running.has_pushed, before), "the AS has a key")
        async with session.http(f"https://{AS_ID}:{running.ports['8443']}/", base=True) as client:
            document = (await client.get(path)).content
            written = await client.put(path, content=document, headers={"content-type": "application/vnd.etsi.simservs+xml"})
            assert written.status_code in {200, 201}
        with pytest.raises(RegistrationFailed, match="check the server's rspauth"):
            session.credentials(state, AS_ID)


def test_without_a_connection_to_the_hss_a_register_is_answered(running: Network) -> None:
    """Cdp tells nobody that it has none, so the transaction's own time has to end it, within the UE's patience; the last test here."""
    running.hss.kill()
    with closing(RawUe(running.ports["6060"])) as ue:
        until(lambda: ue.challenged().startswith("SIP/2.0 504"), seconds=20, what="Kamailio knows that the HSS is gone, and says so")
