"""The GPU of this machine, as its driver describes it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mbexport.engines.gpus import GPUS, Gpu
from mbexport.errors import InputError
from mbexport.optional import installed


def local_gpu() -> Gpu:
    """The first GPU of this machine: its row of the table, or one made of what the driver says.

    Raises:
        InputError: no driver, no GPU, or no cuda-bindings to ask.
    """
    advice = "name the GPU that the engine is for, e.g. --gpu t4"
    if not installed("cuda.bindings"):
        raise InputError(f"--gpu auto asks the driver through cuda-bindings (pip install 'mbexport[trt]'); or {advice}")
    from cuda.bindings import driver

    try:
        values = _describe(driver)
    except RuntimeError as cause:  # also what cuda-bindings raises where there is no driver library
        reason = str(cause).split(". ", maxsplit=1)[0]
        raise InputError(f"this machine's GPU cannot be read ({reason:.120}); {advice}") from cause
    return gpu_of(*values)


def _describe(driver: Any) -> tuple[str, tuple[int, int], int]:
    """Name, compute capability and bytes of memory of device 0."""

    def call(function: str, *arguments: Any) -> Any:
        status, *values = getattr(driver, function)(*arguments)
        if int(status) != 0:
            raise RuntimeError(f"{function} answered {getattr(status, 'name', status)}")
        return values[0] if values else None

    call("cuInit", 0)
    device = call("cuDeviceGet", 0)
    attribute = driver.CUdevice_attribute
    kinds = (
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    )
    major, minor = (int(call("cuDeviceGetAttribute", kind, device)) for kind in kinds)
    name = call("cuDeviceGetName", 100, device).decode("utf-8", "replace").rstrip("\0")
    return name, (major, minor), int(call("cuDeviceTotalMem", device))


def gpu_of(title: str, compute_capability: tuple[int, int], memory: int) -> Gpu:
    """The table's row for a device, with the memory that it really has; else a row of its own.

    Args:
        title: the driver's name for it, e.g. ``NVIDIA A100-SXM4-40GB``.
        compute_capability: major and minor.
        memory: bytes.
    """
    gibibytes = max(1, round(memory / 2**30))
    words = re.findall(r"[a-z0-9]+", title.lower())
    joined = {"".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)}
    for gpu in GPUS.values():
        if gpu.name in joined and gpu.compute_capability == compute_capability:
            return dataclasses.replace(gpu, memory=gibibytes)
    brand = {"nvidia", "geforce", "tesla", "quadro"}
    name = "-".join(word for word in words if word not in brand) or "gpu"
    return Gpu(name, title, compute_capability, gibibytes)
