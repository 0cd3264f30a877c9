"""The gated MLP: ``Wo(act(input) * gate)``, input and gate the two halves of transformers' Wi(x)."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation, linear, scaled


def gated_mlp(b: GraphBuilder, x: ir.Value, path: str, act: str) -> ir.Value:
    """x [batch, sequence, hidden] -> [batch, sequence, hidden]."""
    activated = activation(b, linear(b, x, f"{path}.Wi_input"), act)  # [batch, sequence, inner]
    gate = linear(b, x, f"{path}.Wi_gate")
    gated = scaled(b, b.op("Mul", activated, gate, name="gated"), f"{path}.gated")
    return linear(b, gated, f"{path}.Wo")
