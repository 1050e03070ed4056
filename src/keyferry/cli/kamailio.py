# SPDX-License-Identifier: Apache-2.0
"""`keyferry kamailio`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.config import Config, load_config
from keyferry.wiring.kamailio import SHARE, Written, write_kamailio
from keyferry.wiring.kamailio_check import check_kamailio
from keyferry.wiring.kamailio_files import number_of
from keyferry.wiring.kamailio_icscf import WrittenIcscf, write_icscf
from keyferry.wiring.kamailio_pcscf import WrittenPcscf, write_pcscf


class Role(StrEnum):
    """Which CSCF a Kamailio is."""

    SCSCF = "scscf"
    ICSCF = "icscf"
    PCSCF = "pcscf"


def kamailio(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; a directory that only Kamailio's user may enter.")],
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file with [kamailio], as for `keyferry serve`.")],
    role: Annotated[
        list[Role] | None,
        typer.Option("--role", help="What Kamailio is to be; repeatable, each is a process of its own. Default: scscf."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Python of the version that Kamailio embeds, with cryptography; default: DIR/venv, or found."),
    ] = None,
    modules: Annotated[Path | None, typer.Option(metavar="DIR", help="Kamailio's modules, where they are not in /usr/lib.")] = None,
    share: Annotated[Path, typer.Option(metavar="DIR", help="Kamailio's SQL files, in db_sqlite.")] = SHARE,
    stderr: Annotated[bool, typer.Option("--stderr", help="Let Kamailio log to standard error instead of syslog.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; look whether what is there works, for the S-CSCF inside Kamailio's Python, too.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Write a complete configuration with which a stock Kamailio 5.6 is the S-CSCF, keys pushed by a script of ours inside it.

    With --role icscf it is the I-CSCF, with --role pcscf a P-CSCF for REGISTER alone without protection of Gm; both without any script.
    Run it again after a change; keys of Kamailio's own state, local.cfg, calls.cfg, icscf-local.cfg, pcscf-local.cfg and the table of
    capabilities stay. The README of each role says how to go on. With --check it exits with 1 where something is amiss; run
    that where Kamailio runs, as root or as Kamailio's user.

    Example: keyferry kamailio /etc/kamailio/keyferry --config examples/kamailio.toml --role scscf --role icscf
    """
    settings = load_config(config)
    roles = list(dict.fromkeys(role or [Role.SCSCF]))
    if check:
        _check(settings, directory, roles, as_json=as_json)
        return
    shown: dict[str, Any] = {}
    for each in roles:
        if each is Role.SCSCF:
            written = write_kamailio(settings, state, directory, python=python, modules=modules, share=share, log_stderror=stderr)
            found = _show_scscf(written, quiet=as_json)
        elif each is Role.PCSCF:
            found = _show_pcscf(write_pcscf(settings, directory, modules=modules, log_stderror=stderr), quiet=as_json)
        else:
            found = _show_icscf(write_icscf(settings, directory, modules=modules, log_stderror=stderr), quiet=as_json)
        shown |= found | {"trusts_loopback": shown.get("trusts_loopback", False) or found["trusts_loopback"]}
    user = settings.kamailio.user
    known = number_of(user) is not None
    if as_json:
        show_json({"ok": True} | shown | {"user": user, "user_known": known})
    elif not known:
        remedy = "make it where Kamailio runs (useradd), or correct kamailio.user"
        console.print(f"warning: kamailio.user is {user!r}, whom this machine does not know: {remedy}", markup=False)


def _check(settings: Config, directory: Path, roles: list[Role], *, as_json: bool) -> None:
    """Show what works and what does not; exit with 1 where something is amiss."""
    found = [
        each._replace(what=each.what if len(roles) == 1 else f"{role.value}: {each.what}")
        for role in roles
        for each in check_kamailio(settings, directory, role.value)
    ]
    good = not any(each.problem for each in found)
    if as_json:
        show_json({"ok": good, "checks": [{"what": each.what, "ok": not each.problem, "problem": each.problem} for each in found]})
    else:
        for each in found:
            console.print(f"{each.what}: {f'{each.problem}. {each.remedy}' if each.problem else 'ok'}", markup=False)
    if not good:
        raise typer.Exit(1)


def _show_scscf(written: Written, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        python = f"Python {written.python_version} ({written.python})"
        console.print(f"S-CSCF written to {written.directory}, for {python}; HSS {written.hss}", markup=False)
        _warn(loopback=written.trusts_loopback)
        console.print(f"next: kamailio -c -f {written.directory}/scscf.cfg, and see README there", markup=False)
    return {
        "directory": str(written.directory), "python": written.python, "python_version": written.python_version,
        "hss": written.hss, "application_servers": list(written.application_servers), "rspauth": written.rspauth,
        "trusts_loopback": written.trusts_loopback,
    }  # fmt: skip


def _show_icscf(written: WrittenIcscf, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        console.print(f"I-CSCF written to {written.directory}; HSS {written.hss}; S-CSCFs {', '.join(written.scscfs)}", markup=False)
        _warn(loopback=written.trusts_loopback)
        console.print(f"next: kamailio -c -f {written.directory}/icscf.cfg, and see README.icscf there", markup=False)
    return {
        "directory": str(written.directory), "hss": written.hss, "scscfs": list(written.scscfs), "trusts_loopback": written.trusts_loopback,
    }  # fmt: skip


def _show_pcscf(written: WrittenPcscf, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        console.print(f"P-CSCF written to {written.directory}; I-CSCF {written.icscf}; Gm is not protected", markup=False)
        console.print(f"next: kamailio -c -f {written.directory}/pcscf.cfg, and see README.pcscf there", markup=False)
    return {"directory": str(written.directory), "icscf": written.icscf, "trusts_loopback": False}


def _warn(*, loopback: bool) -> None:
    if loopback:
        console.print("warning: trusted_peers lists loopback: every process of this machine is taken for a P-CSCF (docs/kamailio.md)")
