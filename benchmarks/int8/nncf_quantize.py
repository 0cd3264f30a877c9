"""INT8 by NNCF, run by OpenVINO: a process of its own, for NNCF has an environment of its own.

    python benchmarks/int8/nncf_quantize.py GRAPH CALIBRATION OUT [--answers TEXTS ANSWERS]

Reads an ONNX file and token ids (NumPy's npz, an array a text), writes OpenVINO's .xml and .bin, and
what the quantized model answers to other texts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino

SUBSET = 256  # texts that NNCF reads, at most


def texts_of(path: Path) -> Iterator[dict[str, Any]]:
    """Inputs of each text."""
    with np.load(path) as file:
        for number in range(len(file.files)):
            ids = file[f"arr_{number}"][None]
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def main() -> None:
    """Quantize, save, answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--answers", type=Path, nargs=2)
    options = parser.parse_args()
    started = time.perf_counter()
    model = openvino.Core().read_model(options.graph)
    dataset = nncf.Dataset(list(texts_of(options.calibration)))
    model = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=SUBSET)
    openvino.save_model(model, options.output, compress_to_fp16=False)
    seconds = time.perf_counter() - started
    if options.answers:
        texts, answers = options.answers
        compiled = openvino.Core().compile_model(options.output, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
        np.savez(answers, *(np.array(request.infer(feed)[0]) for feed in texts_of(texts)))
    versions = {name: version(name) for name in ("nncf", "openvino")}
    print(json.dumps({"seconds": round(seconds, 1), "versions": versions}))


if __name__ == "__main__":
    main()
