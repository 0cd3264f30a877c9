"""The half-precision graph of a bundle, made from the bundle itself when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbexport import manifest as manifests
from mbexport.bundle.place import Placed, Written, place
from mbexport.bundle.stored import StoredWeights
from mbexport.bundle.weights import Place, append
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.disk.temporary import beside
from mbexport.disk.writing import HashedFile, cannot_write, make_folder
from mbexport.files import Progress, no_progress, to_json, write_atomically
from mbexport.graph.encoder import DIALECTS, build_graph
from mbexport.manifest import Graph, WeightsFile
from mbexport.precision.half import HalfWeights, Site
from mbexport.version import __version__

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
        if (graph.precision, graph.dialect, graph.keep_fp32, graph.packed) == (precision, DIALECT, keep, False):
            return graph
    form = _Form(read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest), precision, keep)
    try:
        make_folder(bundle / "reports")
        return _write(bundle, form, progress)
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause


@dataclass(frozen=True)
class _Form:
    """What the tensors of a half-precision graph are made of, and how."""

    spec: ModelSpec
    stored: StoredWeights
    precision: str
    keep_fp32: tuple[str, ...]


def _write(bundle: Path, form: _Form, progress: Progress) -> Graph:
    """Write weights and graph beside their places, then put both there and into the manifest."""
    graph_file = f"onnx/model_{form.precision}.onnx"
    data_file = f"{graph_file}_data"
    with beside(bundle / data_file) as temporary:
        with HashedFile(temporary) as file:
            places, made = _write_weights(file, form, progress)
            weights = Written(temporary, WeightsFile(data_file, file.bytes, file.sha256()), (places,))
        model = build_graph(form.spec, weights.tensors(0, bundle / data_file), DIALECT, __version__)
        entry = Graph(
            graph_file, form.precision, DIALECT, DIALECTS[DIALECT].opset, "",
            keep_fp32=form.keep_fp32, unheld=made.unheld,
        )  # fmt: skip
        report = partial(_report, bundle, made.sites)
        (graph,) = place(bundle, weights, [Placed(entry, model, None)], report)
        progress(len(form.stored) + 1, len(form.stored) + 1, graph_file)
    return graph


def _report(bundle: Path, sites: Sequence[Site], graphs: Sequence[Graph]) -> None:
    (graph,) = graphs
    values = {"graph": graph.file, "sha256": graph.sha256, "keep_fp32": graph.keep_fp32}
    text = to_json(values | {"values": list(map(asdict, sites))}) + "\n"
    write_atomically(bundle / f"reports/precision-{graph.precision}.json", text)


def _write_weights(file: HashedFile, form: _Form, progress: Progress) -> tuple[dict[str, Place], HalfWeights]:
    """Write all tensors to ``file``; progress leaves one step for the graph."""
    places: dict[str, Place] = {}

    def put(name: str, array: npt.NDArray[np.generic]) -> None:
        places[name] = append(file, array)
        # Factors are no step: how many there will be, nobody knows.
        progress(len(form.stored.keys() & places.keys()), len(form.stored) + 1, name)

    weights = HalfWeights(put, form.spec, form.stored, form.precision, form.keep_fp32)
    weights.make()
    return places, weights
