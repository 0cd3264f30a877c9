"""A GPU for tests on machines without one: stand-ins for ``cuda.bindings.runtime`` and for TensorRT.

It computes: an "engine" is a small JSON text that names an ONNX file, which ONNX Runtime runs on the bytes in
the stand-in's memory. And it is strict where CUDA would corrupt memory or answer nonsense in silence:
nothing enqueued is done before the stream is waited for, every address and size is checked, memory in
use cannot be freed, a graph that may still run cannot be destroyed, and a context that a graph was captured
from cannot be changed. Such a fault is an AssertionError, which the runtime does not catch.
"""

# ruff: noqa: N815 (CUDA's names)
from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mbexport import manifest as manifests
from mbexport.driver import Device
from mbexport.manifest import Engine
from mbexport.profiles import parse_profiles

GPU = Device("Stand-in A100", "8.0")
DEVICE_BASE = 1 << 40  # addresses that no host pointer has


class Status(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


class Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Handle:
    """A stream or a graph; ``int()`` gives its number, as of cuda-bindings' own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.work: list[Work] = []

    def __int__(self) -> int:
        return self.number


class Work:
    """Something enqueued: what it does, and the memory that it uses."""

    def __init__(self, act: Callable[[], None], device: set[int], host: set[int], context: Any = None) -> None:
        self.act, self.device, self.host, self.context = act, device, host, context


class FakeCuda(ModuleType):
    """Stands in for the module ``cuda.bindings.runtime``."""

    cudaError_t, cudaMemcpyKind = Status, Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.__spec__ = ModuleSpec(self.__name__, None, origin="stand-in")
        self.calls: list[str] = []
        self.fail: dict[str, Status] = {}  # by call, what it answers from now on
        self.memory: dict[int, bytearray] = {}  # device, by address
        self.locked: dict[int, Any] = {}  # host, by address
        self.streams: dict[int, Handle] = {}
        self.graphs: dict[int, Handle] = {}  # captured, not instantiated
        self.executables: dict[int, Handle] = {}
        self.capturing: list[Work] | None = None
        self.current = 0
        self.next = 1

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def called(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return (self.fail[name], None)
            return value(*arguments)

        return called

    def _number(self) -> int:
        self.next += 1
        return self.next

    def leaks(self) -> dict[str, int]:
        """What was not given back."""
        kinds = ("memory", "locked", "streams", "graphs", "executables")
        return {kind: len(getattr(self, kind)) for kind in kinds if getattr(self, kind)}

    def enqueue(self, stream: int, work: Work) -> None:
        assert stream in self.streams, "no such stream"
        (self.streams[stream].work if self.capturing is None else self.capturing).append(work)

    def pending(self) -> list[Work]:
        handles = [*self.streams.values(), *self.graphs.values(), *self.executables.values()]
        return [work for handle in handles for work in handle.work]

    def block(self, address: int, size: int) -> tuple[int, int]:
        """The allocation that [address, address + size) lies in, and where."""
        for start, content in self.memory.items():
            if start <= address and address + size <= start + len(content):
                return start, address - start
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated on the device")

    def host_block(self, address: int, size: int) -> int:
        for start, content in self.locked.items():
            if start <= address and address + size <= start + len(content):
                return start
        raise AssertionError(f"{size} bytes at {address:#x} are not page-locked")

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess,)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, self.current)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        self.current = device
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        assert size > 0
        assert self.current == 0, "memory on another GPU"
        assert self.capturing is None, "no allocation while capturing"
        address = DEVICE_BASE + self._number() * (1 << 36)
        self.memory[address] = bytearray(b"\xff" * size)  # NaN to whoever reads before it is written
        return (Status.cudaSuccess, address)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert not any(address in work.device for work in self.pending()), "freed while in use, or held by a graph"
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert (size > 0, flags) == (True, 0)
        content = ctypes.create_string_buffer(b"\xff" * size, size)
        self.locked[ctypes.addressof(content)] = content
        return (Status.cudaSuccess, ctypes.addressof(content))

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        assert not any(address in work.host for work in self.pending()), "freed while copied"
        del self.locked[address]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Kind, stream: Handle) -> tuple[Any, ...]:
        up = kind is Kind.cudaMemcpyHostToDevice
        device, host = (target, source) if up else (source, target)
        start, offset = self.block(device, size)
        locked = self.host_block(host, size)

        def copy() -> None:
            if up:
                self.memory[start][offset : offset + size] = ctypes.string_at(host, size)
            else:
                ctypes.memmove(host, bytes(self.memory[start][offset : offset + size]), size)

        self.enqueue(int(stream), Work(copy, {start}, {locked}))
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        stream = Handle(self._number())
        self.streams[int(stream)] = stream
        return (Status.cudaSuccess, stream)

    def cudaStreamSynchronize(self, stream: Handle) -> tuple[Any, ...]:
        assert self.capturing is None, "no waiting while capturing"
        work, stream.work = stream.work, []
        for item in work:
            item.act()
        return (Status.cudaSuccess,)

    def cudaStreamDestroy(self, stream: Handle) -> tuple[Any, ...]:
        assert not stream.work
        del self.streams[int(stream)]
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> tuple[Any, ...]:
        assert (int(stream) in self.streams, mode, self.capturing) == (True, 1, None)
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:
        assert int(stream) in self.streams
        assert self.capturing is not None
        graph = Handle(self._number())
        graph.work, self.capturing = self.capturing, None
        self.graphs[int(graph)] = graph
        return (Status.cudaSuccess, graph)

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        assert (flags, len(graph.work)) == (0, 1), "one forward pass"
        executable = Handle(self._number())
        executable.work = self.graphs[int(graph)].work
        self.executables[int(executable)] = executable
        return (Status.cudaSuccess, executable)

    def cudaGraphLaunch(self, executable: Handle, stream: Handle) -> tuple[Any, ...]:
        for work in self.executables[int(executable)].work:
            self.enqueue(int(stream), work)
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Handle) -> tuple[Any, ...]:
        del self.graphs[int(graph)]
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: Handle) -> tuple[Any, ...]:
        enqueued = [work for stream in self.streams.values() for work in stream.work]
        assert not any(work in enqueued for work in executable.work), "destroyed while it may still run"
        del self.executables[int(executable)]
        return (Status.cudaSuccess,)


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Strategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class GraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class FakeLogger:
    """``ILogger``; must be initialized by name, as the real one."""

    INTERNAL_ERROR, ERROR, INFO = 0, 1, 3

    def __init__(self) -> None:
        self.ready = True


class FakeContext:
    """``IExecutionContext``."""

    def __init__(self, engine: FakeEngine, config: Any) -> None:
        assert config.strategy is Strategy.USER_MANAGED
        self.engine, self.cuda = engine, engine.cuda
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.activations = (0, 0)

    def _change(self) -> None:
        held = [work.context for handle in self.cuda.executables.values() for work in handle.work]
        assert self not in held, "a graph was captured from this context: it must not change"

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._change()
        assert stream_handle in self.cuda.streams
        self.profile, self.shapes = profile_index, {}
        return profile_index < len(self.engine.profiles)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.cuda.block(memory, size)
        self.activations = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._change()
        assert self.profile is not None
        assert name in self.engine.inputs
        self.shapes[name] = shape
        return self.engine.profiles[self.profile].accepts(*shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._change()
        self.cuda.block(memory, 1)
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, length = self.shapes["input_ids"]
        return tuple(size if size >= 0 else (batch, length)[axis] for axis, size in enumerate(self.engine.shapes[name]))

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.engine.refuses:
            self.engine.logger.log(FakeLogger.ERROR, "the stand-in refuses")
            return False
        assert self.shapes.keys() == self.engine.inputs
        assert len(set(self.shapes.values())) == 1
        assert self.addresses.keys() == self.engine.shapes.keys()
        shapes = {name: self.shapes.get(name) or self.get_tensor_shape(name) for name in self.engine.shapes}
        places = {
            name: self.cuda.block(self.addresses[name], int(np.prod(shape)) * self.engine.item_size(name))
            for name, shape in shapes.items()
        }
        memory, _ = self.cuda.block(*self.activations)

        def act() -> None:
            given = {}
            for name in self.engine.inputs:
                start, offset = places[name]
                values = np.frombuffer(self.cuda.memory[start], np.int64, int(np.prod(shapes[name])), offset)
                given[name] = values.reshape(shapes[name]).copy()
            assert given["attention_mask"].any(axis=1).all(), "a row without any token"
            for name, values in zip(self.engine.outputs, self.engine.session.run(None, given), strict=True):
                start, offset = places[name]
                assert values.shape == shapes[name]
                self.cuda.memory[start][offset : offset + values.nbytes] = values.tobytes()

        used = {start for start, _ in places.values()} | {memory}
        self.cuda.enqueue(stream_handle, Work(act, used, set(), self))
        self.engine.passes.append(shapes["input_ids"])
        return True


class FakeEngine:
    """``ICudaEngine``, made of the JSON text that :func:`add_engine` writes."""

    device_memory_size_v2 = 4096

    def __init__(self, cuda: FakeCuda, logger: Any, content: dict[str, Any]) -> None:
        self.cuda, self.logger = cuda, logger
        self.profiles = parse_profiles(content["profile"])
        self.refuses = content["refuses"]
        self.session = onnxruntime.InferenceSession(content["graph"], providers=["CPUExecutionProvider"])
        self.passes: list[tuple[int, ...]] = []
        self.contexts = 0
        tensors = {item.name: item.shape for item in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.shapes = {name: tuple(n if isinstance(n, int) else -1 for n in shape) for name, shape in tensors.items()}
        self.inputs = {item.name for item in self.session.get_inputs()}
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.num_io_tensors, self.num_optimization_profiles = len(tensors), len(self.profiles)

    def item_size(self, name: str) -> int:
        return 8 if name in self.inputs else 4

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> type:
        return np.int64 if name in self.inputs else np.float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name in self.inputs
        profile = self.profiles[profile_index]
        return [profile.smallest, profile.fastest, profile.largest]

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        self.config = config
        return config

    def create_execution_context(self, *, runtime_config: Any) -> FakeContext:
        self.contexts += 1
        return FakeContext(self, runtime_config)


class FakeTensorRT(ModuleType):
    """Stands in for the module ``tensorrt``, or with ``native_graphs`` for ``tensorrt_rtx``."""

    TensorIOMode, ExecutionContextAllocationStrategy, ILogger = Mode, Strategy, FakeLogger

    def __init__(self, name: str, version: str, cuda: FakeCuda, *, native_graphs: bool) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, origin="stand-in")
        self.__version__ = version
        self.engines: list[FakeEngine] = []
        if native_graphs:
            self.CudaGraphStrategy = GraphStrategy

        def runtime(logger: Any) -> Any:
            assert logger.ready

            def deserialize(content: bytes) -> FakeEngine | None:
                try:
                    self.engines.append(FakeEngine(cuda, logger, json.loads(content)))
                except ValueError:
                    logger.log(FakeLogger.INFO, "unimportant")
                    logger.log(FakeLogger.ERROR, "magic tag is wrong")
                    return None
                return self.engines[-1]

            return SimpleNamespace(deserialize_cuda_engine=deserialize)

        self.Runtime = runtime

    def nptype(self, trt_type: type) -> type:
        return trt_type


VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "10.13.0.35"}


class Machine:
    """A machine with a GPU, both TensorRTs and CUDA, until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cuda = FakeCuda()
        self.rtx = FakeTensorRT("tensorrt_rtx", VERSIONS["tensorrt-rtx"], self.cuda, native_graphs=True)
        self.trt = FakeTensorRT("tensorrt", VERSIONS["tensorrt"], self.cuda, native_graphs=False)
        package = ModuleType("cuda.bindings")
        package.__spec__ = ModuleSpec("cuda.bindings", None, origin="stand-in")
        modules = {"cuda": ModuleType("cuda"), "cuda.bindings": package, "cuda.bindings.runtime": self.cuda}
        for name, module in (modules | {"tensorrt_rtx": self.rtx, "tensorrt": self.trt}).items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr("mbexport.runtime.on_gpu.find_gpu", lambda: GPU)
        monkeypatch.setattr("mbexport.runtime.on_gpu.installed_version", VERSIONS.get)


def add_engine(bundle: Path, profile: str = "1x1:8x128:32x2048", **entry: Any) -> Engine:
    """Puts an engine for the stand-in into a bundle: its portable FP32 graph, or the packed form, in fact.

    ``entry`` replaces fields of the manifest's entry; ``refuses`` makes every forward pass fail.
    """
    builder = entry.get("builder", "tensorrt-rtx")
    number = len(manifests.read(bundle).engines)
    graph = "onnx/model_packed.onnx" if entry.get("packed") else "onnx/model.onnx"
    content = {"graph": str(bundle / graph), "profile": profile, "refuses": entry.pop("refuses", False)}
    path = bundle / "engines" / f"a100-fp16-{number}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    fields: dict[str, Any] = {
        "file": path.relative_to(bundle).as_posix(),
        "gpu": "a100",
        "compute_capability": GPU.compute_capability,
        "precision": "fp16",
        "builder": builder,
        "builder_version": VERSIONS[builder],
        "profile": profile,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "graph": graph,
        "graph_sha256": "0" * 64,
    }
    engine = Engine(**(fields | entry))
    set_engines(bundle, *manifests.read(bundle).engines, engine)
    return engine


def set_engines(bundle: Path, *engines: Engine) -> None:
    """Replaces the engines that the manifest names."""
    raw = json.loads((bundle / manifests.FILE_NAME).read_text())
    raw["engines"] = [vars(engine) for engine in engines]
    (bundle / manifests.FILE_NAME).write_text(json.dumps(raw))
