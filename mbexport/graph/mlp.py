"""The gated MLP: ``Wo(act(input) * gate)`` with [input, gate] = Wi(x)."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation, linear


def gated_mlp(b: GraphBuilder, x: ir.Value, path: str, act: str) -> ir.Value:
    """x [batch, sequence, hidden] -> [batch, sequence, hidden]."""
    both = linear(b, x, f"{path}.Wi")  # [batch, sequence, 2 * inner]
    value, gate = b.multi("Split", both, outputs=2, name="halves", axis=-1, num_outputs=2)
    return linear(b, b.op("Mul", activation(b, value, act), gate, name="gated"), f"{path}.Wo")
