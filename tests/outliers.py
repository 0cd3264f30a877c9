"""Checkpoints rescaled so that single channels stand far out, and the function in float32 stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.checkpoints import edit_tensors

LARGEST = 64.0  # powers of two, so that every product of float32 stays the same to the last bit


def blow_up(checkpoint: Path, seed: int = 0, channels: int = 3) -> None:
    """Multiply single channels of every site by 32 or 64, and what reads them by its reciprocal.

    Norms against Wqkv and Wi, values against the output projection, gates against the MLP's last
    projection, queries against keys. The first layer's attention reads the residual stream, no channel
    of which can be rescaled. For models without norm biases.
    """
    heads = json.loads((checkpoint / "config.json").read_text())["num_attention_heads"]
    edit_tensors(checkpoint, lambda tensors: _Outliers(tensors, np.random.default_rng(seed), channels).all(heads))


class _Outliers:
    def __init__(self, tensors: dict[str, torch.Tensor], rng: np.random.Generator, channels: int) -> None:
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self._prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
        self._rng, self._channels = rng, channels

    def all(self, heads: int) -> dict[str, torch.Tensor]:
        for layer in range(sum(name.endswith("mlp.Wo.weight") for name in self._tensors)):
            self._layer(f"layers.{layer}", heads, first=layer == 0)
        return self._tensors

    def _layer(self, path: str, heads: int, *, first: bool) -> None:
        qkv, wo = self._weight(f"{path}.attn.Wqkv"), self._weight(f"{path}.attn.Wo")
        wi, mlp_wo = self._weight(f"{path}.mlp.Wi"), self._weight(f"{path}.mlp.Wo")
        hidden, inner = qkv.shape[1], mlp_wo.shape[1]
        if not first:
            factor = self._factors(hidden)
            self._weight(f"{path}.attn_norm").mul_(factor)
            qkv.div_(factor)
        factor = self._factors(hidden)
        self._weight(f"{path}.mlp_norm").mul_(factor)
        wi.div_(factor)
        values, turns = self._factors(hidden), self._turns(hidden, heads)
        qkv.mul_(torch.cat([turns, 1 / turns, values])[:, None])
        wo.div_(values)
        gates = self._factors(inner)
        wi.mul_(torch.cat([torch.ones(inner), gates])[:, None])
        mlp_wo.div_(gates)

    def _weight(self, module: str) -> torch.Tensor:
        return self._tensors[f"{self._prefix}{module}.weight"]

    def _factors(self, count: int) -> torch.Tensor:
        factor = torch.ones(count)
        chosen = self._rng.choice(count, self._channels, replace=False)
        factor[chosen] = torch.from_numpy(self._rng.choice([LARGEST / 2, LARGEST], self._channels)).float()
        return factor

    def _turns(self, hidden: int, heads: int) -> torch.Tensor:
        """The same for both channels of a rotated pair, which lie half a head apart."""
        pairs = self._factors(hidden // 2).reshape(heads, 1, -1)
        return pairs.expand(-1, 2, -1).reshape(hidden)
