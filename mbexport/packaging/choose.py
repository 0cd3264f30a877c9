"""Which of a bundle's files a server is given."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from mbexport.errors import BundleError, InputError
from mbexport.manifest import Engine, Graph, Manifest, WeightsFile
from mbexport.options import QUANTIZED
from mbexport.runtime.graphs import NEVER_SATURATES, QualityWarning, doubt, warning_of, weights_of


@dataclass(frozen=True)
class Choice:
    """What is packaged.

    Attributes:
        graph: the ONNX graph; of an engine the portable one, whose inputs and outputs the engine has.
        engine: a TensorRT engine in the graph's place, or None.
        weights: files of the graph's weights; none with an engine, which holds its own.
        device: ``cpu`` or ``gpu``.
    """

    graph: Graph
    engine: Engine | None
    weights: tuple[WeightsFile, ...]
    device: str

    @property
    def file(self) -> str:
        """The bundle's file that is run."""
        return self.engine.file if self.engine else self.graph.file

    @property
    def precision(self) -> str:
        """The precision that it computes in."""
        return self.engine.precision if self.engine else self.graph.precision


def choose(bundle: Path, manifest: Manifest, device: str, precision: str, engine: str | None) -> Choice:
    """The engine that was named, else a graph: on CPUs ONNX Runtime's own, on GPUs the portable one.

    ONNX Runtime computes the operators that its CUDA provider lacks on the CPU, without a word; all of the
    portable graph's are standard ones. Of INT8 graphs the one of 7 bits is taken, which is exact on every
    CPU: which one will serve is not known here.

    Raises:
        InputError: no such engine, one that Triton cannot run, or a precision that the device has not got.
        BundleError: the bundle has no graph of the precision.
    """
    if engine is not None:
        return Choice(_portable(bundle, manifest), _engine(bundle, manifest, engine), (), "gpu")
    if precision == "int8":
        graph = _int8_graph(bundle, manifest, device)
    elif device == "gpu":
        graph = _portable(bundle, manifest)
    else:
        fused = [graph for graph in manifest.graphs if graph.precision == "fp32" and graph.fused]
        graph = max(fused, key=lambda graph: graph.selects_tokens, default=None) or _portable(bundle, manifest)
    return Choice(graph, None, weights_of(bundle, manifest, graph), device)


def _portable(bundle: Path, manifest: Manifest) -> Graph:
    portable = (graph for graph in manifest.graphs if graph.dialect == "portable" and not graph.packed)
    found = [graph for graph in portable if graph.precision == "fp32"]
    if not found:
        raise BundleError(f"{bundle} holds no portable fp32 graph; export again")
    return found[0]


def _int8_graph(bundle: Path, manifest: Manifest, device: str) -> Graph:
    if device == "gpu":
        raise InputError("on a GPU int8 is for engines only; build one with mbexport trt and name it with --engine")
    found = [
        graph
        for graph in manifest.graphs
        if graph.precision == "int8" and graph.fused and (graph.activation_bits or 8) <= NEVER_SATURATES
    ]
    if not found:
        raise BundleError(f"{bundle} holds no int8 graph that every CPU computes exactly; make it with mbexport int8")
    best = max(found, key=lambda graph: (not doubt(graph), graph.selects_tokens))
    _warn(bundle / best.file, doubt(best))
    return best


def _engine(bundle: Path, manifest: Manifest, name: str) -> Engine:
    """The engine of that file, with its folder or without."""
    found = [engine for engine in manifest.engines if name in (engine.file, Path(engine.file).name)]
    if not found:
        have = ", ".join(engine.file for engine in manifest.engines) or "none"
        raise InputError(f"{bundle} has no engine {name!r}; it has {have}")
    engine = found[0]
    if engine.builder != "tensorrt":
        raise InputError(
            f"{engine.file} was built by {engine.builder}, and Triton runs engines of TensorRT only; build it on the "
            "GPU itself with mbexport trt --builder tensorrt, or leave --engine out for ONNX Runtime on the GPU"
        )
    if engine.packed:
        raise InputError(
            f"{engine.file} takes rows of several texts, and Triton's own batching puts one text in a row; "
            "build it without --packed"
        )
    if engine.precision in QUANTIZED:
        _warn(bundle / engine.file, doubt(manifest.origin(engine)))
    return engine


def _warn(file: Path, fault: str | None) -> None:
    if fault is not None:
        warnings.warn(warning_of(file, fault), QualityWarning, stacklevel=5)
