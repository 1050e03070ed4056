# SPDX-License-Identifier: Apache-2.0
"""Options that say which functions of a file a process plays: beside `output`, as other commands need not import what knows them."""

from __future__ import annotations

from typing import Annotated

import typer

from keyferry.errors import ConfigError
from keyferry.wiring.services import ROLES, Role

RoleOption = Annotated[
    list[str] | None, typer.Option("--role", help="Only this function: pcscf, icscf, scscf, hss, as, admin. Repeatable.")
]
ScscfOption = Annotated[list[str] | None, typer.Option("--scscf", metavar="NAME", help="Of the file's S-CSCFs only this one. Repeatable.")]


def roles_named(names: list[str] | None) -> list[Role] | None:
    """Return the functions of `--role`, None if all are meant. Raises ConfigError."""
    known = {str(role): role for role in ROLES}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError("--role", f"{unknown[0]!r} is not one of {', '.join(ROLES)}")
    return [known[name] for name in names] if names else None
