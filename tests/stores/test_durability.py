# SPDX-License-Identifier: Apache-2.0
"""kill -9 loses nothing that was acknowledged, and no key lies about in the files (DESIGN §3, §5, §11)."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keyferry.protocol.identity import Impi
from keyferry.stores.database import Database
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.sqlite.registrations import SqliteRegistrationStore
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.sqlite.ue import SqliteUeStore
from keyferry.stores.state_dir import open_state
from stores.made import (
    AS_ID,
    IMPI,
    NOW,
    PUSHER,
    REALM,
    REG,
    CountedRandom,
    key,
    pending,
    push,
    pushed_key,
    registration,
    subscriber,
    ue_state,
)

WRITER = """
import asyncio, os, sys
from pathlib import Path
from stores.made import CountedRandom, NOW, PUSHER, REALM, REG, pending, push, registration
from keyferry.stores.database import Database
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.sqlite.registrations import SqliteRegistrationStore
from keyferry.stores.state_dir import open_state

async def one(scscf, server, worker):
    for number in range(10**6):
        impi = f"{worker}-{number}@ims.example"
        await scscf.commit(registration(impi, user_data=impi.encode() * 50), [pending(number + 1, impi)])
        await server.apply(push(1, impi, impi=impi), pusher=PUSHER, realm=REALM, now=NOW)
        os.write(1, f"{impi}\\n".encode())

async def main(state):
    with Database(state.path("scscf.db")) as first, Database(state.path("as.db")) as second:
        scscf, server = SqliteRegistrationStore(first, state.keyring), SqliteKeyStore(second, state.keyring)
        await asyncio.gather(*[one(scscf, server, worker) for worker in range(8)])

with open_state(Path(sys.argv[1]), random=CountedRandom()) as state:
    asyncio.run(main(state))
"""


@pytest.mark.parametrize("acknowledged", [1, 150, 700])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "state"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        impis = [Impi(writer.stdout.readline().decode().strip()) for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        impis += [Impi(line.decode().strip()) for line in writer.stdout if line.endswith(b"\n")]
    assert len(impis) >= acknowledged
    with (
        open_state(path, random=CountedRandom(), exclusive=True) as state,
        Database(state.path("scscf.db")) as first,
        Database(state.path("as.db")) as second,
    ):
        scscf, server = SqliteRegistrationStore(first, state.keyring), SqliteKeyStore(second, state.keyring)
        owed = {push.impi for push in await scscf.pending()}
        for impi in impis:
            assert await scscf.get(impi, REG) == registration(impi, user_data=impi.encode() * 50)
            assert impi in owed
            assert await server.lookup(pushed_key(impi).key_id, AS_ID, NOW)


async def test_no_key_is_found_in_any_file(tmp_path: Path) -> None:
    """DESIGN §3: not as octets, not in hex, not in base64 at any alignment."""
    planted = [key(name, 32) for name in ("k", "opc", "k_m", "a", "b", "gm", "ue")]
    with (
        open_state(tmp_path / "s", random=CountedRandom()) as state,
        Database(state.path("all.db")) as database,
    ):
        await SqliteSubscriberStore(database, state.keyring).add(subscriber(algorithm="tuak", k=key("k", 32), opc=key("opc", 32)))
        await SqliteRegistrationStore(database, state.keyring).commit(registration(), [pending(1)])
        keys = SqliteKeyStore(database, state.keyring)
        await keys.apply(push(1, "a"), pusher=PUSHER, realm=REALM, now=NOW)
        await keys.apply(push(2, "b"), pusher=PUSHER, realm=REALM, now=NOW)
        await SqliteUeStore(database, state.keyring).save(ue_state(k_m=key("ue")))
        during = [file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()]
        assert any(IMPI.encode() in octets for octets in during)  # the search would find what is there
    after = [file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()]
    for octets in during + after:
        for secret in planted:
            for form in forms(secret.reveal()):
                assert form not in octets


def forms(secret: bytes) -> list[bytes]:
    encoded = [base64.b64encode(bytes(shift) + secret)[4 * ((shift + 2) // 3) : -4] for shift in range(3)]
    urlsafe = [text.translate(bytes.maketrans(b"+/", b"-_")) for text in encoded]
    return [secret, secret[:16], secret.hex().encode(), secret.hex().upper().encode(), *encoded, *urlsafe]
