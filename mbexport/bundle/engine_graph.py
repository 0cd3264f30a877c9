"""The graph that engines of a precision are built from: attention as one operator, blocks of one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.bundle.half import DIALECT, ensure_half_graph
from mbexport.bundle.packed import ensure_packed_graph
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.disk.writing import cannot_write
from mbexport.errors import BundleError, InputError
from mbexport.files import Progress, no_progress, replacing, sha256
from mbexport.graph.encoder import DIALECTS, build_graph
from mbexport.manifest import Graph
from mbexport.options import QUANTIZED
from mbexport.version import __version__

FP32_FILE = "onnx/model_trt.onnx"


def ensure_engine_graph(
    bundle: Path,
    precision: str,
    *,
    keep_fp32: Sequence[str] = (),
    packed: bool = False,
    progress: Progress = no_progress,
) -> Graph:
    """The bundle's graph for TensorRT, written now if it is not there.

    Args:
        bundle: a bundle with its portable graph.
        precision: ``fp16``, ``bf16`` or ``fp32``; ``int8`` and ``fp8`` need texts and are made elsewhere.
        keep_fp32: parts of a half-precision graph whose products stay float32.
        packed: its packed form, whose rows hold several texts.
        progress: called after each tensor of a half-precision graph; one in FP32 shares the bundle's weights.

    Raises:
        BundleError: the bundle is damaged or cannot be written to, or has no graph of a quantized precision.
        InputError: ``keep_fp32`` names no part of the model, or all of it is FP32; or it cannot be packed.
        PrecisionError: FP16 cannot hold the model.
    """
    if precision in QUANTIZED:
        graph = _quantized_graph(bundle, precision, keep_fp32)
    elif precision != "fp32":
        graph = ensure_half_graph(bundle, precision, keep_fp32=keep_fp32, progress=progress)
    else:
        graph = _fp32_graph(bundle, keep_fp32)
    return ensure_packed_graph(bundle, graph) if packed else graph


def _fp32_graph(bundle: Path, keep_fp32: Sequence[str]) -> Graph:
    if keep_fp32:
        raise InputError(f"{', '.join(keep_fp32)} was to stay in FP32, and all of an fp32 engine is; leave that out")
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    for graph in manifest.graphs:
        if graph.file == FP32_FILE:
            return graph
    weights = StoredWeights(bundle, manifest).tensors
    try:
        with replacing(bundle / FP32_FILE) as temporary:
            ir.save(build_graph(read_bundle_spec(bundle, manifest), weights, DIALECT, __version__), temporary)
        graph = Graph(FP32_FILE, "fp32", DIALECT, DIALECTS[DIALECT].opset, sha256(bundle / FP32_FILE))
        manifests.update(bundle, lambda current: current.with_graph(graph))
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
    return graph


def _quantized_graph(bundle: Path, precision: str, keep_fp32: Sequence[str]) -> Graph:
    if keep_fp32:
        raise InputError(
            f"{', '.join(keep_fp32)} was to stay in FP32, and what an {precision} graph keeps was decided when it was "
            "made; leave --keep-fp32 out"
        )
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    for graph in manifest.graphs:
        if (graph.precision, graph.dialect, graph.packed) == (precision, DIALECT, False):
            return graph
    raise BundleError(f"{bundle} holds no {precision} graph; make one first: mbexport int8 {bundle} --calibration FILE")
