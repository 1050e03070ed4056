# SPDX-License-Identifier: Apache-2.0
"""What an administrator does to a state directory: subscribers, keys, certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from keyferry.config import Subscriber
from keyferry.errors import StateError
from keyferry.ports import Subscriber as StoredSubscriber
from keyferry.ports import SubscriberStore, Subscription
from keyferry.protocol.identity import AsId, Impi
from keyferry.stores.backup import back_up
from keyferry.stores.database import Database
from keyferry.stores.isc_export import read_export
from keyferry.stores.isc_keys import IscPair as IscPair
from keyferry.stores.isc_keys import export_isc, import_isc, retire_isc, rotate_isc
from keyferry.stores.rotation import rotate
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import Pki
from keyferry.wiring.hss import gone_from_file, subscriber_of
from keyferry.wiring.protection import existing_state, opened_state


@asynccontextmanager
async def subscriber_store(state_path: Path, *, make: bool = False) -> AsyncIterator[SubscriberStore]:
    """Open the HSS's subscribers, also while `serve` runs; `make` the state directory if there is none. Raises StateError."""
    with (opened_state if make else existing_state)(state_path) as state, Database(state.path("hss.db")) as database:
        yield SqliteSubscriberStore(database, state.keyring)


async def add_subscriber(state_path: Path, settings: Subscriber) -> StoredSubscriber:
    """Add one. Raises ParseError, StoreError."""
    async with subscriber_store(state_path, make=True) as store:
        subscriber = subscriber_of(settings)
        await store.add(subscriber)
        return subscriber


async def list_subscribers(state_path: Path) -> Sequence[StoredSubscriber]:
    """Return every subscriber."""
    async with subscriber_store(state_path) as store:
        return await store.all()


async def show_subscriber(state_path: Path, impi: Impi) -> tuple[StoredSubscriber, int, str | None] | None:
    """Return a subscriber, the SEQ reserved and the S-CSCF assigned."""
    async with subscriber_store(state_path) as store:
        subscriber = await store.get(impi)
        return (subscriber, await store.seq(impi), await store.server_name(impi)) if subscriber else None


async def remove_subscriber(state_path: Path, impi: Impi) -> bool:
    """Remove one; false if there was none."""
    async with subscriber_store(state_path) as store:
        return await store.remove(impi)


async def subscribers_gone(state_path: Path, settings: Sequence[Subscriber]) -> dict[Impi, Subscription]:
    """Return who came from a configuration file of which these are the subscribers now, and is not in it any more."""
    async with subscriber_store(state_path) as store:
        found = [(impi, await store.subscription(impi)) for impi in await gone_from_file(store, settings)]
        return {impi: subscription for impi, subscription in found if subscription is not None}


def is_in_use(state_path: Path) -> bool:
    """Return whether another process uses a state directory just now."""
    with existing_state(state_path) as state:
        try:
            with state.alone():
                return False
        except StateError:
            return True


async def set_profile(state_path: Path, impi: Impi, profile: str) -> bool:
    """Give a subscriber a profile, durably; false if there is no such subscriber."""
    async with subscriber_store(state_path) as store:
        subscriber = await store.get(impi)
        if subscriber is None:
            return False
        if subscriber.profile != profile:
            await store.replace(subscriber._replace(profile=profile))
        return True


def rotate_keys(state_path: Path) -> Mapping[str, int]:
    """Make a new KEK and re-seal every row; return how many rows of each database. Raises StateError while `serve` runs."""
    with existing_state(state_path, exclusive=True) as state:
        return rotate(state)


def rotate_isc_keys(state_path: Path, scscf: str | None, as_id: AsId | None, *, retire: bool) -> list[IscPair]:
    """Add a transport key to each S-CSCF and AS, or drop the older one; return what each has now. Raises StateError."""
    with existing_state(state_path) as state:
        return retire_isc(state, SystemClock().now(), scscf, as_id) if retire else rotate_isc(state, scscf, as_id)


def export_isc_keys(state_path: Path, file: Path, scscf: str | None, as_id: AsId | None) -> list[IscPair]:
    """Write transport keys to a new file, for the machine of the other side; return whose. Raises StateError."""
    new = scscf is not None and as_id is not None  # only with both named it makes keys that are not there
    with (opened_state if new else existing_state)(state_path) as state:
        return export_isc(state, file, scscf, as_id)


def import_isc_keys(state_path: Path, file: Path) -> list[IscPair]:
    """Take the transport keys of such a file; return whose. The file is read before a state directory is made. Raises StateError."""
    keys = read_export(file)
    with opened_state(state_path) as state:
        return import_isc(state, keys)


def back_up_state(state_path: Path, target: Path) -> list[str]:
    """Copy what a state directory cannot get again to a new directory; return its files. Raises StateError, StoreError."""
    with existing_state(state_path) as state:
        return back_up(state, target)


def open_pki(state_path: Path, *, make: bool = True) -> Pki:
    """Return the private CA of a state directory; `make` the directory if there is none. Raises StateError."""
    with (opened_state if make else existing_state)(state_path):
        return Pki(state_path, SystemClock())
