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
