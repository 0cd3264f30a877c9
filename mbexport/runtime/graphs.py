"""Which of a bundle's graphs runs here, told from the manifest. INT8 only where this CPU computes it exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mbexport.errors import BundleError, InputError
from mbexport.manifest import Graph, Manifest, WeightsFile
from mbexport.runtime.saturation import products_saturate

NOT_ON_CPU = frozenset({"bf16", "fp8"})  # precisions that ONNX Runtime has no kernels of there
NEVER_SATURATES = 7  # bits of activations whose pairs of products with int8 fit 16 bits


class QualityWarning(UserWarning):
    """A graph or an engine was asked for by its precision, and no quality gate let it pass."""


def doubt(graph: Graph | None) -> str | None:
    """What speaks against the quality of a precision that needs a gate; None where that passed.

    Args:
        graph: what is run, or what an engine was built from; None where that is gone.
    """
    if graph is None:
        return "the graph that it was built from is gone, so its quality is not known"
    if graph.gate == "passed":
        return None
    return "its quality gate failed" if graph.gate == "failed" else "its quality was not measured"


def warning_of(file: Path, doubt: str) -> str:
    """What is said where a precision was asked for by name in spite of a doubt, one line."""
    return f"{file} is used as asked for, and {doubt}; compare its answers with those of precision='fp32'"


def runs_on_cpu(graph: Graph) -> bool:
    """Whether it is for ONNX Runtime's CPU kernels; packed graphs and the INT8 one for TensorRT would be slow there."""
    if graph.packed:
        return False
    return graph.precision not in NOT_ON_CPU and (graph.precision != "int8" or graph.fused)


def cpu_graph(bundle: Path, manifest: Manifest, precision: str, reasons: Sequence[str] = ()) -> Graph:
    """The graph of a precision that runs on the CPU; of ``auto`` INT8 where its quality gate passed, else FP32.

    Args:
        bundle: the bundle.
        manifest: its manifest.
        precision: the precision, or ``auto``.
        reasons: why the GPU is not used, where there are some.

    Raises:
        BundleError: there is none of the precision, or this CPU would saturate in it.
        InputError: the precision needs a GPU.
    """
    if precision in ("auto", "int8"):
        graph = _int8_graph(bundle, manifest, precision, reasons)
        if graph is not None:
            return graph
    graphs = choose_graphs(bundle, manifest, precision, reasons)
    graph = next((graph for graph in graphs if not graph.packed), graphs[0])
    if not runs_on_cpu(graph):
        needs = "needs a GPU" if graph.precision in NOT_ON_CPU else "it has for TensorRT only, so it needs a GPU"
        here = " or ".join(sorted({graph.precision for graph in manifest.graphs if runs_on_cpu(graph)}))
        here = here or "none that it has"
        message = f"{bundle}: precision is {precision!r}, which {needs}; on the CPU load it in {here}"
        raise InputError("; ".join([message, *reasons]))
    return graph


def _int8_graph(bundle: Path, manifest: Manifest, precision: str, reasons: Sequence[str]) -> Graph | None:
    """The INT8 graph for this CPU, of as many bits as are exact here; None where there is none to take."""
    graphs = [graph for graph in manifest.graphs if graph.precision == "int8" and graph.fused]
    if not graphs or (precision == "auto" and all(map(doubt, graphs))):
        return None  # the CPU need not be tried
    fitting = [graph for graph in graphs if _bits(graph) <= NEVER_SATURATES]
    if len(fitting) < len(graphs) and not products_saturate():
        fitting = graphs
    best = max(fitting, key=lambda graph: (graph.selects_tokens, not doubt(graph), _bits(graph)), default=None)
    if precision == "auto":
        return None if best is None or doubt(best) else best
    if best is None:
        message = (
            f"{bundle}: its int8 graph has activations of 8 bits, and this CPU adds pairs of such products in 16 bits, "
            "where they saturate: its answers would be wrong; make the graph of 7 bits, too, with mbexport int8, "
            "or load it in fp32"
        )
        raise BundleError("; ".join([message, *reasons]))
    return best


def _bits(graph: Graph) -> int:
    """Bits of its activations; where the manifest does not say, all of a byte."""
    return graph.activation_bits or 8


def choose_graphs(bundle: Path, manifest: Manifest, precision: str, reasons: Sequence[str] = ()) -> list[Graph]:
    """The graphs of a precision, FP32 for ``auto``: the packed one first, then the one for ONNX Runtime.

    Args:
        bundle: the bundle.
        manifest: its manifest.
        precision: the precision.
        reasons: why engines of that precision do not run, where there are some.

    Raises:
        BundleError: there is none.
    """
    wanted = "fp32" if precision == "auto" else precision
    graphs = [graph for graph in manifest.graphs if graph.precision == wanted]
    if not graphs:
        have = ", ".join(sorted({graph.precision for graph in manifest.graphs})) or "none"
        raise BundleError("; ".join([f"{bundle} holds no {wanted} graph; it has {have}", *reasons]))
    return sorted(graphs, key=lambda graph: (graph.packed, graph.selects_tokens, graph.fused), reverse=True)


def weights_of(bundle: Path, manifest: Manifest, graph: Graph) -> tuple[WeightsFile, ...]:
    """The files that a graph names as the places of its tensors; their names stand in it as they are.

    Raises:
        OSError: the graph's file cannot be read.
    """
    content = (bundle / graph.file).read_bytes()
    return tuple(weights for weights in manifest.weights if PurePosixPath(weights.file).name.encode() in content)
