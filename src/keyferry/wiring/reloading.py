# SPDX-License-Identifier: Apache-2.0
"""What SIGHUP makes of a configuration that was changed: subscribers and log level at once, for all else it says what needs a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from keyferry.config import Config
from keyferry.config.lines import KeyPath, line_among, lines_of
from keyferry.config.profiles import names_of
from keyferry.errors import KeyferryError
from keyferry.ports import SubscriberStore
from keyferry.wiring.hss import provision, report_gone
from keyferry.wiring.observability import LogLevel, StructLog

MAX_NAMED: Final = 20
"""Keys or subscribers that one line of the log names; of more it says how many."""


@dataclass(slots=True)
class Reload:
    """Read the configuration of a process again; a file that cannot be used changes nothing."""

    path: Path
    read: Callable[[], Config]  # as at start, all checks included
    running: Config  # what the process was started with, and of later files what took effect
    log: StructLog
    level: LogLevel | None = None  # of the command line, which goes before the file

    async def __call__(self, store: SubscriberStore | None) -> None:
        """Read it, in a thread, and use what may change; `store` is the HSS's, None where that is another process."""
        try:
            wanted, restart = await asyncio.to_thread(self._read)
            await self._use(wanted, store)
        except KeyferryError as problem:
            self.log.error("configuration-not-read-again", problem=str(problem), remedy="the one before stays in use: mend it, send SIGHUP")
            return
        except Exception as problem:  # whatever an application does when it is imported: what runs goes on
            self.log.error("configuration-not-read-again", problem=f"{type(problem).__name__}: {problem}")
            return
        if restart:
            self.log.warning("configuration-needs-restart", keys=_named(restart))

    def _read(self) -> tuple[Config, list[str]]:
        wanted = self.read()
        lines = lines_of(self.path)
        return wanted, [_shown(self.path, lines, place) for place in needing_restart(self.running, wanted)]

    async def _use(self, wanted: Config, store: SubscriberStore | None) -> None:
        self.log.level = self.level or wanted.log.level
        if store is not None:
            profiles = names_of(self.running.profiles)
            known = [one for one in wanted.subscribers if one.profile is None or one.profile in profiles]
            await report_gone(store, wanted.subscribers, self.log)
            added, changed = await provision(store, known)
            self.log.info("subscribers-read-again", added=len(added), changed=len(changed), impis=_named([*added, *changed]))
        self.running = msgspec.structs.replace(self.running, log=wanted.log, subscribers=wanted.subscribers)
        self.log.info("configuration-read-again", file=str(self.path), level=self.log.level)


def needing_restart(running: Config, wanted: Config) -> Iterator[KeyPath]:
    """Yield the keys by which a file differs from what runs, without those that change while it runs."""
    yield from _differing(msgspec.structs.replace(running, log=wanted.log, subscribers=wanted.subscribers), wanted, ())
    profiles = names_of(running.profiles)
    for place, one in enumerate(wanted.subscribers):
        if one.profile is not None and one.profile not in profiles:  # stored now, he would have no services
            yield "subscribers", place, "profile"


def _differing(before: object, after: object, place: KeyPath) -> Iterator[KeyPath]:
    if before == after:
        return
    old, new = _parts(before), _parts(after)
    if not old or not new or type(before) is not type(after) or _name_of(before) != _name_of(after):
        yield place
        return
    for name in dict.fromkeys((*old, *new)):
        if name in old and name in new:
            yield from _differing(old[name], new[name], (*place, name))
        else:
            yield (*place, name)


def _parts(value: object) -> Mapping[str | int, object]:
    """Return what a table, or an array of tables, has in it; nothing of a plain value."""
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, list) and all(isinstance(one, msgspec.Struct) for one in value):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else {}


def _name_of(value: object) -> object:
    """Return by what elements of an array of tables are told apart, its first key: another one there is another element."""
    return getattr(value, value.__struct_fields__[0]) if isinstance(value, msgspec.Struct) and not isinstance(value, Config) else None


def _shown(path: Path, lines: Mapping[KeyPath, int], place: KeyPath) -> str:
    line = line_among(lines, place)
    return f"{path}:{line}: {dotted(place)}" if line is not None else f"{path}: {dotted(place)}"


def dotted(place: KeyPath) -> str:
    """Return a key as it is named in messages: `application_servers[1].as_id`."""
    text = ""
    for part in place:
        bare = isinstance(part, str) and part.replace("_", "").replace("-", "").isalnum()
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if bare else f'."{part}"'
    return text.removeprefix(".")


def _named(names: Sequence[str]) -> str:
    more = f", and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
