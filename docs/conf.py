# SPDX-License-Identifier: Apache-2.0
"""Sphinx settings; `make docs` builds with warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "keyferry"
copyright = "the keyferry authors"
version = release = installed("keyferry")
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["*.head.md"]
html_theme = "furo"
html_title = "keyferry"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]
