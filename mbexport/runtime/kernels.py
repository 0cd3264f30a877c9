"""mbexport's own kernels for ONNX Runtime on CPUs: a library in the package, where it was built.

The environment's MBEXPORT_KERNELS says which: ``auto`` (the default) the best for this CPU, ``AVX-512``, ``AVX2``, or
``off`` for ONNX Runtime's own operators alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from mbexport.errors import InputError

LIBRARY = Path(__file__).parents[1] / "native" / "kernels.so"
VARIABLE, AUTO, OFF = "MBEXPORT_KERNELS", "auto", "off"
NAMES = ("AVX-512", "AVX2")


@dataclass(frozen=True)
class Kernels:
    """What computes the layers' FP32 products, and what stands between products, in sessions on the CPU.

    Attributes:
        name: the instruction set, None where ONNX Runtime's own operators do.
        why: they do; empty where the library is used.
    """

    name: str | None
    why: str = ""

    @property
    def library(self) -> Path | None:
        """What sessions have to register."""
        return LIBRARY if self.name else None

    def __str__(self) -> str:
        """For people: ``AVX-512``, or ``none`` with the reason."""
        return self.name or f"none: {self.why}"


def kernels() -> Kernels:
    """The kernels of sessions that are made from now on.

    Raises:
        InputError: MBEXPORT_KERNELS names some that there are not, or that this CPU lacks.
    """
    wanted = os.environ.get(VARIABLE, AUTO)
    if wanted == OFF:
        return Kernels(None, f"{VARIABLE} is {OFF}")
    if wanted not in (AUTO, *NAMES):
        raise InputError(f"{VARIABLE} is {wanted!r}, expected {AUTO}, {', '.join(NAMES)} or {OFF}")
    chosen = _choose(None if wanted == AUTO else wanted)
    if chosen.name is None and wanted != AUTO:
        raise InputError(f"{VARIABLE} is {wanted}, and there is {chosen}; unset it, or set it to {OFF}")
    return chosen


def _choose(name: str | None) -> Kernels:
    library = _library()
    if isinstance(library, str):
        return Kernels(None, library)
    chosen = library.mbexport_choose_kernels(name.encode() if name else None)
    if chosen is None:
        return Kernels(None, f"this CPU has no {name or 'AVX2'}")
    return Kernels(chosen.decode())


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return "mbexport was built without them: they need x86-64 Linux and a C compiler at its installation"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as cause:
        return f"{LIBRARY} cannot be loaded: {cause}"
    library.mbexport_choose_kernels.restype = ctypes.c_char_p
    library.mbexport_choose_kernels.argtypes = [ctypes.c_char_p]
    return library
