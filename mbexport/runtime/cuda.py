"""The few calls of CUDA that running an engine needs, through ``cuda-bindings``.

Every call is checked: a failure becomes a BackendError with the call and CUDA's name for the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

from mbexport.errors import BackendError
from mbexport.optional import require

Handle = Any  # a stream or an executable graph, as cuda-bindings hands it out
Result = tuple[Any, ...]  # a status, then what the call returns
DEVICE = 0  # the first that the process sees, the one that find_gpu describes


class CudaApi(Protocol):
    """What is used of the module ``cuda.bindings.runtime``; a test holds it to the real one."""

    cudaError_t: Any  # noqa: N815 (CUDA's names)
    cudaMemcpyKind: Any  # noqa: N815
    cudaStreamCaptureMode: Any  # noqa: N815
    cudaStreamNonBlocking: int  # noqa: N815
    cudaHostAllocDefault: int  # noqa: N815

    def cudaGetLastError(self) -> Result: ...  # noqa: D102, N802
    def cudaGetDevice(self) -> Result: ...  # noqa: D102, N802
    def cudaSetDevice(self, device: int, /) -> Result: ...  # noqa: D102, N802
    def cudaMalloc(self, size: int, /) -> Result: ...  # noqa: D102, N802
    def cudaFree(self, address: int, /) -> Result: ...  # noqa: D102, N802
    def cudaHostAlloc(self, size: int, flags: int, /) -> Result: ...  # noqa: D102, N802
    def cudaFreeHost(self, address: int, /) -> Result: ...  # noqa: D102, N802
    def cudaMemcpyAsync(  # noqa: D102, N802
        self, target: int, source: int, size: int, kind: Any, stream: Handle, /
    ) -> Result: ...
    def cudaStreamCreateWithFlags(self, flags: int, /) -> Result: ...  # noqa: D102, N802
    def cudaStreamSynchronize(self, stream: Handle, /) -> Result: ...  # noqa: D102, N802
    def cudaStreamDestroy(self, stream: Handle, /) -> Result: ...  # noqa: D102, N802
    def cudaStreamBeginCapture(self, stream: Handle, mode: Any, /) -> Result: ...  # noqa: D102, N802
    def cudaStreamEndCapture(self, stream: Handle, /) -> Result: ...  # noqa: D102, N802
    def cudaGraphInstantiate(self, graph: Handle, flags: int, /) -> Result: ...  # noqa: D102, N802
    def cudaGraphLaunch(self, executable: Handle, stream: Handle, /) -> Result: ...  # noqa: D102, N802
    def cudaGraphDestroy(self, graph: Handle, /) -> Result: ...  # noqa: D102, N802
    def cudaGraphExecDestroy(self, executable: Handle, /) -> Result: ...  # noqa: D102, N802


def load_module(name: str) -> Any:
    """An installed module.

    Raises:
        BackendError: it does not load, as where a library that it needs is missing.
    """
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as cause:
        raise BackendError(f"{name} is installed and does not load: {cause}") from cause


class Cuda:
    """Memory, copies, a stream and graphs of one GPU.

    Addresses are whole numbers, sizes bytes. All methods raise BackendError where CUDA fails.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        BackendError: it does not load.
    """

    def __init__(self) -> None:
        require("cuda.bindings", packages="cuda-bindings")
        self._api: CudaApi = load_module("cuda.bindings.runtime")

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a call returns after its status: nothing, or one value."""
        try:
            status, *values = getattr(self._api, name)(*arguments)
        except RuntimeError as cause:  # cuda-bindings 12.8, where there is no driver
            raise BackendError(f"{name} failed: {cause}; check nvidia-smi") from cause
        if status != self._api.cudaError_t.cudaSuccess:
            self._api.cudaGetLastError()  # forgotten here, or the next one to look takes it for its own
            what = f" of {arguments[0]} bytes" if name in ("cudaMalloc", "cudaHostAlloc") else ""
            raise BackendError(f"{name}{what} failed with {status.name}; see CUDA's documentation of that error")
        return values[0] if values else None

    @contextmanager
    def device(self) -> Iterator[None]:
        """Makes the GPU this thread's current one for a while; a thread may have chosen another for its own ends."""
        before = self._call("cudaGetDevice")
        if before != DEVICE:
            self._call("cudaSetDevice", DEVICE)
        try:
            yield
        finally:
            if before != DEVICE:
                self._call("cudaSetDevice", before)

    def allocate(self, size: int) -> int:
        """Address of new memory on the GPU."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give back memory on the GPU; waits for work that uses it."""
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        """Address of new page-locked memory, which copies run to and from while others compute."""
        return int(self._call("cudaHostAlloc", size, self._api.cudaHostAllocDefault))

    def free_host(self, address: int) -> None:
        """Give back page-locked memory."""
        self._call("cudaFreeHost", address)

    def to_device(self, device: int, host: int, size: int, stream: Handle) -> None:
        """Begin a copy to the GPU."""
        self._call("cudaMemcpyAsync", device, host, size, self._api.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def to_host(self, host: int, device: int, size: int, stream: Handle) -> None:
        """Begin a copy from the GPU."""
        self._call("cudaMemcpyAsync", host, device, size, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def create_stream(self) -> Handle:
        """A stream of its own, that waits for no other."""
        return self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)

    def synchronize(self, stream: Handle) -> None:
        """Wait until all work of a stream is done; errors of that work are raised here."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Handle) -> None:
        """Give back a stream."""
        self._call("cudaStreamDestroy", stream)

    def capture(self, stream: Handle, work: Callable[[], None]) -> Handle:
        """An executable graph of what ``work`` enqueues on the stream; nothing of it is run."""
        # Thread-local: other threads may allocate meanwhile.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # The stream leaves capture mode; what was captured is of no use.
            _, *graphs = self._api.cudaStreamEndCapture(stream)
            self._api.cudaGetLastError()
            for graph in graphs:
                if graph is not None and int(graph):
                    self._call("cudaGraphDestroy", graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, executable: Handle, stream: Handle) -> None:
        """Run an executable graph."""
        self._call("cudaGraphLaunch", executable, stream)

    def destroy_graph(self, executable: Handle) -> None:
        """Give back an executable graph, which must not be running."""
        self._call("cudaGraphExecDestroy", executable)
