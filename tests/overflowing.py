"""Checkpoints whose values overflow in float32 where a text holds one token: in PyTorch, and in every graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import CLASSIFIER, EXAMPLE, edit_tensors, save_checkpoint

BAD_TOKEN, BAD_TEXT = 3455, "a penalty"  # of the example's tokenizer: a text that holds the token
PADDING = 0  # the token that rows are padded with
UNIT = 5  # of the first MLP, which is 0 but where the token stands, and 1e37 there


def save_overflowing(directory: Path, token: int, architecture: str = CLASSIFIER, **config: Any) -> Path:
    """A random model with the example's tokenizer, all of whose weights are finite, and which is NaN at a token.

    The first channel tells the token from others; a unit of the first MLP reads it, GELU makes 0 of large negative
    values and leaves large positive ones, and what reads the unit overflows.
    """
    checkpoint = save_checkpoint(directory, architecture, **{"vocab_size": 5000, "norm_eps": 1e-5, **config})
    prefix = "" if architecture == "ModernBertModel" else "model."

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        table = tensors[f"{prefix}embeddings.tok_embeddings.weight"]
        table[:, 0] = -20
        table[token, 0] = 20
        layer = f"{prefix}layers.0.mlp"
        tensors[f"{prefix}embeddings.norm.weight"][0] = 1
        tensors[f"{layer}_norm.weight"][0] = 1
        tensors[f"{layer}.Wi.weight"][UNIT] = 0
        tensors[f"{layer}.Wi.weight"][UNIT, 0] = 1e37
        tensors[f"{layer}.Wo.weight"][:, UNIT] = 1e3
        return tensors

    edit_tensors(checkpoint, change)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    return checkpoint
