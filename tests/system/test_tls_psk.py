# SPDX-License-Identifier: Apache-2.0
"""TLS-PSK in the whole system: from the AKA run to the application, by nothing but sockets (DESIGN §7)."""

from __future__ import annotations

import re
import sys

import pytest

from keyferry.protocol.identity import AsId
from keyferry.transports.tls_psk import PskVersion
from system.serving import EVENT_LIMIT, Lab, Served, lab_fixture, served_fixture, ue, until
from transports.pskkit import Connection, client_context, refused

__all__ = ["lab_fixture", "served_fixture"]

needs_psk = pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")
SUITE = "ECDHE-PSK-CHACHA20-POLY1305"
XCAP, NOTES = AsId("xcap.home1.net"), AsId("notes.home1.net")


def credentials(lab: Lab, as_id: str, version: PskVersion) -> tuple[str, bytes]:
    """Return the identity and the key that the UE has."""
    shown = ue(lab, "status", "--show-psk", as_id)
    way = "tls13" if version == "1.3" else f"tls12_{SUITE}"
    return shown[f"{way}_identity"], bytes.fromhex(shown[f"{way}_key"])


@needs_psk
async def test_the_listeners_of_the_example_let_the_registered_user_in_until_he_is_no_more(lab: Lab, served: Served) -> None:
    listening = {(one["name"], one["proto"]): one["port"] for one in served.listen if one["proto"].startswith("psk")}
    assert listening == {
        (XCAP, "psk13"): lab.ports["8453"],
        (NOTES, "psk13"): lab.ports["8454"],
        (NOTES, "psk12"): lab.ports["8463"],
    }
    ue(lab, "register")
    open_ones = []
    for (as_id, proto), port in listening.items():
        version: PskVersion = "1.3" if proto == "psk13" else "1.2"
        identity, key = credentials(lab, as_id, version)
        connection = await Connection.open(port, client_context(version, identity, key), as_id)
        target = "/mine" if as_id == NOTES else "/xcap-caps/global/index"
        for _ in range(2):
            status, _, body = await connection.get(host=f"{as_id}:{port}", target=target)
            assert (status, body) == (404, "you have no note\n") if as_id == NOTES else status == 200  # both say who asks
        assert (await connection.get(host=XCAP if as_id == NOTES else NOTES, target=target))[0] == 421
        open_ones.append((connection, as_id, target))
        # The key of this server, a wrong one under its name, the same at the other server's port, and at every port with a certificate.
        for wrong_port, said, used in (
            (port, identity, b"w" * 32),
            (port, identity.replace("IMS-AS-key", "IMS-AS-kez"), key),
            (listening[NOTES if as_id == XCAP else XCAP, "psk13"], identity, key),
            (served.port("as", as_id, "https"), identity, key),
        ):
            assert await refused(wrong_port, client_context(version, said, used), as_id)
    ue(lab, "deregister")
    for connection, as_id, target in open_ones:
        status, headers, _ = await connection.get(host=as_id, target=target)
        assert (status, headers["connection"]) == (401, "close")
        assert await connection.ended()
        await connection.close()
    _, metrics = served.admin("/metrics")
    counted = dict(re.findall(r'keyferry_tls_psk_total\{reason="(\w+)"\} (\d+)', metrics))
    assert counted == {"granted": "3", "refused": "9"}
    assert re.search(r'keyferry_door_total\{reason="psk-over"\} 3', metrics)
    until(lambda: served.log.read_text().count("psk-refused") == 9, seconds=EVENT_LIMIT, what="a line about each")


@needs_psk
async def test_a_new_registration_is_a_new_key_and_the_old_one_ends_when_the_new_one_is_used(lab: Lab, served: Served) -> None:
    """DESIGN §6: an older key of the same device stays valid until a newer one is first used."""
    port = served.port("as", XCAP, "psk13")
    ue(lab, "register")
    old = await Connection.open(port, client_context("1.3", *credentials(lab, XCAP, "1.3")), XCAP)
    assert (await old.get(target="/xcap-caps/global/index"))[0] == 200
    ue(lab, "register")
    assert (await old.get(target="/xcap-caps/global/index"))[0] == 200
    new = await Connection.open(port, client_context("1.3", *credentials(lab, XCAP, "1.3")), XCAP)
    assert (await old.get(target="/xcap-caps/global/index"))[0] == 200  # a handshake alone is no use of a key
    assert (await new.get(target="/xcap-caps/global/index"))[0] == 200
    assert (await old.get(target="/xcap-caps/global/index"))[0] == 401
    for one in (old, new):
        await one.close()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python can")
def test_an_older_python_serves_the_door_with_a_certificate_and_says_what_it_lacks(served: Served) -> None:
    assert not [one for one in served.listen if one["proto"].startswith("psk")]
    assert served.port("as", XCAP, "https")
    assert served.log.read_text().count("psk-not-served") == 3
