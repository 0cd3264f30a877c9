"""The half-precision graph of a bundle, made from the bundle itself when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.bundle.weights import ALIGNMENT
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import BundleError
from mbexport.files import Progress, beside, no_progress, put_in_place, to_json, write_atomically
from mbexport.graph.encoder import DIALECTS, build_graph
from mbexport.manifest import Graph, Manifest, WeightsFile
from mbexport.precision.half import HalfWeights, Site
from mbexport.version import __version__
from mbexport.writing import HashedFile, cannot_write, make_folder, sha256

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
    keep = tuple(sorted(set(keep_fp32)))
    for graph in manifest.graphs:
        if (graph.precision, graph.dialect, graph.keep_fp32) == (precision, DIALECT, keep):
            return graph
    portable = next((graph for graph in manifest.graphs if graph.dialect == "portable"), None)
    if portable is None:
        raise BundleError(f"{bundle} holds no portable graph, whose weights are needed; export again")
    form = _Form(read_bundle_spec(bundle, manifest), _Stored(bundle / portable.file), precision, keep)
    try:
        make_folder(bundle / "reports")
        graph, sites = _write(bundle, form, progress)
        report = {"graph": graph.file, "sha256": graph.sha256, "keep_fp32": keep, "values": list(map(asdict, sites))}
        write_atomically(bundle / f"reports/precision-{precision}.json", to_json(report) + "\n")
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
    return graph


def _without(manifest: Manifest, graph_file: str) -> Manifest:
    """The manifest without what is to be written anew."""
    return replace(
        manifest,
        graphs=tuple(graph for graph in manifest.graphs if graph.file != graph_file),
        weights=tuple(weights for weights in manifest.weights if weights.file != f"{graph_file}_data"),
        checks=tuple(check for check in manifest.checks if check.what != f"parity of {graph_file}"),
    )


class _Stored(Mapping[str, npt.NDArray[np.float32]]):
    """The weights of a graph file, read when they are asked for; constants that lie in the graph are none."""

    def __init__(self, file: Path) -> None:
        values = {name: value.const_value for name, value in ir.load(file).graph.initializers.items()}
        self._values = {name: tensor for name, tensor in values.items() if isinstance(tensor, ir.ExternalTensor)}

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return self._values[name].numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class _Form:
    """What the tensors of a half-precision graph are made of, and how."""

    spec: ModelSpec
    stored: _Stored
    precision: str
    keep_fp32: tuple[str, ...]


def _write(bundle: Path, form: _Form, progress: Progress) -> tuple[Graph, list[Site]]:
    """Write weights and graph beside their places, then put both there and into the manifest."""
    graph_file = f"onnx/model_{form.precision}.onnx"
    data_file = f"{graph_file}_data"
    with beside(bundle / data_file) as new_data, beside(bundle / graph_file) as new_graph:
        with HashedFile(new_data) as file:
            placed, sites = _write_weights(file, bundle / data_file, form, progress)
            weights = WeightsFile(data_file, file.bytes, file.sha256())
        ir.save(build_graph(form.spec, placed, DIALECT, __version__), new_graph)
        progress(len(form.stored) + 1, len(form.stored) + 1, graph_file)
        opset, digest = DIALECTS[DIALECT].opset, sha256(new_graph)
        unheld = tuple(site.name.removesuffix(".attn.scores") for site in sites if not site.held)
        graph = Graph(graph_file, form.precision, DIALECT, opset, digest, keep_fp32=form.keep_fp32, unheld=unheld)

        def placing(current: Manifest) -> Manifest:
            put_in_place(new_data, bundle / data_file)
            put_in_place(new_graph, bundle / graph_file)
            others = _without(current, graph_file)
            return replace(others, graphs=(*others.graphs, graph), weights=(*others.weights, weights))

        # First without the graph: readers that come while its files change find no entry of it.
        manifests.update(bundle, lambda current: _without(current, graph_file))
        manifests.update(bundle, placing)
    return graph, sites


def _write_weights(
    file: HashedFile, data_file: Path, form: _Form, progress: Progress
) -> tuple[dict[str, ir.ExternalTensor], list[Site]]:
    """Write all tensors to ``file``, which will be ``data_file``; progress leaves one step for the graph."""
    placed: dict[str, ir.ExternalTensor] = {}

    def put(name: str, array: npt.NDArray[np.generic]) -> None:
        file.write(bytes(-file.bytes % ALIGNMENT))
        start = file.bytes
        file.write(np.ascontiguousarray(array).view(np.uint8).data.cast("B"))
        placed[name] = ir.ExternalTensor(
            data_file.name, start, file.bytes - start, ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape), name=name, base_dir=str(data_file.parent),
        )  # fmt: skip
        # Factors are no step: how many there will be, nobody knows.
        progress(len(form.stored.keys() & placed.keys()), len(form.stored) + 1, name)

    weights = HalfWeights(put, form.spec, form.stored, form.precision, form.keep_fp32)
    weights.make()
    return placed, weights.sites
