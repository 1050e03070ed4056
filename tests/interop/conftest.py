# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the files of examples/ on free ports, and a process that serves them."""

from __future__ import annotations

from system.serving import lab_fixture, served_fixture

__all__ = ["lab_fixture", "served_fixture"]
