# SPDX-License-Identifier: Apache-2.0
"""`keyferry keys rotate-isc` while a process serves and a UE registers again and again (DESIGN §6)."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable

from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.config import load_ue_config
from keyferry.ports import SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.roles.ue import UeProfile
from keyferry.stores.isc_keys import RETIRE_AFTER
from keyferry.stores.memory import MemoryUeStore
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import StructLog
from system.serving import Lab, Served, keyferry, until

LIMIT = 60.0  # seconds
AS_IDS = ("notes.home1.net", "xcap.home1.net")


def rotate(lab: Lab, *more: str) -> list[list[str]]:
    """Run the command; return the kids of each pair."""
    done = keyferry("keys", "rotate-isc", "--state", lab.state, "--json", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return [pair["kids"] for pair in json.loads(done.stdout)["keys"]]


async def registering(client: UeClient, work: Callable[[], object]) -> int:
    """Register again and again while `work` runs in a thread; return how often."""
    working = asyncio.create_task(asyncio.to_thread(work))
    count = 0
    while not working.done():
        assert (await client.register()).k_m is not None
        count += 1
    await working
    return count


async def rotation(lab: Lab, served: Served) -> int:
    """Rotate, use the new key, retire the old one, use the new key again; return how many registrations there were."""
    settings = load_ue_config(lab.ue).ue
    profile = UeProfile(parse_impi(settings.impi), parse_impu(settings.impu), settings.home_domain)
    hop = SipPeer("UDP", "127.0.0.1", served.port("pcscf", proto="udp"))
    async with open_ue(
        profile, Isim("milenage", settings.k, settings.opc or Secret(b"")), pcscf=hop, store=MemoryUeStore(), clock=SystemClock(),
        random=SystemRandom(), log=StructLog("none"),
    ) as client:  # fmt: skip

        def newer() -> None:
            assert rotate(lab) == [["t1", "t2"]] * 2
            until(lambda: served.log.read_text().count("isc-keys-read") == 4, seconds=LIMIT, what="all four look at the new keys")

        def older_goes() -> None:
            early = keyferry("keys", "rotate-isc", "--retire", "--state", lab.state)
            assert "a push under the older one may be on its way" in early.stderr
            assert early.returncode == 1
            for as_id in AS_IDS:
                file = lab.state / "isc" / f"scscf1.home1.net--{as_id}"
                status = file.stat()
                os.utime(file, (status.st_atime - RETIRE_AFTER, status.st_mtime - RETIRE_AFTER))  # the test does not wait a minute
            assert rotate(lab, "--retire") == [["t2"]] * 2
            until(lambda: "kids=['t2']" in served.log.read_text(), seconds=LIMIT, what="the old key forgotten")

        return await registering(client, newer) + await registering(client, older_goes)


def test_a_rotation_while_serving_loses_no_push(lab: Lab, served: Served) -> None:
    """Every registration's two pushes are sealed, opened and stored, whichever key they met."""
    count = asyncio.run(rotation(lab, served))
    assert count > 5
    stored = re.compile(r'^keyferry_as_pushes_total\{reason="stored"\} ([0-9.]+)', re.MULTILINE)

    def pushes() -> float:
        found = stored.search(served.admin("/metrics")[1])
        return float(found[1]) if found else 0.0

    until(lambda: pushes() == 2 * count, seconds=LIMIT, what=f"{2 * count} pushes stored")
    log = served.log.read_text()
    assert "push-refused" not in log
    assert "not-delivered" not in log
    assert "isc-keys-unusable" not in log
