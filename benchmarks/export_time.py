"""Time and peak memory of an export: `mbexport onnx` and `optimum-cli export onnx`, in turn.

    make bench-export

Whole processes, one after the other (A B A B ...), on a base-size checkpoint with random
weights. Writes benchmarks/results/export_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from mbexport.bench.machine import processor

try:
    from benchmarks.peers import base_checkpoint
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from peers import base_checkpoint

RESULTS = Path(__file__).parent / "results"
CHECKPOINT = Path("build/base")


def run_once(command: list[str], output: Path) -> tuple[float, float]:
    """(seconds, peak bytes) of a command that writes to ``output``, which is removed before."""
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        errors = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{errors[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="path of optimum-cli")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    base_checkpoint(CHECKPOINT)
    ours, peer = Path("build/bench-mbexport"), Path("build/bench-optimum")
    commands = {
        "mbexport onnx": ([sys.executable, "-m", "mbexport", "onnx", str(CHECKPOINT), "-o", str(ours)], ours),
        "optimum-cli export onnx": (
            [arguments.peer, "export", "onnx", "--model", str(CHECKPOINT), "--task", "text-classification", str(peer)],
            peer,
        ),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, (command, output) in commands.items():
            figures[name].append(run_once(command, output))
    rows = {
        name: {
            "seconds": [round(seconds, 2) for seconds, _ in runs],
            "median_seconds": round(statistics.median(seconds for seconds, _ in runs), 2),
            "peak_megabytes": round(max(peak for _, peak in runs) / 1e6),
        }
        for name, runs in figures.items()
    }
    RESULTS.mkdir(exist_ok=True)
    result = {"date": date.today().isoformat(), "machine": processor(), "figures": rows}
    (RESULTS / "export_time.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
