# SPDX-License-Identifier: Apache-2.0
"""What Kamailio's processes know together, and after a restart: transactions, challenges with K_M sealed, answers, sequence numbers.

Every process opens the file for itself after it was forked; each step is one transaction of SQLite that waits its turn.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from keyferry.errors import StoreError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.challenges import MAX_PER_CALL, MAX_PER_IMPI, MAX_PER_PLACE
from keyferry.stores.connection import claim, connect
from keyferry.stores.sealing import Keyring, SealedColumn

PENDING_LIFE: Final = 300.0
"""Seconds that a challenge waits; reg-await-auth is 240 (TS 24.229 §5.4.1.2.1)."""
TRANSACTION_LIFE: Final = 60.0
"""Seconds that a transaction is remembered: a REGISTER is sent again for 32 s (RFC 3261 §17.1.2.2)."""
FORMAT: Final = 2
"""Of kemi.db: since 2, what is owed may be a key, which a Kamailio of before would erase."""
MAX_ROWS: Final = 500_000
"""Challenges in all, 150 MB; the oldest that nobody answered go first."""
SWEEP_EVERY: Final = 10.0
"""Seconds between looks for what is over, in each process."""
MAX_DEVICES: Final = 64
"""Devices of one user that pushes are remembered of, so that Contact: * erases the keys of each: more than ever register. The one that was
silent longest goes, and its key at an AS lives to its own end."""
BUSY_MS: Final = 1_000
"""Milliseconds that a worker of Kamailio waits for the others' transactions: each is short, and the UE sends again after 500."""
CHECKPOINT_PAGES: Final = 500
"""2 MB of kemi.db-wal."""
SEND_AGAIN: Final = 5.0
"""Seconds until an AS that did not answer ims_isc with 200 gets the message again, from us."""
TELL_AGAIN: Final = 60.0
"""Seconds until an AS that gave us no 200 is told again; the age of what it is told, if that is more."""
ANSWERED_WITHIN: Final = 40.0
"""Seconds that an AS has to answer: a transaction lasts 32 (RFC 3261 §17.1.2.2)."""
MAX_UNANSWERED: Final = 100
"""Messages of ours that ASs are to answer at a time, each AS its share: one takes Kamailio 50,000 octets of shared memory."""
SEQ_MEMORY: Final = 10 * 86_400.0
"""Seconds: a sequence number is at least the clock's milliseconds, so an older one need not be remembered (stores/sqlite/registrations)."""


class State(IntEnum):
    """What became of a challenge."""

    PENDING = 0
    AUTHENTICATED = 1  # ims_www_authenticate accepted the answer


class Challenged(NamedTuple):
    """One masked challenge."""

    nonce: str
    impi: Impi
    impu: Impu
    realm: str
    state: State
    reg: str  # of the answer; "" while pending
    aka_time: float  # seconds since the epoch: when it was sent
    expires_at: float
    k_m: Secret


class Owed(NamedTuple):
    """An AS that must be given a device's key, or told that its registration is over: until it has said 200, or the key is dead anyway."""

    id: int
    impi: Impi
    as_id: AsId
    reg: Reg
    impu: Impu
    seq: int  # of the message that tells it
    expires_at: float  # seconds since the epoch: the end of the registration, or of the key that is erased
    expires: int  # seconds that the registration has left; 0: it is over
    nonce: str  # of the challenge whose key is given; "" erases
    service_info: str | None  # the HSS's own, beside the key


