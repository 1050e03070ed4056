# SPDX-License-Identifier: Apache-2.0
"""Fuzz the door with atheris, guided by coverage: `fuzz_door.py --minutes 10`. The targets are in tests/fuzz/door_targets.py.

atheris is no requirement of anything else: `pip install atheris` into the environment that runs this. Each target gets the same share
of the time and a process of its own. The exit code is 1 if something was found; the input lies in build/fuzz then.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "fuzz"
ONE_INPUT = 5
"""Seconds that one input may take: then it is a finding."""
LONGEST = 4_500
"""Octets of an input: an Authorization that is too long has 4,097."""
_RUNS = re.compile(r"^Done (\d+) runs in (\d+) second", re.MULTILINE)


def main() -> int:
    """Run every target, or be the process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together (default 10)")
    parser.add_argument("--target", action="append", help="this one alone; may be repeated")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    try:
        import atheris
    except ImportError:
        sys.stderr.write(f"fuzz_door: atheris is not installed; run {sys.executable} -m pip install atheris\n")
        return 2
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    if options.be:
        with atheris.instrument_imports(include=["keyferry", "uvicorn.protocols"]):
            from fuzz.door_targets import TARGETS
        atheris.Setup([sys.argv[0], *rest], TARGETS[options.be])
        atheris.Fuzz()
        return 0
    from fuzz.door_targets import SEEDS, TARGETS

    wanted = options.target or list(TARGETS)
    if unknown := set(wanted) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    seconds = max(1, round(options.minutes * 60 / len(wanted)))
    return 0 if all([_fuzz(name, SEEDS[name], seconds) for name in wanted]) else 1


def _fuzz(name: str, seeds: tuple[bytes, ...], seconds: int) -> bool:
    """Fuzz one target in a process of its own, show what came of it, and tell whether nothing was found."""
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={ONE_INPUT}", f"-max_len={LONGEST}", f"-artifact_prefix={FOLDER}/{name}-"]
    began = time.monotonic()
    log = FOLDER / f"{name}.log"
    with log.open("wb") as output:
        command = [sys.executable, __file__, "--be", name, str(corpus), *limits]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, check=False)  # noqa: S603 - ourselves
    text = log.read_text("utf-8", "replace")
    found = _RUNS.search(text)
    runs = f"{int(found[1]):,} inputs" if found else "ended early"
    verdict = "nothing found" if done.returncode == 0 else f"FOUND SOMETHING, see {log.relative_to(ROOT)}"
    sys.stdout.write(f"{name}: {runs} in {time.monotonic() - began:.0f} s, {verdict}\n")
    sys.stdout.flush()
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
