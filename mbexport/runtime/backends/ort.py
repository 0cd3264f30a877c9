"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from mbexport.errors import BackendError

onnxruntime.disable_telemetry_events()

IntArray = npt.NDArray[np.int64]


class OnnxRuntimeBackend:
    """A graph loaded into an ONNX Runtime session; safe to call from several threads.

    Args:
        graph: the ONNX file.
        threads: cores that one call uses; None leaves the choice to ONNX Runtime.
        as_written: ONNX Runtime takes the graph as it is; a graph in its own dialect gains
            nothing by its optimizations, which take time at every start.

    Attributes:
        per_token: names of the outputs that have a place for each token.
        description: the file, runtime and provider in use.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """

    def __init__(self, graph: Path, threads: int | None = None, *, as_written: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and said once
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as cause:  # onnxruntime's errors share no public base class
            raise BackendError(
                f"{graph} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {cause}"
            ) from cause
        outputs = self._session.get_outputs()
        self._widths: dict[str, int] = {output.name: output.shape[-1] for output in outputs}
        self.per_token = frozenset(output.name for output in outputs if "sequence" in output.shape)
        self.description = f"{graph.name} on ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider"

    def width(self, output: str) -> int:
        """Size of an output's last axis, 0 where the graph has no such output."""
        return self._widths.get(output, 0)

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        positions: IntArray | None = None,
        wanted: Sequence[str] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """One forward pass.

        Args:
            input_ids: [batch, sequence].
            attention_mask: [batch, sequence], 1 for real tokens, 0 for padding.
            positions: [selected], for a graph that selects tokens: row * sequence + place.
            wanted: names of the outputs; None for all.

        Returns:
            The outputs by name, float32.

        Raises:
            BackendError: ONNX Runtime failed, e.g. out of memory, or ids outside the vocabulary.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if positions is not None:
            inputs["positions"] = positions
        try:
            values = self._session.run(wanted, inputs)
        except Exception as cause:
            shape = "x".join(map(str, input_ids.shape))
            raise BackendError(f"ONNX Runtime failed on an input of shape {shape}: {cause}") from cause
        return dict(zip(wanted or self._widths, values, strict=True))