_COLUMNS: Final = ("nonce", "impi", "impu", "realm", "state", "reg", "aka_time", "expires_at")
K_M: Final = SealedColumn("challenge", "k_m", _COLUMNS)
SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS asked (key TEXT PRIMARY KEY, impi TEXT NOT NULL, impu TEXT NOT NULL, expires_at REAL NOT NULL)"
    " WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS asked_expires_at ON asked (expires_at)",
    "CREATE TABLE IF NOT EXISTS challenge (id INTEGER PRIMARY KEY, nonce TEXT NOT NULL UNIQUE, impi TEXT NOT NULL, impu TEXT NOT NULL,"
    " realm TEXT NOT NULL, state INTEGER NOT NULL, reg TEXT NOT NULL, aka_time REAL NOT NULL, expires_at REAL NOT NULL, k_m BLOB NOT NULL,"
    " source TEXT NOT NULL DEFAULT '', call_id TEXT NOT NULL DEFAULT '')",
    "CREATE INDEX IF NOT EXISTS challenge_impi ON challenge (impi, state)",
    "CREATE INDEX IF NOT EXISTS challenge_expires_at ON challenge (expires_at)",
    # no secret: it goes out in a 200, and is here for the copies that are sent again
    "CREATE TABLE IF NOT EXISTS answer (key TEXT PRIMARY KEY, info TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS answer_expires_at ON answer (expires_at)",
    "CREATE TABLE IF NOT EXISTS push_seq (impi TEXT NOT NULL, as_id TEXT NOT NULL, reg TEXT NOT NULL, seq INTEGER NOT NULL,"
    " PRIMARY KEY (impi, as_id, reg)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS push_seq_seq ON push_seq (seq)",
    # seq is that of the last message about the key: a later one is of a later registration, and nothing is owed any more
    "CREATE TABLE IF NOT EXISTS owed (id INTEGER PRIMARY KEY, impi TEXT NOT NULL, as_id TEXT NOT NULL, reg TEXT NOT NULL,"
    " impu TEXT NOT NULL, seq INTEGER NOT NULL, since REAL NOT NULL, told_at REAL NOT NULL, due_at REAL NOT NULL, expires_at REAL NOT NULL,"
    " nonce TEXT NOT NULL DEFAULT '', service_info TEXT, ticket TEXT NOT NULL DEFAULT '', UNIQUE (impi, as_id, reg))",
    "CREATE INDEX IF NOT EXISTS owed_told_at ON owed (told_at)",
    "CREATE INDEX IF NOT EXISTS owed_since ON owed (since)",
    # the HSS's last end that was carried out: what comes again after a restart would take a clock that was set back for an order
    "CREATE TABLE IF NOT EXISTS heard (id INTEGER PRIMARY KEY CHECK (id = 0), place INTEGER NOT NULL)",
)
_SINCE_2: Final = (
    ("owed", "nonce TEXT NOT NULL DEFAULT ''"),  # of a file of before each row is an end
    ("owed", "service_info TEXT"),
    ("owed", "ticket TEXT NOT NULL DEFAULT ''"),
    ("challenge", "source TEXT NOT NULL DEFAULT ''"),
    ("challenge", "call_id TEXT NOT NULL DEFAULT ''"),
)
"""Columns that a file of format 1 lacks."""
_INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS owed_as_due_at ON owed (as_id, due_at)",
    "CREATE INDEX IF NOT EXISTS owed_ticket ON owed (ticket)",
    "CREATE INDEX IF NOT EXISTS challenge_of_call ON challenge (impi, source, call_id) WHERE state = 0",
    "CREATE INDEX IF NOT EXISTS challenge_of_place ON challenge (impi, source) WHERE state = 0",
)
_BOUNDS: Final = tuple(
    (
        f"DELETE FROM challenge WHERE {group} AND id <="  # noqa: S608 - text of our own
        f" (SELECT id FROM challenge WHERE {group} ORDER BY id DESC LIMIT 1 OFFSET {most})"
    )
    for group, most in (
        ("impi = :impi AND source = :source AND call_id = :call_id AND state = 0", MAX_PER_CALL),
        ("impi = :impi AND source = :source AND state = 0", MAX_PER_PLACE),
        ("impi = :impi AND state = 0", MAX_PER_IMPI),
    )
)
"""The oldest of a group that is full go, as at our S-CSCF."""
_SELECT: Final = f"SELECT k_m, {', '.join(_COLUMNS)} FROM challenge WHERE nonce = ?"  # noqa: S608
_UPSERT: Final = (
    f"INSERT INTO challenge (k_m, {', '.join(_COLUMNS)}, source, call_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
    " ON CONFLICT (nonce) DO UPDATE SET k_m = excluded.k_m, state = excluded.state, reg = excluded.reg, expires_at = excluded.expires_at"
)
_DUE: Final = (
    "SELECT id, impi, reg, impu, expires_at, nonce, service_info, (SELECT push_seq.seq > owed.seq FROM push_seq WHERE"
    " (push_seq.impi, push_seq.as_id, push_seq.reg) = (owed.impi, owed.as_id, owed.reg))"
    " FROM owed WHERE as_id = ? AND due_at <= ? ORDER BY due_at LIMIT 1"
)
_BEFORE: Final = "impi = :impi AND state = 1 AND (aka_time * 1000 <= :at OR aka_time * 1000 > :future)"
_OWE_ENDED: Final = (
    "INSERT OR REPLACE INTO owed (impi, as_id, reg, impu, seq, since, told_at, due_at, expires_at)"  # noqa: S608
    " SELECT impi, push_seq.as_id, push_seq.reg, challenge.impu, seq, :now, 0, :now, challenge.expires_at"
    f" FROM push_seq JOIN challenge USING (impi, reg) WHERE {_BEFORE} AND (seq <= :at OR seq > :future)"
)
_OLDEST: Final = {
    "asked": "DELETE FROM asked WHERE key IN (SELECT key FROM asked ORDER BY expires_at LIMIT ?)",
    "challenge": "DELETE FROM challenge WHERE id IN (SELECT id FROM challenge ORDER BY state, aka_time LIMIT ?)",
    "answer": "DELETE FROM answer WHERE key IN (SELECT key FROM answer ORDER BY expires_at LIMIT ?)",
    "owed": "DELETE FROM owed WHERE id IN (SELECT id FROM owed ORDER BY since LIMIT ?)",
    "push_seq": "DELETE FROM push_seq WHERE (impi, as_id, reg) IN (SELECT impi, as_id, reg FROM push_seq ORDER BY seq LIMIT ?)",
}


