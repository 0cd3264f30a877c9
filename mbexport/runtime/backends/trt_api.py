"""What is used of TensorRT's Python module, the same in ``tensorrt`` and ``tensorrt_rtx``.

The backend sees TensorRT through these types alone, so mypy refuses a name that is not here, and a test
looks up each of them in the real modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Context(Protocol):
    """``IExecutionContext``: one profile, one shape at a time."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int, /) -> bool:
        """Enqueue the switch to a profile; false where it fails."""

    def set_device_memory(self, memory: int, size: int, /) -> None:
        """Where activations lie while it runs."""

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool:
        """False for a shape outside the profile."""

    def set_tensor_address(self, name: str, memory: int, /) -> bool:
        """Where an input is read or an output written on the GPU."""

    def get_tensor_shape(self, name: str, /) -> Iterable[int]:
        """With all input shapes set, the shape in the coming run."""

    def execute_async_v3(self, stream_handle: int, /) -> bool:
        """Enqueue the forward pass; false where it fails."""


class RuntimeConfig(Protocol):
    """``IRuntimeConfig``: how contexts are made. Of TensorRT-RTX also ``cuda_graph_strategy``."""

    def set_execution_context_allocation_strategy(self, strategy: Any, /) -> None:
        """Who provides the memory for activations."""


class CudaEngine(Protocol):
    """``ICudaEngine``: a loaded engine."""

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""

    @property
    def num_optimization_profiles(self) -> int:
        """At least 1."""

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of activations, enough for every profile."""

    def get_tensor_name(self, index: int, /) -> str:
        """Of an input or output."""

    def get_tensor_mode(self, name: str, /) -> Any:
        """``TensorIOMode.INPUT`` or ``OUTPUT``."""

    def get_tensor_dtype(self, name: str, /) -> Any:
        """A ``DataType``; ``nptype`` of the module translates it."""

    def get_tensor_shape(self, name: str, /) -> Iterable[int]:
        """-1 for an axis that is dynamic."""

    def get_tensor_profile_shape(self, name: str, profile_index: int, /) -> Iterable[Iterable[int]]:
        """Smallest, fastest and largest shape of an input."""

    def create_runtime_config(self) -> RuntimeConfig:
        """With the defaults."""

    def create_execution_context(self, *, runtime_config: RuntimeConfig) -> Context | None:
        """None where it fails."""


class TensorRT(Protocol):
    """The module."""

    __version__: str
    TensorIOMode: Any
    ExecutionContextAllocationStrategy: Any
    ILogger: Any
    Runtime: Any

    def nptype(self, trt_type: Any, /) -> type:
        """The numpy type of a ``DataType``."""
