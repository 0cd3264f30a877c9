"""Checkpoints rescaled so that single channels stand far out, and the function in float32 stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.checkpoints import edit_tensors
from tests.rescaling import Rescaling

LARGEST = 64.0  # powers of two, so that every product of float32 stays the same to the last bit


def blow_up(checkpoint: Path, seed: int = 0, channels: int = 3) -> None:
    """Multiply the strongest channels of every site by 32 or 64, and what reads them by its reciprocal.

    Norms against Wqkv, Wi and the head's matrices, values against the output projection, gates against the MLP's last
    projection, queries against keys. The first layer's attention reads the residual stream, no channel
    of which can be rescaled.
    """
    heads = json.loads((checkpoint / "config.json").read_text())["num_attention_heads"]
    edit_tensors(checkpoint, lambda tensors: _Outliers(tensors, seed, channels).all(heads))


class _Outliers(Rescaling):
    def __init__(self, tensors: dict[str, torch.Tensor], seed: int, channels: int) -> None:
        super().__init__(tensors, seed)
        self._channels = channels

    def all(self, heads: int) -> dict[str, torch.Tensor]:
        for layer in self._layers:
            self._layer(layer, heads, first=layer == self._layers[0])
        for norm, reader in (("final_norm", "head.dense"), ("head.norm", "classifier")):
            if self._tensor(reader) is not None:
                self._between(norm, reader)
        return self._tensors

    def _layer(self, path: str, heads: int, *, first: bool) -> None:
        if not first:
            self._between(f"{path}.attn_norm", f"{path}.attn.Wqkv")
        self._between(f"{path}.mlp_norm", f"{path}.mlp.Wi")
        queries, _, made = self._weight(f"{path}.attn.Wqkv").chunk(3)
        values, turns = self._factors(made), self._turns(queries, heads)
        self._give(f"{path}.attn.Wqkv", torch.cat([turns, 1 / turns, values]))
        self._give(f"{path}.attn.Wo", taken=values)
        gates = self._factors(self._weight(f"{path}.mlp.Wi").chunk(2)[1])
        self._give(f"{path}.mlp.Wi", torch.cat([torch.ones_like(gates), gates]))
        self._give(f"{path}.mlp.Wo", taken=gates)

    def _between(self, norm: str, reader: str) -> None:
        """Let channels stand out from a norm to the module that reads it."""
        factor = self._factors(self._weight(norm))
        self._give(norm, factor)
        self._give(reader, taken=factor)

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
