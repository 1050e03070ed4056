# SPDX-License-Identifier: Apache-2.0
"""Whether the application server holds the key of each registered user, and none of those that left (DESIGN §5, §6)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import httpx

from keyferry.client.http import open_http
from keyferry.errors import KeyferryError
from keyferry.lab.bench_register import HOME
from keyferry.ports import UeState
from keyferry.transports.clock import SystemRandom
from soaking.phones import AS_ID, Phone

SETTLED = 5.0  # seconds after which a key must be there, or gone
AUID = "simservs.ngn.etsi.org"
ACCEPTED = {200, 404}  # a document that is not there is nothing that a stranger is told


class Wrong(NamedTuple):
    """A key that is missing, or one that is still there."""

    at: float  # monotonic
    impi: str
    what: str
    for_seconds: float  # since both ends were up and the UE was told


@dataclass(slots=True)
class KeyWatch:
    """Look at every user's key in the store of the AS, and at some over HTTPS."""

    database: Path
    https_port: int
    ca: Path
    up_since: Callable[[], float | None]  # both ends
    generation: Callable[[], int]  # of both ends: kills so far
    checks: int = 0  # users looked at
    logins: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    latest: float = 0.0  # seconds: the longest that a key was late and had a right to be

    def look(self, phones: Sequence[Phone]) -> int:
        """Look at every user's key; return how many users are wrong now."""
        up, now = self.up_since(), monotonic()
        if up is None:
            return 0
        try:
            held = self._held()
        except sqlite3.Error as problem:
            self.wrong.append(Wrong(now, "", f"the store cannot be read: {problem}", 0.0))
            return 1
        found = 0
        for phone in phones:
            if phone.sure and phone.since:
                found += self._one(phone, held, up, now)
        return found

    def _one(self, phone: Phone, held: set[str], up: float, now: float) -> bool:
        self.checks += 1
        missing = phone.registered and phone.key not in held
        there = not phone.registered and phone.old in held
        if not missing and not there:
            return False
        late = now - max(up, phone.since)
        if late <= SETTLED:
            self.latest = max(self.latest, late)
            return False
        self.wrong.append(Wrong(now, phone.card.impi, "no key" if missing else "a key after de-registration", late))
        return True

    def _held(self) -> set[str]:
        now = time.time()  # as the rows do
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5.0)) as connection:
            rows = connection.execute("SELECT key_id FROM held_key WHERE starts <= ? AND ends > ?", (now, now))
            return {row[0] for row in rows}

    async def login(self, phone: Phone) -> str:
        """GET over TLS with the user's key; return "" if it was accepted or could not be tried, else what was wrong."""
        up, generation = self.up_since(), self.generation()
        if up is None or phone.k_m is None or monotonic() - max(up, phone.since) <= SETTLED:
            return ""
        url = f"https://{AS_ID}:{self.https_port}/{AUID}/users/{phone.card.impu}/simservs.xml"
        try:
            async with open_http(_state(phone), url, ca=self.ca, hosts={AS_ID: "127.0.0.1"}, random=SystemRandom(), waits=()) as client:
                response = await client.get(url)
        except (httpx.HTTPError, KeyferryError) as problem:
            if generation != self.generation() or self.up_since() is None:
                return ""  # killed meanwhile
            return self._refused(phone, f"{type(problem).__name__}: {problem}")
        self.logins += 1
        return "" if response.status_code in ACCEPTED else self._refused(phone, f"HTTPS {response.status_code}")

    def _refused(self, phone: Phone, what: str) -> str:
        self.wrong.append(Wrong(monotonic(), phone.card.impi, what, 0.0))
        return what


def _state(phone: Phone) -> UeState:
    """Return what a UE keeps after such a registration."""
    return UeState(
        impi=phone.card.impi, seq_ms=(), call_id=phone.call_id, cseq=phone.cseq, contact=phone.contact, impu=phone.card.impu, realm=HOME,
        expires_at=0.0, release_marker=b"", masked=True, rspauth=True, k_m=phone.k_m, gm_keys=None, no_keys_because="", associated=(),
        service_route=(), pinned=(),
    )  # fmt: skip
