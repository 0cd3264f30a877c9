"""The GPU of this machine, as its driver describes it."""

from __future__ import annotations

import dataclasses

from mbexport.driver import find_gpu, gpu_memory, model_words, names_model
from mbexport.engines.gpus import GPUS, Gpu
from mbexport.errors import BackendError, InputError


def local_gpu() -> Gpu:
    """The first GPU of this machine: its row of the table, or one made of what the driver says.

    Raises:
        InputError: no driver, or no GPU.
    """
    try:
        device, memory = find_gpu(), gpu_memory()
    except BackendError as cause:
        raise InputError(f"{cause}; or name the GPU that the engine is for, e.g. --gpu t4") from cause
    major, minor = map(int, device.compute_capability.split("."))
    return gpu_of(device.name, (major, minor), memory)


def gpu_of(title: str, compute_capability: tuple[int, int], memory: int) -> Gpu:
    """The table's row for a device, with the memory that it really has; else a row of its own.

    Args:
        title: the driver's name for it, e.g. ``NVIDIA A100-SXM4-40GB``.
        compute_capability: major and minor.
        memory: bytes.
    """
    gibibytes = max(1, round(memory / 2**30))
    for gpu in GPUS.values():
        if gpu.compute_capability == compute_capability and names_model(gpu.name, title):
            return dataclasses.replace(gpu, memory=gibibytes)
    return Gpu("-".join(model_words(title)) or "gpu", title, compute_capability, gibibytes)
