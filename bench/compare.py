# SPDX-License-Identifier: Apache-2.0
"""Run the registration benchmark of two commits in turn on this machine, and say what one makes of the other.

    python bench/compare.py                          the first commit that had the benchmark, against HEAD
    python bench/compare.py --base main --head HEAD --pairs 5
    python bench/compare.py --json --output build/compare.json

Each commit is checked out into a temporary folder and runs its own `keyferry bench` with this Python and its packages. The order is
A B, B A, A B …: what gets slower or faster meanwhile does so to both. A pair gives a ratio; the median of the ratios is the answer.

Exit code: 0 the ratio is at least --at-least, 1 it is not or there is none, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARK = "src/keyferry/lab/bench.py"
"""The file whose first commit is the first baseline."""
END_LIMIT = 15.0  # seconds that a benchmark gets to end itself


class Figure(NamedTuple):
    """What one run of one commit measured."""

    per_second: float
    cpu_microseconds: float  # of the measured process, a registration: does not mind a busy machine as much


class Pair(NamedTuple):
    """Both commits, one after the other."""

    base: Figure
    head: Figure


class Failed(Exception):
    """Say why there is no comparison."""


def summary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return medians, ratios and their spread."""
    ratios = [pair.head.per_second / pair.base.per_second for pair in pairs]
    costs = [pair.head.cpu_microseconds / pair.base.cpu_microseconds for pair in pairs]
    return {
        **{
            name: {
                "per_second": statistics.median(getattr(pair, name).per_second for pair in pairs),
                "low": min(getattr(pair, name).per_second for pair in pairs),
                "high": max(getattr(pair, name).per_second for pair in pairs),
                "cpu_microseconds": statistics.median(getattr(pair, name).cpu_microseconds for pair in pairs),
            }
            for name in Pair._fields
        },
        "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios), "cpu_ratio": statistics.median(costs),
    }  # fmt: skip


def first_baseline() -> str:
    """Return the first commit that had the benchmark. Raises Failed."""
    commits = git("log", "--diff-filter=A", "--format=%H", "--", BENCHMARK).split()
    if not commits:
        raise Failed(f"no commit here brought {BENCHMARK}; is this a shallow clone? Name one with --base")
    return commits[-1]


def git(*arguments: str) -> str:
    """Run git and return what it says. Raises Failed."""
    done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def worktree(folder: Path, commit: str) -> Iterator[Path]:
    """Check a commit out for as long as the block lasts."""
    try:
        git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        yield folder
    finally:
        with suppress(Failed):  # interrupted before it was whole: `prune` forgets it when the folder is gone
            git("worktree", "remove", "--force", str(folder))


def run(tree: Path, options: argparse.Namespace) -> Figure:
    """Run one commit's benchmark once. Raises Failed."""
    command = [sys.executable, "-m", "keyferry", "bench", "--only", options.only, "--rounds", str(options.rounds), "--json"]
    command += ["--seconds", str(options.seconds), "--subscribers", str(options.subscribers)]
    out, code = _finished(command, tree)
    if code:
        raise Failed(f"the benchmark of {tree.name} ended with {code}; what it said is above")
    figures = {one["name"]: one for one in json.loads(out)["figures"]}
    found = figures[options.only]
    return Figure(found["per_second"]["median"], found["cpu_microseconds"]["median"])


def check(tree: Path) -> None:
    """Make sure that a tree runs its own code and not what is installed. Raises Failed."""
    out, code = _finished([sys.executable, "-c", "import keyferry; print(keyferry.__file__)"], tree)
    if code or not Path(out.strip()).is_relative_to(tree.resolve()):
        raise Failed(f"{tree.name} does not run its own code: {out.strip()[-300:]}")


def _finished(command: Sequence[str], tree: Path) -> tuple[str, int]:
    """Run to the end; its progress and its complaints go to our standard error."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree) as process:
        try:
            out, _ = process.communicate()
        except BaseException:
            process.terminate()
            try:
                process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return out, process.returncode


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure. Raises Failed."""
    names = {"base": options.base or first_baseline(), "head": options.head}
    commits = {name: git("rev-parse", "--verify", f"{commit}^{{commit}}") for name, commit in names.items()}
    say = print if not options.json else _to_stderr
    for name, commit in commits.items():
        say(f"{name}: {git('log', '-1', '--format=%h %s', commit)}")
    pairs: list[Pair] = []
    with ExitStack() as stack:
        stack.callback(git, "worktree", "prune")
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyferry-compare-")))
        trees = {name: stack.enter_context(worktree(place / name, commit)) for name, commit in commits.items()}
        for tree in trees.values():
            check(tree)
        for number in range(options.pairs):
            order = ("base", "head") if number % 2 == 0 else ("head", "base")
            found = {name: run(trees[name], options) for name in order}
            pairs.append(Pair(**found))
            ratio = pairs[-1].head.per_second / pairs[-1].base.per_second
            rates = ", ".join(f"{found[name].per_second:,.0f}/s" for name in Pair._fields)
            say(f"pair {number + 1} of {options.pairs}: {rates}, {ratio:.2f}")
    told = [{name: one._asdict() for name, one in pair._asdict().items()} for pair in pairs]
    return {"commits": commits, "pairs": told, **summary(pairs)}


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a commit; default: the first that had the benchmark")
    parser.add_argument("--head", default="HEAD", help="the commit that is compared with it")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=("register", "register-3", "path"), default="register", help="which figure of the benchmark")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=1, help="of each run; its median counts")
    parser.add_argument("--subscribers", type=int, default=2_000)
    parser.add_argument("--at-least", type=float, default=0.9, help="the ratio that is wanted")
    parser.add_argument("--output", type=Path, help="write everything to a JSON file too")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        report = compare(options)
    except Failed as problem:
        _to_stderr(f"compare: {problem}")
        return 1
    except KeyboardInterrupt:
        _to_stderr("interrupted")
        return 130
    report["ok"] = report["ratio"] >= options.at_least
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if options.json:
        print(json.dumps(report))
    else:
        _show(report, options.at_least)
    return 0 if report["ok"] else 1


def _show(report: dict[str, Any], wanted: float) -> None:
    print("\n        per second     low    high  CPU µs")
    for name in Pair._fields:
        one = report[name]
        print(f"{name:6} {one['per_second']:11,.0f} {one['low']:7,.0f} {one['high']:7,.0f} {one['cpu_microseconds']:7.0f}")
    print(
        f"ratio {report['ratio']:.2f} ({report['ratio_low']:.2f} to {report['ratio_high']:.2f}), processor time {report['cpu_ratio']:.2f};"
        f" wanted: at least {wanted:g}: {'yes' if report['ok'] else 'NO'}"
    )


if __name__ == "__main__":
    sys.exit(main())
