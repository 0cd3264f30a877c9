"""The half-precision graph of a bundle, made from the bundle itself when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.bundle.weights import ALIGNMENT
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import BundleError
from mbexport.files import Progress, no_progress, read_json, replacing, to_json, write_atomically
from mbexport.graph.encoder import DIALECTS, build_graph
from mbexport.manifest import Graph, Manifest, WeightsFile
from mbexport.precision.half import HalfWeights, Site
from mbexport.version import __version__
from mbexport.writing import HashedFile, sha256

DIALECT = "tensorrt"


def ensure_half_graph(
    bundle: Path, precision: str, *, keep_fp32: Sequence[str] = (), progress: Progress = no_progress
) -> Graph:
    """The bundle's graph in ``fp16`` or ``bf16``, written now if it is not there in this form.

    Args:
        bundle: a bundle with its FP32 graph.
        precision: ``fp16`` or ``bf16``.
        keep_fp32: parts whose products stay float32, as :class:`HalfWeights` names them.
        progress: called after each tensor.

    Raises:
        BundleError: the bundle is damaged or cannot be written to.
        InputError: ``keep_fp32`` names no part of the model.
        PrecisionError: FP16 cannot hold the model.
    """
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    keep = sorted(set(keep_fp32))
    for graph in manifest.graphs:
        if (graph.precision, graph.dialect) == (precision, DIALECT) and _kept(bundle, graph) == keep:
            return graph
    spec = read_bundle_spec(bundle, manifest)
    try:
        manifest = _without(manifest, precision)
        graph, weights, sites = _write(bundle, manifest, spec, precision, keep, progress)
        report = {"graph": graph.file, "sha256": graph.sha256, "keep_fp32": keep, "values": list(map(asdict, sites))}
        (bundle / "reports").mkdir(exist_ok=True)
        write_atomically(bundle / _report_file(precision), to_json(report) + "\n")
        manifest = replace(manifest, graphs=(*manifest.graphs, graph), weights=(*manifest.weights, weights))
        manifests.write(manifest, bundle)
    except OSError as cause:
        raise BundleError(f"{bundle} cannot be written: {cause.strerror or cause}") from cause
    return graph


def _report_file(precision: str) -> str:
    return f"reports/precision-{precision}.json"


def _kept(bundle: Path, graph: Graph) -> list[str] | None:
    """The parts that a graph's products keep in float32; None where nothing says so of this very graph."""
    path = bundle / _report_file(graph.precision)
    report = read_json(path, BundleError) if path.is_file() else {}
    return report.get("keep_fp32") if report.get("sha256") == graph.sha256 else None


def _without(manifest: Manifest, precision: str) -> Manifest:
    """The manifest without what is to be written anew."""
    graph_file = f"onnx/model_{precision}.onnx"
    return replace(
        manifest,
        graphs=tuple(graph for graph in manifest.graphs if graph.file != graph_file),
        weights=tuple(weights for weights in manifest.weights if weights.file != f"{graph_file}_data"),
        checks=tuple(check for check in manifest.checks if check.what != f"parity of {graph_file}"),
    )


class _Stored(Mapping[str, npt.NDArray[np.float32]]):
    """The tensors of a graph file, read when they are asked for."""

    def __init__(self, file: Path) -> None:
        self._values = ir.load(file).graph.initializers

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        tensor = self._values[name].const_value
        if tensor is None:
            raise KeyError(name)
        return tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _write(
    bundle: Path, manifest: Manifest, spec: ModelSpec, precision: str, keep: list[str], progress: Progress
) -> tuple[Graph, WeightsFile, list[Site]]:
    portable = next((graph for graph in manifest.graphs if graph.dialect == "portable"), None)
    if portable is None:
        raise BundleError(f"{bundle} holds no portable graph, whose weights are needed; export again")
    stored = _Stored(bundle / portable.file)
    graph_file = f"onnx/model_{precision}.onnx"
    data_file = f"{graph_file}_data"
    placed: dict[str, ir.ExternalTensor] = {}
    with replacing(bundle / data_file) as temporary, HashedFile(temporary) as file:

        def put(name: str, array: npt.NDArray[np.generic]) -> None:
            file.write(bytes(-file.bytes % ALIGNMENT))
            start = file.bytes
            file.write(np.ascontiguousarray(array).view(np.uint8).data.cast("B"))
            placed[name] = ir.ExternalTensor(
                Path(data_file).name, start, file.bytes - start, ir.DataType.from_numpy(array.dtype),
                shape=ir.Shape(array.shape), name=name, base_dir=str((bundle / data_file).parent),
            )  # fmt: skip
            progress(len(placed), len(stored), name)

        weights = HalfWeights(put, spec, stored, precision, keep)
        weights.make()
        manifests.write(manifest, bundle)  # without the graph: readers that come now find no half-written one
        entry = WeightsFile(data_file, file.bytes, file.sha256())
    with replacing(bundle / graph_file) as temporary:
        ir.save(build_graph(spec, placed, DIALECT, __version__), temporary)
    opset = DIALECTS[DIALECT].opset
    return Graph(graph_file, precision, DIALECT, opset, sha256(bundle / graph_file)), entry, weights.sites
