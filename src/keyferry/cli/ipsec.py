# SPDX-License-Identifier: Apache-2.0
"""`keyferry ipsec`: strongSwan's configuration and drop rules for ISC, and whether they are in force."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from keyferry.cli.output import DEFAULT_STATE, JsonOption, StateOption, console, show_json
from keyferry.config import load_config
from keyferry.errors import ConfigError
from keyferry.wiring import ipsec_check, ipsec_files, ipsec_rules
from keyferry.wiring.ipsec_files import Choices
from keyferry.wiring.ipsec_rules import Pair, Side

app = typer.Typer(
    help="IPsec between S-CSCF and application servers, by strongSwan.",
    epilog="Begin with: keyferry ipsec write ./isc --config lab.toml --side scscf",
    no_args_is_help=True,
)

ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file of `keyferry serve`; the same on both machines.")]
SideOption = Annotated[str, typer.Option("--side", help="scscf or as: which machine this is.")]
AsOption = Annotated[
    list[str] | None, typer.Option("--as", metavar="HOST", help="Only application servers with this IKE identity. Repeatable.")
]
ViciOption = Annotated[str | None, typer.Option("--vici", metavar="PATH", help="charon's control socket, in place of ipsec.vici.")]


@app.command()
def write(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go; mode 0700.")],
    config: ConfigOption,
    side: SideOption,
    as_: AsOption = None,
    psk: Annotated[bool, typer.Option("--psk", help="A key of 32 octets for each pair, in STATE/ipsec, in place of certificates.")] = False,
    esp: Annotated[
        str, typer.Option("--esp", help="kernel, userspace (kernel-libipsec), or auto: what this machine's kernel has.")
    ] = "auto",
    vici: ViciOption = None,
    group: Annotated[
        str | None, typer.Option("--group", help="Group that charon runs as and its control socket belongs to: that of `keyferry serve`.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Write swanctl.conf, strongswan.conf, certificate and key, and rules for nftables that keep everything else from going out in clear.

    It says what it made that the other machine must have, too: a CA, or the keys of pairs (with --json in "made").

    On the application server's machine, STATE must hold what `keyferry pki issue HOST --role as` made (docs/ipsec.md), or with --psk the
    file of STATE/ipsec.

    Example: keyferry ipsec write ./isc --config lab.toml --side scscf
    """
    loaded = load_config(config)
    pairs = _pairs(ipsec_files.pairs_of(loaded), as_)
    wanted = _one_of("--esp", esp, ("auto", "kernel", "userspace"))
    chosen = ("kernel" if ipsec_files.kernel_has_esp() else "userspace") if wanted == "auto" else wanted
    if group is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,31}", group):
        raise ConfigError("--group", f"{group!r} is no name of a group")
    choices = Choices(_side(side), cast("ipsec_files.Esp", chosen), "psk" if psk else "certificate", vici or loaded.ipsec.vici, group)
    made = _to_be_made(state, pairs, choices)
    files = ipsec_files.write_all(folder, state, pairs, choices)
    if as_json:
        shown = {"esp": chosen, "files": [str(file) for file in files], "made": [str(file) for file in made]}
        show_json({"ok": True, **shown, "pairs": [pair._asdict() for pair in pairs]})
        return
    for file in files:
        console.print(str(file), markup=False)
    for file in made:
        console.print(f"\n{file} was made here, and the other machine needs the same: carry it there, or that one here.", markup=False)
    if ipsec_files.modes_of_others(folder):
        console.print(f"\nOthers may look into {folder}, whose mode is left as it was; the files are for you alone.", markup=False)
    place = folder.resolve()
    how = "the kernel, transport mode" if chosen == "kernel" else "user space, tunnel mode in UDP"
    console.print(f"\nESP in {how}. As root, in this order:")
    for line in (
        f"nft -f {place}/isc.nft",
        f"STRONGSWAN_CONF={place}/strongswan.conf charon-systemd &",
        f"SWANCTL_DIR={place} swanctl --load-all --noprompt --uri unix://{choices.vici}",
    ):
        console.print(f"  {line}", markup=False)


@app.command()
def check(
    config: ConfigOption,
    side: SideOption = "scscf",
    as_: AsOption = None,
    vici: ViciOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask charon, as `serve` does before each push, and look whether the drop rules are loaded; exit with 1 where something is amiss.

    Example: keyferry ipsec check --config lab.toml
    """
    loaded = load_config(config)
    pairs = _pairs(ipsec_files.pairs_of(loaded), as_)
    found = asyncio.run(ipsec_check.check_pairs(pairs, Path(vici or loaded.ipsec.vici), _side(side)))
    rules = ipsec_rules.rules_found(pairs, _side(side)).problem
    good = not rules and not any(each.problem for each in found)
    if as_json:
        each_pair = [{**each.pair._asdict(), "met": not each.problem, "problem": each.problem} for each in found]
        show_json({"ok": good, "pairs": each_pair, "rules": {"loaded": not rules, "problem": rules}})
    else:
        table = Table("S-CSCF", "application server", "CHILD_SA", "protected")
        for pair, problem in found:
            table.add_row(f"{pair.scscf} {pair.scscf_address}", f"{pair.server} {pair.server_address}", pair.child, problem or "yes")
        console.print(table)
        console.print(f"drop rules: {rules or 'loaded'}", markup=False)
    if not good:
        raise typer.Exit(1)


def _side(text: str) -> Side:
    return cast("Side", _one_of("--side", text, ("scscf", "as")))


def _one_of(option: str, text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        raise ConfigError(option, f"{text!r} is not one of {', '.join(words)}")
    return text


def _to_be_made(state: Path, pairs: list[Pair], choices: Choices) -> list[Path]:
    """Return what both machines have to have in common and is not there yet."""
    common = [ipsec_files.psk_file(state, pair) for pair in pairs] if choices.authentication == "psk" else [state / "ca.pem"]
    return [file for file in common if not file.exists()]


def _pairs(pairs: list[Pair], names: list[str] | None) -> list[Pair]:
    unknown = [name for name in names or () if name not in {pair.server for pair in pairs}]
    if unknown:
        known = ", ".join(sorted({pair.server for pair in pairs}))
        raise ConfigError("--as", f"{unknown[0]!r} is not one of {known}")
    return [pair for pair in pairs if not names or pair.server in names]
