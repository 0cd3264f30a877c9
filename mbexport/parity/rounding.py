"""Half-precision graphs on a CPU, every value really rounded.

ONNX Runtime's CPU provider has no FP16 matrix product: it widens the operands, multiplies in
float32 and narrows the result, and where a cast up follows a cast down it drops both. What would
overflow or vanish on a GPU then passes. Here each value that is narrowed goes through an operator
that the CPU does have for FP16, so no cast down is dropped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from mbexport.parity.memory import MemoryGraph

HALF = ir.DataType.FLOAT16


class RoundedGraph(MemoryGraph):
    """An FP16 graph as it computes where FP16 is rounded to.

    Args:
        graph: the ONNX file.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """

    def __init__(self, graph: Path) -> None:
        super().__init__(with_barriers(ir.load(graph)), graph.parent)


def with_barriers(model: ir.Model) -> ir.Model:
    """The model with a Slice of everything behind each value that is narrowed; it computes the same."""
    graph = model.graph
    bounds = [
        ir.Value(name=f"barrier_{name}", const_value=ir.tensor(np.array([value], np.int64), name=f"barrier_{name}"))
        for name, value in (("start", 0), ("end", 2**40), ("axis", 0))
    ]
    for bound in bounds:
        graph.initializers.add(bound)
    for node in list(graph):
        if not _narrows(node):
            continue
        value = node.outputs[0]
        uses = list(value.uses())
        barrier = ir.node("Slice", [value, *bounds], name=f"{node.name}_barrier")
        graph.insert_after(node, barrier)
        for user, index in uses:
            user.replace_input_with(index, barrier.outputs[0])
    return model


def _narrows(node: ir.Node) -> bool:
    """Whether a node gives FP16: a cast, a product with an FP16 matrix, or attention."""
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == HALF
    if node.op_type in ("MatMul", "Gemm"):
        matrix = node.inputs[1]
        return matrix is not None and matrix.dtype == HALF
    return node.op_type == "Attention"
