"""TensorRT's INT8 and FP8 graphs for tests, calibrated on random texts, smoothed or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.files import no_progress, sha256
from mbexport.graph.encoder import build_graph
from mbexport.manifest import Graph
from mbexport.precision.quantized import QuantizedWeights
from mbexport.quantize.observe import observe
from mbexport.quantize.targets import ENGINE_FILES
from tests.inputs import padded_batch


def largest_values(bundle: Path) -> dict[str, float]:
    """By site, the largest magnitude of what enters it, over a few texts."""
    manifest = manifests.read(bundle)
    spec, stored = read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest)
    texts = []
    for length in (3, 40, 200):
        batch, masks = padded_batch(length, spec.vocab_size, seed=1)
        texts += [ids[mask == 1] for ids, mask in zip(batch, masks, strict=True)]
    observed = observe(spec, stored.tensors, texts, no_progress)
    return {name: float(seen.largest.max()) for name, seen in observed.items()}


def quantized_tensors(
    bundle: Path, precision: str, ranges: Mapping[str, float], keep: Collection[str] = (),
    tensors: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The tensors of the quantized graph; of the bundle's weights where no smoothed ones are given."""
    manifest, made = manifests.read(bundle), {}
    stored = StoredWeights(bundle, manifest) if tensors is None else tensors
    spec = read_bundle_spec(bundle, manifest)
    QuantizedWeights(made.__setitem__, spec, stored, ranges, precision, keep).make()
    return made


def write_quantized(bundle: Path, precision: str, tensors: Mapping[str, np.ndarray]) -> Graph:
    """Write the graph of these tensors and put it into the manifest."""
    manifest, file = manifests.read(bundle), ENGINE_FILES[precision]
    weights = {name: ir.tensor(np.ascontiguousarray(array), name=name) for name, array in tensors.items()}
    model = build_graph(read_bundle_spec(bundle, manifest), weights, "tensorrt", "0")
    ir.save(model, bundle / file, external_data=f"{Path(file).name}_data", size_threshold_bytes=256)
    graph = Graph(file, precision, "tensorrt", 23, sha256(bundle / file))
    manifests.write(manifest.with_graph(graph), bundle)
    return graph
