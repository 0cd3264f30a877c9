"""What packing saves: places that hold no text, by plan; and on a CPU the time of packed rows beside rows by length.

    make bench-packing    # minutes, with nothing else running

The lengths are those of the ModernBERT paper's efficiency script, Normal(256, 64) and Normal(4096, 1024) tokens
clamped to 16 ... 512 and 16 ... 8192: of its 8,192 texts, and of the 64 of one call. Times are of the same
graph, the portable one at base size with random weights, and of the one that the runtime takes. Writes
benchmarks/results/packing.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bench.machine import processor
from mbexport.bench.workloads import Maker, normal_lengths
from mbexport.runtime import load
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.batches import Limits, plan_batches
from mbexport.runtime.forward import forward
from mbexport.runtime.packing import plan_packed
from mbexport.runtime.schedule import Run, plan_runs

try:
    from benchmarks.peers import base_checkpoint
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from peers import base_checkpoint

RESULT = Path("benchmarks/results/packing.json")
BASE, BUNDLE = Path("build/base"), Path("build/packed-bundle")
BATCH, ROUNDS = 512, 5
SETS = [(texts, mean) for texts in (8192, 64) for mean in (256, 4096)]
Plan = Callable[[Sequence[int]], list[Run]]


def in_order(lengths: Sequence[int], batch: int, row: int | None = None) -> list[Run]:
    """Batches as they come, each padded to its longest text, or all to ``row``."""
    numbers = range(len(lengths))
    groups = [tuple(numbers[start : start + batch]) for start in range(0, len(lengths), batch)]
    return [Run(group, row or max(lengths[number] for number in group)) for group in groups]


def plans_of(longest: int) -> dict[str, Plan]:
    """Ways to run texts, by name."""
    return {
        "padded to the longest there may be": lambda lengths: in_order(lengths, BATCH, longest),
        "batches of 16 as they come": lambda lengths: in_order(lengths, 16),
        "by length (engines)": lambda lengths: plan_batches(lengths, Limits()),
        "by length (CPU)": plan_runs,
        "packed": lambda lengths: plan_packed(lengths, Limits()),
    }


def main() -> None:
    """Plan, measure, write, print."""
    wasted = {}
    for texts, mean in SETS:
        lengths = normal_lengths(texts, mean, mean // 4, 2 * mean)
        name = f"{texts:,} of Normal({mean}, {mean // 4})"
        wasted[name] = {}
        for plan, make in plans_of(2 * mean).items():
            runs = make(lengths)
            shapes = len({(run.rows, run.length) for run in runs})
            share = 1 - sum(lengths) / sum(run.tokens for run in runs)
            wasted[name][plan] = {"wasted": round(share, 4), "runs": len(runs), "shapes": shapes}
    result = {
        "date": date.today().isoformat(), "machine": processor(), "wasted": wasted, "cpu": on_cpu(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def on_cpu() -> dict[str, dict[str, object]]:
    """Seconds of 64 short texts: the portable graph by length and packed, and the runtime."""
    export_onnx(base_checkpoint(BASE), BUNDLE, packed=True, force=True)
    manifest, model = manifests.read(BUNDLE), load(BUNDLE, precision="fp32")
    texts = Maker(50_000).efficiency_sets()[2].texts
    lengths = [len(text) for text in texts]
    padded, packed = (OnnxRuntimeBackend(BUNDLE / "onnx" / name) for name in ("model.onnx", "model_packed.onnx"))

    def through(backend: OnnxRuntimeBackend, runs: Sequence[Run]) -> np.ndarray:
        found = {}
        for run in runs:
            found |= zip(run.texts, forward(backend, run, texts, manifest, None), strict=True)
        return np.stack([found[number]["logits"] for number in range(len(texts))])

    ways: dict[str, Callable[[], np.ndarray]] = {
        "portable graph, by length": lambda: through(padded, plan_runs(lengths)),
        "portable graph, packed": lambda: through(packed, plan_packed(lengths, Limits())),
        "the runtime": lambda: np.stack([output["logits"] for output in model.outputs_of_tokens(texts)]),
    }
    answers = {name: way() for name, way in ways.items()}  # and a first run of each
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    exact = answers["the runtime"]
    return {
        name: {
            "median_seconds": round(statistics.median(runs), 2), "seconds": [round(run, 2) for run in runs],
            "largest_difference": float(np.abs(answers[name] - exact).max()),
        }
        for name, runs in seconds.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
