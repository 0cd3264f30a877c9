"""Half-precision graphs for tests, and checkpoints made hostile to them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import torch

from mbexport.bundle.stored import external_tensors
from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.encoder import build_graph
from tests.checkpoints import edit_tensors
from tests.rescaling import Rescaling

ENGINE_GRAPH = "onnx/engine.onnx"


def write_engine_graph(bundle: Path, spec: ModelSpec) -> None:
    """The graph that engines are built from, in float32: what it computes, apart from how it rounds."""
    tensors = external_tensors(bundle / "onnx/model.onnx")
    ir.save(build_graph(spec, tensors, "tensorrt", "0"), bundle / ENGINE_GRAPH)


def make_hostile(checkpoint: Path) -> None:
    """Rescale a checkpoint by powers of two so that it stays the same function in float32, and overflows in FP16.

    Queries against keys, values against the output projection, gates against the MLP's last
    projection, norms against what reads them, the residual stream, the embeddings (which are
    normalized away, each row by itself), the head. Exact where norm_eps is too small to matter.
    """
    edit_tensors(checkpoint, _rescaled)


STREAM, NORM, QUERIES, VALUES, GATES = (2.0**power for power in (13, 13, 13, 14, 15))


def _rescaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {name: tensor.clone() for name, tensor in tensors.items()}
    has_head = any(name.startswith("head.") for name in result)
    for name, tensor in result.items():
        kind = name.removeprefix("model.").rpartition(".")[0]
        is_matrix = name.endswith("weight")
        if kind == "embeddings.tok_embeddings":
            tensor[::2].div_(2.0**16)
        elif kind == "embeddings.norm":
            tensor.mul_(STREAM)
        elif kind.endswith(("attn_norm", "mlp_norm")) or (kind == "final_norm" and has_head):
            tensor.mul_(NORM)
        elif kind.endswith("attn.Wqkv"):
            _rescale_attention(tensor, (STREAM if ".0." in name else NORM) if is_matrix else 1.0)
        elif kind.endswith("mlp.Wi"):
            tensor.div_(NORM if is_matrix else 1.0)[len(tensor) // 2 :].mul_(GATES)
        elif kind.endswith("attn.Wo"):
            tensor.mul_(STREAM / VALUES if is_matrix else STREAM)
        elif kind.endswith("mlp.Wo"):
            tensor.mul_(STREAM / GATES if is_matrix else STREAM)
        elif kind == "head.dense" and is_matrix:
            tensor.div_(NORM)
    return result


def _rescale_attention(tensor: torch.Tensor, entering: float) -> None:
    queries, keys, values = tensor.div_(entering).split(len(tensor) // 3)
    queries.mul_(QUERIES)
    keys.div_(QUERIES)
    values.mul_(VALUES)


def rescale_channels(checkpoint: Path, seed: int, span: int) -> None:
    """Each channel by a power of two of its own, up to 2**span either way; in float32 the function stays as it was.

    For untied models whose norm_eps is too small to matter.
    """
    heads = json.loads((checkpoint / "config.json").read_text())["num_attention_heads"]
    edit_tensors(checkpoint, lambda tensors: _Channels(tensors, seed, span).all(heads))


class _Channels(Rescaling):
    def __init__(self, tensors: dict[str, torch.Tensor], seed: int, span: int) -> None:
        super().__init__(tensors, seed)
        self._span = span
        self._hidden = len(self._weight("final_norm"))

    def all(self, heads: int) -> dict[str, torch.Tensor]:
        stream = self._powers(1)
        table = self._weight("embeddings.tok_embeddings")
        table.mul_(self._powers(len(table))[:, None])  # normalized away
        self._give("embeddings.norm", stream)
        for layer in self._layers:
            entering = stream if layer == self._layers[0] else self._powers(self._hidden)
            self._layer(layer, entering, stream, heads)
        if self._tensor("head.dense") is not None:
            final = self._powers(self._hidden)
            self._give("final_norm", final)
            self._give("head.dense", taken=final)
        return self._tensors

    def _layer(self, path: str, entering: torch.Tensor, stream: torch.Tensor, heads: int) -> None:
        self._give(f"{path}.attn_norm", entering)
        values, turns = self._powers(self._hidden), self._powers(heads).repeat_interleave(self._hidden // heads)
        self._give(f"{path}.attn.Wqkv", torch.cat([turns, 1 / turns, values]), entering)
        self._give(f"{path}.attn.Wo", stream, values)
        entering = self._powers(self._hidden)
        self._give(f"{path}.mlp_norm", entering)
        gates = self._powers(self._weight(f"{path}.mlp.Wo").shape[1])
        self._give(f"{path}.mlp.Wi", torch.cat([torch.ones_like(gates), gates]), entering)
        self._give(f"{path}.mlp.Wo", stream, gates)

    def _powers(self, count: int) -> torch.Tensor:
        return 2.0 ** torch.from_numpy(self._rng.integers(-self._span, self._span + 1, count)).float()
