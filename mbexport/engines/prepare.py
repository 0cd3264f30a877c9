"""A graph file as TensorRT's parser gets it, and the attention layers in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mbexport.disk.external import check_external_data
from mbexport.engines.products import code_products
from mbexport.errors import BundleError

_LAYER = re.compile(r"layers\.(\d+)/")
_MASK = 3  # Attention's inputs are queries, keys, values, mask


@dataclass(frozen=True)
class AttentionNode:
    """An Attention node: its name, the model's layer that it is of, and that layer's kind.

    ``kind`` is ``global`` or ``local``. Layers of one kind have the same shapes and types, so
    TensorRT has a fused kernel for all of them or for none.
    """

    name: str
    layer: int
    kind: str


@dataclass(frozen=True)
class ParserInput:
    """A serialized graph, weights still in the file beside ``path``, and what should become of its nodes.

    ``attention``: its Attention nodes, in order; ``products``: those with codes, as ``code_products`` gives them.
    """

    path: Path
    model: bytes
    attention: tuple[AttentionNode, ...]
    products: dict[str, str]


def prepare(path: Path, layer_is_global: Sequence[bool]) -> ParserInput:
    """Read a graph, and give every Attention node its mask as it was before it was expanded.

    Args:
        path: the ONNX file.
        layer_is_global: the kind of each of the model's layers.

    Raises:
        BundleError: the file is missing or no graph of mbexport's, or names tensors in other places than beside it.
    """
    check_external_data(path, BundleError)
    try:
        model = ir.load(path)
        attention = tuple(_describe(node, layer_is_global) for node in attention_nodes(model))
        products = code_products(model)
        broadcast_masks(model)
        serialized = ir.to_proto(model).SerializeToString()
    except BundleError as cause:
        raise BundleError(f"{path}: {cause}") from cause
    except Exception as cause:  # protobuf's, onnx_ir's and the system's have no root in common
        raise BundleError(f"{path} cannot be read as an ONNX graph ({cause}); export again") from cause
    return ParserInput(path, serialized, attention, products)


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """The Attention nodes of a model, also those in branches, in the order of the file."""
    return [node for node in model.graph.all_nodes() if node.op_type == "Attention" and node.domain == ""]


def broadcast_masks(model: ir.Model) -> int:
    """Undo, in place, the Expand before each Attention's mask; returns how many there were.

    The file holds [batch, 1, sequence, sequence], every row the same, because ONNX Runtime
    refuses a mask that is to be broadcast over queries. TensorRT broadcasts [batch, 1, 1, sequence]
    by itself, and would keep all of the expanded one in memory: 4.3 GB of FP16 at 32x8192.
    """
    undone = 0
    for node in attention_nodes(model):
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        producer = None if mask is None else mask.producer()
        if producer is not None and producer.op_type == "Expand":
            node.replace_input_with(_MASK, producer.inputs[0])
            undone += 1
    RemoveUnusedNodesPass()(model)
    return undone


def _describe(node: ir.Node, layer_is_global: Sequence[bool]) -> AttentionNode:
    name = node.name or ""
    match = _LAYER.search(name)
    if match is None or int(match[1]) >= len(layer_is_global):
        raise BundleError(f"the Attention node {name!r:.80} is of none of the model's {len(layer_is_global)} layers")
    layer = int(match[1])
    return AttentionNode(name, layer, "global" if layer_is_global[layer] else "local")
