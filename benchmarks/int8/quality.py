"""What INT8 costs on real texts: our graphs and other tools', against the FP32 graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.int8.peers import DYNAMIC, NNCF, answers, dynamic, nncf, size
from benchmarks.int8.sets import Prepared, TextSet, prepare
from mbexport.files import no_progress
from mbexport.quantize.quality import Limits, Quality, measure
from mbexport.quantize.run import Options, quantize

FP32 = "onnx/model_ort.onnx"
OURS = {
    "onnx/model_int8.onnx": "mbexport, CPU",
    "onnx/model_int8_reduced.onnx": "mbexport, CPU, 7 bits",
    "onnx/model_int8_trt.onnx": "mbexport, TensorRT",
    "onnx/model_fp8.onnx": "mbexport, TensorRT, FP8",
}
PLAIN, TWIN = "as trained", "with outliers"
Say = Callable[[str], None]


def quality(given: TextSet, work: Path, python: Path, say: Say) -> dict[str, Any]:
    """Figures of a checkpoint and of its outlier-ridden twin, by graph.

    No part is kept in FP32 here, also where a gate fails: ``mbexport int8`` would look for such parts.

    Args:
        given: the checkpoint and its texts.
        work: a folder for what is made; removed first, and afterwards.
        python: of NNCF's environment.
        say: told what is done.
    """
    found = {}
    for name in (PLAIN, TWIN):
        shutil.rmtree(work, ignore_errors=True)
        say(f"{given.name}, {name}")
        prepared = prepare(given, work, twin=name == TWIN)
        found[name] = _ours(given, prepared, say) | _others(prepared, work, python, say)
    shutil.rmtree(work, ignore_errors=True)
    return {"name": given.name, "max_length": given.max_length, "figures": found}


def _ours(given: TextSet, prepared: Prepared, say: Say) -> dict[str, Any]:
    """Of the graphs that ``mbexport int8 --fp8`` makes, each as its gate measures it."""
    say("  mbexport")
    options = Options(max_length=given.max_length, search=False, fp8=True)
    report = quantize(prepared.bundle, prepared.calibration, prepared.held_out, options, no_progress)
    fp32 = size(prepared.bundle / FP32)
    return {OURS[graph.file]: _row(graph.quality, size(prepared.bundle / graph.file), fp32) for graph in report.graphs}


def _others(prepared: Prepared, work: Path, python: Path, say: Say) -> dict[str, Any]:
    """Of what other tools make of the portable graph."""
    portable, fp32 = prepared.bundle / "onnx/model.onnx", prepared.bundle / FP32
    texts, labels = [sample.ids for sample in prepared.judging], [sample.label for sample in prepared.judging]
    expected = answers(fp32, texts)
    say(f"  {DYNAMIC}")
    made = {DYNAMIC: dynamic(portable, work / "dynamic/model.onnx"), NNCF: work / "nncf/model.xml"}
    found = {DYNAMIC: answers(made[DYNAMIC], texts)}
    say(f"  {NNCF}")
    figures, found[NNCF] = nncf(python, portable, made[NNCF], [sample.ids for sample in prepared.samples], texts)
    rows = {
        name: _row(measure(prepared.manifest, expected, values, labels), size(made[name]), size(fp32))
        for name, values in found.items()
    }
    rows[NNCF] |= figures
    return rows


def _row(quality: Quality, size_in_bytes: int, fp32: int) -> dict[str, Any]:
    faults = quality.faults(Limits())
    return quality.to_dict() | {"faults": faults, "bytes": size_in_bytes, "size_share": size_in_bytes / fp32}
