"""What Triton's Python backend gives a model, and a server of a repository: ONNX Runtime runs what a config names.

`tests/interop/test_triton.py` holds the same repositories to Triton itself.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

NUMPY = {"TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32, "TYPE_STRING": np.object_}
Outputs = dict[str, np.ndarray]
Graph = Callable[[Outputs, Sequence[str]], Outputs]
_numbers = itertools.count()


def read_config(model: Path) -> Any:
    """A model's config, by Triton's own schema; what is not in that is an error."""
    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


class TritonError(Exception):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        assert isinstance(values, np.ndarray), values
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors


class Request:
    """A request as a model gets it: inputs with their batch axis."""

    def __init__(self, cancelled: bool = False, parameters: dict[str, Any] | None = None, **inputs: Any) -> None:
        self.inputs = {name: np.array(rows, np.object_) for name, rows in inputs.items()}
        self._cancelled, self._parameters = cancelled, parameters

    def is_cancelled(self) -> bool:
        return self._cancelled

    def parameters(self) -> str:
        return json.dumps(self._parameters) if self._parameters else ""


class Server:
    """A repository whose model of texts is loaded as Triton loads it.

    Args:
        repository: the directory.
        monkeypatch: gives its module to the model, and takes it back.
        name: of the model of texts.
        graph: computes in the place of ONNX Runtime; where an engine is packaged.

    Attributes:
        calls: shapes [texts, tokens] of the calls of the other model.
        fault: called with each of these; what it returns is that call's error.
    """

    def __init__(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, name: str = "modernbert", graph: Graph | None = None
    ) -> None:
        self.repository = repository
        self.calls: list[tuple[int, ...]] = []
        self.fault: Callable[[np.ndarray], str | None] = lambda _: None
        self._graph = graph
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", self._module())
        monkeypatch.delitem(sys.modules, "mbexport.packaging.serve", raising=False)
        self.config = read_config(repository / name)
        self.model = _import(repository / name / "1" / "model.py").TritonPythonModel()
        config = json_format.MessageToDict(self.config, preserving_proto_field_name=True)
        self.model.initialize({
            "model_config": json.dumps(config), "model_repository": str(repository / name), "model_version": "1",
        })  # fmt: skip

    def execute(self, *requests: Request) -> list[Any]:
        """What the requests are answered: outputs by name, or the error."""
        for request in requests:
            _fits(request.inputs, self.config.input, self.config.max_batch_size, batched=True)
        responses = self.model.execute(list(requests))
        assert len(responses) == len(requests)
        return [self._checked(response) for response in responses]

    def _checked(self, response: InferenceResponse) -> Any:
        if response.has_error():
            return response.error()
        outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        _fits(outputs, self.config.output, self.config.max_batch_size, batched=True)
        return outputs

    def _module(self) -> types.ModuleType:
        server = self

        class InferenceRequest:
            def __init__(
                self, *, model_name: str, requested_output_names: list[str], inputs: list[Tensor], preferred_memory: Any
            ) -> None:
                assert preferred_memory == ("memory", 0, 0)
                self._asked = model_name, requested_output_names, {item.name(): item.as_numpy() for item in inputs}

            def exec(self) -> InferenceResponse:
                try:
                    outputs = server._infer(*self._asked)
                except TritonError as error:
                    return InferenceResponse([], error)
                return InferenceResponse([Tensor(name, values) for name, values in outputs.items()])

        module = types.ModuleType("triton_python_backend_utils")
        module.__dict__.update(
            TritonError=TritonError, Tensor=Tensor, InferenceRequest=InferenceRequest,
            InferenceResponse=InferenceResponse, TRITONSERVER_MEMORY_CPU=0,
            PreferredMemory=lambda kind, number: ("memory", kind, number),
            get_input_tensor_by_name=lambda request, name: (
                Tensor(name, request.inputs[name]) if name in request.inputs else None
            ),
        )  # fmt: skip
        return module

    def _infer(self, model: str, wanted: list[str], inputs: Outputs) -> Outputs:
        """The other model, as its own config says."""
        if not (self.repository / model).is_dir():
            raise TritonError(f"Failed for execute the inference request. Model '{model}' is not ready.")
        config = read_config(self.repository / model)
        self.calls.append(inputs["input_ids"].shape)
        if message := self.fault(inputs["input_ids"]):
            raise TritonError(message)
        _fits(inputs, config.input, config.max_batch_size)
        outputs = (self._graph or self._session(model, config))(inputs, wanted)
        _fits(outputs, [item for item in config.output if item.name in wanted], config.max_batch_size)
        return outputs

    def _session(self, model: str, config: Any) -> Graph:
        if model not in self._sessions:
            assert config.backend == "onnxruntime"
            path = self.repository / model / "1" / config.default_model_filename
            self._sessions[model] = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        session = self._sessions[model]
        return lambda inputs, wanted: dict(zip(wanted, session.run(wanted, inputs), strict=True))


def _fits(tensors: Outputs, declared: Any, most: int, batched: bool | None = None) -> None:
    """Names, types and shapes as Triton checks them; its errors."""
    by_name = {item.name: item for item in declared}
    required = {item.name for item in declared if not getattr(item, "optional", False)}
    if not required <= set(tensors) <= set(by_name):
        raise TritonError(f"expected {sorted(by_name)}, got {sorted(tensors)}", TritonError.INVALID_ARG)
    for name, values in tensors.items():
        kind = NUMPY[DataType.Name(by_name[name].data_type)]
        shape = values.shape[1:] if most else values.shape
        if values.dtype != kind:
            raise TritonError(f"{name} is {values.dtype}, expected {kind.__name__}", TritonError.INVALID_ARG)
        dims = list(by_name[name].dims)
        if len(shape) != len(dims) or any(want not in (-1, size) for size, want in zip(shape, dims, strict=True)):
            raise TritonError(f"{name} has shape {shape}, expected {dims}", TritonError.INVALID_ARG)
        if most and not 1 <= len(values) <= most:
            raise TritonError(f"{name} has a batch of {len(values)}, expected 1 to {most}", TritonError.INVALID_ARG)
    assert batched is None or bool(most) == batched


def _import(path: Path) -> types.ModuleType:
    """A model.py under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"triton_model_{next(_numbers)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
