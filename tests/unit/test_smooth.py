"""Smoothing leaves the function as it was, undoes any rescaling of channels, and is chosen by error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import InputError
from mbexport.graph.encoder import build_graph
from mbexport.graph.sites import encoder_sites
from mbexport.parity.graphs.memory import MemoryGraph
from mbexport.precision.integer import quantized_sites
from mbexport.precision.smooth import SmoothedTensors
from mbexport.precision.strength import choose, smoothing
from tests.checkpoints import save_checkpoint

BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True}


@pytest.fixture(scope="module", params=["no biases", "all biases"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smooth")
    checkpoint = save_checkpoint(folder / "checkpoint", **(BIASES if request.param == "all biases" else {}))
    export_onnx(checkpoint, folder / "bundle")
    return folder / "bundle"


def parts(bundle: Path) -> tuple[ModelSpec, StoredWeights]:
    manifest = manifests.read(bundle)
    return read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest)


def random_factors(spec: ModelSpec, stored: StoredWeights) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    widths = {site.name: len(stored[f"{site.matrices[0]}.weight"]) for site in encoder_sites(spec)}
    return {name: np.exp2(rng.uniform(-5, 5, width)).astype(np.float32) for name, width in widths.items()}


def output(bundle: Path, spec: ModelSpec, tensors: dict[str, np.ndarray]) -> np.ndarray:
    weights = {name: ir.tensor(np.ascontiguousarray(array), name=name) for name, array in tensors.items()}
    session = MemoryGraph(build_graph(spec, weights, "onnxruntime", "0"), bundle)
    ids = np.random.default_rng(1).integers(3, 500, (2, 150))
    return session.run(ids, np.ones_like(ids))[0]


def test_the_function_stays(bundle: Path) -> None:
    spec, stored = parts(bundle)
    factors = random_factors(spec, stored)
    smoothed = SmoothedTensors(spec, stored, factors)
    assert set(smoothed) == {*stored, "layers.0.attn.in.scale"}
    assert not np.allclose(smoothed["layers.1.mlp.Wo.weight"], stored["layers.1.mlp.Wo.weight"], atol=0.1)
    expected = output(bundle, spec, dict(stored))
    np.testing.assert_allclose(output(bundle, spec, dict(smoothed)), expected, atol=3e-5)


@pytest.mark.parametrize(
    "maker",
    ["layers.0.attn.in.scale", "layers.1.attn_norm.weight", "layers.1.attn.Wv.weight", "layers.2.mlp_norm.weight",
     "layers.2.mlp.Wi_gate.weight"],
)  # fmt: skip
def test_every_division_counts(bundle: Path, maker: str) -> None:
    """Negative control: one side of a fold is left out, and the function is another."""
    spec, stored = parts(bundle)
    smoothed = dict(SmoothedTensors(spec, stored, random_factors(spec, stored)))
    unfolded = stored[maker] if maker in stored else np.ones_like(smoothed[maker])
    expected = output(bundle, spec, dict(stored))
    assert np.abs(output(bundle, spec, smoothed | {maker: unfolded}) - expected).max() > 1e-2


def test_only_what_a_factor_touches_is_changed(bundle: Path) -> None:
    spec, stored = parts(bundle)
    factors = {"layers.1.mlp.gated": random_factors(spec, stored)["layers.1.mlp.gated"]}
    smoothed = SmoothedTensors(spec, stored, factors)
    changed = {name for name in smoothed if smoothed.changes(name)}
    biases = {"layers.1.mlp.Wi_gate.bias"}
    assert changed - biases == {"layers.1.mlp.Wi_gate.weight", "layers.1.mlp.Wo.weight"}


def test_a_rescaled_channel_is_undone() -> None:
    """Factors take over any rescaling of a channel against its weights, whatever the strength."""
    rng = np.random.default_rng(0)
    largest, weights = np.exp(rng.normal(size=(2, 64))).astype(np.float32)
    scale = np.where(rng.random(64) < 0.1, 64, 1).astype(np.float32)
    for strength in (0.5, 0.8, 1.0):
        plain = largest / smoothing(largest, weights, strength)
        rescaled = largest * scale / smoothing(largest * scale, weights / scale, strength)
        np.testing.assert_allclose(rescaled / plain, np.full(64, (rescaled / plain)[0]), rtol=1e-4)


def test_channels_without_values_or_weights_keep_their_scale() -> None:
    factor = smoothing(np.array([0, 2, 3], np.float32), np.array([1, 0, 2], np.float32), 0.5)
    np.testing.assert_array_equal(factor, np.ones(3, np.float32))


def test_tokens_of_very_different_size_get_ranges_of_their_own() -> None:
    rng = np.random.default_rng(0)
    rows, matrix = rng.normal(size=(256, 32)).astype(np.float32), rng.normal(size=(32, 16)).astype(np.float32)
    even = choose(rows, np.abs(rows).max(axis=0), [matrix])
    sizes = np.exp(rng.normal(0, 2, (256, 1))).astype(np.float32)
    uneven = choose(rows * sizes, np.abs(rows * sizes).max(axis=0), [matrix])
    assert not even.by_row
    assert uneven.by_row
    assert even.error < 0.02
    assert uneven.row_error < 0.02


def test_a_value_that_stands_alone_is_cut() -> None:
    """One value in a million sets no range."""
    rng = np.random.default_rng(0)
    rows, matrix = rng.normal(size=(512, 64)).astype(np.float32), rng.normal(size=(64, 16)).astype(np.float32)
    plain = choose(rows, np.abs(rows).max(axis=0), [matrix])
    largest = np.abs(rows).max(axis=0)
    largest[3] *= 1000  # seen once, in a token that is not among the sampled
    cut = choose(rows, largest, [matrix])
    assert (cut.by_row, plain.by_row) == (True, False)
    assert cut.covered < plain.covered == 1
    assert cut.error < 2 * plain.error


def test_parts_are_sites_and_what_holds_them(bundle: Path) -> None:
    spec, _ = parts(bundle)
    everything = {site.name for site in encoder_sites(spec)}

    def left_out(*keep: str) -> set[str]:
        return everything - {site.name for site in quantized_sites(spec, keep)}

    assert left_out() == left_out("embeddings") == set()
    assert left_out("layers.1.mlp") == {"layers.1.mlp.in", "layers.1.mlp.gated"}
    assert len(left_out("layers.1")) == 4
    for name in ("layers.9", "layers.1.m", "head"):
        with pytest.raises(InputError, match="is no part that can be kept"):
            left_out(name)
