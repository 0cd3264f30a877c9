"""A graph by ONNX Runtime with a CUDA graph of each shape, which mbexport's own runtime does not make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from mbexport.bench.workloads import IntArray, Workload
from mbexport.runtime.backends.ort import CPU, CUDA, CUDA_OPTIONS

OUTPUT = "logits"


class GraphedEngine:
    """Single texts; inputs and outputs keep their places on the GPU, as a captured run needs it.

    ONNX Runtime refuses a session whose graph has branches, or nodes that must run on the CPU.

    Args:
        file: the ONNX file.
        labels: of a text.
        device: ``cuda``; on ``cpu`` nothing is captured.
    """

    packages: tuple[str, ...] = ("onnxruntime-gpu", "onnxruntime", "numpy")

    def __init__(self, file: Path, labels: int, device: str) -> None:
        self._device, self._labels = device, labels
        self._kept: dict[int, list[Any]] = {}  # by tokens: what was captured reads and writes these places for good
        options = CUDA_OPTIONS | {"enable_cuda_graph": "1"}
        provider: Any = (CUDA, options) if device == "cuda" else CPU
        if device == "cuda":
            onnxruntime.preload_dlls()
        self._session = onnxruntime.InferenceSession(str(file), providers=[provider], enable_fallback=0)
        used = self._session.get_providers()[0]
        captured = ", a CUDA graph of each shape" if device == "cuda" else ""
        self.description = f"{file.name} on ONNX Runtime {onnxruntime.__version__}, {used}{captured}"

    def prepare(self, workload: Workload) -> list[Any]:
        """The token ids, and a place for each input and output."""
        (ids,) = workload.texts
        if len(ids) not in self._kept:
            self._kept[len(ids)] = self._bound(ids)
        return [ids, *self._kept[len(ids)]]

    def _bound(self, ids: IntArray) -> list[Any]:
        given = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
        places = {name: self._place(values) for name, values in given.items()}
        places[OUTPUT] = self._place(np.zeros((1, self._labels), np.float32))
        binding = self._session.io_binding()
        for name in given:
            binding.bind_ortvalue_input(name, places[name])
        binding.bind_ortvalue_output(OUTPUT, places[OUTPUT])
        how = onnxruntime.RunOptions()
        how.add_run_config_entry("gpu_graph_id", str(len(ids)))
        return [places, binding, how]

    def _place(self, values: npt.NDArray[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(values, self._device, 0)

    def run(self, prepared: list[Any]) -> npt.NDArray[np.float32]:
        """Logits, [1, labels]."""
        ids, places, binding, how = prepared
        places["input_ids"].update_inplace(ids[None])  # no padding, so the mask stays as it is
        self._session.run_with_iobinding(binding, how)
        logits: npt.NDArray[np.float32] = places[OUTPUT].numpy()
        return logits

    def outputs(self, workload: Workload, results: IntArray) -> tuple[str, list[Any]]:
        """Logits of the text."""
        del workload
        return OUTPUT, list(results)
