"""The GPUs that engines are built for, and what each can do. Standard library only.

To add a GPU, add a row to ``_ROWS``; what it can compute follows from its compute capability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mbexport.errors import InputError

ComputeCapability = tuple[int, int]

# The first compute capability with tensor cores (or, fp32, any kernel) for a precision. 7.5 is the
# first that TensorRT 10.5 and later have any kernel for.
_FIRST_WITH: dict[str, ComputeCapability] = {
    "fp32": (7, 5), "fp16": (7, 5), "int8": (7, 5), "bf16": (8, 0), "fp8": (8, 9),
}  # fmt: skip
# Whole targets of TensorRT-RTX 1.7: none for the data-centre chips 9.0 (Hopper) and 10.0 (Blackwell).
RTX_TARGETS: tuple[ComputeCapability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
_RTX_FP32_FROM: ComputeCapability = (8, 0)  # it has no FP32 matrix product for Turing


@dataclass(frozen=True)
class Gpu:
    """A GPU model: the name on the command line, NVIDIA's, compute capability, and memory in GiB."""

    name: str
    title: str
    compute_capability: ComputeCapability
    memory: int

    @property
    def capability_text(self) -> str:
        """The compute capability as NVIDIA writes it, e.g. ``8.9``."""
        return "{}.{}".format(*self.compute_capability)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it has kernels for, slowest first."""
        return tuple(name for name, first in _FIRST_WITH.items() if self.compute_capability >= first)

    @property
    def memory_bytes(self) -> int:
        """Its memory in bytes."""
        return self.memory * 2**30


_ROWS = (
    Gpu("t4", "Tesla T4", (7, 5), 16),
    Gpu("a100", "NVIDIA A100", (8, 0), 40),  # the smaller of two; the larger fits what fits the smaller
    Gpu("a10", "NVIDIA A10", (8, 6), 24),
    Gpu("rtx3090", "NVIDIA GeForce RTX 3090", (8, 6), 24),
    Gpu("rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 24),
    Gpu("l4", "NVIDIA L4", (8, 9), 24),
    Gpu("l40s", "NVIDIA L40S", (8, 9), 48),
    Gpu("h100", "NVIDIA H100", (9, 0), 80),
    Gpu("h200", "NVIDIA H200", (9, 0), 141),
    Gpu("rtx5090", "NVIDIA GeForce RTX 5090", (12, 0), 32),
)
GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _ROWS}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in capitals or not.

    Raises:
        InputError: there is none; lists those there are.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise InputError(f"unknown GPU {name!r:.60}; known are {', '.join(GPUS)}, and auto for this machine's own")
    return gpu


def check_precision(gpu: Gpu, precision: str, builder: str) -> None:
    """Refuse what a GPU, or a builder for it, has no kernels for.

    Raises:
        InputError: says what runs there instead.
    """
    if not gpu.precisions:
        first = "{}.{}".format(*min(_FIRST_WITH.values()))
        raise InputError(
            f"{gpu.name} has compute capability {gpu.capability_text}, and TensorRT needs {first} or later, so there "
            "is no engine for it; ONNX Runtime runs the bundle's graphs"
        )
    if precision not in gpu.precisions:
        first = "{}.{}".format(*_FIRST_WITH[precision])
        able = ", ".join(name for name, other in GPUS.items() if precision in other.precisions)
        raise InputError(
            f"{gpu.name} has compute capability {gpu.capability_text}, and {precision} needs {first}: {able}; "
            f"take --precision {'int8' if precision == 'fp8' else 'fp16'}"
        )
    if builder != "tensorrt-rtx":
        return
    there = _there(gpu)
    if gpu.compute_capability not in RTX_TARGETS:
        targets = ", ".join("{}.{}".format(*target) for target in RTX_TARGETS)
        raise InputError(
            f"TensorRT-RTX builds for compute capability {targets}, and {gpu.name} has {gpu.capability_text}; {there}"
        )
    if precision == "fp32" and _lacks_fp32(gpu, builder):
        raise InputError(f"{_no_fp32(gpu)}; take --precision fp16, or {there}")


def check_fp32_products(gpu: Gpu, builder: str, parts: Sequence[str]) -> None:
    """Refuse parts of a model that would stay in FP32 where there is no FP32 matrix product.

    Args:
        gpu: the GPU.
        builder: what builds for it.
        parts: those with matrix products.

    Raises:
        InputError: names them.
    """
    if parts and _lacks_fp32(gpu, builder):
        raise InputError(
            f"{_no_fp32(gpu)}, and {', '.join(parts)} would need one; leave that out of --keep-fp32, or {_there(gpu)}"
        )


def _lacks_fp32(gpu: Gpu, builder: str) -> bool:
    return builder == "tensorrt-rtx" and gpu.compute_capability < _RTX_FP32_FROM


def _no_fp32(gpu: Gpu) -> str:
    return f"TensorRT-RTX has no FP32 matrix product for {gpu.name} (compute capability {gpu.capability_text})"


def _there(gpu: Gpu) -> str:
    return f"build it on a machine that has the {gpu.name} and TensorRT: pip install 'mbexport[tensorrt]'"
