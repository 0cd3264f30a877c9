from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from mbexport.checkpoint.rope_config import GLOBAL, LOCAL, RopeSpec, parse_ropes
from mbexport.graph.rope import rope_tables

KINDS = (GLOBAL, LOCAL)
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 3.3},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn with betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn with a factor of its own": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 0.7},
    "yarn with magnitudes": {"rope_type": "yarn", "factor": 8.0, "mscale": 0.9, "mscale_all_dim": 0.4},
}


def transformers_tables(config: dict[str, Any], kind: str, positions: int) -> tuple[np.ndarray, np.ndarray]:
    settings = ModernBertConfig(**config)
    half = settings.hidden_size // settings.num_attention_heads // 2
    cos, sin = ModernBertRotaryEmbedding(settings)(torch.zeros(1), torch.arange(positions)[None], kind)
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy()


def config_with(scaling: dict[str, Any], heads: int = 12) -> dict[str, Any]:
    ropes = {GLOBAL: {"rope_theta": 160_000.0, **scaling}, LOCAL: {"rope_theta": 10_000.0, **scaling}}
    return {"rope_parameters": ropes, "num_attention_heads": heads, "max_position_embeddings": 8192}


# Heads of 64, 32 and 96 channels. Of the last, PyTorch's own float32 power is not correctly
# rounded at one frequency, which is 1.5e-5 at position 8,191.
@pytest.mark.parametrize(("heads", "limit"), [(12, 1e-6), (24, 1e-6), (8, 2e-5)])
@pytest.mark.parametrize("name", SCALINGS)
def test_equals_transformers_to_the_last_position(name: str, heads: int, limit: float) -> None:
    config = config_with(SCALINGS[name], heads)
    for kind, rope in zip(KINDS, parse_ropes(config, []), strict=True):
        found = rope_tables(rope, 768 // heads, 8192)
        for ours, theirs in zip(found, transformers_tables(config, kind, 8192), strict=True):
            assert ours.dtype == np.float32
            assert np.abs(ours - theirs).max() <= limit


def test_yarn_to_32768_positions() -> None:
    """The longest models there are, in the range where an unrounded frequency shows most."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    config = config_with(scaling) | {"max_position_embeddings": 32_768}
    for kind, rope in zip(KINDS, parse_ropes(config, []), strict=True):
        for ours, theirs in zip(rope_tables(rope, 64, 32_768), transformers_tables(config, kind, 32_768), strict=True):
            assert np.abs(ours - theirs).max() <= 1e-6


def test_scalings_differ_from_one_another() -> None:
    """The control: a field that was ignored would give the same tables."""
    tables = {
        name: rope_tables(parse_ropes(config_with(scaling), [])[0], 64, 8192)[0]
        for name, scaling in SCALINGS.items()
        if name != "dynamic"
    }
    names = sorted(tables)
    for first in names:
        for second in names[names.index(first) + 1 :]:
            assert np.abs(tables[first] - tables[second]).max() > 0.01, (first, second)


def test_dynamic_scaling_is_the_default_up_to_the_length_that_tables_have() -> None:
    dynamic, default = (
        rope_tables(RopeSpec(10_000.0, kind, factor=2.0), 64, 512)[0] for kind in ("dynamic", "default")
    )
    assert (dynamic == default).all()


def test_key_of_transformers_4_scales_both_kinds_of_layers() -> None:
    config = {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 20_000.0,
    }
    assert parse_ropes(config, []) == (
        RopeSpec(160_000.0, "linear", factor=2.0),
        RopeSpec(20_000.0, "linear", factor=2.0),
    )
    for kind, rope in zip(KINDS, parse_ropes(config, []), strict=True):
        cos, _ = rope_tables(rope, 64, 1000)
        assert np.abs(cos - transformers_tables(dict(config), kind, 1000)[0]).max() <= 1e-6


def test_frequencies_must_be_rounded_as_pytorch_rounds_them() -> None:
    """Why rope.py rounds: exact frequencies are another model at position 8,191."""
    exact = 160_000.0 ** -(np.arange(0, 64, 2) / 64)
    cos = np.cos(np.arange(8192)[:, None] * exact)
    assert np.abs(cos - transformers_tables(config_with({}), GLOBAL, 8192)[0]).max() > 1e-5
