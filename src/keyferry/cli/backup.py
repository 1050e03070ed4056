# SPDX-License-Identifier: Apache-2.0
"""`keyferry backup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.wiring import administration


def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory, made with mode 0700.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Copy what a state directory cannot get again, also while it is served: subscribers, documents, transport keys, certificates.

    Not the KEK, which is kept apart, and no registration and no pushed key: those come again. To restore, copy it back and add the KEK.

    Example: keyferry backup backup-1 --state .keyferry
    """
    held = administration.back_up_state(state, directory)
    if as_json:
        show_json({"ok": True, "files": held})
    else:
        console.print(f"{len(held)} files in {directory}; keep the KEK apart from it", markup=False)
