"""Which builder makes an engine: enterprise TensorRT on the GPU itself, or TensorRT-RTX ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mbexport.engines.gpus import GPUS, Gpu, check_precision, find_gpu
from mbexport.engines.local import local_gpu
from mbexport.errors import InputError
from mbexport.optional import installed, require
from mbexport.options import BUILDER_MODULES, BUILDERS, ENGINE_PRECISIONS


@dataclass(frozen=True)
class Target:
    """A GPU, the builder for it, and why that one; ``builder`` is ``tensorrt-rtx`` or ``tensorrt``."""

    gpu: Gpu
    builder: str
    why: str


def choose_targets(names: Sequence[str], builder: str, precision: str) -> tuple[Target, ...]:
    """What will be built where, all that can be refused refused before anything is built.

    Args:
        names: of the GPUs; ``auto`` for this machine's. One that is named twice is taken once.
        builder: ``auto``, ``tensorrt-rtx`` or ``tensorrt``.
        precision: one of ENGINE_PRECISIONS.

    Raises:
        InputError: no such GPU, the builder cannot build for it here, or it has no kernels for the precision.
        MissingExtraError: the builder is not installed.
    """
    if not names:
        raise InputError(f"no GPU is named; known are {', '.join(GPUS)}, and auto for this machine's own")
    for given, accepted in ((builder, BUILDERS), (precision, ENGINE_PRECISIONS)):
        if given not in accepted:
            raise InputError(f"{given!r:.60} was given, expected one of {', '.join(accepted)}")
    gpus = {gpu.name: gpu for gpu in (local_gpu() if name == "auto" else find_gpu(name) for name in names)}
    targets = tuple(_choose(gpu, builder) for gpu in gpus.values())
    for target in targets:
        check_precision(target.gpu, precision, target.builder)
        require(BUILDER_MODULES[target.builder], "polygraphy", "onnx_ir")
    return targets


def _choose(gpu: Gpu, builder: str) -> Target:
    here, reason = _is_here(gpu)
    if builder == "tensorrt":
        if not here:
            raise InputError(
                f"TensorRT builds on the GPU that it builds for, and {reason}; run this on a machine that has "
                f"the {gpu.name}, or take --builder tensorrt-rtx"
            )
        return Target(gpu, "tensorrt", "as asked for")
    if builder == "tensorrt-rtx":
        return Target(gpu, "tensorrt-rtx", "as asked for")
    if not here:
        return Target(gpu, "tensorrt-rtx", f"ahead of time: {reason}")
    if not installed("tensorrt"):
        return Target(gpu, "tensorrt-rtx", f"the {gpu.name} is here, but TensorRT is not installed")
    return Target(gpu, "tensorrt", f"the {gpu.name} is here, and TensorRT is installed")


def _is_here(gpu: Gpu) -> tuple[bool, str]:
    """Whether the GPU is this machine's, and if not, what is."""
    try:
        local = local_gpu()
    except InputError:
        return False, "no GPU can be read on this machine"
    return local.name == gpu.name, f"this machine's GPU is {local.name}"
