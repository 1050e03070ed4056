# SPDX-License-Identifier: Apache-2.0
"""Connections are tested on both event loops: uvloop's transports differ in more than their base classes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

BOTH = (
    "test_sip_tcp.py",
    "test_sip_tcp_outgoing.py",
    "test_sip_tls.py",
    "test_diameter_client.py",
    "test_diameter_connection.py",
    "test_diameter_server.py",
)
ASYNCIO: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
ASYNCIO_AND_UVLOOP: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {**ASYNCIO, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Say on which loops a test runs."""
    return ASYNCIO_AND_UVLOOP if item.path.name in BOTH else ASYNCIO
