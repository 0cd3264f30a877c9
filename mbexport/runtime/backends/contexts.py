"""Execution contexts of an engine, and CUDA graphs of the shapes that come again."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from mbexport.errors import BackendError
from mbexport.runtime.backends.trt_api import Context, CudaEngine, RuntimeConfig, TensorRT
from mbexport.runtime.cuda import Cuda, Handle
from mbexport.runtime.fallback import FallbackWarning
from mbexport.runtime.shapes import Fit

# Chosen, not measured: what a capture costs, and what a graph saves, was not timed on a GPU.
REPEATS = 3  # times that a shape is met before a graph of it pays
MOST_GRAPHS = 16  # each with a context of its own
MOST_COUNTED = 4096  # shapes; then counting starts anew


class Place(NamedTuple):
    """Where a tensor lies on the GPU, and its shape in the coming run."""

    address: int
    shape: tuple[int, ...]


class _Bound:
    """A context with the shape and addresses that it was last given; equal ones are not set again."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._fit: Fit | None = None
        self._addresses: dict[str, int] = {}

    def bind(self, fit: Fit, inputs: Mapping[str, Place], outputs: Mapping[str, Place]) -> None:
        if self._fit != fit:
            self._fit = None
            self._set_shapes(inputs, outputs)
            self._fit = fit
        for name, place in (*inputs.items(), *outputs.items()):
            if self._addresses.get(name) != place.address:
                self._addresses.pop(name, None)
                if not self._context.set_tensor_address(name, place.address):
                    raise BackendError(f"TensorRT refuses the address of {name}")
                self._addresses[name] = place.address

    def _set_shapes(self, inputs: Mapping[str, Place], outputs: Mapping[str, Place]) -> None:
        for name, place in inputs.items():
            if not self._context.set_input_shape(name, place.shape):
                raise BackendError(f"TensorRT refuses the shape {place.shape} for {name}")
        for name, place in outputs.items():
            found = tuple(self._context.get_tensor_shape(name))
            if found != place.shape:  # it would write elsewhere than is read
                raise BackendError(f"TensorRT gives {name} the shape {found}, expected {place.shape}")

    def enqueue(self, stream: Handle) -> None:
        if not self._context.execute_async_v3(int(stream)):
            raise BackendError("TensorRT could not enqueue the forward pass")


class _Graph(NamedTuple):
    """A captured forward pass, and the context that it was captured from, which must not change meanwhile."""

    executable: Handle
    bound: _Bound


class Contexts:
    """Runs an engine in any of its profiles, one pass at a time on one stream.

    All contexts share the engine's weights, and one piece of memory for activations: they never run at the
    same time. TensorRT-RTX captures CUDA graphs of its own accord. Otherwise a shape that comes for the
    third time gets a context of its own, since a graph is undefined once the context that it was captured
    from is given another shape; MOST_GRAPHS of them are kept, those used last.

    Args:
        trt: the module.
        engine: the engine.
        cuda: what allocates the activations' memory.
        stream: where everything is enqueued.

    Raises:
        BackendError: the GPU's memory is full.
    """

    def __init__(self, trt: TensorRT, engine: CudaEngine, cuda: Cuda, stream: Handle) -> None:
        self._engine, self._cuda, self._stream = engine, cuda, stream
        self._config, self._captures = _runtime_config(trt, engine)
        self._shared: dict[int, _Bound] = {}
        self._graphs: OrderedDict[Fit, _Graph] = OrderedDict()
        self._met: Counter[Fit] = Counter()
        self._memory_size = max(1, engine.device_memory_size_v2)
        self._memory = cuda.allocate(self._memory_size)

    def run(self, fit: Fit, inputs: Mapping[str, Place], outputs: Mapping[str, Place]) -> None:
        """Enqueue a forward pass.

        Args:
            fit: profile and shape.
            inputs: all of them, by name.
            outputs: all of them, by name. Addresses may be others than before only after :meth:`forget_graphs`.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        graph = self._graphs.get(fit)
        if graph is not None:
            self._graphs.move_to_end(fit)
            self._cuda.launch(graph.executable, self._stream)
            return
        own = self._own(fit) if self._comes_again(fit) else None
        bound = own or self._bound(fit.profile)
        bound.bind(fit, inputs, outputs)
        bound.enqueue(self._stream)  # also what TensorRT asks for before it is captured
        if own is not None:
            self._capture(fit, own)

    def forget_graphs(self) -> None:
        """Drop all graphs: addresses that they hold are about to be freed."""
        while self._graphs:
            self._drop_oldest()

    def close(self) -> None:
        """Give everything back; the stream must be idle."""
        self.forget_graphs()
        self._shared.clear()
        memory, self._memory = self._memory, 0
        if memory:
            self._cuda.free(memory)

    def _comes_again(self, fit: Fit) -> bool:
        """Whether a graph of the shape is due."""
        if not self._captures:
            return False
        if len(self._met) >= MOST_COUNTED:
            self._met.clear()
        self._met[fit] += 1
        return self._met[fit] >= REPEATS

    def _own(self, fit: Fit) -> _Bound | None:
        """A context to capture a graph from; None where there is no memory for it."""
        while len(self._graphs) >= MOST_GRAPHS:
            self._drop_oldest()
        try:
            return self._new(fit.profile)
        except BackendError as cause:
            self._stop_capturing(cause)
            return None

    def _capture(self, fit: Fit, own: _Bound) -> None:
        try:
            executable = self._cuda.capture(self._stream, lambda: own.enqueue(self._stream))
        except BackendError as cause:
            self._stop_capturing(cause)
        else:
            self._graphs[fit] = _Graph(executable, own)

    def _stop_capturing(self, cause: BackendError) -> None:
        """Graphs that there are stay; answers are the same without, only launched more slowly."""
        self._captures = False
        warnings.warn(f"no more CUDA graphs, each pass is launched anew: {cause}", FallbackWarning, stacklevel=2)

    def _drop_oldest(self) -> None:
        fit, graph = self._graphs.popitem(last=False)
        del self._met[fit]  # or it would be captured again the next time, in the place of another
        self._cuda.synchronize(self._stream)  # it may still run
        self._cuda.destroy_graph(graph.executable)

    def _bound(self, profile: int) -> _Bound:
        """The context of a profile, made when it is first of use."""
        if profile not in self._shared:
            self._shared[profile] = self._new(profile)
        return self._shared[profile]

    def _new(self, profile: int) -> _Bound:
        context = self._engine.create_execution_context(runtime_config=self._config)
        if context is None:
            raise BackendError("TensorRT could not create an execution context; the GPU's memory may be full")
        if not context.set_optimization_profile_async(profile, int(self._stream)):
            raise BackendError(f"TensorRT refuses profile {profile}")
        context.set_device_memory(self._memory, self._memory_size)
        return _Bound(context)


def _runtime_config(trt: TensorRT, engine: CudaEngine) -> tuple[RuntimeConfig, bool]:
    """How contexts are made, and whether CUDA graphs are to be captured here: TensorRT-RTX does so itself."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    strategies = getattr(trt, "CudaGraphStrategy", None)
    if strategies is None:
        return config, True
    config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE  # type: ignore[attr-defined]  # of TensorRT-RTX only
    return config, False
