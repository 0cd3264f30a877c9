"""Memory of an engine's inputs and outputs, on the GPU and page-locked beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.runtime.cuda import Cuda
from mbexport.runtime.shapes import grown, size_of


class Buffer:
    """Device memory of one tensor and page-locked memory to copy through; both grow on demand.

    Args:
        cuda: what allocates it.
        dtype: of the tensor's numbers.

    Attributes:
        device: address on the GPU, 0 before it is first sized. It changes when the buffer grows.
        host: address of the page-locked memory.
    """

    def __init__(self, cuda: Cuda, dtype: npt.DTypeLike) -> None:
        self._cuda = cuda
        self.dtype = np.dtype(dtype)
        self.device = self.host = 0
        self._device_size = self._host_size = 0

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the device memory takes a tensor of that shape as it is."""
        return size_of(shape, self.dtype.itemsize) <= self._device_size

    def size_device(self, shape: Sequence[int]) -> None:
        """Make room for a tensor on the GPU. No work may be using the buffer, nor a graph hold its address.

        Raises:
            BackendError: the GPU's memory is full; the buffer is empty then.
        """
        if self.fits(shape):
            return
        size = grown(self._device_size, size_of(shape, self.dtype.itemsize))
        self._free_device()  # first: both at a time may not fit
        self.device = self._cuda.allocate(size)
        self._device_size = size

    def host_array(self, shape: Sequence[int]) -> npt.NDArray[Any]:
        """The page-locked memory as an array of that shape; valid until the next call.

        Raises:
            BackendError: no memory can be locked.
        """
        needed = size_of(shape, self.dtype.itemsize)
        if needed > self._host_size:
            size = grown(self._host_size, needed)
            self._free_host()
            self.host = self._cuda.allocate_host(size)
            self._host_size = size
        memory = (ctypes.c_byte * needed).from_address(self.host)
        array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(self.dtype)
        return array.reshape(shape)

    def free(self) -> None:
        """Give all memory back; the buffer is empty then."""
        self._free_device()
        self._free_host()

    def _free_device(self) -> None:
        address, self.device, self._device_size = self.device, 0, 0
        if address:
            self._cuda.free(address)

    def _free_host(self) -> None:
        address, self.host, self._host_size = self.host, 0, 0
        if address:
            self._cuda.free_host(address)
