# SPDX-License-Identifier: Apache-2.0
"""tools/mutations.toml still fits the source, and docs/mutations.md lists what `make mutate` ran."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs.console import ROOT
from keyferry.lab.attacks.run import ATTACKS


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


mutate = _load()
MUTATIONS: list[Any] = mutate.load()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[one.name for one in MUTATIONS])
def test_a_mutation_still_applies_and_is_python(mutation: Any) -> None:
    """It fails loudly where the source has moved on."""
    ast.parse(mutation.applied((ROOT / mutation.file).read_text("utf-8")))
    assert mutation.catchers
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert not name or f"def {name.rpartition('::')[2]}(" in (ROOT / path).read_text("utf-8")


def test_a_mutation_that_does_not_apply_says_so() -> None:
    """A silent one would count as caught by nothing, or worse."""
    with pytest.raises(mutate.StaleMutation, match="0 times"):
        MUTATIONS[0].applied("something else")


def test_names_are_used_once() -> None:
    """`mutate.py NAME` means one."""
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS)


def test_every_attack_can_fail() -> None:
    """For each there is a way to break the code that the attack notices."""
    assert {attack.name for attack in ATTACKS} == {name for one in MUTATIONS for name in one.attacks}


def test_the_page_is_of_the_mutations_that_there_are() -> None:
    """Each was run, and caught by all that should: else the page is not written."""
    caught = [mutate.Caught(one, one.catchers, []) for one in MUTATIONS]
    assert (ROOT / "docs" / "mutations.md").read_text("utf-8") == mutate.page(caught), "run: make mutate"


def test_a_run_breaks_a_copy_and_mends_it(tmp_path: Path) -> None:
    """The tree of the project is never touched."""
    mutation = next(one for one in MUTATIONS if one.name == "auts-mac-unchecked")
    before = (ROOT / mutation.file).read_bytes()
    tree = mutate.copy_tree(tmp_path / "tree")
    caught = mutate.attempt(mutation, tree)
    assert (caught.by, caught.missed) == (mutation.catchers, [])
    assert (tree / mutation.file).read_bytes() == before == (ROOT / mutation.file).read_bytes()


def test_the_readme_counts_attacks_and_mutations() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"[{len(ATTACKS)} attacks](docs/attacks.md)" in text
    assert f"[{len(MUTATIONS)} ways to break the code](docs/mutations.md)" in text
