"""What the device does at most, measured: matrix products and copies; and the time that no workload goes below."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mbexport.bench.arithmetic import ModelSize
from mbexport.bench.workloads import Workload
from mbexport.processes import one_line

BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "fp8": 1}  # of a weight
REPEATS = 15


@dataclass(frozen=True)
class Floor:
    """Seconds of a workload that nothing goes below: its arithmetic at the measured rate; its weights, read once."""

    arithmetic: float
    memory: float

    @property
    def seconds(self) -> float:
        """The larger of both."""
        return max(self.arithmetic, self.memory)


def floor_of(size: ModelSize, workload: Workload, precision: str, rates: dict[str, float]) -> Floor | None:
    """The floor of a precision; None where its rate is not known.

    Args:
        size: of the model.
        workload: what is computed. Padding is none of it.
        precision: of the projections; attention and the head of INT8 and FP8 graphs are FP16.
        rates: as :func:`measure_rates` gives them.
    """
    inner = "fp16" if precision in ("int8", "fp8") else precision
    if not {precision, inner, "copy"} <= rates.keys():
        return None
    projections = size.of_projections(workload.lengths)
    others = size.multiply_adds(workload.lengths) - projections
    weights = len(size.layer_is_global) * sum(inputs * outputs for inputs, outputs in size.products())
    # A copy's rate counts what it reads and what it writes: bytes over it are the time of reading them.
    return Floor(projections / rates[precision] + others / rates[inner], weights * BYTES[precision] / rates["copy"])


def median_seconds(work: Callable[[], Any], device: str) -> float:
    """Of some work of PyTorch's, run once before it is timed."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    times = []
    for _ in range(REPEATS):
        wait()
        before = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def measure_rates(device: str, *, smoke: bool) -> dict[str, Any]:
    """Multiply-adds a second by precision, and bytes read and written a second by a copy on the device.

    What a device or PyTorch cannot do is not there; ``notes`` says why.
    """
    import torch

    side = 512 if smoke else 8192
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(side, side, generator=generator).to(device)

    def fp8() -> Callable[[], Any]:
        a, one = random.to(torch.float8_e4m3fn), torch.ones((), device=device)
        return lambda: torch._scaled_mm(a, a.t(), one, one, out_dtype=torch.float16, use_fast_accum=True)

    def int8() -> Callable[[], Any]:
        a = (random * 30).clamp(-127, 127).to(torch.int8)
        return lambda: torch._int_mm(a, a.t())

    def plain(dtype: torch.dtype) -> Callable[[], Any]:
        a = random.to(dtype)
        return lambda: a @ a

    found: dict[str, Any] = {}
    notes = {}
    makers = {"fp32": lambda: plain(torch.float32), "fp16": lambda: plain(torch.float16), "int8": int8, "fp8": fp8}
    for name, make in makers.items():
        try:
            found[name] = side**3 / median_seconds(make(), device)
        except Exception as cause:  # noqa: PERF203 (whatever PyTorch raises for what this device does not have)
            notes[name] = one_line(cause, 200)
    size = (1 << 24) if smoke else (1 << 31)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    found["copy"] = 2 * size / median_seconds(lambda: target.copy_(source), device)
    return found | {"notes": notes}
