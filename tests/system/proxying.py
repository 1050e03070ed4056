# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue proxy` as a process, for the tests of the whole system and of interoperability."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from system.serving import Lab, running


@contextmanager
def proxying(lab: Lab, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run it on a free port until the end; return what it said when it was ready."""
    options = ("--config", lab.ue, "--state", lab.state, "--listen", "127.0.0.1:0", "--json")
    with running("ue", "proxy", *options, *arguments, log=lab.state.with_name("proxy.log")) as (_, ready):
        yield ready
