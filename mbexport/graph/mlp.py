"""The gated MLP: ``Wo(act(input) * gate)``, input and gate the two halves of transformers' Wi(x)."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation
from mbexport.graph.products import Products
from mbexport.graph.sites import mlp_gated, mlp_input


def gated_mlp(b: GraphBuilder, products: Products, x: ir.Value, layer: str, act: str) -> ir.Value:
    """x [batch, sequence, hidden] -> [batch, sequence, hidden]; ``layer`` is ``layers.N``."""
    entered = products.enter(x, mlp_input(layer))
    input_matrix, gate_matrix = mlp_input(layer).matrices
    activated = activation(b, products.linear(entered, input_matrix), act)  # [batch, sequence, inner]
    gated = b.op("Mul", activated, products.linear(entered, gate_matrix), name="gated")
    return products.linear(products.enter(gated, mlp_gated(layer)), *mlp_gated(layer).matrices)
