from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from mbexport.graph.rope import rope_tables

THETAS = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}


def transformers_tables(kind: str, positions: int) -> tuple[np.ndarray, np.ndarray]:
    rope = ModernBertRotaryEmbedding(ModernBertConfig())
    cos, sin = rope(torch.zeros(1), torch.arange(positions)[None], kind)
    return cos[0, :, :32].numpy(), sin[0, :, :32].numpy()


@pytest.mark.parametrize("kind", THETAS)
def test_equals_transformers_to_the_last_position(kind: str) -> None:
    found, expected = rope_tables(THETAS[kind], 64, 8192), transformers_tables(kind, 8192)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() <= 1e-6


def test_other_theta_does_not() -> None:
    cos, _ = rope_tables(THETAS["sliding_attention"], 64, 512)
    assert np.abs(cos - transformers_tables("full_attention", 512)[0]).max() > 0.1


def test_frequencies_must_be_rounded_as_pytorch_rounds_them() -> None:
    """Why rope.py rounds: exact frequencies are another model at position 8,191."""
    exact = 160_000.0 ** -(np.arange(0, 64, 2) / 64)
    cos = np.cos(np.arange(8192)[:, None] * exact)
    assert np.abs(cos - transformers_tables("full_attention", 8192)[0]).max() > 1e-5
