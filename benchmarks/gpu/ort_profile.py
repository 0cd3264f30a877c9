"""Where ONNX Runtime runs the nodes of a graph, by its own profile: which on the GPU, which on the CPU, what is copied.

    python -m benchmarks.gpu.ort_profile FILE.onnx cuda    # prints JSON

Copies are nodes that ONNX Runtime itself puts in.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mbexport.runtime.backends.ort import CPU, CUDA, providers_of

LAYER = re.compile(r"layers[./_](\d+)")  # in the names that mbexport gives to nodes
COPY = "Memcpy"  # ToHost or FromHost
SHAPE = (1, 512)


def profile(file: Path, device: str) -> dict[str, Any]:
    """Run a graph twice, and count the second run's nodes.

    Args:
        file: the graph; input_ids and attention_mask, and position_ids where it is packed.
        device: ``cuda`` or ``cpu``.

    Returns:
        What :func:`summary` makes of the profile.
    """
    provider = CUDA if device == "cuda" else CPU
    if device == "cuda":
        onnxruntime.preload_dlls()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(file), options, providers=providers_of(provider), enable_fallback=0)
        if session.get_providers()[0] != provider:
            raise SystemExit(f"{provider} does not work here")
        random = np.random.default_rng(0)
        feed = {"input_ids": random.integers(100, 1000, SHAPE), "attention_mask": np.ones(SHAPE, np.int64)}
        if "position_ids" in {given.name for given in session.get_inputs()}:
            feed["position_ids"] = np.arange(SHAPE[1])[None]
        for _ in range(2):
            session.run(None, feed)
        return summary(json.loads(Path(session.end_profiling()).read_text()))


def summary(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a profile says of its last run.

    Returns:
        ``nodes``: by provider, how many ran; ``on_cpu``: by type, those that ran on the CPU; ``copies``: nodes that
        copy between host and device, and ``copies_in_layers``; ``layers``: how many layers were recognized by the
        names of nodes; 0 says that ``copies_in_layers`` knows nothing.
    """
    runs = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    nodes = [
        event for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= runs[-1]
    ]  # fmt: skip
    providers = Counter(event["args"]["provider"] for event in nodes)
    on_cpu = Counter(e["args"]["op_name"] for e in nodes if e["args"]["provider"] == CPU)
    places = [(COPY in event["args"]["op_name"], LAYER.search(event["name"])) for event in nodes]
    return {
        "nodes": dict(providers),
        "on_cpu": dict(on_cpu),
        "copies": sum(is_copy for is_copy, _ in places),
        "copies_in_layers": _copies_between(places),
        "layers": len({match[1] for _, match in places if match}),
    }


def _copies_between(places: list[tuple[bool, re.Match[str] | None]]) -> int:
    """Copies between the first and the last node of a layer; copies themselves have no names of ours."""
    inside = [number for number, (_, match) in enumerate(places) if match]
    if not inside:
        return 0
    return sum(is_copy for is_copy, _ in places[inside[0] : inside[-1] + 1])


if __name__ == "__main__":
    print(json.dumps(profile(Path(sys.argv[1]), sys.argv[2])))
