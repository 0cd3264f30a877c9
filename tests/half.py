"""Half-precision graphs for tests, and checkpoints made hostile to them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.encoder import build_graph
from tests.checkpoints import edit_tensors

ENGINE_GRAPH = "onnx/engine.onnx"


def write_engine_graph(bundle: Path, spec: ModelSpec) -> None:
    """The graph that engines are built from, in float32: what it computes, apart from how it rounds."""
    initializers = ir.load(bundle / "onnx/model.onnx").graph.initializers
    tensors = {name: value.const_value for name, value in initializers.items() if value.const_value is not None}
    external = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}
    ir.save(build_graph(spec, external, "tensorrt", "0"), bundle / ENGINE_GRAPH)


def make_hostile(checkpoint: Path) -> None:
    """Rescale a checkpoint by powers of two so that it stays the same function in float32, and overflows in FP16.

    Queries against keys, values against the output projection, gates against the MLP's last
    projection, norms against what reads them, and the whole residual stream. Exact where
    norm_eps is too small to matter.
    """
    edit_tensors(checkpoint, _rescaled)


def _rescaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stream, norm, qk, values, gates = (2.0**power for power in (13, 13, 8, 14, 15))
    result = {name: tensor.clone() for name, tensor in tensors.items()}
    hidden = result["model.final_norm.weight"].numel()
    result["model.embeddings.tok_embeddings.weight"] /= 2.0**16  # normalized away
    result["model.embeddings.norm.weight"] *= stream
    for name, tensor in result.items():
        if name.endswith("attn.Wqkv.weight"):
            queries, keys, own_values = tensor.div_(stream if ".layers.0." in name else norm).split(hidden)
            queries.mul_(qk)
            keys.div_(qk)
            own_values.mul_(values)
        elif name.endswith("attn.Wo.weight"):
            tensor.mul_(stream / values)
        elif name.endswith("mlp.Wi.weight"):
            tensor.div_(norm)[len(tensor) // 2 :].mul_(gates)
        elif name.endswith("mlp.Wo.weight"):
            tensor.mul_(stream / gates)
        elif name.endswith(("attn_norm.weight", "mlp_norm.weight")):
            tensor.mul_(norm)
    return result
