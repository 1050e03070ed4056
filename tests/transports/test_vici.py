# SPDX-License-Identifier: Apache-2.0
"""A vici client against a charon of our own, over a real UNIX socket."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from keyferry.errors import TransportError
from keyferry.protocol.vici import MAX_PACKET, Kind, Section, build_packet
from keyferry.transports import vici as module
from keyferry.transports.vici import Vici, ViciLink
from steady import steady
from transports.sipkit import patiently
from transports.vicikit import charon, crowd, sa


class Heard:
    """Remember what was told, and wait for it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._came = asyncio.Event()

    def __call__(self, name: str, _message: Section) -> None:
        self.names.append(name)
        self._came.set()

    async def until(self, name: str, times: int = 1) -> None:
        while self.names.count(name) < times:
            self._came.clear()
            await patiently(self._came.wait())


@asynccontextmanager
async def client(path: Path, limit: float = 5.0) -> AsyncIterator[tuple[Vici, Heard]]:
    heard = Heard()
    made = Vici(path, heard=heard, limit=limit, sleep=lambda _seconds: asyncio.sleep(0.001))
    await made.start()
    try:
        yield made, heard
    finally:
        await made.aclose()


async def test_a_list_of_hundreds_of_sas_is_read_in_many_turns_of_the_loop_and_in_order() -> None:
    heard: list[str] = []
    link = ViciLink(lambda name, _message: heard.append(name), lambda _problem: None)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, _ = await loop.create_connection(lambda: link, sock=ours)
    try:
        link.data_received(build_packet(Kind.EVENT, "child-updown", crowd(900)) + build_packet(Kind.EVENT, "ike-updown", {}))
        assert (heard, transport.is_reading()) == ([], False)  # nothing is held back that the kernel does not hold
        turns = 0
        while len(heard) < 2:
            turns += 1
            await asyncio.sleep(0)
        assert heard == ["child-updown", "ike-updown"]
        assert turns > 20  # of 4 ms each; in one it stopped the loop for 0.1 s
        assert transport.is_reading()
    finally:
        link.end("it is over")
        theirs.close()


async def test_the_end_of_the_connection_ends_the_reading() -> None:
    heard: list[str] = []
    link = ViciLink(lambda name, _message: heard.append(name), lambda problem: heard.append(problem))
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
    link.data_received(build_packet(Kind.EVENT, "child-updown", crowd(900)) + b"\0\0\0\0")
    assert heard == ["charon sent what is no vici: vici packet: has a length of 0 or over 524288"]
    theirs.close()
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(heard) == 1


async def test_the_sas_that_charon_has_are_listed() -> None:
    async with charon(sa(), sa("other.home1.net", number=2)) as served, client(served.path) as (vici, heard):
        assert await vici.listed("list-sas") == [sa(), sa("other.home1.net", number=2)]
        served.sas.pop()
        assert await vici.listed("list-sas") == [sa()]
        assert await vici.ask("version") == {"version": "5.9.8"}
        assert heard.names == ["connected"]
        assert served.connections == 1


def test_it_works_on_the_loop_that_serve_uses() -> None:
    async def run() -> None:
        async with charon(sa()) as served, client(served.path) as (vici, heard):
            assert await vici.listed("list-sas") == [sa()]
            served.say("child-updown")
            await heard.until("child-updown")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_questions_wait_for_each_other() -> None:
    async with charon(sa()) as served, client(served.path) as (vici, _):
        found = await asyncio.gather(*(vici.listed("list-sas") for _ in range(5)))
        assert found == [[sa()]] * 5


async def test_events_are_told_as_they_come() -> None:
    async with charon() as served, client(served.path) as (_, heard):
        for name in ("child-updown", "child-rekey", "ike-updown"):
            served.say(name, sa())
            await heard.until(name)


async def test_an_end_is_told_and_the_connection_made_again() -> None:
    async with charon(sa()) as served, client(served.path) as (vici, heard):
        await served.kill()
        await heard.until("lost")
        with pytest.raises(TransportError, match="charon"):
            await vici.listed("list-sas")
        await served.again()
        await heard.until("connected", 2)
        assert await vici.listed("list-sas") == [sa()]


async def test_where_no_charon_is_the_error_says_so(tmp_path: Path) -> None:
    async with client(tmp_path / "charon.vici") as (vici, heard):
        with pytest.raises(TransportError, match="charon is not there"):
            await vici.listed("list-sas")
        assert heard.names == []
    async with client(tmp_path / ("long" * 30)) as (vici, _):
        with pytest.raises(TransportError, match="path too long"):
            await vici.listed("list-sas")


async def test_a_socket_that_is_not_ours_to_use_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refused)  # root, as whom tests may run, may use every socket
    async with client(tmp_path / "charon.vici") as (vici, _):
        with pytest.raises(TransportError, match=r"may not ask charon.*--group"):
            await vici.listed("list-sas")


@steady(0.03)
async def test_a_charon_that_does_not_answer_costs_one_time_out() -> None:
    async with charon() as served, client(served.path, limit=0.1) as (vici, heard):
        served.silent = True
        asking = [asyncio.create_task(vici.listed("list-sas")) for _ in range(4)]
        for done in await patiently(asyncio.gather(*asking, return_exceptions=True)):
            assert isinstance(done, TransportError)
        assert served.asked.count("list-sas") <= 2
        served.silent = False
        await heard.until("connected", 2)
        assert await vici.listed("list-sas") == []


async def test_the_answer_to_a_question_that_was_given_up_is_not_that_to_the_next() -> None:
    async with charon(sa()) as served, client(served.path) as (vici, heard):
        served.silent = True
        given_up = asyncio.create_task(vici.listed("list-sas"))
        while "list-sas" not in served.asked:
            await asyncio.sleep(0.001)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        served.silent = False
        await heard.until("connected", 2)
        assert await vici.listed("list-sas") == [sa()]


@pytest.mark.parametrize(
    "raw",
    [
        (MAX_PACKET + 1).to_bytes(4),
        b"\0\0\0\0",
        b"\0\0\0\1\x09",
        build_packet(Kind.CMD_RESPONSE) * 2,
        b"\0\0\0\2\x01\x07",
    ],
)
async def test_what_is_no_vici_ends_the_connection_and_satisfies_nobody(raw: bytes) -> None:
    async with charon() as served, client(served.path, limit=0.5) as (vici, heard):
        served.raw = raw
        with suppress(TransportError):
            await vici.listed("list-sas")
        await heard.until("lost")
        served.raw = b""
        await heard.until("connected", 2)
        assert await vici.listed("list-sas") == []


async def test_more_sas_than_there_can_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STREAMED", 3)
    async with charon(*[sa(number=number) for number in range(5)]) as served, client(served.path) as (vici, _):
        with pytest.raises(TransportError, match="over 3"):
            await vici.listed("list-sas")


@pytest.mark.parametrize(("change", "why"), [({"knows": frozenset()}, "does not know"), ({"has_events": False}, "too old")])
async def test_a_charon_that_cannot_do_what_is_needed(change: dict[str, Any], why: str) -> None:
    async with charon() as served:
        for name, value in change.items():
            setattr(served, name, value)
        async with client(served.path) as (vici, _):
            with pytest.raises(TransportError, match=why):
                await vici.listed("list-sas")


async def test_a_stranger_s_socket_is_not_believed() -> None:
    """Who answers says where keys may go."""
    async with charon(sa()) as served:
        vici = Vici(served.path, believed={4711})
        await vici.start()
        with pytest.raises(TransportError, match="neither root nor ours"):
            await vici.listed("list-sas")
        await vici.aclose()
        assert served.asked == []
