# SPDX-License-Identifier: Apache-2.0
"""Break the code on purpose, one thing at a time, in a copy of the tree, and see which tests notice (tools/mutations.toml).

`mutate.py` runs every mutation and writes docs/mutations.md; `mutate.py NAME…` runs those and writes nothing.
The exit code is 1 if a mutation was not caught by each test that is said to catch it, 2 if the source has changed under one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tools" / "mutations.toml"
PAGE = ROOT / "docs" / "mutations.md"
COPIED = ("src", "tests", "tools", "examples", "docs", "pyproject.toml", "README.md")
ATTACK = "tests/lab/attacks/test_run.py::test_the_attack_holds[{}]"
MACHINE = "tests/fuzz/test_hostile_network.py"
MACHINE_STEPS = 16_000  # in four shards: what breaks only now and then is found too
TIME_LIMIT = 300  # seconds for one mutation
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
TESTS_FAILED = 1  # exit code of pytest
JOBS = 2
HEAD = """<!-- Written by tools/mutate.py from a run of every mutation; a test compares the list. Run `make mutate`. -->
# Mutations

`make mutate` breaks the code on purpose, one thing at a time and in a copy of the tree, and runs the tests that ought to notice.
Each row was run: the third column is what failed. An attack is one of [Attacks](attacks.md), which then no longer held;
the state machine is the one described there, by which of its assertions it stopped is left out.
"""


class StaleMutation(Exception):
    """The source has no longer exactly one place to break."""


class Mutation(NamedTuple):
    """One way to break the code."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    attacks: tuple[str, ...]
    tests: tuple[str, ...]
    machine: bool

    def applied(self, text: str) -> str:
        """Return the broken source. Raises StaleMutation."""
        if text.count(self.old) != 1:
            raise StaleMutation(f"{self.name}: {self.file} holds the old text {text.count(self.old)} times, not once")
        return text.replace(self.old, self.new)

    @property
    def catchers(self) -> list[str]:
        """Return the tests that must fail, by pytest's names."""
        return [*(ATTACK.format(name) for name in self.attacks), *self.tests, *([MACHINE] if self.machine else [])]


class Caught(NamedTuple):
    """What a run showed."""

    mutation: Mutation
    by: list[str]
    missed: list[str]


def load() -> list[Mutation]:
    """Return the mutations in the order of the file."""
    with DATA.open("rb") as file:
        rows = tomllib.load(file)["mutation"]
    return [
        Mutation(
            row["name"], row["breaks"], row["file"], row["old"], row["new"], tuple(row.get("attacks", ())), tuple(row.get("tests", ())),
            row.get("machine", False),
        )
        for row in rows
    ]  # fmt: skip


def copy_tree(place: Path) -> Path:
    """Copy what tests need."""
    place.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        else:
            shutil.copy2(source, place / name)
    return place


def failures(tree: Path, tests: Sequence[str]) -> tuple[int, list[str]]:
    """Run tests in a tree; return pytest's exit code and the names of those that failed."""
    environment = {
        **os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "once",
        "KEYFERRY_FUZZ_STEPS": str(MACHINE_STEPS),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", "--no-header", *tests]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)  # noqa: S603
    return run.returncode, FAILED.findall(run.stdout)


def attempt(mutation: Mutation, tree: Path) -> Caught:
    """Break one thing in a tree, run what should notice, mend it."""
    path = tree / mutation.file
    whole = path.read_text("utf-8")
    path.write_text(mutation.applied(whole), "utf-8")
    try:
        code, failed = failures(tree, mutation.catchers)
    except subprocess.TimeoutExpired:
        return Caught(mutation, [], ["(it hung)"])
    finally:
        path.write_text(whole, "utf-8")
    if code != TESTS_FAILED:
        return Caught(mutation, [], mutation.catchers)
    by = [
        catcher
        for catcher in mutation.catchers
        if any(name == catcher or name.startswith((f"{catcher}[", f"{catcher}::")) for name in failed)
    ]
    return Caught(mutation, by, [catcher for catcher in mutation.catchers if catcher not in by])


def run_all(mutations: Sequence[Mutation], jobs: int) -> list[Caught]:
    """Run mutations, `jobs` at a time, each worker in a tree of its own; print each as it ends."""
    trees: SimpleQueue[Path] = SimpleQueue()

    def one(mutation: Mutation) -> Caught:
        tree = trees.get()
        try:
            caught = attempt(mutation, tree)
        finally:
            trees.put(tree)
        sys.stdout.write(_line(caught))
        sys.stdout.flush()
        return caught

    with tempfile.TemporaryDirectory(prefix="keyferry-mutate-") as folder:
        for place in range(jobs):
            trees.put(copy_tree(Path(folder) / str(place)))
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, mutations))


def shown(catcher: str) -> str:
    """Return a catcher as a reader knows it."""
    if catcher == MACHINE:
        return "the state machine"
    if catcher.startswith(ATTACK.partition("[")[0]):
        return f"attack `{catcher.partition('[')[2].rstrip(']')}`"
    path, _, test = catcher.partition("::")
    return (
        f"`{path.removeprefix('tests/')}`: {test.removeprefix('test_').replace('_', ' ')}" if test else f"`{path.removeprefix('tests/')}`"
    )


def page(results: Sequence[Caught]) -> str:
    """Return docs/mutations.md."""
    rows = [f"| `{caught.mutation.name}` | {caught.mutation.breaks} | {'; '.join(map(shown, caught.by))} |" for caught in results]
    return "\n".join([HEAD, "| mutation | what is broken | what caught it |", "|---|---|---|", *rows, ""])


def _line(caught: Caught) -> str:
    by = "; ".join(map(shown, caught.by)) or "nothing"
    missed = f"  NOT by {'; '.join(map(shown, caught.missed))}" if caught.missed else ""
    return f"{caught.mutation.name:<34} caught by {by}{missed}\n"


def main() -> int:
    """Run mutations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to run; without one, all")
    parser.add_argument("--jobs", type=int, default=JOBS, help="how many at a time")
    arguments = parser.parse_args()
    mutations = load()
    chosen = [one for one in mutations if not arguments.names or one.name in arguments.names]
    try:
        for one in chosen:
            one.applied((ROOT / one.file).read_text("utf-8"))
    except StaleMutation as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    results = run_all(chosen, arguments.jobs)
    missed = [caught for caught in results if caught.missed]
    sys.stdout.write(f"{len(results) - len(missed)} of {len(results)} mutations were caught by all that should\n")
    if not arguments.names and not missed:
        PAGE.write_text(page(results), "utf-8")
    return 1 if missed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
