"""What it saves to compute the vocabulary's logits of one masked token only.

    make bench-masked-lm     # exports a base-size masked LM with random weights to build/

The graph with all logits and the one that selects tokens, in turn with pauses; medians. Writes
benchmarks/results/masked_lm.json.
"""

from __future__ import annotations

import json
import statistics
import time
from datetime import date
from pathlib import Path

import numpy as np

from mbexport import export_onnx
from mbexport.bench.machine import processor
from mbexport.bench.measure import PAUSE
from mbexport.runtime.backends.ort import OnnxRuntimeBackend

try:
    from benchmarks.make_checkpoint import write_checkpoint
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from make_checkpoint import write_checkpoint

RESULT = Path("benchmarks/results/masked_lm.json")
CHECKPOINT, BUNDLE, RUNS = Path("build/base-mlm"), Path("build/base-mlm-bundle"), 9


def main() -> None:
    """Export, measure, print."""
    if not (CHECKPOINT / "model.safetensors").exists():
        write_checkpoint(CHECKPOINT, architecture="ModernBertForMaskedLM")
    export_onnx(CHECKPOINT, BUNDLE, force=True)
    everything = OnnxRuntimeBackend(BUNDLE / "onnx/model_ort.onnx", threads=2, as_written=True)
    selecting = OnnxRuntimeBackend(BUNDLE / "onnx/model_ort_selected.onnx", threads=2, as_written=True)
    rows = {}
    for batch, length in ((1, 128), (8, 128), (1, 512)):
        ids = np.random.default_rng(0).integers(10, 50_000, (batch, length))
        mask = np.ones_like(ids)
        places = np.arange(batch) * length + length // 2
        times: dict[str, list[float]] = {"all": [], "selected": []}
        for _ in range(RUNS):
            for name, backend, positions in (("all", everything, None), ("selected", selecting, places)):
                time.sleep(PAUSE)  # until the other session's threads stop spinning
                started = time.perf_counter()
                backend.run(ids, mask, positions)
                times[name].append(1000 * (time.perf_counter() - started))
        rows[f"{batch}x{length}"] = {name: round(statistics.median(values), 1) for name, values in times.items()}
    result = {"date": date.today().isoformat(), "machine": processor(), "figures": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
