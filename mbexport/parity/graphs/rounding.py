"""Half-precision graphs on a CPU, every value really rounded.

ONNX Runtime's CPU provider has no FP16 matrix product: it widens the operands, multiplies in
float32 and narrows the result, and where a cast up follows a cast down it drops both. What would
overflow or vanish on a GPU then passes. Here each value that is narrowed goes through an operator
that the CPU does have for FP16, so no cast down is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mbexport.parity.graphs.memory import MemoryGraph

HALF = ir.DataType.FLOAT16
# Operators that only move values, or make none of their own: nothing is narrowed there.
MOVING = frozenset(
    {"Concat", "Constant", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape", "Slice", "Split",
     "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip


class RoundedGraph(MemoryGraph):
    """An FP16 graph as it computes where FP16 is rounded to.

    Args:
        graph: the ONNX file.
        is_foreign: somebody else made it, and anything may be FP16 in it.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """

    def __init__(self, graph: Path, *, is_foreign: bool = False) -> None:
        super().__init__(rounded(ir.load(graph), is_foreign=is_foreign), graph.parent)


def rounded(model: ir.Model, *, is_foreign: bool = False) -> ir.Model:
    """A model that is FP16 where a GPU's would be.

    Args:
        model: the model, which is changed.
        is_foreign: somebody else made it, and anything may be FP16 in it.
    """
    return with_barriers(_with_types(model), _is_half) if is_foreign else with_barriers(model)


def with_barriers(model: ir.Model, narrows: Callable[[ir.Node], bool] | None = None) -> ir.Model:
    """The model with a Slice of everything behind each value that is narrowed; it computes the same.

    Args:
        model: the model, which is changed.
        narrows: whether the first output of a node is narrowed; None for what is so in graphs of mbexport's.
    """
    graph, narrows = model.graph, narrows or _narrows
    bounds = [
        ir.Value(name=f"barrier_{name}", const_value=ir.tensor(np.array([value], np.int64), name=f"barrier_{name}"))
        for name, value in (("start", 0), ("end", 2**40), ("axis", 0))
    ]
    for bound in bounds:
        graph.initializers.add(bound)
    for node in list(graph):
        if not narrows(node):
            continue
        value = node.outputs[0]
        uses = list(value.uses())
        barrier = ir.node("Slice", [value, *bounds], name=f"{node.name}_barrier")
        graph.insert_after(node, barrier)
        for user, index in uses:
            user.replace_input_with(index, barrier.outputs[0])
    return model


def _with_types(model: ir.Model) -> ir.Model:
    """The model with the types and ranks of all values that can be told."""
    from onnx_ir.passes.common import ShapeInferencePass

    return ShapeInferencePass()(model).model


def _is_half(node: ir.Node) -> bool:
    """Whether a node computes FP16 values; of single numbers, which have no axis to slice, the CPU keeps its own."""
    value = node.outputs[0]
    return value.dtype == HALF and node.op_type not in MOVING and value.shape is not None and len(value.shape) > 0


def _narrows(node: ir.Node) -> bool:
    """Whether a node gives FP16: a cast, a product with an FP16 matrix, or attention."""
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == HALF
    if node.op_type in ("MatMul", "Gemm"):
        matrix = node.inputs[1]
        return matrix is not None and matrix.dtype == HALF
    return node.op_type == "Attention"
