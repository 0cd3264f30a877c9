"""TensorRT's INT8 and FP8 graphs, as they compute: close to FP32, and just what their codes say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.graph.encoder import build_graph
from mbexport.graph.products import Entered, Products
from mbexport.graph.qdq import MOST_CODE, sum_unit
from mbexport.graph.sites import Site, encoder_sites
from mbexport.parity.graphs.rounding import RoundedGraph
from mbexport.precision import half
from mbexport.precision.codes import to_codes, to_fp8
from mbexport.precision.half import HalfWeights
from mbexport.precision.smooth import SmoothedTensors
from mbexport.quantize.targets import ENGINE_FILES
from tests.checkpoints import save_checkpoint
from tests.half import make_hostile
from tests.inputs import padded_batch, run_graph
from tests.parity.test_architectures import VARIANTS as ARCHITECTURES
from tests.parity.test_heads import VARIANTS as HEADS
from tests.quantized import largest_values, quantized_tensors, write_quantized

PRECISIONS = ("int8", "fp8")
LIMITS = {"int8": 0.03, "fp8": 0.06}  # root mean square error of a trained model's logits, of their spread
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def ranges(example_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    bundle = copy(example_bundle, tmp_path_factory.mktemp("calibrated") / "bundle")
    return bundle, largest_values(bundle)


def copy(bundle: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle, to))


def answers(bundle: Path, precision: str, tensors: Tensors, length: int, vocabulary: int) -> np.ndarray:
    write_quantized(bundle, precision, tensors)
    return np.asarray(RoundedGraph(bundle / ENGINE_FILES[precision]).run(*padded_batch(length, vocabulary))[0])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert np.isfinite(found).all()
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


def worst_error(bundle: Path, precision: str, tensors: Tensors) -> float:
    """Of the trained example, against the FP32 graph."""
    return max(
        relative_error(
            answers(bundle, precision, tensors, length, 5000),
            run_graph(bundle, "onnx/model.onnx", *padded_batch(length, 5000)),
        )
        for length in (5, 66, 300)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trained_example(precision: str, ranges: tuple[Path, dict[str, float]]) -> None:
    bundle, largest = ranges
    tensors = quantized_tensors(bundle, precision, largest)
    assert {str(array.dtype) for name, array in tensors.items() if name.endswith("Wo.weight")} == {
        {"int8": "int8", "fp8": "float8_e4m3fn"}[precision]
    }
    assert worst_error(bundle, precision, tensors) <= LIMITS[precision]


def permuted(tensors: Tensors, ending: str) -> Tensors:
    rng = np.random.default_rng(0)
    return {name: rng.permutation(array) if name.endswith(ending) else array for name, array in tensors.items()}


def stretched(tensors: Tensors, site: str, factor: float) -> Tensors:
    return tensors | {f"{site}.step": np.float32(factor) * tensors[f"{site}.step"]}


FAULTS: dict[str, Callable[[Tensors], Tensors]] = {
    "what a channel's code counts": lambda tensors: permuted(tensors, "mlp.Wi_gate.scale"),
    "codes of a matrix": lambda tensors: permuted(tensors, "layers.2.attn.Wv.weight"),
    "what an activation's code counts": lambda tensors: stretched(tensors, "layers.3.mlp.in", 2),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_fault_is_found(precision: str, fault: str, ranges: tuple[Path, dict[str, float]]) -> None:
    bundle, largest = ranges
    tensors = FAULTS[fault](quantized_tensors(bundle, precision, largest))
    assert worst_error(bundle, precision, tensors) > LIMITS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ranges_that_cut_values_off_are_found(precision: str, ranges: tuple[Path, dict[str, float]]) -> None:
    bundle, largest = ranges
    cut = {name: value / 8 for name, value in largest.items()}
    assert worst_error(bundle, precision, quantized_tensors(bundle, precision, cut)) > 10 * LIMITS[precision]


CODED = HEADS | ARCHITECTURES | {"classification": {}, "100 labels": {"num_labels": 100}}


@pytest.mark.parametrize("name", ["classification", "100 labels", "masked LM, tied", "masked LM, untied", "all biases"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_graph_computes_what_its_codes_say(precision: str, name: str, tmp_path: Path) -> None:
    """Against a float32 graph of the decoded numbers; a product more or less would be seen."""
    bundle = tmp_path / "bundle"
    export_onnx(save_checkpoint(tmp_path / "checkpoint", **CODED[name], num_hidden_layers=2), bundle)
    largest, manifest = largest_values(bundle), manifests.read(bundle)
    spec, stored = read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest)
    convert, most = (to_codes, 127) if precision == "int8" else (to_fp8, 448)
    decoded = {name: np.asarray(stored[name]) for name in stored}
    for site in encoder_sites(spec):
        decoded[f"{site.name}.step"] = np.float32(largest[site.name] / most)
        for path in site.matrices:
            codes, scale = convert(decoded[f"{path}.weight"])
            decoded[f"{path}.weight"] = codes.astype(np.float32) * scale
    codes, scale = to_codes(decoded["embeddings.tok_embeddings.weight"].T)
    decoded["embeddings.tok_embeddings.weight"] = (codes * scale).T
    weights = {name: ir.tensor(np.ascontiguousarray(array), name=name) for name, array in decoded.items()}
    exact = build_graph(spec, weights, "tensorrt", "0", products=decoding(precision))
    ir.save(exact, bundle / "onnx" / "decoded.onnx")
    tensors = quantized_tensors(bundle, precision, largest)
    other = stretched(tensors, "layers.1.mlp.in", 1.5)
    for length in (5, 140):
        expected = RoundedGraph(bundle / "onnx" / "decoded.onnx").run(*padded_batch(length, 512))[0]
        # Codes at the border of two differ where FP16 rounds what they are of.
        assert relative_error(answers(bundle, precision, tensors, length, 512), expected) <= 0.1
        assert relative_error(answers(bundle, precision, other, length, 512), expected) > 0.1


def decoding(precision: str) -> type[Products]:
    code = np.int8 if precision == "int8" else ir.DataType.FLOAT8E4M3FN.numpy()

    class Decoding(Products):
        """Codes as float32 numbers: what a graph is to compute, without FP16 and without sums of codes."""

        def enter(self, x: ir.Value, site: Site) -> Entered:
            b, name = self._b, site.name.rpartition(".")[-1]
            step, zero = b.weight(f"{site.name}.step"), b.constant("zero_code", np.zeros((), code))
            codes = b.op("QuantizeLinear", super().enter(x, site).value, step, zero, name=f"{name}_codes")
            return Entered(b.op("DequantizeLinear", codes, step, name=f"{name}_values"))

    return Decoding


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("keep", [(), ("attn.in",), ("attn.out",), ("mlp.in",), ("mlp.gated",), ("layers.0",)])
def test_powers_of_two_change_nothing(
    precision: str, keep: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint whose values FP16 cannot hold gives the same codes; also beside parts that stay FP16."""
    plain, hostile = (exported(tmp_path / name, hostile=name == "hostile") for name in ("plain", "hostile"))
    kept = [f"layers.{layer}.{part}" for part in keep for layer in range(4)] if keep != ("layers.0",) else keep
    expected = run(plain, precision, kept)
    found = run(hostile, precision, kept)
    if any(part.endswith("attn.in") or part == "layers.0" for part in kept):  # FP16 rounds the two differently
        assert relative_error(found, expected) <= 0.1
    else:
        np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr(half, "LIMIT", 2.0**100)
    naive = run(hostile, precision, kept)
    assert not np.isfinite(naive).all() or relative_error(naive, expected) > 0.1


