"""Bounds from weights: never below what happens, and as tight as the inequalities they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mbexport import export_onnx
from mbexport.bundle.half import ensure_half_graph
from mbexport.precision import bounds
from tests.checkpoints import save_checkpoint, torch_model
from tests.inputs import padded_batch

RNG = np.random.default_rng(0)
SIZE, OUTPUTS = 48, 20
WEIGHT, NORM_BIAS = RNG.normal(1, 0.3, SIZE).astype(np.float32), RNG.normal(0, 0.2, SIZE).astype(np.float32)
MATRIX = RNG.normal(0, 0.5, (SIZE, OUTPUTS)).astype(np.float32)
BIAS = RNG.normal(0, 0.5, OUTPUTS).astype(np.float32)


def normalized(x: np.ndarray) -> np.ndarray:
    """Layer normalization without weights, float64."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / centred.std(axis=-1, keepdims=True)


@pytest.mark.parametrize("norm_bias", [None, NORM_BIAS])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_nothing_that_leaves_a_norm_exceeds_the_bounds(norm_bias: np.ndarray | None, bias: np.ndarray | None) -> None:
    x = np.concatenate([RNG.normal(0, 1, (500, SIZE)), RNG.standard_cauchy((500, SIZE)), np.eye(SIZE), -np.eye(SIZE)])
    left = normalized(x) * WEIGHT + (0 if norm_bias is None else norm_bias)
    assert (np.abs(left) <= bounds.after_norm(WEIGHT, norm_bias)).all()
    made = left @ MATRIX + (0 if bias is None else bias)
    bound = bounds.normed_product(MATRIX, WEIGHT, norm_bias, bias)
    assert (np.abs(made) <= bound).all()
    assert (bound <= bounds.product(MATRIX, bounds.after_norm(WEIGHT, norm_bias), bias)).all()  # the looser of the two


def test_biases_count_where_there_is_little_else() -> None:
    left = normalized(RNG.normal(0, 1, (500, SIZE))) * (WEIGHT / 1000) + NORM_BIAS
    made = left @ MATRIX
    assert (np.abs(made) <= bounds.normed_product(MATRIX, WEIGHT / 1000, NORM_BIAS, None)).all()
    norms = np.linalg.norm((made + BIAS).reshape(-1, 4, 5), axis=-1).max(axis=0)
    found = bounds.head_norms(MATRIX, WEIGHT / 1000, NORM_BIAS, BIAS, 4)
    assert (norms <= found).all()
    assert (found <= 1.1 * norms).all()
    without = bounds.head_norms(MATRIX / 1000, WEIGHT / 1000, None, BIAS, 4)
    np.testing.assert_allclose(without, np.linalg.norm(BIAS.reshape(4, 5), axis=-1), rtol=0.01)


def test_the_bound_of_a_product_is_reached() -> None:
    columns = WEIGHT[:, None].astype(np.float64) * MATRIX
    worst = np.sqrt(SIZE) * columns / np.linalg.norm(columns, axis=0)  # of all inputs of that norm
    reached = (worst * columns).sum(axis=0)
    np.testing.assert_allclose(bounds.normed_product(MATRIX, WEIGHT, None, None), reached, rtol=1e-6)


def test_rotation_mixes_a_channel_with_its_partner() -> None:
    bound = np.array([3, 0, 4, 0, 1, 1, 1, 5], np.float32)  # two heads of four channels
    np.testing.assert_allclose(bounds.rotated(bound, 2, 2.0), [2 * 5, 2 * np.sqrt(26)], rtol=1e-6)


def test_a_real_forward_pass_stays_below(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", attention_bias=True, mlp_bias=True, norm_bias=True)
    export_onnx(checkpoint, tmp_path / "bundle")
    ensure_half_graph(tmp_path / "bundle", "fp16")
    report = json.loads((tmp_path / "bundle/reports/precision-fp16.json").read_text())
    bound = {value["name"]: value["bound"] for value in report["values"]}
    model = torch_model(checkpoint)
    seen: dict[str, float] = {}

    def watch(name: str, part: slice) -> None:
        def note(_: object, __: object, output: torch.Tensor) -> None:
            seen[name] = float(output[..., part].detach().abs().max())

        model.get_submodule(f"model.{name.rsplit('.', 1)[0]}.{MODULES[name.rsplit('.', 1)[1]]}").register_forward_hook(
            note
        )

    for layer in range(4):
        for name, part in PARTS.items():
            watch(f"layers.{layer}.{name}", part)
    ids, mask = padded_batch(300, 512)
    model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    assert len(seen) == 4 * len(PARTS)
    for name, largest in seen.items():
        assert 0 < largest <= bound[name] <= 200 * largest, name


MODULES = {"v": "Wqkv", "Wo": "Wo", "Wi_input": "Wi", "gate": "Wi"}
PARTS = {
    "attn.v": slice(128, 192), "attn.Wo": slice(None), "mlp.Wi_input": slice(0, 96), "mlp.gate": slice(96, 192),
    "mlp.Wo": slice(None),
}  # fmt: skip


def test_what_can_only_be_zero_is_and_what_overflows_is_infinite() -> None:
    """A bound of 0 that is raised to the smallest number asks for a factor that makes it count."""
    norm = np.ones(4, np.float32)
    matrix = np.zeros((4, 3), np.float32)
    matrix[:, 1], matrix[:, 2] = 1e-45, 3e38
    with np.errstate(all="raise", under="ignore"):
        for bound in (bounds.normed_product(matrix, norm, None, None), bounds.product(matrix, norm, None)):
            assert bound[0] == 0
            assert 0 < bound[1] < np.finfo(np.float32).tiny
            assert bound[2] == np.inf
