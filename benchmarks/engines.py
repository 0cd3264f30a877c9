"""What it takes to build engines of a base-size model, for every GPU that TensorRT-RTX builds for.

    make bench-engines     # a minute or two; no GPU is needed

Writes benchmarks/results/engines.json.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

from mbexport import build_engine, export_onnx
from mbexport.bench.machine import processor
from mbexport.engines.gpus import GPUS, RTX_TARGETS

try:
    from benchmarks.make_checkpoint import write_checkpoint
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from make_checkpoint import write_checkpoint

RESULT = Path("benchmarks/results/engines.json")
CHECKPOINT, BUNDLE = Path("build/base"), Path("build/engines-bundle")


def main() -> None:
    """Export, build, print."""
    if not (CHECKPOINT / "model.safetensors").exists():
        write_checkpoint(CHECKPOINT)
    export_onnx(CHECKPOINT, BUNDLE, force=True)
    gpus = [name for name, gpu in GPUS.items() if gpu.compute_capability in RTX_TARGETS]
    rows = {}
    for report in build_engine(BUNDLE, gpu=gpus, builder="tensorrt-rtx"):
        rows[report.engine.gpu] = {
            "compute_capability": report.engine.compute_capability,
            "builder": f"{report.engine.builder} {report.engine.builder_version}",
            "engine_bytes": report.engine.bytes,
            "seconds": report.seconds,
            "peak_bytes": report.peak_bytes,
            "fused_attention": report.fused_text,
            "activation_bytes": {row.profile: row.activation_bytes for row in report.profiles},
        }
    result = {"date": date.today().isoformat(), "machine": f"{processor()}, no GPU", "figures": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
