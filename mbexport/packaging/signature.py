"""What a graph takes and gives, as ONNX Runtime reads it from the file itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from mbexport.disk.external import check_external_data
from mbexport.errors import BackendError, BundleError
from mbexport.runtime.backends.ort import session_options

DATA_TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}  # ONNX Runtime's names to Triton's
BATCH, SEQUENCE = "batch", "sequence"  # dynamic axes, as graphs name them


@dataclass(frozen=True)
class Tensor:
    """An input or an output: its name, Triton's data type, sizes of axes, or names of dynamic ones."""

    name: str
    data_type: str
    shape: tuple[int | str, ...]

    @property
    def per_token(self) -> bool:
        """Whether it has a place for each token."""
        return SEQUENCE in self.shape

    @property
    def width(self) -> int:
        """Numbers that it has for each text, or for each token where it is per token."""
        return int(np.prod([size for size in self.shape if isinstance(size, int)]))


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a graph."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def selects_tokens(self) -> bool:
        """Whether an input without a batch axis names the tokens whose outputs are wanted."""
        return any(BATCH not in tensor.shape for tensor in self.inputs)

    @property
    def per_token(self) -> tuple[str, ...]:
        """Names of the outputs that have a place for each token."""
        return tuple(tensor.name for tensor in self.outputs if tensor.per_token)


def read_signature(graph: Path) -> Signature:
    """Load a graph on the CPU, run it on one token, and read its inputs and outputs.

    Raises:
        BackendError: ONNX Runtime refuses the graph, or cannot run it.
        BundleError: a data type that no graph of mbexport's has, or tensors in other places than beside the graph.
    """
    check_external_data(graph, BundleError)
    options = session_options(as_written=True)  # it is read, not served
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, {tensor.name: np.zeros([1] * len(tensor.shape), np.int64) + (tensor.name != "positions")
                           for tensor in session.get_inputs()})  # fmt: skip
    except Exception as cause:  # onnxruntime's errors share no public base class
        raise BackendError(f"{graph} does not run on ONNX Runtime {onnxruntime.__version__}: {cause}") from cause
    return Signature(*(tuple(_tensor(graph, item) for item in items)
                       for items in (session.get_inputs(), session.get_outputs())))  # fmt: skip


def _tensor(graph: Path, item: onnxruntime.NodeArg) -> Tensor:
    if item.type not in DATA_TYPES:
        raise BundleError(f"{graph}: {item.name} is a {item.type}, expected one of {', '.join(DATA_TYPES)}")
    return Tensor(item.name, DATA_TYPES[item.type], tuple(item.shape))
