# SPDX-License-Identifier: Apache-2.0
"""The command without the extra `server`: `--version`, `init`, `keys derive`, and for all else what to install."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from keyferry.cli import starting
from keyferry.errors import ConfigError, KeyferryError, ParseError, StateError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id, parse_impi
from keyferry.protocol.ims.keys import derive_keys


def run(arguments: Sequence[str], missing: str) -> int:
    """Run one of the commands that need nothing, or name the package that is missing. Return the exit code."""
    remedy = f'Install it with the extra "server": {shlex.quote(sys.executable)} -m pip install "keyferry[server]"'
    without = (
        f"{remedy}\nWithout it: keyferry --version, keyferry init, keyferry keys derive. An application behind SimLogin needs no more."
    )
    if arguments[:1] not in (["init"], ["--version"], ["-h"], ["--help"]) and arguments[:2] != ["keys", "derive"]:
        sys.stderr.write(f"keyferry: the command needs {missing}, which is not installed. {without}\n")
        return 1
    asked = _parser(without).parse_args(arguments)
    try:
        data, lines = _init(asked) if arguments[0] == "init" else _derive(asked)
    except (ConfigError, ParseError) as problem:
        sys.stderr.write(f"keyferry: {problem}\n")
        return 1 if isinstance(problem, StateError) else 2
    except KeyferryError as problem:
        sys.stderr.write(f"keyferry: {problem}\n")
        return 1
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n" if asked.json else "".join(f"{line}\n" for line in lines))
    return 0


def derived_keys(*, ck: str, ik: str, rand: str, impi: str, as_id: str, ua_id: str, realm: str) -> dict[str, str]:
    """Return what `keys derive` prints. Raises ConfigError, ParseError."""
    return derive_keys(
        ck=Secret(_octets("--ck", ck, 16)), ik=Secret(_octets("--ik", ik, 16)), rand=_octets("--rand", rand, 16), impi=parse_impi(impi),
        as_id=parse_as_id(as_id), ua_id=_octets("--ua", ua_id, 5), realm=realm,
    )  # fmt: skip


def _octets(name: str, text: str, length: int) -> bytes:
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * length}}}", text):
        raise ConfigError(name, f"is not {length} octets in hexadecimal")
    return bytes.fromhex(text)


def _parser(epilog: str) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="Print one JSON object instead of text.")
    shared.add_argument("--state", help=argparse.SUPPRESS)
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("keyferry", description="SIM-based login for HTTP.", epilog=epilog, formatter_class=form)
    parser.add_argument("--version", action="version", version=f"keyferry {metadata.version('keyferry')}")
    commands = parser.add_subparsers(metavar="COMMAND")
    init = commands.add_parser("init", parents=[shared], help="Write a network and its phone, with new keys, and say what to run.")
    init.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path())
    init.add_argument("--full", action="store_const", dest="example", const="lab", help="The network with all its functions.")
    init.add_argument("--example", metavar="NAME", help=f"Another example: {', '.join(starting.EXAMPLES)}.")
    keys = commands.add_parser("keys", help="Derive keys.").add_subparsers(metavar="COMMAND")
    derive = keys.add_parser("derive", parents=[shared], help="Derive every key of one AKA run, and PRINT them in clear.")
    for name in ("ck", "ik", "rand", "impi", "realm"):
        derive.add_argument(f"--{name}", required=True)
    derive.add_argument("--as", required=True, dest="as_id")
    derive.add_argument("--ua", default="0100000002", dest="ua_id")
    return parser


def _init(asked: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    written = starting.write_files(asked.folder, asked.example)
    commands = starting.next_commands(asked.folder, asked.example)
    return {"ok": True, "files": [str(path) for path in written], "next": commands}, list(starting.told(written, commands))


def _derive(asked: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    names = ("ck", "ik", "rand", "impi", "as_id", "ua_id", "realm")
    derived = derived_keys(**{name: getattr(asked, name) for name in names})
    return dict(derived), [f"{name:16} {value}" for name, value in derived.items()]
