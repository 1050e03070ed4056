# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the files of examples/ on free ports, and a process that serves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from system.serving import Lab, make_lab, served_fixture

__all__ = ["served_fixture"]


def clear(text: str) -> str:
    """Let a UE register without ESP, so that whoever captures reads it."""
    return text.replace('gm = "required"', 'gm = "off"')


@pytest.fixture(name="lab")
def lab_fixture(tmp_path: Path) -> Lab:
    """Write the files; Gm in clear."""
    return make_lab(tmp_path, edit_ue=clear)
