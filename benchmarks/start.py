"""From nothing to the first answer, and the memory of several processes: ours beside bare ONNX Runtime sessions.

    make bench-start    # minutes, with nothing else running

Whole processes, import to exit, one after the other (A B A B ...): the trained example and a
base-size model with random weights. Then four processes at a time that have answered one text each,
and what each has of memory to itself (Linux). Writes benchmarks/results/start.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime

from mbexport import export_onnx
from mbexport.bench.machine import processor
from mbexport.runtime.kernels import AUTO, OFF, VARIABLE
from mbexport.runtime.prepacked import prepack

try:
    from benchmarks.peers import base_checkpoint
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from peers import base_checkpoint

RESULT = Path("benchmarks/results/start.json")
EXAMPLE, BASE, BUNDLES = Path("examples/news_topics/checkpoint"), Path("build/base"), Path("build/start")
ROUNDS, PROCESSES = 11, 4
WITHOUT_KERNELS = "mbexport, without kernels"
BARE = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
if "ort" in sys.argv[1]:
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(sys.argv[1], options)
ids = numpy.full((1, 9), 7)
session.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})
"""
OURS = """
import sys
from mbexport.runtime import load
load(sys.argv[1], share_cores=False)(["The bank raised its rate."])
"""
WAIT = "\nprint('ready', flush=True)\nsys.stdin.read()\n"


def main() -> None:
    """Measure, write, print."""
    figures: dict[str, Any] = {}
    for size, checkpoint in {"trained example": EXAMPLE, "base size, random weights": base_checkpoint(BASE)}.items():
        plain, packed = BUNDLES / f"{checkpoint.name}-plain", BUNDLES / f"{checkpoint.name}-prepacked"
        shutil.rmtree(BUNDLES, ignore_errors=True)
        for bundle in (plain, packed):
            export_onnx(checkpoint, bundle)
        with without_kernels():
            prepack(packed)
        commands = {
            "mbexport": (OURS, plain),
            WITHOUT_KERNELS: (OURS, plain),
            f"{WITHOUT_KERNELS}, prepacked": (OURS, packed),
            "bare session, the same graph": (BARE, plain / "onnx/model_ort.onnx"),
            "bare session, model.onnx": (BARE, plain / "onnx/model.onnx"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, (code, path) in commands.items():
                with without_kernels() if WITHOUT_KERNELS in name else contextlib.nullcontext():
                    times[name].append(whole_process(code, path))
        figures[size] = {}
        for name, runs in times.items():
            with without_kernels() if WITHOUT_KERNELS in name else contextlib.nullcontext():
                memory = own_memory(*commands[name])
            seconds = {"median_seconds": statistics.median(runs), "seconds": runs}
            figures[size][name] = seconds | memory
    result = {
        "date": date.today().isoformat(), "machine": processor(), "onnxruntime": onnxruntime.__version__,
        "processes": PROCESSES, "figures": figures,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """What starts meanwhile goes without mbexport's kernels."""
    before = os.environ.get(VARIABLE, AUTO)
    os.environ[VARIABLE] = OFF
    try:
        yield
    finally:
        os.environ[VARIABLE] = before


def whole_process(code: str, path: Path) -> float:
    """Seconds from a process's start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)
    return round(time.perf_counter() - started, 3)


def own_memory(code: str, path: Path) -> dict[str, float]:
    """Of PROCESSES at a time, each with one answer: megabytes that a process shares with no other, and in all."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code + WAIT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for _ in range(PROCESSES)
        ]
        for process in started:
            process.stdout.readline()
        rows = [rollup(process.pid) for process in started]
        for process in started:
            process.stdin.close()
    return {
        "own_megabytes": round(statistics.median(row["Private_Clean"] + row["Private_Dirty"] for row in rows) / 1e3, 1),
        "megabytes_of_all": round(sum(row["Pss"] for row in rows) / 1e3, 1),
    }


def rollup(process: int) -> dict[str, int]:
    """Kilobytes of a process's memory, by kind."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}


if __name__ == "__main__":
    main()
