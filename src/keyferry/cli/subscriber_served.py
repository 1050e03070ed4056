# SPDX-License-Identifier: Apache-2.0
"""`keyferry subscriber profile`, `terminate` and `prune`: what a running `serve` does for a subscriber who may be registered."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, errors, fail, show_json, whole
from keyferry.client.admin import ask, tell
from keyferry.config import load_config
from keyferry.config.profiles import NAME, names_of
from keyferry.errors import ConfigError, TransportError
from keyferry.ports import DeregistrationReason, Subscription
from keyferry.protocol.identity import Impi, parse_impi
from keyferry.wiring import administration

ImpiArgument = Annotated[str, typer.Argument(metavar="IMPI", help="Private identity, for example user1_private@home1.net.")]
AdminOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="[admin] listen of the running `keyferry serve`.")]
ADMIN = "127.0.0.1:8080"
REASONS = [reason.word for reason in DeregistrationReason]


def profile(
    impi: ImpiArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of one of [[profiles]], or default.")],
    admin: AdminOption = ADMIN,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="File of `keyferry serve` to look NAME up in; better where none runs.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Store it and tell nobody.")] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Give a subscriber other application servers: those of a profile.

    It is stored, and a running `serve` is told. Its S-CSCF takes the profile for every registered device (a PPR of TS 29.228 §6.2.2),
    pushes keys to application servers that are new and erases those of the others, at once and without a new registration.

    Exit code 1 where it was stored and not told; it comes with the next registration then.

    --json prints {"ok", "impi", "profile", "stored", "told", "server", "devices", "pushes": [{"as_id", "server", "reg", "erase",
    "delivered"}]}, and "error" if not ok. "server" is the S-CSCF; null, and "told" false, where the user is not registered.

    Example: keyferry subscriber profile user1_private@home1.net basic
    """
    who = parse_impi(impi)
    silent = _check_name(name, None if offline else admin, config)
    if not asyncio.run(administration.set_profile(state, who, name)):
        raise fail(f"{impi} is not a subscriber; `keyferry subscriber list` shows them", as_json=as_json, status=1)
    shown: dict[str, Any] = {
        "ok": True,
        "impi": who,
        "profile": name,
        "stored": True,
        "told": False,
        "server": None,
        "devices": 0,
        "pushes": [],
    }
    if silent is not None:
        problem = f"stored, but nobody was told ({silent}). It comes with the next registration; --admin names another address"
        raise _failed(shown, problem, as_json=as_json)
    if not offline:
        shown |= asyncio.run(tell(admin, f"/subscribers/{quote(who, safe='')}/push-profile", {}))
    if shown["profile"] != name:
        problem = f"stored, but {admin} serves another state directory: --state must name the one that it has"
        raise _failed(shown | {"profile": name, "told": False}, problem, as_json=as_json)
    if shown.get("problem"):
        raise _failed(shown, f"stored, but not told: {_problem_of(shown)}. It comes with the next registration", as_json=as_json)
    if as_json:
        show_json({key: value for key, value in shown.items() if key != "problem"})
    else:
        _show_profile(shown, offline=offline)


