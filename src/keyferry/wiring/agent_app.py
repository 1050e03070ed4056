# SPDX-License-Identifier: Apache-2.0
"""An application with its own key agent, for one process; and the key store of an agent on this machine, read without it.

    from keyferry.wiring.agent_app import with_agent
    app = with_agent(app, "agent.toml")              # in place of SimLogin; the server must send lifespan events, as uvicorn does

Both need the whole installation. Several workers, or another user's process, take SimLogin and `keyferry agent`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import App, Message, Receive, Scope, Send
from keyferry.config.agent import AgentConfig, load_agent_config
from keyferry.errors import ConfigError, KeyferryError, LocalProtocolError, StateError
from keyferry.ports import UseLedger
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.database import Database
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.state_dir import StateDir
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.agent import LOCK, Agent
from keyferry.wiring.observability import LogFormat, Metrics, StructLog
from keyferry.wiring.protection import opened_state

_ENDS = frozenset({"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"})


@dataclass(frozen=True, slots=True)
class OwnKeys(PushedKeys):
    """The keys of an agent in this process, with what it decides about their use."""

    ledgers: Mapping[AsId, UseLedger] = field(kw_only=True)

    def ledger(self, as_id: AsId) -> UseLedger:
        """Return the ledger of an AS_ID. Raises ConfigError."""
        found = self.ledgers.get(as_id)
        if found is None:
            raise ConfigError("with_agent as_id", f"{as_id} is none of agent.as_ids", "Add it to the agent's file")
        return found


def with_agent(
    app: App, config: str | os.PathLike[str], *, as_id: str | None = None, state: str | os.PathLike[str] | None = None,
    log: LogFormat = "text", **settings: Any,
) -> WithAgent:  # fmt: skip
    """Put SimLogin before an application, and run its key agent as long as the server runs.

    `as_id` is needed where the file has several; `state` overrides the file's; `settings` are SimLogin's. Raises ConfigError.
    """
    loaded = load_agent_config(Path(config))
    names = [parse_as_id(text) for text in loaded.agent.as_ids]
    if as_id is None and len(names) > 1:
        raise ConfigError("with_agent as_id", f"is needed, as {config} has {len(names)} as_ids", f'Write for example as_id="{names[0]}"')
    name = names[0] if as_id is None else parse_as_id(as_id)
    if name not in names:
        raise ConfigError("with_agent as_id", f"{name} is none of agent.as_ids in {config}", f"Write one of {', '.join(names)}")
    place = Path(state if state is not None else loaded.agent.state or ".keyferry")
    return WithAgent(app, loaded, name, place, log, settings)


class WithAgent:
    """An ASGI application whose lifespan is that of a key agent, too."""

    def __init__(self, app: App, config: AgentConfig, as_id: AsId, state: Path, log: LogFormat, settings: Mapping[str, Any]) -> None:
        self.app = app
        self.agent: Agent | None = None
        self._config = config
        self._as_id = as_id
        self._state = state
        self._log: LogFormat = log
        self._settings = settings
        self._door: SimLogin | None = None
        self._exit = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif self._door is None:
            raise LocalProtocolError("the key agent was not started: let the server send lifespan events (uvicorn: lifespan on)")
        else:
            await self._door(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: list[Message] = [await receive()]
        try:
            await self._start()
        except KeyferryError as problem:
            await send({"type": "lifespan.startup.failed", "message": f"keyferry: {problem}"})
            return
        spoken = False

        async def replayed() -> Message:
            return first.pop() if first else await receive()

        async def passed(message: Message) -> None:
            nonlocal spoken
            spoken = True
            if message["type"] in _ENDS:
                await self._stop()  # before the server is told that it may end
            await send(message)

        try:
            await self.app(scope, replayed, passed)
        except Exception:
            if spoken:
                raise
            # An application that knows nothing of lifespans, as the ASGI specification allows.
            await passed({"type": "lifespan.startup.complete"})
            await receive()
            await passed({"type": "lifespan.shutdown.complete"})
        finally:
            await self._stop()

    async def _start(self) -> None:
        random, clock, log, metrics = SystemRandom(), SystemClock(), StructLog(self._log), Metrics()
        try:
            state = self._exit.enter_context(opened_state(self._state, exclusive=True, lock_name=LOCK))
            self.agent = Agent(self._config, state, clock, random, log, metrics, listens=False)
            self._exit.push_async_callback(self.agent.stop)
            await self.agent.start()
            ledgers = {as_id: served.ledger for as_id, served in self.agent.served.items()}
            keys = OwnKeys(self.agent.keys, clock, state.user_id_key, ledgers=ledgers)
            settings = {"clock": clock, "random": random, "counter": metrics, **self._settings}
            self._door = SimLogin(self.app, as_id=self._as_id, keys=keys, **settings)
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        self._door = None
        await self._exit.aclose()


@dataclass(frozen=True, slots=True)
class KeyStoreFile(PushedKeys):
    """The keys in an agent's store, read from the file itself by a process of the agent's own user."""

    state: StateDir = field(kw_only=True)
    database: Database = field(kw_only=True)

    def close(self) -> None:
        """Close the file, and leave the state directory."""
        self.database.close()
        self.state.close()

    def __enter__(self) -> KeyStoreFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_key_store(path: str | os.PathLike[str] = ".keyferry/agent.db") -> KeyStoreFile:
    """Return a KeySource over the store of an agent, or of an application server of `serve` (`as-HOST.db`), which may run.

    For one process: each has nonces of its own, and takes those of another as stale. Raises StateError.
    """
    file = Path(path)
    if not file.is_file():
        raise StateError(str(file), "is not there", "Start `keyferry agent` with this state directory first")
    clock = SystemClock()
    state = opened_state(file.parent)
    try:
        database = Database(file)
        keys = SqliteKeyStore(database, state.keyring, now=clock.now())
        return KeyStoreFile(keys, clock, state.user_id_key, state=state, database=database)
    except BaseException:
        state.close()
        raise
