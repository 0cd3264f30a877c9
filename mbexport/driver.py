"""Which CUDA GPU is here, asked of the driver itself: no package is needed, none is loaded."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass

from mbexport.errors import BackendError

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
CAPABILITY = (75, 76)
BRANDS = frozenset({"nvidia", "geforce", "tesla", "quadro"})
# Behind a model's name they make another model of it, with fewer or more multiprocessors.
OTHER_MODELS = frozenset({"ti", "super", "laptop", "d"})


class NoGpuError(BackendError):
    """There is no GPU, as on many a machine; other errors are of one that should work."""


@dataclass(frozen=True)
class Device:
    """A GPU as its driver describes it; ``compute_capability`` e.g. ``8.9``."""

    name: str
    compute_capability: str


def model_words(title: str) -> list[str]:
    """The words of a GPU's name in small letters, without brands: ``rtx``, ``4090``."""
    return [word for word in re.findall(r"[a-z0-9]+", title.lower()) if word not in BRANDS]


def names_model(name: str, title: str) -> bool:
    """Whether a short name such as ``rtx4090`` is of the model that a driver's ``NVIDIA GeForce RTX 4090`` is.

    It is where words that follow one another make it up: ``l4`` is no L40S, ``rtx3090`` no RTX 3090 Ti.
    Memory and board (``A100-SXM4-80GB``) make no other model.
    """
    short, words = "".join(model_words(name)), model_words(title)
    runs = ((start, end) for start in range(len(words)) for end in range(start + 1, len(words) + 1))
    return any("".join(words[start:end]) == short and OTHER_MODELS.isdisjoint(words[end:]) for start, end in runs)


def find_gpu() -> Device:
    """The first CUDA GPU that this process sees; ``CUDA_VISIBLE_DEVICES`` chooses among several.

    Raises:
        NoGpuError: there is none; the message says whether the driver or the GPU is missing.
        BackendError: the driver does not work.
    """
    driver, device = _first_device()
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    numbers = []
    for attribute in CAPABILITY:
        number = ctypes.c_int()
        _check(driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device), "cuDeviceGetAttribute")
        numbers.append(number.value)
    return Device(name.value.decode("utf-8", "replace"), ".".join(map(str, numbers)))


def gpu_memory() -> int:
    """Bytes of memory of the GPU that :func:`find_gpu` finds, whoever uses them.

    Raises:
        BackendError: as :func:`find_gpu`.
    """
    driver, device = _first_device()
    size = ctypes.c_size_t()
    _check(driver.cuDeviceTotalMem_v2(ctypes.byref(size), device), "cuDeviceTotalMem")
    return size.value


def _first_device() -> tuple[ctypes.CDLL, ctypes.c_int]:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise NoGpuError(f"no NVIDIA driver is installed ({DRIVER} is not found)") from None
    status = driver.cuInit(0)
    if status == NO_DEVICE:
        raise NoGpuError("the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    _check(status, "cuInit")
    device = ctypes.c_int()
    _check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    return driver, device


def _check(status: int, call: str) -> None:
    if status:
        raise BackendError(f"the NVIDIA driver failed: {call} returned error {status}; check nvidia-smi")
