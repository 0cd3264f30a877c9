"""INT8 graphs for tests of the runtime: those that ``mbexport int8`` would write, with any verdict."""

from __future__ import annotations

from pathlib import Path

from mbexport import manifest as manifests
from mbexport.bundle.place import Placed, place
from mbexport.bundle.quantized import written
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.files import no_progress, sha256
from mbexport.graph.encoder import DIALECTS
from mbexport.graph.sites import encoder_sites
from mbexport.manifest import Graph
from mbexport.parity.samples import TEXTS
from mbexport.precision.calibration import Calibration
from mbexport.precision.strength import choose
from mbexport.quantize.observe import observe
from mbexport.quantize.targets import Source, integer_target
from mbexport.runtime.text import TextEncoder

LONGEST = 128  # tokens that texts are cut to
CALIBRATIONS: dict[str, Calibration] = {}  # by SHA-256 of the checkpoint's weights: one for all copies of a bundle


def add_int8(bundle: Path, file: str, gate: str | None = "passed", *, bits: int = 8, selects: bool = False) -> Graph:
    """Put an INT8 graph for CPUs into a bundle.

    Args:
        bundle: the bundle.
        file: the graph's name, in the folder ``onnx``.
        gate: what its quality gate found.
        bits: of activations.
        selects: of a fill-mask model, the graph that has the third input.
    """
    source, target, data_file = calibrated(bundle), integer_target(bits), f"onnx/{file}_data"
    arrays, _ = target.make(source, ())
    tensors = {name: source.stored[name] if array is None else array for name, array in arrays.items()}
    opset = DIALECTS[target.dialect].opset
    entry = Graph(f"onnx/{file}", "int8", target.dialect, opset, "", selects, activation_bits=bits, gate=gate)
    with written(bundle, data_file, [tensors]) as weights:
        model = target.build(source.spec, weights.tensors(0, bundle / data_file), selects_tokens=selects)
        (graph,) = place(bundle, weights, [Placed(entry, model, None)])
    return graph


def calibrated(bundle: Path) -> Source:
    """A bundle's weights, with ranges of mbexport's own texts."""
    manifest = manifests.read(bundle)
    spec, stored, key = read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest), manifest.source.sha256
    if key not in CALIBRATIONS:
        texts = [text.ids for text in TextEncoder(bundle / "tokenizer.json", LONGEST).encode(TEXTS)]
        chosen = {}
        observed = observe(spec, stored.tensors, texts, no_progress)
        for site in encoder_sites(spec):
            seen = observed[site.name]
            chosen[site.name] = choose(seen.rows, seen.largest, [stored[f"{path}.weight"] for path in site.matrices])
        CALIBRATIONS[key] = Calibration(key, len(texts), chosen)
    return Source(bundle / "onnx", spec, stored, CALIBRATIONS[key])


def add_entry(bundle: Path, precision: str, gate: str | None = None) -> Graph:
    """Put a graph that engines are built from into a manifest; its file is none."""
    name = f"onnx/model_{precision}_trt.onnx"
    (bundle / name).write_bytes(b"no graph")
    graph = Graph(name, precision, "tensorrt", 23, sha256(bundle / name), gate=gate)
    manifests.update(bundle, lambda manifest: manifest.with_graph(graph))
    return graph
