# SPDX-License-Identifier: Apache-2.0
"""A UE from its files: what is refused before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keyferry.client.session import UeSession, ue_session
from keyferry.config import load_ue_config
from keyferry.errors import ConfigError, ParseError, RegistrationFailed
from keyferry.wiring.observability import StructLog

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ue.toml"


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[UeSession]:
    async with ue_session(load_ue_config(EXAMPLE), folder / "state", StructLog("none")) as session:
        yield session


async def test_a_ue_that_never_registered_is_told_how_to(tmp_path: Path) -> None:
    async with opened(tmp_path) as session:
        with pytest.raises(RegistrationFailed, match="keyferry ue register"):
            await session.current()


async def test_a_path_is_relative_to_the_xcap_root(tmp_path: Path) -> None:
    async with opened(tmp_path) as session:
        assert session.url("/a/b") == session.url("a/b") == "https://xcap.home1.net:8443/a/b"
        assert session.url("https://notes.home1.net:8444/x") == "https://notes.home1.net:8444/x"
        with pytest.raises(ConfigError, match="not an https URL"):
            session.url("http://notes.home1.net/")


@pytest.mark.parametrize("url", ["http://notes.home1.net/", "notes.home1.net", "https:///x"])
async def test_only_https_urls_are_opened(tmp_path: Path, url: str) -> None:
    async with opened(tmp_path) as session:
        with pytest.raises(ConfigError, match="not an https URL"):
            session.http(url)
        with pytest.raises(ParseError):
            session.http("https://127.0.0.1/")
