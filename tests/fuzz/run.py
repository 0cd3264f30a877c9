"""The nightly search: ``python -m tests.fuzz.run --inputs 100000 --seed 1``; Linux, and a Python that atheris is for.

Every target gets its share of the inputs, half from atheris (bytes, led by the lines of the package that they reach),
half from hypothesis (structure), each in a process of its own. The exit code is 1 if an input broke the promise:
those inputs then lie in ``build/fuzz/faults``, and after the mend belong into ``tests/fuzz/corpus``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz.engine import scratch
from tests.fuzz.targets import Workplace

ROOT = Path(__file__).parent.parent.parent
ENGINES = ("hypothesis", "atheris")
PACKAGES = ("atheris", "hypothesis", "onnxruntime", "tokenizers", "safetensors", "numpy")
DEATHS = 5  # of a target's processes, after which the rest of its inputs is given up
LONGEST = 3600  # seconds of a process


def main() -> int:
    """Search, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 2**31)
    parser.add_argument("--target", action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz")
    options = parser.parse_args()
    version("atheris")  # PackageNotFoundError where there is none: half of the search would be left out
    with scratch() as place:
        shares = {target.name: target.share for target in Workplace(Path(place)).targets.values()}
    chosen = options.target or list(shares)
    total = sum(shares[name] for name in chosen)
    shutil.rmtree(options.out, ignore_errors=True)
    rows = []
    for name in chosen:
        count = -(-options.inputs * shares[name] // (total * len(ENGINES)))
        for engine in ENGINES:
            rows += _searched(name, engine, int(count), options.seed, options.out)
            print(_line(rows[-1]), flush=True)
    faults = sum(len(row["faults"]) for row in rows)
    summary = {
        "inputs": sum(row["inputs"] for row in rows), "faults": faults, "seed": options.seed,
        "seconds": sum(row["seconds"] for row in rows), "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "targets": rows,
    }  # fmt: skip
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"seed {options.seed}: {summary['inputs']} inputs, {faults} faults, {summary['seconds']:.0f} s: {options.out}"
    )
    return 1 if faults else 0


def _searched(target: str, engine: str, inputs: int, seed: int, out: Path) -> list[dict[str, Any]]:
    """The tallies of a target's processes: one, and another after each that died."""
    rows: list[dict[str, Any]] = []
    while inputs > 0 and len(rows) < DEATHS:
        row = _process(target, engine, inputs, seed + len(rows), out)
        rows.append(row)
        if "died" not in row:
            break
        inputs -= row["inputs"] + 1
    return rows


def _process(target: str, engine: str, inputs: int, seed: int, out: Path) -> dict[str, Any]:
    """The tally of one process; the input at which it died is a fault."""
    folder = out / "work" / f"{target}-{engine}-{seed}"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.fuzz.engine", target, engine]
    command += ["--inputs", str(inputs), "--seed", str(seed), "--folder", str(folder)]
    quick = os.environ | {"RUST_BACKTRACE": "0"}  # naming the frames of a panic takes longer than all else
    with (folder / "log").open("wb") as log, scratch() as place:
        try:
            code = subprocess.run(
                [*command, "--place", place], cwd=ROOT, env=quick, stdout=log, stderr=log, timeout=LONGEST, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if not (folder / "current").is_file():
        raise SystemExit(f"{target} could not be searched by {engine}: see {folder / 'log'}")
    row: dict[str, Any] = {"target": target, "engine": engine, "seed": seed, "inputs": 0, "seconds": 0.0, "faults": {}}
    if (folder / "tally.json").is_file():
        row |= json.loads((folder / "tally.json").read_text(encoding="utf-8"))
    if code != 0:
        content = (folder / "current").read_bytes()
        name = hashlib.sha256(content).hexdigest()[:12]
        (folder / name).write_bytes(content)
        row["faults"][name] = row["died"] = f"the process ended with {code}"
    for name in row["faults"]:
        kept = out / "faults" / target
        kept.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"{name}*"):
            shutil.copy(file, kept)
    return row


def _line(row: dict[str, Any]) -> str:
    rate = row["inputs"] / row["seconds"] if row["seconds"] else 0
    return (
        f"{row['target']:21} {row['engine']:10} {row['inputs']:7} inputs {row['seconds']:7.1f} s {rate:6.0f}/s  "
        f"{row.get('accepted', 0)} accepted, slowest {row.get('slowest', 0):.2f} s, "
        f"peak {row.get('peak_bytes', 0) / 1e6:.0f} MB, {len(row['faults'])} faults {'; '.join(row['faults'].values())}"
    )


if __name__ == "__main__":
    sys.exit(main())
