"""What our time goes to: ONNX Runtime's profile of a bundle's fused graph, by kind of node.

    python benchmarks/parts.py BUNDLE --lengths 128,512 --threads 2

Prints JSON: by workload ``1xL`` the seconds of one run in matrix products, local attention,
global attention and all else; medians over runs. Profiling itself adds a little to every node.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime

from mbexport.bench.contenders import FUSED_GRAPH
from mbexport.bench.workloads import Maker
from mbexport.checkpoint.spec import ModelSpec, parse_config
from mbexport.runtime.backends.ort import session_options

RUNS = 3  # the first of them warms up
PRODUCTS, LOCAL, GLOBAL, OTHER = "matrix products", "local attention", "global attention", "other"
PRODUCT_OPERATORS = ("Product", "MatMul", "FusedMatMul", "Gemm")
PROJECTION = re.compile(r"/(W[a-z]\w*|dense)$|^(classifier|decoder)")


def part_of(name: str, operator: str, spec: ModelSpec) -> str:
    """The part that a node's time belongs to.

    Args:
        name: e.g. ``layers.3/attn/Wq``.
        operator: e.g. ``MatMul``.
        spec: says which layers are global.
    """
    if operator in PRODUCT_OPERATORS and PROJECTION.search(name):
        return PRODUCTS
    layer = re.match(r"layers\.(\d+)/attn/", name)
    if layer:
        return GLOBAL if spec.layer_is_global[int(layer[1])] else LOCAL
    if name.startswith("local_attention/"):
        return LOCAL
    return GLOBAL if name.startswith("global_attention/") else OTHER


def profile(bundle: Path, length: int, threads: int, spec: ModelSpec) -> dict[str, float]:
    """Seconds of each part in one run of one text."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(as_written=True)  # as the runtime does
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(bundle / FUSED_GRAPH), options, providers=["CPUExecutionProvider"])
        ids, mask = next(Maker(spec.vocab_size).shape(f"1x{length}").batches())
        for _ in range(RUNS):
            session.run(None, {"input_ids": ids, "attention_mask": mask})
        events = json.loads(Path(session.end_profiling()).read_text())
    return split_by_part(events, spec)


def split_by_part(events: list[dict[str, Any]], spec: ModelSpec) -> dict[str, float]:
    """Median seconds of each part over the runs of a profile, its first left out."""
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run"][1:]
    seconds: list[Counter[str]] = [Counter() for _ in spans]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name, operator = event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", "")
            if operator == "If":  # the nodes of its branch have events of their own
                continue
            part = part_of(name, operator, spec)
            for counter, (start, end) in zip(seconds, spans, strict=True):
                if start <= event["ts"] < end:
                    counter[part] += event["dur"] / 1e6
    return {part: statistics.median(counter[part] for counter in seconds) for part in (PRODUCTS, GLOBAL, LOCAL, OTHER)}


def main() -> None:
    """Profile, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lengths", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    spec, _ = parse_config(json.loads((arguments.bundle / "config.json").read_text()))
    lengths = [int(length) for length in arguments.lengths.split(",")]
    parts = {f"1x{length}": profile(arguments.bundle, length, arguments.threads, spec) for length in lengths}
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
