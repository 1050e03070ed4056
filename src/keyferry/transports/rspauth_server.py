# SPDX-License-Identifier: Apache-2.0
"""A UNIX socket for a script of Kamailio's; only listed users may ask.

{"authorization": …} is answered by {"rspauth": …}; {"ended": S-CSCF, "since": place} by {"ended": [[place, milliseconds, IMPI], …]};
either by {"error": …}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keyferry.errors import KeyferryError
from keyferry.ports import Counter, Log
from keyferry.transports.unix_socket import bind_unix, drop_name, peer_of, take_name

MAX_LINE: Final = 16_384
"""Octets; an Authorization has 8,192 at most."""
PATIENCE: Final = 2.0
"""Seconds that a peer may take to ask."""
MAX_CONNECTIONS: Final = 256


@dataclass(slots=True)
class RspauthServer:
    """Listen, and let nobody ask whom the kernel does not name as one of `users` (uids)."""

    prove: Callable[[str], Awaitable[str]]  # raises KeyferryError
    users: Collection[int]
    log: Log
    counter: Counter
    ended: Callable[[str, int], Sequence[tuple[int, int, str]]] | None = None  # by S-CSCF and place: who was ended since
    group: int | None = None  # whose members may open the socket; None: processes of this user alone, and root's
    _path: Path | None = None
    _inode: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def listen(self, path: Path) -> None:
        """Begin. Raises StateError: the path cannot be used, or somebody else listens there."""
        sock = bind_unix(path, 0o600 if self.group is None else 0o660, self.group)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_LINE)
        self._path, self._inode = path, take_name(path)

    @property
    def is_listening(self) -> bool:
        """Tell whether it has begun."""
        return self._path is not None

    async def aclose(self) -> None:
        """End."""
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._open):
                writer.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), PATIENCE)
        if self._path is not None:
            drop_name(self._path, self._inode)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            uid, _ = peer_of(writer.transport)  # type: ignore[arg-type]
            if uid not in self.users or len(self._open) > MAX_CONNECTIONS:
                self.counter.count("hss_rspauth", "refused")
                self.log.warning("rspauth-not-allowed", uid=uid)
                return
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
            if not line:  # somebody looked whether we are there
                return
            writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), PATIENCE)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            self.counter.count("hss_rspauth", "broken")
        finally:
            self._open.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            found = json.loads(line)
            if self.ended is not None and isinstance(found, dict) and "ended" in found:
                return {"ended": self.ended(str(found["ended"]), int(found["since"]))}
            authorization = found.get("authorization") if isinstance(found, dict) else None
            if not isinstance(authorization, str):
                raise ValueError("no authorization")
            rspauth = await self.prove(authorization)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return {"error": "not a question"}
        except KeyferryError as problem:
            self.counter.count("hss_rspauth", "rejected")
            return {"error": str(problem)}
        self.counter.count("hss_rspauth", "proven")
        return {"rspauth": rspauth}
