"""Every field that changes the mathematics, against transformers' eager attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbexport import export_onnx
from tests.checkpoints import (
    ENCODER,
    edit_config,
    edit_tensors,
    save_checkpoint,
    torch_model,
    torch_output,
)
from tests.inputs import GRAPHS, allowed_error, error, padded_batch, run_graph

VARIANTS: dict[str, dict[str, Any]] = {
    "as on the hub": {},
    "mean pooling": {"classifier_pooling": "mean"},
    "bare encoder": {"architecture": ENCODER},
    "all biases": {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True},
    "norm_eps": {"norm_eps": 0.1},
    "one label": {"num_labels": 1},
    "all layers global": {"layer_types": ["full_attention"] * 4},
    "all layers local": {"layer_types": ["sliding_attention"] * 4},
    "irregular layers": {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
    "one layer": {"num_hidden_layers": 1},
    "window of 1": {"local_attention": 1},
    "window of 2": {"local_attention": 2},
    "odd window": {"local_attention": 31},
    "window of 200": {"local_attention": 200},
    "window beyond every length": {"local_attention": 4096},
    "head size 8": {"num_attention_heads": 8},
    "one head": {"num_attention_heads": 1},
    "other thetas": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1234.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
        }
    },
    "yarn on global layers": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 160_000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 256,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }
    },
    "linear scaling on local layers": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
            "sliding_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        }
    },
    **{
        f"{name} inside": {"hidden_activation": name}
        for name in ("gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh", "sigmoid")
    },
    "relu in the head": {"classifier_activation": "relu"},
}
Recorder = Callable[[str, str, float], None]
LENGTHS = (1, 2, 64, 65, 66, 129, 257, 300)


def assert_parity(checkpoint: Path, bundle: Path, lengths: tuple[int, ...] = LENGTHS) -> float:
    """Compare both graphs with PyTorch; the largest error found, as a share of the spread."""
    model = torch_model(checkpoint)
    worst = 0.0
    for length in lengths:
        ids, mask = padded_batch(length, vocabulary=512)
        expected = torch_output(model, ids, mask)
        for graph in GRAPHS:
            found = error(run_graph(bundle, graph, ids, mask), expected, mask)
            assert found <= allowed_error(expected), (graph, length)
            worst = max(worst, found / float(np.ptp(expected)))
    return worst


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_pytorch(name: str, tmp_path: Path, record_parity: Recorder) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **VARIANTS[name])
    export_onnx(checkpoint, tmp_path / "bundle")
    group = (
        "bare encoder"
        if name == "bare encoder"
        else f"text classification, {VARIANTS[name].get('classifier_pooling', 'cls')} pooling"
    )
    record_parity(group, name, assert_parity(checkpoint, tmp_path / "bundle"))


def test_variants_differ_from_one_another(tmp_path: Path, tiny: Path) -> None:
    """The control: a field that export ignored would leave the outputs as they are."""
    ids, mask = padded_batch(300, vocabulary=512)
    plain = torch_output(torch_model(tiny), ids, mask)
    same_weights = {n: c for n, c in VARIANTS.items() if set(c) <= SAME_WEIGHTS and c}
    assert len(same_weights) > 10
    for number, config in enumerate(same_weights.values()):
        checkpoint = save_checkpoint(tmp_path / str(number), **config)
        changed = torch_output(torch_model(checkpoint), ids, mask)
        assert error(plain, changed, mask) > 10 * allowed_error(plain), config


SAME_WEIGHTS = {
    "classifier_pooling", "norm_eps", "layer_types", "local_attention", "num_attention_heads", "rope_parameters",
    "hidden_activation", "classifier_activation",
}  # fmt: skip


def to_first_generation(config: dict[str, Any]) -> None:
    """config.json as checkpoints on the hub have had it since 2024."""
    del config["layer_types"], config["rope_parameters"]
    config |= {"global_attn_every_n_layers": 2, "global_rope_theta": 50_000.0, "local_rope_theta": 500.0}


def test_first_generation_of_configs(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    edit_config(checkpoint, to_first_generation)
    export_onnx(checkpoint, tmp_path / "bundle")
    assert_parity(checkpoint, tmp_path / "bundle", (66, 300))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    export_onnx(checkpoint, tmp_path / "bundle")
    assert_parity(checkpoint, tmp_path / "bundle", (66, 300))


def test_sharded_weights(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    torch_model(checkpoint).save_pretrained(checkpoint, max_shard_size="100KB")
    (checkpoint / "model.safetensors").unlink(missing_ok=True)
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    export_onnx(checkpoint, tmp_path / "bundle")
    assert_parity(checkpoint, tmp_path / "bundle", (66, 300))


def test_names_left_by_torch_compile(tmp_path: Path) -> None:
    plain = save_checkpoint(tmp_path / "plain")
    compiled = save_checkpoint(tmp_path / "compiled")
    edit_tensors(compiled, lambda tensors: {f"_orig_mod.{name}": t for name, t in tensors.items()})
    manifest = export_onnx(compiled, tmp_path / "bundle")
    assert any("_orig_mod." in note for note in manifest.notes)
    assert_parity(plain, tmp_path / "bundle", (66, 300))


def test_encoder_saved_from_a_wrapper(tmp_path: Path) -> None:
    encoder = save_checkpoint(tmp_path / "encoder", architecture=ENCODER)
    wrapped = save_checkpoint(tmp_path / "wrapped", architecture=ENCODER)
    edit_tensors(wrapped, lambda tensors: {f"model.{name}": t for name, t in tensors.items()})
    export_onnx(wrapped, tmp_path / "bundle")
    assert_parity(encoder, tmp_path / "bundle", (66, 300))


def test_ids_behind_the_mask_change_nothing(tiny_bundle: Path) -> None:
    ids, mask = padded_batch(300, vocabulary=512)
    other = ids.copy()
    other[mask == 0] = 7
    assert (ids != other).any()
    for graph in GRAPHS:
        first = run_graph(tiny_bundle, graph, ids, mask)
        second = run_graph(tiny_bundle, graph, other, mask)
        seen = [0, 1]  # rows 2 and 3 pool a first place that may itself be padding
        assert error(first[seen], second[seen], mask) == 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_padding_on_any_side_leaves_real_tokens_alone(graph: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=ENCODER)
    export_onnx(checkpoint, tmp_path / "bundle")
    ids, mask = padded_batch(200, vocabulary=512)
    alone = run_graph(tmp_path / "bundle", graph, ids[:1], mask[:1])
    for before, after in ((0, 1), (1, 0), (0, 130), (130, 0), (77, 300)):
        wide, wide_mask = (np.pad(x[:1], ((0, 0), (before, after))) for x in (ids, mask))
        found = run_graph(tmp_path / "bundle", graph, wide, wide_mask)[:, before : before + 200]
        assert error(found, alone, mask[:1]) <= allowed_error(alone), (before, after)


def test_a_row_of_nothing_but_padding_is_finite_and_leaves_the_others_alone(tiny_bundle: Path) -> None:
    ids, mask = padded_batch(150, vocabulary=512)
    for graph in GRAPHS:
        full = run_graph(tiny_bundle, graph, ids, mask)
        emptied = mask.copy()
        emptied[3] = 0
        found = run_graph(tiny_bundle, graph, ids, emptied)
        assert error(found[:3], full[:3], mask) == 0
        assert abs(found).max() < 100


def test_architectures_named_in_the_config_decide_the_outputs(tiny_bundle: Path, tmp_path: Path) -> None:
    import onnxruntime

    export_onnx(save_checkpoint(tmp_path / "encoder", architecture=ENCODER), tmp_path / "bundle")
    expected = {
        tiny_bundle: [("logits", ["batch", 3])],
        tmp_path / "bundle": [("last_hidden_state", ["batch", "sequence", 64])],
    }
    for bundle, outputs in expected.items():
        for graph in GRAPHS:
            session = onnxruntime.InferenceSession(str(bundle / graph))
            assert [(o.name, o.shape) for o in session.get_outputs()] == outputs
            assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
                ("input_ids", ["batch", "sequence"], "tensor(int64)"),
                ("attention_mask", ["batch", "sequence"], "tensor(int64)"),
            ]
