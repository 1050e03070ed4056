# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a file that does not fit its settings: the line, the key, and the nearest thing that would do."""

from __future__ import annotations

import difflib
import importlib
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from keyferry.config.lines import KeyPath, place_of, with_line
from keyferry.errors import ConfigError

REFERENCE: Final = "docs/configuration.md lists every key"
_VALUES: Final[Mapping[str, str]] = {
    "int": "a whole number without quotation marks", "float": "a number without quotation marks", "str": 'text in quotation marks, "…"',
    "bool": "true or false without quotation marks", "array": "a list in brackets: […]", "object": "a table",
}  # fmt: skip


class _Kind(NamedTuple):
    """A kind of file."""

    command: str
    settings: str  # module and class
    table: str  # that only this kind has, and must have; "": whatever has none of the others'
    example: str


_KINDS: Final = (
    _Kind("keyferry ue", "keyferry.config:UeConfig", "ue", "examples/ue.toml"),
    _Kind("keyferry agent", "keyferry.config.agent:AgentConfig", "agent", "examples/agent.toml"),
    _Kind("keyferry serve", "keyferry.config:Config", "", "examples/lab.toml"),
)


def kind_of(document: Mapping[str, object]) -> str:
    """Return the command that a file is for, by the tables that it has."""
    found = [kind for kind in _KINDS if kind.table in document and not set(document) & _only_of_serve()]
    return (found or _KINDS[-1:])[0].command


def check_kind(path: Path, document: Mapping[str, object], wanted: type[Any]) -> None:
    """Refuse a file that is for another command. Raises ConfigError."""
    right = next((kind for kind in _KINDS if _settings(kind) is wanted), None)
    found = next(kind for kind in _KINDS if kind.command == kind_of(document))
    if right is None or found == right or not document:
        return
    table = found.table or min(set(document) & _only_of_serve(), default="")
    if table:
        problem = f"is a file for `{found.command}`, as it has [{table}]"
        remedy = f"Give `{right.command}` one of its own, such as {right.example}"
        raise with_line(path, ConfigError(f"{path}: {table}", problem, remedy), (table,))


def explained(path: Path, problem: str, kind: type[Any], document: object) -> ConfigError:
    """Turn msgspec's words into ours: where in the file, what is wrong, and what would be right."""
    text, _, at = problem.partition(" - at ")
    place = place_of(at.strip("`").removeprefix("$.").removeprefix("$"))
    where = f"{path}: {shown(place) or 'top level'}"
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown:
        return with_line(path, ConfigError(where, f"unknown key `{unknown[1]}`", _belonging(kind, place, unknown[1])), (*place, unknown[1]))
    if text.startswith("Invalid enum value"):
        return with_line(path, _not_one_of(where, _type_at(kind, place), _value_at(document, place)))
    return with_line(path, ConfigError(where, text[:1].lower() + text[1:], _remedy(text, place)))


def shown(place: KeyPath) -> str:
    """Return a path as `application_servers[1].as_id`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def did_you_mean(text: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the question that suggests the nearest of some words, else another remedy."""
    near = difflib.get_close_matches(text, sorted(known), n=1)
    return f"Did you mean `{near[0]}`?" if near and near[0] != text else otherwise


def _not_one_of(where: str, hint: Any, value: object) -> ConfigError:
    words = [str(option) for option in get_args(hint)]
    listed = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)
    return ConfigError(where, f"{value!r} is not {listed}", did_you_mean(str(value), words, "Write one of these"))


def _remedy(text: str, place: KeyPath) -> str:
    missing = re.search(r"missing required field `([^`]+)`", text)
    if missing:
        return f"Add {missing[1]} = … there" if place else f"Add a table [{missing[1]}]"
    if "hexadecimal" in text:
        return "Write two hexadecimal digits an octet, in quotation marks"
    if "exactly one of opc and op" in text:
        return "Keep the one that the SIM was made with"
    typed = re.fullmatch(r"Expected `(\w+)(?: \| null)?`, got `\w+`", text)
    if typed and typed[1] in _VALUES:
        return f"Write {_VALUES[typed[1]]}"
    return f"docs/configuration.md says what {place[-1] if place else 'it'} may be"


def _belonging(kind: type[Any], place: KeyPath, key: str) -> str:
    """Return where an unknown key belongs, or which known one was meant."""
    homes = _homes(kind, key)
    if homes:
        return f"It belongs in {' or '.join(homes)}"
    for other in _KINDS:
        if _settings(other) is not kind and (homes := _homes(_settings(other), key)):
            return f"It belongs in {' or '.join(homes)} of a file for `{other.command}`, such as {other.example}"
    near = did_you_mean(key, _names(_type_at(kind, place)))
    if near:
        return near
    everywhere = {name: home for home, names in _tables(kind) for name in names}
    near_key = difflib.get_close_matches(key, sorted(everywhere), n=1)
    return f"Did you mean `{near_key[0]}`? It belongs in {everywhere[near_key[0]]}" if near_key else REFERENCE


def _homes(kind: type[Any], key: str) -> list[str]:
    """Return the tables of a file of this kind that know a key."""
    return [home for home, names in _tables(kind) if key in names]


def _tables(kind: type[Any]) -> Iterator[tuple[str, Collection[str]]]:
    for name, hint in get_type_hints(kind).items():
        yield (f"[[{name}]]" if get_origin(hint) is list else f"[{name}]"), _names(_element(hint))


def _names(hint: Any) -> Collection[str]:
    return hint.__struct_fields__ if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else ()


def _type_at(kind: Any, place: KeyPath) -> Any:
    """Return the type of a place in a file, None where there is none."""
    for part in place:
        kind = _element(kind) if isinstance(part, int) else get_type_hints(kind).get(part) if _names(kind) else None
        kind = _bare(kind)
    return kind


def _element(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is list else hint


def _bare(hint: Any) -> Any:
    """Return a type without what is said of it, and without None."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in {Union, types.UnionType}:
        return _bare(next(each for each in get_args(hint) if each is not type(None)))
    return hint


def _value_at(document: Any, place: KeyPath) -> object:
    for part in place:
        document = document[part]
    return document


def _settings(kind: _Kind) -> type[Any]:
    module, _, name = kind.settings.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)  # here: these modules import this one
    return found


def _only_of_serve() -> set[str]:
    serve, *others = (set(_names(_settings(kind))) for kind in reversed(_KINDS))
    return serve.difference(*others)