def exported(directory: Path, *, hostile: bool) -> Path:
    checkpoint = save_checkpoint(directory / "checkpoint", norm_eps=1e-20)
    if hostile:
        make_hostile(checkpoint)
    export_onnx(checkpoint, directory / "bundle")
    return directory / "bundle"


def run(bundle: Path, precision: str, keep: object) -> np.ndarray:
    tensors = quantized_tensors(bundle, precision, largest_values(bundle), keep)  # type: ignore[arg-type]
    return answers(bundle, precision, tensors, 66, 512)


def test_smoothed_tensors(tiny_bundle: Path, tmp_path: Path) -> None:
    """Factors of any size are no other function; the first attention's are multiplied in the graph."""
    bundle = copy(tiny_bundle, tmp_path / "bundle")
    largest, manifest = largest_values(bundle), manifests.read(bundle)
    spec, stored, rng = read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest), np.random.default_rng(0)
    factors = {}
    for site in encoder_sites(spec):
        width = stored[f"{site.matrices[0]}.weight"].shape[0]
        factors[site.name] = np.exp2(rng.uniform(-0.5, 0.5, width)).astype(np.float32)
    smooth = SmoothedTensors(spec, stored, factors)
    wider = {name: value * 1.5 for name, value in largest.items()}
    expected = run_graph(bundle, "onnx/model.onnx", *padded_batch(66, 512))
    for keep in ((), ("layers.0",), ("layers.0.attn.in", "layers.2.attn.out")):
        tensors = quantized_tensors(bundle, "int8", wider, keep, smooth)
        scale = tensors["layers.0.attn.in.scale"]
        np.testing.assert_allclose(scale, 1 / factors["layers.0.attn.in"], rtol=1e-6)
        assert relative_error(answers(bundle, "int8", tensors, 66, 512), expected) <= 0.3  # random attention is harsh
        wrong = tensors | {"layers.0.attn.in.scale": scale**4}
        assert relative_error(answers(bundle, "int8", wrong, 66, 512), expected) > 0.3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_kept_is_the_fp16_graph(precision: str, tiny_bundle: Path) -> None:
    manifest, made = manifests.read(tiny_bundle), {}
    spec, stored = read_bundle_spec(tiny_bundle, manifest), StoredWeights(tiny_bundle, manifest)
    HalfWeights(made.__setitem__, spec, stored, "fp16").make()
    kept = quantized_tensors(tiny_bundle, precision, dict.fromkeys((s.name for s in encoder_sites(spec)), 1.0),
                             ["embeddings", *(f"layers.{layer}" for layer in range(4))])  # fmt: skip
    assert made.keys() == kept.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize("codes", MOST_CODE)
@pytest.mark.parametrize("width", [1, 64, 768, 1152, 2624, 65536])
def test_no_sum_of_codes_is_beyond_fp16(codes: ir.DataType, width: int) -> None:
    largest = MOST_CODE[codes] ** 2 * width
    unit = sum_unit(codes, width)
    assert np.isfinite(np.float16(largest * unit))
    assert float(np.float16(unit)) == unit
    assert unit == 1 or largest * unit * 4 > 2**16  # no smaller than it has to be
