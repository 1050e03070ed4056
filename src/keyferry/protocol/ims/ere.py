# SPDX-License-Identifier: Apache-2.0
"""Extended regular expressions of filter criteria (IEEE Std 1003.1-2004 §9.4), matched in linear time.

A pattern comes from the HSS, the text from a UE. `re` backtracks, so a pattern of twenty characters could stop the S-CSCF for hours;
here all alternatives advance together, one character at a time. No back-references, collating elements or equivalence classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from keyferry.errors import ParseError

MAX_PATTERN = 255
"""Characters; what Kamailio accepts too."""
MAX_TEXT = 8_192
"""Characters of a header field value that are looked at: the SIP parser lets no more pass."""
_MAX_STATES = 512
"""After `{m,n}` is written out: bounds the work per character."""
_MAX_STEPS = 4_096
"""Of compiling; `((a{0}){255}){255}` needs no state and 65,000 steps."""
_MAX_NESTING = 16
_MAX_REPEAT = 255  # RE_DUP_MAX
_MAX_CACHED = 2_048  # transitions a pattern: 200 kB

_Test: TypeAlias = Callable[[str], bool]

_CLASSES: dict[str, _Test] = {
    "alpha": str.isalpha,
    "digit": lambda c: "0" <= c <= "9",
    "alnum": str.isalnum,
    "upper": str.isalpha,  # case is ignored
    "lower": str.isalpha,
    "space": str.isspace,
    "blank": lambda c: c in " \t",
    "punct": lambda c: c.isprintable() and not c.isalnum() and not c.isspace(),
    "print": str.isprintable,
    "graph": lambda c: c.isprintable() and c != " ",
    "cntrl": lambda c: c < " " or c == "\x7f",
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}
_ESCAPES: dict[str, _Test] = {
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
    "d": lambda c: "0" <= c <= "9",
}  # not POSIX, but in use
_SPECIAL = frozenset("\\.[]()*+?{}^$|")


class _Set(NamedTuple):
    test: _Test


class _Anchor(NamedTuple):
    end: bool


class _Cat(NamedTuple):
    items: tuple[_Node, ...]


class _Alt(NamedTuple):
    items: tuple[_Node, ...]


class _Repeat(NamedTuple):
    item: _Node
    least: int
    most: int | None


_Node: TypeAlias = _Set | _Anchor | _Cat | _Alt | _Repeat


class _State(NamedTuple):
    """A test and where to go if it holds, or (no test) where to go without a character; `anchor` guards the latter."""

    test: _Test | None
    out: tuple[int, ...]
    anchor: _Anchor | None = None


class Ere:
    """A compiled pattern; case is ignored, as in SIP (RFC 3261 §7.3.1)."""

    __slots__ = ("_first", "_literal", "_moves", "_states", "_steps")

    def __init__(self, pattern: str) -> None:
        """Compile.

        Raises ParseError.
        """
        if len(pattern) > MAX_PATTERN:
            raise ParseError("regular expression", f"longer than {MAX_PATTERN} characters")
        self._literal = pattern.lower() if _SPECIAL.isdisjoint(pattern) else None
        self._states: list[_State] = [_State(None, ())]  # 0 is the match
        self._steps = 0
        self._moves: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._first = 0 if self._literal is not None else self._add(_Reader(pattern).read(), 0)

    def search(self, text: str) -> bool:
        """Tell whether the pattern matches somewhere in the text."""
        text = text[:MAX_TEXT].lower()
        if self._literal is not None:
            return self._literal in text
        states = self._closure([self._first], begin=True)
        restart = self._closure([self._first])
        for character in text:
            if 0 in states:
                return True
            states = self._move(states, character) | restart
        return self._ends(states, empty=not text)

    def fullmatch(self, text: str) -> bool:
        """Tell whether the pattern matches the whole text."""
        text = text[:MAX_TEXT].lower()
        if self._literal is not None:
            return self._literal == text
        states = self._closure([self._first], begin=True)
        for character in text:
            states = self._move(states, character)
            if not states:
                return False
        return self._ends(states, empty=not text)

    def _ends(self, states: frozenset[int], *, empty: bool) -> bool:
        return 0 in states or 0 in self._closure(states, begin=empty, end=True)

    def _move(self, states: frozenset[int], character: str) -> frozenset[int]:
        key = (states, character)
        after = self._moves.get(key)
        if after is None:
            if len(self._moves) >= _MAX_CACHED:
                self._moves.clear()
            reached = [state.out[0] for state in map(self._states.__getitem__, states) if state.test is not None and state.test(character)]
            after = self._moves[key] = self._closure(reached)
        return after

    def _closure(self, states: Iterable[int], *, begin: bool = False, end: bool = False) -> frozenset[int]:
        seen = set()
        todo = list(states)
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            state = self._states[number]
            if state.test is None and (state.anchor is None or (end if state.anchor.end else begin)):
                todo.extend(state.out)
        return frozenset(seen)

    def _new(self, test: _Test | None, *out: int, anchor: _Anchor | None = None) -> int:
        self._states.append(_State(test, out, anchor))
        return len(self._states) - 1

    def _add(self, node: _Node, then: int) -> int:
        """Return the state at which `node`, followed by state `then`, begins."""
        self._steps += 1
        if self._steps > _MAX_STEPS or len(self._states) >= _MAX_STATES:
            raise ParseError("regular expression", "is too large once its intervals are written out")
        match node:
            case _Set(test):
                return self._new(test, then)
            case _Anchor():
                return self._new(None, then, anchor=node)
            case _Cat(items):
                for item in reversed(items):
                    then = self._add(item, then)
                return then
            case _Alt(items):
                return self._new(None, *[self._add(item, then) for item in items])
            case _Repeat(item, least, most):
                return self._add_repeat(item, least, most, then)

    def _add_repeat(self, item: _Node, least: int, most: int | None, then: int) -> int:
        if most is None:
            loop = self._new(None)
            self._states[loop] = _State(None, (self._add(item, loop), then))
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = self._new(None, self._add(item, then), end)
        for _ in range(least):
            then = self._add(item, then)
        return then


@functools.lru_cache(maxsize=512)
def compile_ere(pattern: str) -> Ere:
    """Return the compiled pattern; profiles of a million subscribers hold the same few.

    Raises ParseError.
    """
    return Ere(pattern)


class _Reader:
    """Read ERE := branch *( "|" branch ); branch := *( expression [ "*" / "+" / "?" / "{" m [ "," [ n ] ] "}" ] )."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.nesting = 0

    def read(self) -> _Node:
        node = self._alternatives()
        if self.at < len(self.pattern):
            raise _wrong("has a ) too many")
        return node

    def _next(self) -> str:
        if self.at >= len(self.pattern):
            raise _wrong("ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _alternatives(self) -> _Node:
        branches = [self._branch()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._branch())
        return branches[0] if len(branches) == 1 else _Alt(tuple(branches))

    def _branch(self) -> _Node:
        items: list[_Node] = []
        while self._peek() not in {"", "|", ")"}:
            node = self._expression(self._next())
            while self._peek() in {"*", "+", "?", "{"}:
                node = _Repeat(node, *self._repeat(self._next()))
            items.append(node)
        return _Cat(tuple(items))

    def _expression(self, character: str) -> _Node:
        match character:
            case "(":
                return self._group()
            case "[":
                return _Set(self._bracket())
            case ".":
                return _Set(lambda _: True)
            case "^" | "$":
                return _Anchor(character == "$")
            case "\\":
                return _Set(self._escape(self._next()))
            case "*" | "+" | "?" | "{":
                raise _wrong("repeats nothing")
        return _Set(_equal(character))

    def _group(self) -> _Node:
        self.nesting += 1
        if self.nesting > _MAX_NESTING:
            raise _wrong("is nested too deeply")
        node = self._alternatives()
        if self._next() != ")":  # pragma: no cover - nothing else ends the alternatives
            raise _wrong("has a ( without )")
        self.nesting -= 1
        return node

    def _escape(self, character: str) -> _Test:
        if character.lower() in _ESCAPES:
            test = _ESCAPES[character.lower()]
            return test if character.islower() else lambda c: not test(c)
        if character.isalnum():
            raise _wrong("has an unknown escape")
        return _equal(character)

    def _repeat(self, character: str) -> tuple[int, int | None]:
        if character != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        end = self.pattern.find("}", self.at)
        low, comma, high = self.pattern[self.at : end].partition(",")
        self.at = end + 1
        if end < 0 or not _is_count(low) or not (high == "" or _is_count(high)):
            raise _wrong("has an interval of another form than {m,n}")
        least = int(low)
        most = None if comma and not high else int(high or low)
        if most is not None and most < least:
            raise _wrong("has an interval from high to low")
        return least, most

    def _bracket(self) -> _Test:
        negated = self._peek() == "^"
        self.at += negated
        tests: list[_Test] = []
        first = True
        while first or self._peek() != "]":
            tests.append(self._bracket_item())
            first = False
        self.at += 1
        if negated:
            return lambda c: not any([test(c) for test in tests])
        return lambda c: any([test(c) for test in tests])

    def _bracket_item(self) -> _Test:
        low = self._next()
        if low == "[" and self._peek() in {":", ".", "="}:
            end = self.pattern.find(":]", self.at)
            test = _CLASSES.get(self.pattern[self.at + 1 : end]) if end > 0 and self._peek() == ":" else None
            if test is None:
                raise _wrong("has an unknown class in a bracket")
            self.at = end + 2
            return test
        if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in {"]", ""}:
            self.at += 1
            return _between(low, self._next())
        return _equal(low)


def _is_count(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= 3 and int(digits) <= _MAX_REPEAT


def _equal(character: str) -> _Test:
    lower = character.lower()
    return lambda c: c == lower


def _between(low: str, high: str) -> _Test:
    if low > high:
        raise _wrong("has a range from high to low")
    return lambda c: low <= c <= high or low <= c.upper() <= high


def _wrong(problem: str) -> ParseError:
    return ParseError("regular expression", problem)