def terminate(
    impi: ImpiArgument,
    reason: Annotated[str, typer.Option(help=f"{', '.join(REASONS)}.")] = "permanent-termination",
    info: Annotated[str, typer.Option(metavar="TEXT", help="Reason-Info, for the S-CSCF's log.")] = "",
    admin: AdminOption = ADMIN,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """End a subscriber's registrations and keys (an RTR of TS 29.228 §6.1.3); a running `serve` does it.

    permanent-termination tells the UE not to come back, server-change and remove-s-cscf to register anew; new-server-assigned tells it
    nothing. The subscription stays: `keyferry subscriber remove` keeps the subscriber out.

    --json prints {"ok", "impi", "told", "server", "devices"}, and "error" if not ok. "server" is the S-CSCF; null where none was.
    "devices" is null where the S-CSCF is another process.

    Example: keyferry subscriber terminate user1_private@home1.net --reason server-change
    """
    del state  # the running process is asked
    who = parse_impi(impi)
    if reason not in REASONS:
        raise ConfigError("--reason", f"{reason!r} is not one of {', '.join(REASONS)}")
    command = {"reason": reason, "info": info[:200]}
    try:
        outcome = asyncio.run(tell(admin, f"/subscribers/{quote(who, safe='')}/terminate", command))
    except TransportError as problem:
        raise fail(f"nothing was ended: {problem}", as_json=as_json, status=1) from None
    shown = {"ok": True, "impi": who, **outcome}
    if shown.get("problem"):
        raise _failed(shown, f"nothing was ended: {_problem_of(shown)}", as_json=as_json)
    if as_json:
        show_json({key: value for key, value in shown.items() if key != "problem"})
    elif shown["told"]:
        console.print(f"{who}: {shown['server']} ended {_devices(shown['devices'])}", markup=False)
    else:
        console.print(f"{who} is not registered", markup=False)


def prune(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="File of `keyferry serve`, as it is now.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove them without asking.")] = False,
    admin: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="[admin] listen of the running `keyferry serve`. Default: that of FILE.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Tell no `serve`: what is registered ends with its time.")] = False,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Remove the subscribers that came from FILE and are not in it any more; they are listed first, and you are asked.

    Who is registered is de-registered by the running `serve` first (as `keyferry subscriber terminate` does), which erases his keys; one
    whose S-CSCF could not be told is kept. Where no `serve` runs, a registration ends with its time. Subscribers of `keyferry subscriber
    add` stay, and so does whoever left FILE before a keyferry that has this command read it: remove them with `keyferry subscriber
    remove`.

    Without a terminal, or with --json, only --yes removes anything; the exit code is 1 where somebody was found and kept.

    --json prints {"ok", "found": [{"impi", "impus", "server"}], "removed": [IMPI], "ended": [IMPI], "kept": {IMPI: WHY}}, and "error" if
    not ok. "server" is the S-CSCF, null where none is assigned; "ended" are those whom it de-registered.

    Example: keyferry subscriber prune --config lab.toml
    """
    settings = load_config(config)
    gone = asyncio.run(administration.subscribers_gone(state, settings.subscribers))
    shown: dict[str, Any] = {"ok": True, "found": [_found(*each) for each in gone.items()], "removed": [], "ended": [], "kept": {}}
    if not gone:
        show_json(shown) if as_json else console.print(f"every subscriber that came from {config} is still in it", markup=False)
        return
    if not as_json:
        _show_gone(shown["found"])
    told_at = None if offline or not any(found["server"] for found in shown["found"]) else _who_runs(admin or settings.admin.listen, state)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise _failed(shown, "nothing was removed: --yes removes them without asking", as_json=as_json)
        if not typer.confirm(f"Remove {'this subscriber' if len(gone) == 1 else f'these {len(gone)} subscribers'}?"):
            raise _failed(shown, "nothing was removed", as_json=False)
    asyncio.run(_prune(gone, told_at, state, shown))
    if shown["kept"]:
        first, why = next(iter(shown["kept"].items()))
        problem = (
            f"{len(shown['kept'])} kept; {first}: {why.rstrip('.')}. --offline removes them, and their registrations end with their time"
        )
        raise _failed(shown, problem, as_json=as_json)
    if as_json:
        show_json(shown)
    else:
        ended = f", and {len(shown['ended'])} of them de-registered" if shown["ended"] else ""
        console.print(f"removed {len(shown['removed'])}{ended}")


def _found(impi: Impi, subscription: Subscription) -> dict[str, Any]:
    server = subscription.serving or subscription.server_name
    return {"impi": impi, "impus": [each.impu for each in subscription.impus], "server": server}


def _show_gone(found: list[dict[str, Any]]) -> None:
    table = Table(whole("IMPI"), whole("public identities"), whole("S-CSCF"))
    for each in found:
        table.add_row(each["impi"], "\n".join(each["impus"]), each["server"] or "")
    console.print(table)


def _who_runs(admin: str, state: Path) -> str | None:
    """Return where the `serve` that uses a state directory is asked, None if none runs. Raises ConfigError."""
    try:
        asyncio.run(ask(admin, "/profiles", {}))
    except TransportError as problem:
        if administration.is_in_use(state):
            remedy = "Name it with --admin, or give --offline: registrations then end with their time"
            raise ConfigError(str(state), f"is in use, and what uses it is not reached ({problem})", remedy) from None
        return None
    return admin


async def _prune(gone: Mapping[Impi, Subscription], admin: str | None, state: Path, shown: dict[str, Any]) -> None:
    async with administration.subscriber_store(state) as store:
        for impi, subscription in gone.items():
            if admin is not None and (subscription.serving or subscription.server_name):
                try:
                    command = {"reason": DeregistrationReason.PERMANENT_TERMINATION.word, "info": "the subscription has ended"}
                    outcome = await tell(admin, f"/subscribers/{quote(impi, safe='')}/terminate", command)
                except (ConfigError, TransportError) as problem:
                    outcome = {"told": False, "problem": str(problem)}
                if outcome.get("problem"):
                    shown["kept"][impi] = _problem_of(outcome)
                    continue
                shown["ended"] += [impi] * bool(outcome.get("told"))
            await store.remove(impi)
            shown["removed"].append(impi)


def _check_name(name: str, admin: str | None, config: Path | None) -> TransportError | None:
    """Refuse a name that no profile has, as a running `serve` or a file says; return why nobody runs, None if that was not asked."""
    if not re.fullmatch(NAME, name):
        raise ConfigError("NAME", f"{name!r} is no name of a profile")
    known = {str(config): names_of(load_config(config).profiles)} if config is not None else {}
    silent = None
    if admin is not None:
        try:
            known[f"the `serve` at {admin}"] = list(asyncio.run(ask(admin, "/profiles", {}))["profiles"])
        except TransportError as problem:
            silent = problem
    for where, names in known.items():
        if name not in names:
            remedy = f"Give one of {', '.join(names)}, or add [[profiles]] with this name and start `serve` again"
            raise ConfigError("NAME", f"{name} is no profile of {where}", remedy)
    return silent


def _failed(shown: Mapping[str, Any], problem: str, *, as_json: bool) -> typer.Exit:
    if as_json:
        show_json({**{key: value for key, value in shown.items() if key not in {"problem", "remedy"}}, "ok": False, "error": problem})
    errors.print(f"keyferry: {problem}", markup=False)
    return typer.Exit(1)


def _problem_of(shown: Mapping[str, Any]) -> str:
    return f"{shown['problem']}. {shown.get('remedy', '')}".rstrip(". ")


def _devices(number: int | None) -> str:
    if number is None:
        return "what it had of it; how many registrations, its log says"
    return "a registration" if number == 1 else f"{number} registrations"


def _show_profile(shown: Mapping[str, Any], *, offline: bool) -> None:
    console.print(f"{shown['impi']} has the profile {shown['profile']}", markup=False)
    if not shown["told"]:
        console.print("it comes with the next registration" if offline else "not registered: it comes with the next registration")
        return
    console.print(f"{shown['server']} took it for {_devices(shown['devices'])}", markup=False)
    for push in shown["pushes"]:
        what = "erased" if push["erase"] else "pushed"
        when = "" if push["delivered"] else ", as soon as it answers"
        console.print(f"  {push['as_id'] or push['server']}: {what}{when}", markup=False)
