# SPDX-License-Identifier: Apache-2.0
"""Who may open the socket where Kamailio asks for rspauth."""

from __future__ import annotations

import asyncio
import os
import pwd
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from keyferry.config import Config
from keyferry.config.kamailio import Kamailio
from keyferry.errors import StateError
from keyferry.roles.cx_ended import EndedBook
from keyferry.roles.cx_rspauth import RspauthBook
from keyferry.wiring import rspauth
from keyferry.wiring.metrics import Metrics
from keyferry.wiring.services import Services


def test_it_is_kamailios_main_group_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert rspauth.group_of(Kamailio(), 0) is None
    assert rspauth.group_of(Kamailio(), nobody.pw_uid) == nobody.pw_gid
    assert rspauth.group_of(Kamailio(rspauth_group="12"), 0) == 12


async def test_a_user_who_is_not_there_is_said_with_the_setting(tmp_path: Path) -> None:
    config = Config(kamailio=Kamailio(rspauth_socket=str(tmp_path / "s"), user="no-such-user"))
    services = cast("Services", SimpleNamespace(config=config, clock=None))
    with pytest.raises(StateError, match=r"user no-such-user: is not known .*correct kamailio\.user"):
        await rspauth.start_rspauth(services, cast("RspauthBook", None), cast("EndedBook", SimpleNamespace(since=None)))


def test_a_group_that_cannot_be_given_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert rspauth.group_of(Kamailio(rspauth_group=str(os.getegid())), 1) == os.getegid()
    with pytest.raises(StateError, match="usermod -aG"):
        rspauth.group_of(Kamailio(rspauth_group="54321"), 1)


async def test_of_two_that_start_at_once_one_listens_and_the_other_takes_over(tmp_path: Path) -> None:
    path, works, told = tmp_path / "s", [], []
    config = Config(kamailio=Kamailio(rspauth_socket=str(path), user=str(os.geteuid())))
    ended = cast("EndedBook", SimpleNamespace(since=lambda host, place: []))
    log = SimpleNamespace(warning=lambda event, **_: told.append(event))

    async def start(stack: AsyncExitStack) -> None:
        services = SimpleNamespace(config=config, exit=stack, log=log, metrics=Metrics(), every=lambda seconds, work: works.append(work))
        await rspauth.start_rspauth(cast("Services", services), cast("RspauthBook", SimpleNamespace(prove=None)), ended)

    async with AsyncExitStack() as second:
        async with AsyncExitStack() as first:
            await asyncio.gather(start(first), start(second))
            assert told == ["rspauth-standby"]
        (work,) = works
        await work()
        assert told == ["rspauth-standby", "rspauth-taken-over"]
        assert path.is_socket()
    assert not path.exists()


async def test_a_second_process_takes_over_when_the_first_ends(tmp_path: Path) -> None:
    path, works, told = tmp_path / "s", [], []
    config = Config(kamailio=Kamailio(rspauth_socket=str(path), user=str(os.geteuid())))
    ended = cast("EndedBook", SimpleNamespace(since=lambda host, place: []))

    async with AsyncExitStack() as stack:
        log = SimpleNamespace(warning=lambda event, **_: told.append(event))
        services = SimpleNamespace(
            config=config, exit=stack, log=log, metrics=Metrics(), every=lambda seconds, work: works.append(work)
        )  # fmt: skip
        async with AsyncExitStack() as first:
            services.exit = first
            await rspauth.start_rspauth(cast("Services", services), cast("RspauthBook", SimpleNamespace(prove=None)), ended)
            assert (works, told) == ([], [])
            services.exit = stack
            await rspauth.start_rspauth(cast("Services", services), cast("RspauthBook", SimpleNamespace(prove=None)), ended)
            (work,) = works
            await work()
            assert told == ["rspauth-standby"]
        for _ in range(2):
            await work()
        assert told == ["rspauth-standby", "rspauth-taken-over"]
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"ended": "s", "since": 0}\n')
        assert await reader.readline() == b'{"ended": []}\n'
        writer.close()
        await writer.wait_closed()
    assert not path.exists()
