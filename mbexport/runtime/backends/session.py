"""A loaded engine with all that has to be given back: stream, contexts, buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from mbexport.errors import BackendError
from mbexport.profiles import Profile
from mbexport.runtime.backends.contexts import Contexts, Place
from mbexport.runtime.backends.interface import POSITION_IDS, IntArray
from mbexport.runtime.backends.trt_api import CudaEngine, TensorRT
from mbexport.runtime.buffers import Buffer
from mbexport.runtime.cuda import Cuda, Handle
from mbexport.runtime.shapes import Fit, size_of

INPUTS = ("input_ids", "attention_mask")  # [batch, sequence]
PACKED_INPUTS = (*INPUTS, POSITION_IDS)
Shapes = Mapping[str, tuple[int, ...]]


class Session:
    """An engine on the GPU. Not safe to call from several threads at a time.

    Args:
        trt: the module.
        cuda: the GPU.
        content: the engine's bytes.
        name: what errors call it.

    Raises:
        BackendError: TensorRT or CUDA failed; nothing is left allocated then.
    """

    def __init__(self, trt: TensorRT, cuda: Cuda, content: bytes, name: str) -> None:
        self._cuda = cuda
        self._name = name
        self._faults: list[str] = []  # what TensorRT logged
        self._given_back = contextlib.ExitStack()  # in the reverse order
        self._stream: Handle = None
        try:
            with self._explained():
                self._open(trt, content)
        except BaseException:
            self.close()
            raise

    def _open(self, trt: TensorRT, content: bytes) -> None:
        cuda, later = self._cuda, self._given_back.callback
        self._stream = cuda.create_stream()
        later(cuda.destroy_stream, self._stream)
        self._loaded: list[Any] = [_logger(trt, self._faults)]
        later(self._loaded.clear)
        self._loaded.append(trt.Runtime(self._loaded[0]))
        engine: CudaEngine | None = self._loaded[-1].deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError("TensorRT cannot load it")
        self._loaded.append(engine)
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if sorted(given) not in (sorted(INPUTS), sorted(PACKED_INPUTS)):
            raise BackendError(f"it takes {', '.join(given)}, expected {', '.join(INPUTS)} and perhaps {POSITION_IDS}")
        self.packs = POSITION_IDS in given
        self.output_shapes: Shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names if name not in given}
        self.profiles = tuple(_profile(engine, number) for number in range(engine.num_optimization_profiles))
        self._buffers = {name: Buffer(cuda, trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        for buffer in self._buffers.values():
            later(buffer.free)
        self._contexts = Contexts(trt, engine, cuda, self._stream)
        later(self._contexts.close)
        later(cuda.synchronize, self._stream)

    def run(
        self,
        fit: Fit,
        inputs: Mapping[str, IntArray],
        shapes: Shapes,
        wanted: Mapping[str, Sequence[int] | None],
    ) -> dict[str, npt.NDArray[Any]]:
        """One forward pass.

        Args:
            fit: profile and shape.
            inputs: all of them, [batch, sequence], no larger than the shape; they are padded to it.
            shapes: of all outputs in that shape.
            wanted: outputs to copy from the GPU: whole (None), or these rows of [batch * sequence, ...].

        Returns:
            The wanted outputs, in memory that the next run writes to.

        Raises:
            BackendError: TensorRT or CUDA failed, or the GPU's memory is full.
        """
        with self._explained():
            self._make_room({**shapes, **dict.fromkeys(inputs, (fit.batch, fit.length))})
            for name, values in inputs.items():
                buffer = self._buffers[name]
                host = buffer.host_array((fit.batch, fit.length))
                fill(host, values)
                self._cuda.to_device(buffer.device, buffer.host, host.nbytes, self._stream)
            places = {name: Place(self._buffers[name].device, shape) for name, shape in shapes.items()}
            given = {name: Place(self._buffers[name].device, (fit.batch, fit.length)) for name in inputs}
            self._contexts.run(fit, given, places)
            results = {name: self._fetch(name, shapes[name], rows) for name, rows in wanted.items()}
            self._cuda.synchronize(self._stream)
        return results

    def _make_room(self, shapes: Shapes) -> None:
        """Let buffers grow; the stream is idle between runs."""
        if all(self._buffers[name].fits(shape) for name, shape in shapes.items()):
            return
        self._contexts.forget_graphs()  # they hold the addresses that change
        for name, shape in shapes.items():
            self._buffers[name].size_device(shape)

    def _fetch(self, name: str, shape: tuple[int, ...], rows: Sequence[int] | None) -> npt.NDArray[Any]:
        """Begin to copy an output, or rows of it, from the GPU."""
        buffer = self._buffers[name]
        if rows is None:
            host = buffer.host_array(shape)
            self._cuda.to_host(buffer.host, buffer.device, host.nbytes, self._stream)
            return host
        host = buffer.host_array((len(rows), *shape[2:]))
        size = size_of(shape[2:], buffer.dtype.itemsize)
        for number, row in enumerate(rows):
            self._cuda.to_host(buffer.host + number * size, buffer.device + row * size, size, self._stream)
        return host

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Work on the GPU. An error gets the engine's name and what TensorRT logged; the stream is idle after it.

        TensorRT's module raises RuntimeError, and TypeError where it could not make an object.
        """
        self._faults.clear()
        try:
            with self._cuda.device():
                yield
        except (BackendError, RuntimeError, TypeError) as cause:
            self._wait()
            said = "; ".join(self._faults)
            raise BackendError(f"{self._name}: {cause}{said and f' ({said})'}") from cause
        except BaseException:
            self._wait()
            raise

    def _wait(self) -> None:
        """Copies that were begun may still use the buffers. A GPU that failed has no more to say here."""
        with contextlib.suppress(BackendError):
            if self._stream is not None:
                self._cuda.synchronize(self._stream)

    def close(self) -> None:
        """Give everything back. What a GPU that failed does not take is lost with it, the rest is still given."""
        with contextlib.suppress(BackendError), self._cuda.device():
            self._given_back.close()


def fill(target: npt.NDArray[Any], values: IntArray) -> None:
    """Write [batch, sequence] into a target no smaller: 0 behind each row, and copies of the first row below.

    Padding holds any id, its mask is 0. A row without one real token has no meaning to the model, so rows
    that are filled in are whole texts.
    """
    batch, length = values.shape
    target[:batch, :length] = values
    target[:batch, length:] = 0
    target[batch:] = target[0]


def _profile(engine: CudaEngine, number: int) -> Profile:
    """One of an engine's profiles, as the engine itself has it."""
    smallest, fastest, largest = (
        (sizes[0], sizes[1]) for sizes in map(tuple, engine.get_tensor_profile_shape(INPUTS[0], number))
    )
    return Profile(smallest, fastest, largest)


def _logger(trt: TensorRT, faults: list[str]) -> Any:
    """A logger that keeps what TensorRT says of errors, which its calls only tell by a false or a None."""
    severe = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # a class of a module known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # TensorRT asks for this call by name

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                faults.append(message)

    return Logger()
