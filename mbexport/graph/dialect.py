"""What a dialect has to provide: the few blocks that differ between runtimes."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder


class Dialect(Protocol):
    """Attention and residual-plus-norm, as one runtime computes them best.

    One object serves one graph: it is given the mask first and keeps what layers share.
    """

    def __init__(self, b: GraphBuilder, spec: ModelSpec, attention_mask: ir.Value) -> None:
        """Build what all layers share.

        Args:
            b: the graph.
            spec: the model.
            attention_mask: bool [batch, sequence], true for real tokens.
        """

    def attention(self, qkv: ir.Value, *, is_global: bool) -> ir.Value:
        """qkv [batch, sequence, 3 * hidden] -> the attended values [batch, sequence, hidden]."""

    def add_norm(self, hidden: ir.Value, update: ir.Value, norm: str) -> tuple[ir.Value, ir.Value]:
        """(layer norm of the sum, the sum), each [batch, sequence, hidden].

        Args:
            hidden: the residual stream.
            update: what a block adds to it.
            norm: path of the norm's weights.
        """
