"""Which kernels one run is made of, by CUDA's own tracing: of PyTorch, ONNX Runtime and TensorRT alike."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

FUSED = re.compile(r"fmha|flash|attention|mha", re.IGNORECASE)
SOFTMAX = re.compile(r"softmax", re.IGNORECASE)
MOST = 15  # kernels of a report
KERNEL, COPY, ON_CPU = "kernel", "gpu_memcpy", "cpu_op"


def trace(run: Callable[[], Any], device: str) -> dict[str, Any]:
    """Trace one run; on a CPU its operators, which shows that it works.

    Returns:
        What :func:`summary` makes of it.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device == "cuda"
    run()  # once more, so that nothing is set up in what is traced
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as traced:
        run()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        traced.export_chrome_trace(str(file))
        return summary(json.loads(file.read_text())["traceEvents"], KERNEL if on_gpu else ON_CPU)


def summary(events: list[dict[str, Any]], kind: str = KERNEL) -> dict[str, Any]:
    """What a trace says.

    Returns:
        ``kernels``: the costliest, each name, calls and seconds; ``launched``: how many in all; ``busy``: their
        seconds; ``span``: from the first one's start to the last one's end; ``fused_attention`` and ``softmax``: calls
        of kernels of such names; ``copies``: by direction, their number and bytes.
    """
    kernels = [event for event in events if event.get("cat") == kind and "dur" in event]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in kernels:
        by_name[event["name"]].append(event["dur"] / 1e6)
    costliest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:MOST]
    starts = [event["ts"] for event in kernels]
    ends = [event["ts"] + event["dur"] for event in kernels]
    copies: dict[str, dict[str, int]] = {}
    for event in events:
        if event.get("cat") == COPY:
            of_kind = copies.setdefault(event["name"], {"count": 0, "bytes": 0})
            of_kind["count"] += 1
            of_kind["bytes"] += int(event.get("args", {}).get("bytes", 0))
    return {
        "kernels": [{"name": name, "calls": len(times), "seconds": sum(times)} for name, times in costliest],
        "launched": len(kernels),
        "busy": sum(event["dur"] for event in kernels) / 1e6,
        "span": (max(ends) - min(starts)) / 1e6 if kernels else 0.0,
        "fused_attention": sum(len(times) for name, times in by_name.items() if FUSED.search(name)),
        "softmax": sum(len(times) for name, times in by_name.items() if SOFTMAX.search(name)),
        "copies": copies,
    }
