"""Checkpoints rescaled so that single channels stand far out, and the function in float32 stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.checkpoints import edit_tensors

LARGEST = 64.0  # powers of two, so that every product of float32 stays the same to the last bit


def blow_up(checkpoint: Path, seed: int = 0, channels: int = 3) -> None:
    """Multiply the strongest channels of every site by 32 or 64, and what reads them by its reciprocal.

    Norms against Wqkv, Wi and the head's matrices, values against the output projection, gates against the MLP's last
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
        for norm, reader in ((f"{self._prefix}final_norm", "head.dense"), ("head.norm", "classifier")):
            if f"{reader}.weight" in self._tensors:
                factor = self._factors(self._tensors[f"{norm}.weight"])
                self._tensors[f"{norm}.weight"].mul_(factor)
                self._tensors[f"{reader}.weight"].div_(factor)
        return self._tensors

    def _layer(self, path: str, heads: int, *, first: bool) -> None:
        qkv, wo = self._weight(f"{path}.attn.Wqkv"), self._weight(f"{path}.attn.Wo")
        wi, mlp_wo = self._weight(f"{path}.mlp.Wi"), self._weight(f"{path}.mlp.Wo")
        hidden, inner = qkv.shape[1], mlp_wo.shape[1]
        if not first:
            factor = self._factors(self._weight(f"{path}.attn_norm"))
            self._weight(f"{path}.attn_norm").mul_(factor)
            qkv.div_(factor)
        factor = self._factors(self._weight(f"{path}.mlp_norm"))
        self._weight(f"{path}.mlp_norm").mul_(factor)
        wi.div_(factor)
        values, turns = self._factors(qkv[2 * hidden :]), self._turns(qkv[:hidden], heads)
        qkv.mul_(torch.cat([turns, 1 / turns, values])[:, None])
        wo.div_(values)
        gates = self._factors(wi[inner:])
        wi.mul_(torch.cat([torch.ones(inner), gates])[:, None])
        mlp_wo.div_(gates)

    def _weight(self, module: str) -> torch.Tensor:
        return self._tensors[f"{self._prefix}{module}.weight"]

    def _factors(self, makers: torch.Tensor) -> torch.Tensor:
        """One for each of a tensor's first axis, which makes the channels."""
        sizes = makers.reshape(len(makers), -1).norm(dim=1)
        factor = torch.ones(len(sizes))
        drawn = self._rng.choice([LARGEST / 2, LARGEST], self._channels)
        factor[sizes.topk(self._channels).indices] = torch.from_numpy(drawn).float()
        return factor

    def _turns(self, queries: torch.Tensor, heads: int) -> torch.Tensor:
        """The same for both channels of a rotated pair, which lie half a head apart."""
        by_head = queries.reshape(heads, 2, -1, queries.shape[1])
        pairs = self._factors(by_head.transpose(1, 2).flatten(0, 1)).reshape(heads, 1, -1)
        return pairs.expand(-1, 2, -1).reshape(len(queries))
