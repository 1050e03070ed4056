# SPDX-License-Identifier: Apache-2.0
"""On which line of a TOML file each key stands; tomllib does not say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from keyferry.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]
"""`("application_servers", 1, "as_id")`."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{1,2})?'  # multi-line strings first; up to two quotation marks may stand before the closing three
    r"|'''.*?'''(?:'{1,2})?"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|\n|[][{}=,.]"
    r"|[^][{}=,.\#\s\"']+",
    re.DOTALL,
)
_PLACE = re.compile(r'[A-Za-z0-9_-]+|\[\d+\]|"[^"\n]*"')


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, on which each table, key and element of an array begins, of a text that tomllib accepts."""
    reader = _Reader(list(_tokens(text)))
    reader.read()
    return reader.lines


def line_of(path: Path, place: KeyPath) -> int | None:
    """Return the line of a key in a file, or that of what it would stand in; None where neither can be found."""
    return line_among(lines_of(path), place)


def lines_of(path: Path) -> dict[KeyPath, int]:
    """Return the lines of the keys of a file; none where it cannot be read."""
    try:
        return key_lines(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, UnicodeDecodeError, IndexError, tomllib.TOMLDecodeError):  # it was changed meanwhile
        return {}


def line_among(lines: Mapping[KeyPath, int], place: KeyPath) -> int | None:
    """Return the line of a key, or that of what it would stand in; None where neither is there."""
    return next((lines[place[:length]] for length in range(len(place), 0, -1) if place[:length] in lines), None)


def place_of(where: str) -> KeyPath:
    """Return `application_servers[1].as_id` as a path; what does not look like one is left out."""
    named = re.match(r'(?:[A-Za-z0-9_.\[\]-]|"[^"\n]*")*', where)
    return tuple(int(part[1:-1]) if part[0] == "[" else part.strip('"') for part in _PLACE.findall(named[0] if named else ""))


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Add the file's name and the line of the key to a ConfigError that leaves the block, where it has none."""
    try:
        yield
    except ConfigError as problem:
        raise with_line(path, problem) from problem.__cause__


def with_line(path: Path, problem: ConfigError, place: KeyPath = ()) -> ConfigError:
    """Return an error whose `where` begins with `FILE: ` so that it begins with `FILE:LINE: `; others as they are."""
    prefix = f"{path}: "
    if not problem.where.startswith(prefix):
        return problem
    where = problem.where.removeprefix(prefix)
    line = line_of(path, place or place_of(where))
    return problem if line is None else type(problem)(f"{path}:{line}: {where}", problem.problem, problem.remedy)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line, at = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        if not match[0].startswith("#"):
            yield match[0], line


@dataclass(slots=True)
class _Reader:
    """Walk over the tokens of a valid document; what TOML forbids was refused before."""

    tokens: list[tuple[str, int]]
    at: int = 0
    lines: dict[KeyPath, int] = field(default_factory=dict)
    elements: dict[KeyPath, int] = field(default_factory=dict)  # of an array of tables: how many there are so far

    def read(self) -> None:
        table: KeyPath = ()
        while self._skip_lines():
            if self._next("["):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> KeyPath:
        line, array = self._line, self._next("[")
        *outer, last = self._key()
        place: KeyPath = ()
        for part in outer:
            place = self._entered((*place, part), line)
        place = (*place, last)
        self.lines.setdefault(place, line)
        if array:
            number = self.elements.get(place, 0)
            self.elements[place] = number + 1
            place = (*place, number)
            self.lines[place] = line
        self.at += 2 if array else 1  # the closing brackets
        return place

    def _entered(self, place: KeyPath, line: int) -> KeyPath:
        """Return the table that a name within a header leads to: of an array of tables the last one."""
        self.lines.setdefault(place, line)
        return (*place, self.elements[place] - 1) if place in self.elements else place

    def _pair(self, table: KeyPath) -> None:
        line = self._line
        for part in self._key():
            table = (*table, part)
            self.lines.setdefault(table, line)
        self.at += 1  # the =
        self._value(table)

    def _key(self) -> list[str]:
        parts = [self._name()]
        while self._next("."):
            parts.append(self._name())
        return parts

    def _name(self) -> str:
        text, _ = self.tokens[self.at]
        self.at += 1
        return str(tomllib.loads(f"name = {text}")["name"]) if text[0] in "\"'" else text

    def _value(self, place: KeyPath) -> None:
        if self._next("["):
            number = 0
            while self._skip_lines() and not self._next("]"):
                self.lines[*place, number] = self._line
                self._value((*place, number))
                self._skip_lines()
                self._next(",")
                number += 1
        elif self._next("{"):
            while self._skip_lines() and not self._next("}"):
                self._pair(place)
                self._skip_lines()
                self._next(",")
        else:
            while self.at < len(self.tokens) and self.tokens[self.at][0] not in {"\n", ",", "]", "}"}:
                self.at += 1

    @property
    def _line(self) -> int:
        return self.tokens[self.at][1]

    def _next(self, wanted: str) -> bool:
        """Pass over a token if it is the one wanted."""
        found = self.at < len(self.tokens) and self.tokens[self.at][0] == wanted
        self.at += found
        return found

    def _skip_lines(self) -> bool:
        """Pass over ends of lines; return whether there is more."""
        while self._next("\n"):
            pass
        return self.at < len(self.tokens)
