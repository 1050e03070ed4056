# SPDX-License-Identifier: Apache-2.0
"""A UE for programs: open it, register, stay registered, and ask application servers over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from keyferry.client.session import UeSession, ue_session
from keyferry.client.stay import Stay
from keyferry.config import UeConfig, load_ue_config
from keyferry.errors import KeyferryError
from keyferry.ports import Log, UeState
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.marker import parse_marker

_LOGGER = logging.getLogger("keyferry.client")


class LibraryLog:
    """Implement ports.Log over the standard library's logging, logger "keyferry.client"."""

    def info(self, event: str, **fields: object) -> None:
        """Record what happened."""
        _LOGGER.info("%s %s", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record what somebody should look at."""
        _LOGGER.warning("%s %s", event, fields)


class Status(NamedTuple):
    """A UE's registration, without a key."""

    registered: bool
    impi: Impi
    impu: Impu
    expires_at: float  # seconds since the epoch; 0: not registered
    release: int  # of the S-CSCF
    masked: bool  # the P-CSCF has CK', IK'
    rspauth: bool  # the S-CSCF proved itself
    keys: bool  # AS keys may be used
    no_keys_because: str  # "" if they may
    associated: tuple[str, ...]  # public identities that the network registered along


def status_of(state: UeState, now: float) -> Status:
    """Return what may be told of a state."""
    marker = parse_marker(state.release_marker)
    return Status(
        state.expires_at > now, state.impi, state.impu, state.expires_at, marker.release if marker else 5, state.masked, state.rspauth,
        state.k_m is not None, state.no_keys_because, state.associated,
    )  # fmt: skip


class Ue:
    """One SIM in one device, and its registration; `Ue.open` makes one."""

    def __init__(self, session: UeSession) -> None:
        """Take an open session."""
        self._session = session

    @classmethod
    @asynccontextmanager
    async def open(cls, config: str | Path | UeConfig, *, state: str | Path | None = None, log: Log | None = None) -> AsyncIterator[Ue]:
        """Open the UE of a TOML file, as `keyferry ue` takes it; a registration stays when it is closed.

        `state` is the state directory, by default that of $KEYFERRY_STATE, else .keyferry. Several processes may have a UE open: they
        register in turn, and have the keys of the last one that did.
        Raises ConfigError, StateError, TransportError.
        """
        loaded = config if isinstance(config, UeConfig) else load_ue_config(Path(config))
        folder = Path(state if state is not None else os.environ.get("KEYFERRY_STATE", ".keyferry"))
        async with ue_session(loaded, folder, log or LibraryLog()) as session:
            yield cls(session)

    async def register(self) -> Status:
        """Register, or register again with new keys.

        Raises RegistrationFailed, TransportError; StateError if another process is at it and does not end.
        """
        return status_of(await self._session.client.register(), self._session.client.clock.now())

    async def deregister(self, *, every: bool = False) -> None:
        """End the registration and its keys, with `every` that of each device. Raises RegistrationFailed, TransportError."""
        await self._session.client.deregister(every=every)

    async def status(self) -> Status | None:
        """Return the registration, None if there never was one."""
        state = await self._session.client.state()
        return None if state is None else status_of(state, self._session.client.clock.now())

    @asynccontextmanager
    async def registered(self) -> AsyncIterator[None]:
        """Register, stay registered in the background, and de-register at the end; events go to the log.

        Raises RegistrationFailed, TransportError if the first registration fails. If the network ends a later one, requests raise
        RegistrationFailed.
        """
        session, begun = self._session, asyncio.Event()

        def tell(event: str, seconds: float, details: Mapping[str, Any]) -> None:
            session.log.info(f"ue-{event}", at=seconds, **details)
            if event == "registered":
                begun.set()

        stay = Stay(session.client, tell, session.random, session.log)

        async def run() -> None:
            try:
                await stay.run()
                session.log.warning("ue-not-registered", problem="the network ended the registration and wants no other")
            except KeyferryError as problem:
                session.log.warning("ue-not-registered", problem=str(problem))
                raise

        running = asyncio.get_running_loop().create_task(run())
        waiting = asyncio.get_running_loop().create_task(begun.wait())
        try:
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not begun.is_set():
                await running
            yield
        finally:
            for task in (running, waiting):
                task.cancel()
            await asyncio.gather(running, waiting, return_exceptions=True)
            await stay.leave()

    def auth(self, host: str, *, integrity: bool = False) -> httpx.Auth:
        """Return what logs an httpx.AsyncClient of your own in at one host; with `integrity` bodies are signed both ways (auth-int).

        Raises ParseError.
        """
        return self._session.login(host, integrity=integrity)

    def http(self, url: str) -> httpx.AsyncClient:
        """Return a client for one application server; paths are relative to `url`. It trusts the CA of the UE's configuration.

        Raises ConfigError (no https), ParseError (the host).
        """
        return self._session.http(url, base=True)
