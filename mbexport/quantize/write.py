"""Quantized graphs into the bundle: those that were judged, and FP8 of an earlier calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mbexport import manifest as manifests
from mbexport.bundle.place import Placed, place
from mbexport.bundle.quantized import written
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.disk.writing import cannot_write
from mbexport.errors import BundleError
from mbexport.graph.encoder import DIALECTS
from mbexport.manifest import Check, Graph
from mbexport.precision.calibration import Calibration
from mbexport.quantize.targets import Source, Target, engine_target

CALIBRATION_FILE = "calibration.npz"


@dataclass(frozen=True)
class Made:
    """A graph to write: the target, the parts that it keeps, and what its gate found (None: it was not judged)."""

    target: Target
    keep: tuple[str, ...]
    check: Check | None

    @property
    def gate(self) -> str | None:
        """As the manifest says it."""
        return None if self.check is None else "passed" if self.check.passed else "failed"


def data_file(precision: str) -> str:
    """The weights of all graphs of a precision."""
    return f"onnx/model_{precision}.onnx_data"


def write_graphs(bundle: Path, source: Source, made: Sequence[Made]) -> None:
    """Write graphs, those of a precision with one file of weights.

    Args:
        bundle: the bundle.
        source: what they are made of.
        made: the graphs.

    Raises:
        OSError: a file cannot be written.
    """
    for precision in dict.fromkeys(item.target.precision for item in made):
        _write(bundle, source, [item for item in made if item.target.precision == precision])


def _write(bundle: Path, source: Source, made: Sequence[Made]) -> None:
    file = data_file(made[0].target.precision)
    contents = [item.target.make(source, item.keep) for item in made]
    tensors = [
        {name: source.stored[name] if array is None else array for name, array in arrays.items()}
        for arrays, _ in contents
    ]
    with written(bundle, file, tensors) as weights:
        graphs = []
        for number, item in enumerate(made):
            target, own, (_, unheld) = item.target, weights.tensors(number, bundle / file), contents[number]
            entry = Graph(
                target.file, target.precision, target.dialect, DIALECTS[target.dialect].opset, "",
                keep_fp32=item.keep, unheld=unheld, activation_bits=target.activation_bits, gate=item.gate,
            )  # fmt: skip
            graphs.append(Placed(entry, target.build(source.spec, own), item.check))
            if source.spec.task == "fill-mask" and target.selecting_file is not None:
                selecting = replace(entry, file=target.selecting_file, selects_tokens=True)
                check = None if item.check is None else replace(item.check, what=f"quality of {selecting.file}")
                graphs.append(Placed(selecting, target.build(source.spec, own, selects_tokens=True), check))
        place(bundle, weights, graphs)


def ensure_fp8_graph(bundle: Path) -> None:
    """Write the bundle's FP8 graph of the calibration that ``mbexport int8`` left, unless it is there.

    No text is at hand to judge it by, so the manifest says of its gate that it was not measured.

    Raises:
        BundleError: there is no calibration, or of other weights, or the bundle cannot be written.
    """
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    if any(graph.precision == "fp8" for graph in manifest.graphs):
        return
    calibration = Calibration.load(bundle / CALIBRATION_FILE)
    if calibration.source != manifest.source.sha256:
        raise BundleError(
            f"{bundle / CALIBRATION_FILE} was made of other weights than the bundle's; run mbexport int8 again"
        )
    spec = read_bundle_spec(bundle, manifest)
    source = Source(bundle / "onnx", spec, StoredWeights(bundle, manifest), calibration)
    try:
        write_graphs(bundle, source, [Made(engine_target("fp8"), (), None)])
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
