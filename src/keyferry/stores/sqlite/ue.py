# SPDX-License-Identifier: Apache-2.0
"""What a UE keeps between two commands, sealed as one value (DESIGN §3)."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import msgspec

from keyferry.ports import UeState
from keyferry.protocol.aka import highest_seq_ms
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu, KeyId
from keyferry.stores.database import Database, octets, text
from keyferry.stores.sealing import Keyring, SealedColumn
from keyferry.stores.ue_turn import turn_file, ue_turn

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS ue_state (id INTEGER PRIMARY KEY, impi TEXT NOT NULL UNIQUE, state BLOB NOT NULL)",
    # Not sealed: whoever changes it makes a request more necessary, or one that the server refuses.
    "CREATE TABLE IF NOT EXISTS first_nonce (id INTEGER PRIMARY KEY, key_id TEXT NOT NULL UNIQUE, at REAL NOT NULL)",
)
REMEMBERED = 2 * 604_800.0
"""Seconds that a first nonce is known to be used: longer than any key lives (`scscf.key_max_age`)."""
SELECT = "SELECT state FROM ue_state WHERE impi = ?"
STATE = SealedColumn("ue_state", "state", ("impi",))


class _State(msgspec.Struct, forbid_unknown_fields=True):
    """A UeState as it is encoded: what a peer sent as octets, for it may be no UTF-8."""

    seq_ms: tuple[int, ...]
    call_id: bytes
    cseq: int
    contact: bytes
    impu: str
    realm: bytes
    expires_at: float
    release_marker: bytes
    masked: bool
    rspauth: bool
    k_m: bytes | None
    gm_keys: bytes | None
    no_keys_because: str
    associated: tuple[bytes, ...]
    service_route: tuple[bytes, ...]
    pinned: tuple[bytes, ...]


class SqliteUeStore:
    """Implement ports.UeStore."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        database.ensure(SCHEMA)
        self._database = database
        self._keyring = keyring

    async def load(self, impi: Impi) -> UeState | None:
        """Return the state.

        Raises SealError if the row was tampered with.
        """
        rows = self._database.read(SELECT, (impi,))
        return self._opened(impi, rows[0][0]) if rows else None

    async def save(self, state: UeState) -> None:
        """Store it durably; SEQ_MS of no IND becomes lower by that, whatever another process has stored meanwhile.

        Raises SealError if the row was tampered with.
        """

        def work(connection: sqlite3.Connection) -> None:
            before = connection.execute(SELECT, (state.impi,)).fetchone()
            seq_ms = highest_seq_ms(self._opened(state.impi, before[0]).seq_ms, state.seq_ms) if before else state.seq_ms
            octets = msgspec.msgpack.encode(_written(replace(state, seq_ms=seq_ms)))
            sql = "INSERT INTO ue_state (impi, state) VALUES (?, ?) ON CONFLICT (impi) DO UPDATE SET state = excluded.state"
            connection.execute(sql, (state.impi, STATE.seal(self._keyring, octets, (state.impi,))))

        await self._database.write(work)

    def alone(self, impi: Impi) -> AbstractAsyncContextManager[None]:
        """Keep this UE's other procedures waiting, in whatever process. Raises StateError that says who holds it for too long."""
        return ue_turn(turn_file(self._database.path, impi), impi)

    def _opened(self, impi: Impi, sealed: bytes) -> UeState:
        return _read(impi, msgspec.msgpack.decode(STATE.open(self._keyring, sealed, (impi,)), type=_State))

    async def claim_first(self, key_id: KeyId, now: float) -> bool:
        """Note durably that the first nonce of a key is used; false if it was before, by whatever process."""

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM first_nonce WHERE at < ?", (now - REMEMBERED,))
            claimed = connection.execute("INSERT OR IGNORE INTO first_nonce (key_id, at) VALUES (?, ?)", (key_id, now))
            return claimed.rowcount == 1

        return await self._database.write(work)


def _written(state: UeState) -> _State:
    return _State(
        seq_ms=state.seq_ms,
        call_id=octets(state.call_id),
        cseq=state.cseq,
        contact=octets(state.contact),
        impu=state.impu,
        realm=octets(state.realm),
        expires_at=state.expires_at,
        release_marker=state.release_marker,
        masked=state.masked,
        rspauth=state.rspauth,
        k_m=state.k_m.reveal() if state.k_m is not None else None,
        gm_keys=state.gm_keys.reveal() if state.gm_keys is not None else None,
        no_keys_because=state.no_keys_because,
        associated=tuple([octets(value) for value in state.associated]),
        service_route=tuple([octets(value) for value in state.service_route]),
        pinned=tuple([octets(value) for value in state.pinned]),
    )


def _read(impi: Impi, written: _State) -> UeState:
    return UeState(
        impi=impi,
        seq_ms=written.seq_ms,
        call_id=text(written.call_id),
        cseq=written.cseq,
        contact=text(written.contact),
        impu=Impu(written.impu),
        realm=text(written.realm),
        expires_at=written.expires_at,
        release_marker=written.release_marker,
        masked=written.masked,
        rspauth=written.rspauth,
        k_m=Secret(written.k_m) if written.k_m is not None else None,
        gm_keys=Secret(written.gm_keys) if written.gm_keys is not None else None,
        no_keys_because=written.no_keys_because,
        associated=tuple([text(value) for value in written.associated]),
        service_route=tuple([text(value) for value in written.service_route]),
        pinned=tuple([text(value) for value in written.pinned]),
    )
