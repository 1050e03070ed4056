# SPDX-License-Identifier: Apache-2.0
"""The line of each key of a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyferry.config.lines import KeyPath, key_lines, line_of, place_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TRICKY = '''# a comment with [brackets] and "quotes
top = 1.5
site."quoted.key" . inner = "a # no comment [x]" # one
"tab\\tname" = 'literal "'
[a . b]
text = """
[not.a.table]
key = "no key"
ends with two quotes"""""
raw = \'\'\'
also = 1 # not
\'\'\'
after = [ # comment
  [1, 2],
  { deep = "x", and.more = [ 3 ] },

  """x
y""",
]
when = 1979-05-27T07:32:00.5Z
[[a.list]]
first = true
[a.list.sub]
second = 1
[[a.list]]
third = 1
[[a.list.inner]]
fourth = {}
[[a.list.inner]]
fifth = []
'''


def paths(value: Any, place: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key and element of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from paths(inner, (*place, key))


@pytest.mark.parametrize(
    "text", [TRICKY, TRICKY.replace("\n", "\r\n"), *(file.read_text("utf-8") for file in sorted(EXAMPLES.glob("*.toml")))]
)
def test_every_key_that_tomllib_finds_has_the_line_on_which_it_is_written(text: str) -> None:
    """And nothing else has one: not what only looks like a key within a string."""
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    written = text.splitlines()
    for place, line in lines.items():
        if isinstance(place[-1], str):
            assert place[-1].replace("\t", "\\t") in written[line - 1], place


def test_tables_arrays_of_tables_dotted_keys_and_strings_of_several_lines_count() -> None:
    lines = key_lines(TRICKY)
    wanted: dict[KeyPath, int] = {
        ("site", "quoted.key", "inner"): 3, ("a",): 5, ("a", "b", "text"): 6, ("a", "b", "raw"): 10,
        ("a", "b", "after", 1, "and", "more"): 15, ("a", "b", "after", 2): 17, ("a", "b", "when"): 20,
        ("a", "list", 0, "sub", "second"): 24, ("a", "list", 1): 25,
        ("a", "list", 1, "inner", 1, "fifth"): 30,
    }  # fmt: skip
    assert {place: lines[place] for place in wanted} == wanted


def test_a_key_that_is_missing_has_the_line_of_its_table(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("\n[a]\nb = 1\n")
    assert line_of(file, place_of("a.c")) == 2
    assert line_of(file, place_of("d")) is None
    assert line_of(tmp_path / "none", ("a",)) is None
    assert place_of("cx.peers[0] in [hosts]") == ("cx", "peers", 0)
