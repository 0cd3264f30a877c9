"""Graphs in ONNX Runtime's CPU provider: those that are in memory, and files of anybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from mbexport.errors import BackendError
from mbexport.runtime.backends.interface import POSITION_IDS, FloatArray, IntArray
from mbexport.runtime.backends.ort import session_options
from mbexport.runtime.backends.tensors import inputs_of

FOLDER = "session.model_external_initializers_file_folder_path"  # where a model in memory finds its weights


class SessionGraph:
    """A graph in a session of ONNX Runtime's.

    Args:
        session: the session.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        wanted: Sequence[str] | None = None,
        further: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> list[FloatArray]:
        """The outputs that are wanted (None for all), of inputs [batch, sequence] and what else the graph reads.

        Raises:
            BackendError: ONNX Runtime failed, e.g. out of memory.
        """
        packs = any(given.name == POSITION_IDS for given in self._session.get_inputs())
        inputs = {**inputs_of(input_ids, attention_mask, packs=packs), **(further or {})}
        try:
            values: list[FloatArray] = self._session.run(wanted, inputs)
        except Exception as cause:
            shape = "x".join(map(str, input_ids.shape))
            raise BackendError(f"ONNX Runtime failed on an input of shape {shape}: {cause}") from cause
        return values


class MemoryGraph(SessionGraph):
    """A graph in memory, computed as it is written.

    Args:
        model: the graph; its weights lie in files of ``folder``.
        folder: where they lie.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """

    def __init__(self, model: ir.Model, folder: Path) -> None:
        options = session_options(as_written=True)
        options.add_session_config_entry(FOLDER, str(folder))
        try:
            proto = ir.to_proto(model).SerializeToString()
            super().__init__(onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"]))
        except Exception as cause:  # onnxruntime's errors share no public base class
            raise BackendError(f"ONNX Runtime refuses a graph of {folder}: {cause}") from cause


class FileGraph(SessionGraph):
    """A graph of anybody's, with ONNX Runtime's own optimizations, as its users run it.

    Args:
        file: the ONNX file.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """

    def __init__(self, file: Path) -> None:
        try:
            super().__init__(
                onnxruntime.InferenceSession(str(file), session_options(), providers=["CPUExecutionProvider"])
            )
        except Exception as cause:
            raise BackendError(f"{file} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {cause}") from cause
