"""The gated MLP: ``Wo(act(input) * gate)``, input and gate the two halves of transformers' Wi(x)."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder
from mbexport.graph.dialect import Dialect
from mbexport.graph.products import Products
from mbexport.graph.sites import mlp_gated, mlp_input


def gated_mlp(b: GraphBuilder, products: Products, dialect: Dialect, x: ir.Value, layer: str) -> ir.Value:
    """x [batch, sequence, hidden] -> [batch, sequence, hidden]; ``layer`` is ``layers.N``."""
    entered = products.enter(x, mlp_input(layer))
    input_matrix, gate_matrix = mlp_input(layer).matrices
    value = b.tap(products.linear(entered, input_matrix), input_matrix)  # [batch, sequence, inner]
    gate = b.tap(products.linear(entered, gate_matrix), gate_matrix)
    gated = b.tap(dialect.gated(value, gate), f"{layer}.mlp.gated")
    site = mlp_gated(layer)
    return b.tap(products.linear(products.enter(gated, site), *site.matrices), *site.matrices)
