"""The runtimes under test, inside a worker. Each imports its packages when it is made."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mbexport.bench.contenders import OWN, Contender
from mbexport.bench.workloads import IntArray, Workload
from mbexport.errors import ContenderError
from mbexport.files import read_json

FloatArray = npt.NDArray[np.float32]
# The first of these that a contender has is compared; those of tokens at real tokens only.
COMPARED = ("logits", "sentence_embedding", "start_logits", "token_embeddings", "last_hidden_state")
OF_TOKENS = ("start_logits", "last_hidden_state", "token_embeddings")


class Engine(Protocol):
    """Runs workloads. What ``prepare`` does is not timed, ``run`` is."""

    packages: tuple[str, ...]

    def prepare(self, workload: Workload) -> Any:
        """The inputs as this runtime takes them."""

    def run(self, prepared: Any) -> Any:
        """Compute all texts once."""

    def outputs(self, workload: Workload, results: Any) -> tuple[str, list[FloatArray]]:
        """Name and values of the output that is compared, per text, without padding."""


class RuntimeEngine:
    """mbexport's own runtime on the CPU, as all peers; it gets all texts at once and groups them itself."""

    packages: tuple[str, ...] = ("mbexport", "onnxruntime", "numpy")

    def __init__(self, contender: Contender) -> None:
        from mbexport.runtime import load

        self._model = load(contender.path, device="cpu", precision=OWN[contender.kind], threads=contender.threads)

    def prepare(self, workload: Workload) -> list[IntArray]:
        """The token ids; nothing is padded."""
        return list(workload.texts)

    def run(self, prepared: list[IntArray]) -> list[dict[str, FloatArray]]:
        """One dict of outputs per text."""
        return self._model.outputs_of_tokens(prepared)

    def outputs(self, workload: Workload, results: list[dict[str, FloatArray]]) -> tuple[str, list[FloatArray]]:
        """The output that is compared."""
        del workload  # nothing was padded
        name = compared_name(results[0])
        return name, [row[name] for row in results]


class PaddedEngine:
    """What all peers share: batches padded as the workload says, outputs cut back to real tokens."""

    packages: tuple[str, ...] = ()

    def feed(self, ids: IntArray, mask: IntArray) -> Any:
        """A batch, int64 [batch, row] each, as this runtime takes it."""
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, feed: Any) -> dict[str, FloatArray]:
        """The outputs of one batch by name, with their batch axis."""
        raise NotImplementedError

    def prepare(self, workload: Workload) -> list[Any]:
        """All batches."""
        return [self.feed(ids, mask) for ids, mask in workload.batches()]

    def run(self, prepared: list[Any]) -> list[dict[str, FloatArray]]:
        """One dict of outputs per batch."""
        return [self.forward(feed) for feed in prepared]

    def outputs(self, workload: Workload, results: list[dict[str, FloatArray]]) -> tuple[str, list[FloatArray]]:
        """The output that is compared."""
        name = compared_name(results[0])
        rows = [row for batch in results for row in batch[name]]
        if name in OF_TOKENS or rows[0].ndim > 1:
            rows = [row[: len(text)] for row, text in zip(rows, workload.texts, strict=True)]
            if workload.mask_id is not None:
                rows = [row[text == workload.mask_id] for row, text in zip(rows, workload.texts, strict=True)]
        return name, rows


class OnnxRuntimeEngine(PaddedEngine):
    """Any ONNX file by plain ONNX Runtime: its defaults, except for the threads.

    mbexport's kernels are registered, which others' graphs do not call: our own graph runs here where rows are padded.
    """

    packages: tuple[str, ...] = ("onnxruntime", "numpy")

    def __init__(self, contender: Contender) -> None:
        import onnxruntime

        from mbexport.runtime.kernels import kernels

        options = onnxruntime.SessionOptions()
        if (library := kernels().library) is not None:
            options.register_custom_ops_library(str(library))
        options.intra_op_num_threads = contender.threads
        self._session = onnxruntime.InferenceSession(contender.path, options, providers=["CPUExecutionProvider"])
        check_inputs(value.name for value in self._session.get_inputs())
        self._names = [value.name for value in self._session.get_outputs()]

    def forward(self, feed: dict[str, IntArray]) -> dict[str, FloatArray]:
        """One forward pass."""
        return dict(zip(self._names, self._session.run(None, feed), strict=True))


class OpenVinoEngine(PaddedEngine):
    """Any ONNX file by OpenVINO on the CPU, in float32, tuned for latency."""

    packages: tuple[str, ...] = ("openvino", "numpy")

    def __init__(self, contender: Contender) -> None:
        # Its import reports to its maker, unless that package is missing; this process is the worker's own.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": contender.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(contender.path, "CPU", settings)
        check_inputs(value.get_any_name() for value in compiled.inputs)
        self._names = [value.get_any_name() for value in compiled.outputs]
        self._request = compiled.create_infer_request()

    def forward(self, feed: dict[str, IntArray]) -> dict[str, FloatArray]:
        """One forward pass; its outputs are copied, for the next pass overwrites them."""
        result = self._request.infer(feed)
        return {name: np.array(result[number]) for number, name in enumerate(self._names)}


class TorchEngine(PaddedEngine):
    """A checkpoint by transformers' own class of its architecture."""

    packages: tuple[str, ...] = ("torch", "transformers", "numpy")

    def __init__(self, contender: Contender) -> None:
        import torch
        import transformers

        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(contender.threads)
        config = read_json(Path(contender.path) / "config.json", ContenderError)
        architecture = str((config.get("architectures") or ["none"])[0])
        known = architecture.startswith("ModernBert") and hasattr(transformers, architecture)
        if architecture.endswith("ForMultipleChoice") or not known:
            raise ContenderError(f"{contender.kind} cannot run the architecture {architecture}")
        attention = "eager" if contender.kind == "torch-eager" else "sdpa"
        model = getattr(transformers, architecture).from_pretrained(
            contender.path, attn_implementation=attention, dtype=torch.float32,
            use_safetensors=True, trust_remote_code=False, local_files_only=True,
        )  # fmt: skip
        model.eval()
        self._torch = torch
        self._model = torch.compile(model, dynamic=True) if contender.kind == "torch-compile" else model

    def feed(self, ids: IntArray, mask: IntArray) -> Any:
        """A batch as tensors."""
        return {"input_ids": self._torch.from_numpy(ids), "attention_mask": self._torch.from_numpy(mask)}

    def forward(self, feed: Any) -> dict[str, FloatArray]:
        """One forward pass."""
        with self._torch.inference_mode():
            values = self._model(**feed)
        return {name: value.numpy() for name, value in values.items() if hasattr(value, "numpy")}


ENGINES: dict[str, type[RuntimeEngine] | type[OnnxRuntimeEngine] | type[OpenVinoEngine] | type[TorchEngine]] = {
    "mbexport": RuntimeEngine,
    "mbexport-int8": RuntimeEngine,
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
    "torch-eager": TorchEngine,
    "torch-sdpa": TorchEngine,
    "torch-compile": TorchEngine,
}


def compared_name(outputs: dict[str, FloatArray]) -> str:
    """The name of the output to compare; of several that this module does not know, the first."""
    return next((name for name in COMPARED if name in outputs), next(iter(outputs)))


def check_inputs(names: Iterable[str]) -> None:
    """A graph may take token ids and a mask, and nothing else.

    Raises:
        ContenderError: names what it takes.
    """
    found = sorted(names)
    if found != ["attention_mask", "input_ids"]:
        raise ContenderError(f"the graph takes {', '.join(found)}, expected attention_mask and input_ids")
