"""The graph files of a bundle, all of one weights file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from mbexport.bundle.weights import Place
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import InputError
from mbexport.files import replacing, sha256
from mbexport.graph.encoder import DIALECTS, build_graph
from mbexport.manifest import Graph
from mbexport.version import __version__

GRAPH_FILES = {"portable": "onnx/model.onnx", "onnxruntime": "onnx/model_ort.onnx"}
SELECTING_FILE = "onnx/model_ort_selected.onnx"


def write_graphs(
    spec: ModelSpec, placed: Mapping[str, Place], directory: Path, weights_file: str, *, packed: bool = False
) -> tuple[Graph, ...]:
    """Write every graph that a model has.

    Args:
        spec: the model.
        placed: its tensors' places in the weights file.
        directory: the bundle.
        weights_file: relative to it, in the folder that the graphs go to.
        packed: also the portable graph's packed form.

    Returns:
        The manifest's entries.
    """
    weights = {name: external(name, place, directory / weights_file) for name, place in placed.items()}
    graphs = [_write_graph(spec, weights, directory, file, dialect) for dialect, file in GRAPH_FILES.items()]
    if spec.task == "fill-mask":
        graphs.append(_write_graph(spec, weights, directory, SELECTING_FILE, "onnxruntime", selects=True))
    if packed:
        graphs.append(write_packed_graph(spec, weights, directory, graphs[0]))
    return tuple(graphs)


def write_packed_graph(
    spec: ModelSpec, weights: Mapping[str, ir.TensorProtocol], directory: Path, graph: Graph
) -> Graph:
    """Write the packed form of a graph beside it, of the same tensors; returns the manifest's entry."""
    path = PurePosixPath(graph.file)
    file = str(path.with_name(f"{path.stem}_packed{path.suffix}"))
    with replacing(directory / file) as temporary:
        ir.save(build_graph(spec, weights, graph.dialect, __version__, packed=True), temporary)
    return dataclasses.replace(graph, file=file, sha256=sha256(directory / file), packed_of=graph.file)


def check_packable(spec: ModelSpec) -> None:
    """Refuse a model that has no packed form.

    Raises:
        InputError: it pools by the largest value.
    """
    if spec.sentence is not None and spec.sentence.pooling == "max":
        raise InputError("the model pools by the largest value (max), which packed rows have no graph of; do not pack")


def external(name: str, place: Place, file: Path) -> ir.ExternalTensor:
    """A tensor of a weights file, for a graph that will lie beside it."""
    return ir.ExternalTensor(
        file.name, place.offset, place.length, ir.DataType.from_numpy(place.dtype),
        shape=ir.Shape(place.shape), name=name, base_dir=str(file.parent),
    )  # fmt: skip


def _write_graph(
    spec: ModelSpec,
    weights: Mapping[str, ir.TensorProtocol],
    directory: Path,
    file: str,
    dialect: str,
    *,
    selects: bool = False,
) -> Graph:
    ir.save(build_graph(spec, weights, dialect, __version__, selects_tokens=selects), directory / file)
    return Graph(file, "fp32", dialect, DIALECTS[dialect].opset, sha256(directory / file), selects)
