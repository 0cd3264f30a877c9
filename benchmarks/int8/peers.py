"""INT8 as others make it of the same portable graph, from the same texts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.int8.sets import MissingError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
DYNAMIC, NNCF = "onnxruntime quantize_dynamic", "NNCF, by OpenVINO"
SCRIPT = "benchmarks/int8/nncf_quantize.py"


def dynamic(graph: Path, output: Path) -> Path:
    """``quantize_dynamic`` with its defaults and int8 weights."""
    output.parent.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(graph, output, weight_type=QuantType.QInt8)
    return output


def nncf(
    python: Path, graph: Path, output: Path, calibration: Sequence[IntArray], texts: Sequence[IntArray] = ()
) -> tuple[dict[str, Any], list[FloatArray]]:
    """``nncf.quantize`` in its own environment.

    Args:
        python: of that environment.
        graph: an ONNX file.
        output: the .xml file to write.
        calibration: ids of each text to calibrate on.
        texts: ids of texts to answer.

    Returns:
        Seconds and versions, and the answers, [1, outputs] each.

    Raises:
        MissingError: there is no such environment.
    """
    if not python.exists():
        raise MissingError(f"{python} is missing; make it: make .venv-nncf/ready")
    output.parent.mkdir(parents=True, exist_ok=True)
    given, asked, answered = (output.with_name(f"{name}.npz") for name in ("calibration", "texts", "answers"))
    np.savez(given, *calibration)
    command = [str(python), SCRIPT, str(graph), str(given), str(output)]
    if texts:
        np.savez(asked, *texts)
        command += ["--answers", str(asked), str(answered)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    if not texts:
        return figures, []
    with np.load(answered) as file:
        return figures, [file[f"arr_{number}"] for number in range(len(file.files))]


def answers(graph: Path, texts: Sequence[IntArray]) -> list[FloatArray]:
    """A classifier's logits by ONNX Runtime with its defaults, [1, labels] each."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return [
        session.run(["logits"], {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])})[0] for ids in texts
    ]


def size(graph: Path) -> int:
    """Bytes of a graph and of the tensors that it uses; of OpenVINO's, its two files."""
    if graph.suffix == ".xml":
        return graph.stat().st_size + graph.with_suffix(".bin").stat().st_size
    outside = [value.const_value for value in ir.load(graph).graph.initializers.values()]
    return graph.stat().st_size + sum(tensor.nbytes for tensor in outside if isinstance(tensor, ir.ExternalTensor))