class KemiStore:
    """One process's way to the file."""

    def __init__(self, path: Path, keyring: Keyring, now: Callable[[], float], *, max_rows: int = MAX_ROWS) -> None:
        """Open the file, made if it is not there. Raises StateError, StoreError."""
        self._keyring = keyring
        self._now = now
        self._max_rows = max_rows
        self._swept_at = 0.0
        with _alone(path):
            self._connection = connect(path)
            try:
                self._prepare(path)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, path: Path) -> None:
        claim(self._connection, path, FORMAT, oldest=1)
        # A crash of Kamailio loses nothing; a power cut the last moments, whose challenges are made again, and seq follows the clock.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        # Many processes write at once: a short checkpoint ends between two of their commits, a long one never, and kemi.db-wal would grow.
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        with self._transaction() as connection:
            for statement in SCHEMA:
                connection.execute(statement)
            for table, column in _SINCE_2:
                if column.split()[0] not in {row[1] for row in connection.execute(f"PRAGMA table_info ({table})")}:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
            for statement in _INDEXES:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def ask(self, key: str, impi: Impi, impu: Impu) -> bool:
        """Note whose transaction this is; false if it is another's already."""
        with self._transaction() as connection:
            self._sweep(connection)
            connection.execute(
                "INSERT OR IGNORE INTO asked (key, impi, impu, expires_at) VALUES (?, ?, ?, ?)",
                (key, impi, impu, self._now() + TRANSACTION_LIFE),
            )
            row = connection.execute("SELECT impi, impu FROM asked WHERE key = ?", (key,)).fetchone()
        return bool(row == (impi, impu))

    def asker(self, key: str) -> tuple[Impi, Impu] | None:
        """Return whose transaction this is."""
        with self._transaction() as connection:
            row = connection.execute("SELECT impi, impu FROM asked WHERE key = ?", (key,)).fetchone()
        return (Impi(row[0]), Impu(row[1])) if row else None

    def challenged(self, nonce: str) -> Challenged | None:
        """Return the challenge of a nonce, unless its time is over. Raises SealError if its row was changed."""
        with self._transaction() as connection:
            return self._challenged(connection, nonce)

    def keep(self, nonce: str, impi: Impi, impu: Impu, realm: str, k_m: Secret, source: str = "", call_id: str = "") -> bool:
        """Keep K_M of a challenge that is about to leave to an address; false if this nonce has another K_M or owner already.

        Raises SealError.
        """
        now = self._now()
        with self._transaction() as connection:
            known = self._challenged(connection, nonce)
            if known is not None:
                return (known.impi, known.impu) == (impi, impu) and known.k_m == k_m
            self._write(connection, Challenged(nonce, impi, impu, realm, State.PENDING, "", now, now + PENDING_LIFE, k_m), source, call_id)
            for bound in _BOUNDS:
                connection.execute(bound, {"impi": impi, "source": source, "call_id": call_id})
            return True

    def authenticated(self, nonce: str, impi: Impi, impu: Impu, reg: Reg, expires_at: float) -> Challenged | None:
        """Take the answer to a challenge as accepted; None if the challenge is another's, another device's, or not there.

        Older keys of the device are forgotten. Raises SealError.
        """
        with self._transaction() as connection:
            known = self._challenged(connection, nonce)
            if known is None or (known.impi, known.impu) != (impi, impu) or known.reg not in ("", reg):
                return None
            if known.state is State.AUTHENTICATED:
                return known
            now_known = known._replace(state=State.AUTHENTICATED, reg=reg, expires_at=expires_at)
            connection.execute("DELETE FROM challenge WHERE impi = ? AND state = 1 AND reg = ?", (impi, reg))
            self._write(connection, now_known)
            return now_known

    def forget(self, impi: Impi, reg: Reg | None) -> None:
        """Drop the keys of one device, or of all."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM challenge WHERE impi = ? AND state = 1 AND reg = ifnull(?, reg)", (impi, reg))

    def heard(self) -> int:
        """Return the place of the last end that was carried out, 0 before the first."""
        with self._transaction() as connection:
            row = connection.execute("SELECT place FROM heard").fetchone()
        return 0 if row is None else int(row[0])

    def end(self, impi: Impi, at: int, place: int) -> None:
        """Drop the keys that a user had at `at`, milliseconds since the epoch, and owe each AS that has them the news. Newer stay.

        A key of a time to come is not newer: the clock was set back since.
        """
        now = self._now()
        of = {"impi": impi, "at": at, "now": now, "future": max(now * 1000, at), "place": place}
        with self._transaction() as connection:
            connection.execute(_OWE_ENDED, of)
            connection.execute(f"DELETE FROM challenge WHERE {_BEFORE}", of)  # noqa: S608
            connection.execute("INSERT OR REPLACE INTO heard (id, place) VALUES (0, :place)", of)

    def owe(
        self,
        impi: Impi,
        as_id: AsId,
        reg: Reg,
        impu: Impu,
        ticket: str,
        expires_at: float,
        *,
        nonce: str = "",
        service_info: str | None = None,
    ) -> int:
        """Return the sequence number of a message that is about to leave for an AS, which is owed until its transaction is `answered`.

        With a nonce it gives the key of that challenge, else it erases; at `expires_at` the key is dead anyway.
        """
        now = self._now()
        with self._transaction() as connection:
            seq = self._next_seq(connection, impi, as_id, reg)
            row = (impi, as_id, reg, impu, seq, now, now + SEND_AGAIN, expires_at, nonce, service_info, ticket)
            connection.execute(
                "INSERT OR REPLACE INTO owed (impi, as_id, reg, impu, seq, since, told_at, due_at, expires_at, nonce, service_info, ticket)"
                " VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
                row,
            )
        return seq

    def answered(self, ticket: str) -> None:
        """Owe it no longer: an AS has answered the transaction. Of one that is not ours nothing is written."""
        try:
            known = self._connection.execute("SELECT 1 FROM owed WHERE ticket = ?", (ticket,)).fetchone()
        except sqlite3.Error as problem:
            raise StoreError(f"kemi.db: {problem}") from problem
        if known is not None:
            with self._transaction() as connection:
                connection.execute("DELETE FROM owed WHERE ticket = ?", (ticket,))

    def take_owed(self, as_ids: Sequence[AsId]) -> Owed | None:
        """Return what one of these ASs is to be told next, under a sequence number of its own; it comes again unless `settle` is called.

        None also while too much of it is not answered; an AS that answers nothing uses up its own share.
        """
        now = self._now()
        with self._transaction() as connection:
            # what is of the time to come waits for nothing: the clock was set back
            connection.execute("UPDATE owed SET told_at = 0, due_at = ?, since = ? WHERE told_at > ? OR since > ?", (now, now, now, now))
            count = "SELECT as_id, count(*) FROM owed WHERE told_at > ? GROUP BY as_id"
            unanswered = dict(connection.execute(count, (now - ANSWERED_WITHIN,)).fetchall())
            if sum(unanswered.values()) >= MAX_UNANSWERED:
                return None
            share = max(1, MAX_UNANSWERED // max(1, len(as_ids)))
            for as_id in as_ids:
                owed = self._due(connection, as_id, now) if unanswered.get(as_id, 0) < share else None
                if owed is not None:
                    return owed
        return None

    def _due(self, connection: sqlite3.Connection, as_id: AsId, now: float) -> Owed | None:
        while (row := connection.execute(_DUE, (as_id, now)).fetchone()) is not None:
            number, impi, reg, impu, expires_at, nonce, service_info, later = row
            if later or expires_at <= now:
                connection.execute("DELETE FROM owed WHERE id = ?", (number,))
                continue
            seq = self._raise_seq(connection, impi, as_id, reg)
            told = "UPDATE owed SET seq = ?, told_at = ?, due_at = ? + max(?, ? - since), ticket = '' WHERE id = ?"
            connection.execute(told, (seq, now, now, TELL_AGAIN, now, number))
            left = max(1, int(expires_at - now)) if nonce else 0
            return Owed(number, Impi(impi), as_id, Reg(reg), Impu(impu), seq, expires_at, left, nonce, service_info)
        return None

    def settle(self, number: int, seq: int) -> None:
        """Owe it no longer: the AS has been told, by the message of this sequence number."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM owed WHERE id = ? AND seq = ?", (number, seq))

    def answer(self, key: str, info: str) -> None:
        """Keep the Authentication-Info of a 200 for as long as that may be sent again."""
        with self._transaction() as connection:
            row = (key, info, self._now() + TRANSACTION_LIFE)
            connection.execute("INSERT OR REPLACE INTO answer (key, info, expires_at) VALUES (?, ?, ?)", row)

    def answer_of(self, key: str) -> str | None:
        """Return the Authentication-Info that the 200 of this transaction shall carry."""
        with self._transaction() as connection:
            row = connection.execute("SELECT info FROM answer WHERE key = ? AND expires_at > ?", (key, self._now())).fetchone()
        return None if row is None else str(row[0])

    def next_seq(self, impi: Impi, as_id: AsId, reg: Reg) -> int:
        """Return max(last + 1, milliseconds): strictly rising over processes and restarts (DESIGN §6)."""
        with self._transaction() as connection:
            return self._next_seq(connection, impi, as_id, reg)

    def _next_seq(self, connection: sqlite3.Connection, impi: Impi, as_id: AsId, reg: Reg) -> int:
        seq = self._raise_seq(connection, impi, as_id, reg)
        connection.execute(
            "DELETE FROM push_seq WHERE impi = ? AND reg NOT IN"
            " (SELECT reg FROM push_seq WHERE impi = ? GROUP BY reg ORDER BY max(seq) DESC LIMIT ?)",
            (impi, impi, MAX_DEVICES),
        )
        return seq

    def devices(self, impi: Impi) -> list[Reg]:
        """Return the devices of a user that an AS may have keys of, the latest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT reg FROM push_seq WHERE impi = ? GROUP BY reg ORDER BY max(seq) DESC", (impi,)).fetchall()
        return [Reg(reg) for (reg,) in rows]

    def _raise_seq(self, connection: sqlite3.Connection, impi: str, as_id: str, reg: str) -> int:
        (seq,) = connection.execute(
            "INSERT INTO push_seq (impi, as_id, reg, seq) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (impi, as_id, reg) DO UPDATE SET seq = max(seq + 1, excluded.seq) RETURNING seq",
            (impi, as_id, reg, int(self._now() * 1000)),
        ).fetchone()
        return int(seq)

    def _challenged(self, connection: sqlite3.Connection, nonce: str) -> Challenged | None:
        row = connection.execute(_SELECT, (nonce,)).fetchone()
        if row is None or row[-1] <= self._now():
            return None
        k_m = Secret(K_M.open(self._keyring, row[0], row[1:]))
        nonce, impi, impu, realm, state, reg, aka_time, expires_at = row[1:]
        return Challenged(nonce, Impi(impi), Impu(impu), realm, State(state), reg, aka_time, expires_at, k_m)

    def _write(self, connection: sqlite3.Connection, row: Challenged, source: str = "", call_id: str = "") -> None:
        values = (row.nonce, row.impi, row.impu, row.realm, int(row.state), row.reg, float(row.aka_time), float(row.expires_at))
        connection.execute(_UPSERT, (K_M.seal(self._keyring, row.k_m.reveal(), values), *values, source, call_id))

    def _sweep(self, connection: sqlite3.Connection) -> None:
        now = self._now()
        if now - self._swept_at < SWEEP_EVERY:
            return
        self._swept_at = now
        for table in ("asked", "challenge", "answer", "owed"):
            connection.execute(f"DELETE FROM {table} WHERE expires_at <= ?", (now,))  # noqa: S608 - names of our own
        connection.execute("DELETE FROM push_seq WHERE seq < ?", (int((now - SEQ_MEMORY) * 1000),))
        for table, delete in _OLDEST.items():
            over = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] - self._max_rows  # noqa: S608
            if over > 0:
                connection.execute(delete, (over,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as problem:
            raise StoreError(f"kemi.db: {problem}") from problem


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep Kamailio's other processes away: all of them open the file at their first message, and two cannot make it at once."""
    try:
        lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise StoreError(f"kemi.db: {problem.strerror}") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
